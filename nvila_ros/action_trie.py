# SPDX-License-Identifier: Apache-2.0
"""The ten sentences as a tree of tokens: what a model without room for doubt may answer."""

from __future__ import annotations

from nvila_ros.actions import ACTIONS
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.models.trie import TokenTrie


class ActionTrie(TokenTrie):
    """The ten sentences as token sequences, in the order of ACTIONS, for constrained decoding."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__([tokenizer.encode(action.sentence) for action in ACTIONS])

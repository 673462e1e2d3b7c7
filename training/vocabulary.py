# SPDX-License-Identifier: Apache-2.0
"""The small model's words: what the simulator and the questions about views can say."""

from __future__ import annotations

from nvila_ros.models.config import nano_config
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.sim.instructions import VOCABULARY_WORDS
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer
from nvila_ros.training.questions import question_words
from nvila_ros.training.sequences import SequenceBuilder


def build_tokenizer() -> Tokenizer:
    """One token per word of the simulator and the questions, bytes for the rest."""
    return build_nano_tokenizer(sorted({*VOCABULARY_WORDS, *question_words()}))


def build_sequences() -> SequenceBuilder:
    """The sequences of the small model; every process that trains it builds the same."""
    tokenizer = build_tokenizer()
    return SequenceBuilder(tokenizer, nano_config(tokenizer.vocab_size))

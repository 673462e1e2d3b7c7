# SPDX-License-Identifier: Apache-2.0
"""The small model's words: what the simulator and the questions about views can say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from nvila_ros.errors import ConfigError
from nvila_ros.models.config import nano_config
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.sim.instructions import VOCABULARY_WORDS
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer
from nvila_ros.training.questions import question_words
from nvila_ros.training.sequences import SequenceBuilder


def build_tokenizer() -> Tokenizer:
    """One token per word of the simulator and the questions, bytes for the rest."""
    return build_nano_tokenizer(sorted({*VOCABULARY_WORDS, *question_words()}))


def build_sequences(network: Mapping[str, int | str] | None = None) -> SequenceBuilder:
    """The sequences of the small model; every process that trains it builds the same.

    `network` changes fields of `nano_config`, for ablations; ConfigError names an unknown one.
    """
    tokenizer = build_tokenizer()
    config = nano_config(tokenizer.vocab_size)
    known = ("num_video_frames", "mm_projector_type")
    for name in network or {}:
        if name not in known:
            raise ConfigError(f"network: unknown key {name!r}; expected one of {', '.join(known)}")
    return SequenceBuilder(tokenizer, dataclasses.replace(config, **dict(network or {})))

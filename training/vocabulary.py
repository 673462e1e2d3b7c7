# SPDX-License-Identifier: Apache-2.0
"""The small model's words: what the simulator and the questions about views can say."""

from __future__ import annotations

import dataclasses

from nvila_ros.models.config import nano_config
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.sim.instructions import VOCABULARY_WORDS
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer
from nvila_ros.training.questions import question_words
from nvila_ros.training.sequences import SequenceBuilder


def build_tokenizer() -> Tokenizer:
    """One token per word of the simulator and the questions, bytes for the rest."""
    return build_nano_tokenizer(sorted({*VOCABULARY_WORDS, *question_words()}))


@dataclasses.dataclass(frozen=True)
class NetworkShape:
    """What ablations may change of `nano_config`."""

    num_video_frames: int = 8
    mm_projector_type: str = "mlp_downsample_3x3_fix"


def build_sequences(shape: NetworkShape | None = None) -> SequenceBuilder:
    """The sequences of the small model; every process that trains it builds the same."""
    tokenizer = build_tokenizer()
    config = nano_config(tokenizer.vocab_size)
    changes = dataclasses.asdict(shape or NetworkShape())
    return SequenceBuilder(tokenizer, dataclasses.replace(config, **changes))

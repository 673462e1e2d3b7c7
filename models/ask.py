# SPDX-License-Identifier: Apache-2.0
"""Free questions: about pictures or a video, answered in free text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nvila_ros.errors import CheckpointError, ConfigError, InstructionError
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.inputs import FusedInput, prepare, prepare_video
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.prompt import IMAGE_TOKEN, VIDEO_TOKEN, check_text
from nvila_ros.models.runtime_backend import InferenceEngine, as_engine
from nvila_ros.models.temporal import frames_multiple, time_pattern, times_in
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.models.video import read_clip


def ask_pictures(
    model: Nvila | InferenceEngine,
    tokenizer: Tokenizer,
    pictures: Sequence[Image.Image | np.ndarray],
    question: str,
    max_new_tokens: int,
) -> dict[str, Any]:
    """The answer about pictures, shown in order before the question."""
    check_text(question, tokenizer.special_tokens)
    message = f"{IMAGE_TOKEN}{_separator(model.config)}" * len(pictures) + question
    fused = prepare(model, tokenizer, message, pictures)
    answer = _answer(model, tokenizer, fused, max_new_tokens)
    return {"answer": answer, "num_images": len(pictures)}


def ask_video(
    model: Nvila | InferenceEngine,
    tokenizer: Tokenizer,
    path: Path,
    question: str,
    max_new_tokens: int,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
) -> dict[str, Any]:
    """The answer about a video; times that the answer names by tokens are given in seconds.

    Without `num_frames` and `fps` the checkpoint's own hold. Its rate says nothing about a folder
    of frames, which are always spread evenly.
    """
    config = model.config
    if fps is None:
        fps = 0.0 if path.is_dir() else config.video_rate_hz
    check_text(_without_times(question, config, tokenizer), tokenizer.special_tokens)
    clip = read_clip(path, num_frames or config.num_video_frames, fps)
    multiple = frames_multiple(config)
    if len(clip.frames) % multiple:
        raise ConfigError(
            f"got {len(clip.frames)} frames of {path}; this checkpoint pools over time and "
            f"needs a multiple of {multiple}, set by --frames"
        )
    message = f"{VIDEO_TOKEN}{_separator(config)}{question}"
    fused = prepare_video(model, tokenizer, message, clip.frames)
    answer = _answer(model, tokenizer, fused, max_new_tokens)
    result = {"answer": answer, "num_frames": len(clip.frames), "frame_indices": [*clip.indices]}
    if clip.duration_s is not None:
        result["duration_s"] = clip.duration_s
        result["times_s"] = times_in(answer, config, clip.duration_s)
    return result


def _separator(config: NvilaConfig) -> str:
    """What stands between media and text: nothing where the network itself ends each frame."""
    return "" if config.frame_end_text else "\n"


def _answer(
    model: Nvila | InferenceEngine, tokenizer: Tokenizer, fused: FusedInput, max_new_tokens: int
) -> str:
    ids = as_engine(model).generate_greedy(
        fused.input_ids,
        fused.media,
        max_new_tokens=max_new_tokens,
        stop_ids=tokenizer.stop_ids,
    )
    return tokenizer.decode(ids).strip()


def _without_times(question: str, config: NvilaConfig, tokenizer: Tokenizer) -> str:
    """The question without the time tokens that this checkpoint knows: they may be asked about."""
    pattern = time_pattern(config)
    if pattern is None:
        return question

    def check(match: re.Match[str]) -> str:
        if int(match.group(1)) >= config.num_time_tokens:
            raise InstructionError(
                f"the question names {match.group()}, this checkpoint has times from 0 to "
                f"{config.num_time_tokens - 1}"
            )
        if tokenizer.id(match.group()) >= config.language.vocab_size:
            raise CheckpointError(
                f"{match.group()} lies beyond the decoder's {config.language.vocab_size} rows; "
                "the checkpoint was not trained with time tokens"
            )
        return " "

    return pattern.sub(check, question)

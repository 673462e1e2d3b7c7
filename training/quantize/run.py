# SPDX-License-Identifier: Apache-2.0
"""`nvila quantize`: a float checkpoint in, one with an int8 tower and an int4 decoder out."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.models.config import NvilaConfig, QuantizationConfig
from nvila_ros.models.config_files import load_config
from nvila_ros.models.language import LanguageModel
from nvila_ros.models.runtime_backend import usable_device
from nvila_ros.models.runtime_memory import is_out_of_memory
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.quantize import autoawq_backend, finish
from nvila_ros.training.quantize.decoder import DecoderStage
from nvila_ros.training.quantize.recordings import RecordedPrompt, parse_calibration, record
from nvila_ros.training.quantize.tower import TowerStage
from nvila_ros.training.quantize.workplace import Workplace, digest

VISION_SCHEMES = ("w8a8", "none")
LANGUAGE_SCHEMES = ("w4a16", "none")
BACKENDS = ("own", "autoawq")
DEFAULT_CALIBRATION = "700000:700032"

FULL_DISK = "No space left on device"  # as safetensors says it

OnProgress = Callable[[str, int, int], None]  # what was done, steps done, steps in all


@dataclass(frozen=True, kw_only=True)
class QuantizeJob:
    """What to make of which checkpoint, and from which prompts."""

    model: Path
    target: Path
    vision: str = "w8a8"
    language: str = "w4a16"
    calibration: str = DEFAULT_CALIBRATION
    prompts_per_episode: int = 2
    backend: str = "own"
    has_feedback: bool = False  # rounding errors of a column go to the columns after it
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, known in (
            ("vision", VISION_SCHEMES),
            ("language", LANGUAGE_SCHEMES),
            ("backend", BACKENDS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        if self.vision == "none" and self.language == "none":
            raise ConfigError("neither tower nor decoder is to be quantized; ask for one of them")


def quantize(
    job: QuantizeJob, on_progress: OnProgress = lambda what, done, total: None
) -> dict[str, Any]:
    """Write `job.target`, which appears when it is complete; returns the report inside it.

    A run that was killed goes on from its last whole layer and writes the same bytes.
    """
    config = check(job)
    calibration = parse_calibration(job.calibration)
    autoawq_backend.check(job.backend)
    usable_device(job.device)
    if job.target.exists():
        if not job.target.is_dir() or any(job.target.iterdir()):
            raise ConfigError(f"{job.target} exists already; give a folder that is new or empty")
        job.target.rmdir()
    job.target.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _run(job, config, calibration, on_progress)
    except (OSError, SafetensorError) as error:
        is_full = getattr(error, "errno", None) == errno.ENOSPC or FULL_DISK in str(error)
        if not is_full:
            raise
        raise ConfigError(
            f"the disk of {job.target.parent} is full; free some space and run the same command "
            "again: it goes on where it stopped"
        ) from None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"{job.device} has too little memory for the search in one layer; close what else "
            "uses it and run the same command again (it goes on where it stopped), or take "
            "--device cpu and another --out"
        ) from error


def check(job: QuantizeJob) -> NvilaConfig:
    """Read the configuration; refuse what cannot be quantized, by the name of the layer."""
    if not job.model.is_dir():
        raise CheckpointError(f"{job.model} is no folder; give the folder of a checkpoint")
    config = load_config(job.model)
    for part, found in (
        ("llm", config.language.quantization),
        ("vision_tower", config.vision.quantization),
    ):
        if found is not None:
            raise CheckpointError(
                f"{job.model / part} is quantized already; quantize the float checkpoint"
            )
    if job.language == "w4a16":
        try:
            with torch.device("meta"):
                LanguageModel(
                    replace(config.language, quantization=QuantizationConfig(layout="awq_gemm"))
                )
        except CheckpointError as error:
            raise CheckpointError(f"{error}, or keep the decoder with --language none") from None
    return config


def _run(
    job: QuantizeJob,
    config: NvilaConfig,
    calibration: Path | tuple[int, ...],
    on_progress: OnProgress,
) -> dict[str, Any]:
    workplace = Workplace(job.target, plan(job))
    num_layers = config.vision.num_hidden_layers + config.language.num_hidden_layers
    is_packed = job.language == "w4a16"
    total = num_layers + 1 if is_packed else config.vision.num_hidden_layers + 1
    done = 0

    def on_layer(what: str) -> None:
        nonlocal done
        done += 1
        on_progress(what, done, total)

    prompts = record(
        workplace.folder / "calibration",
        calibration,
        job.prompts_per_episode,
        lambda number, count: on_progress(f"recording episode {number} of {count}", 0, total),
    )
    folder = calibration if isinstance(calibration, Path) else None
    source = folder if folder and folder.is_dir() else workplace.folder / "calibration"
    frames, frame_of = unique_frames(source, prompts, config.vision.image_size)
    require_space(workplace.folder, config, len(frames), len(prompts))
    device = usable_device(job.device)
    tower = TowerStage(job.model, config, workplace, device, is_quantized=job.vision == "w8a8")
    tower.run(frames, on_layer)
    if is_packed:
        tokenizer = Tokenizer.load(job.model / "llm")
        tokenizer.add_tokens(
            config.time_token_format.format(t=index) for index in range(config.num_time_tokens)
        )
        stage = DecoderStage(job.model, config, workplace, device, has_feedback=job.has_feedback)
        stage.embed(tokenizer, prompts, frame_of)
        if job.backend == "autoawq":
            stage.pack_with_autoawq(job.model / "llm")
        stage.run(on_layer)
    report = finish.write(
        workplace,
        job.model,
        job.target,
        config,
        has_int8=job.vision == "w8a8",
        has_int4=is_packed,
        settings={**plan(job), "num_prompts": len(prompts), "num_frames": len(frames)},
    )
    on_layer("done")
    return report


def plan(job: QuantizeJob) -> dict[str, Any]:
    """What the bytes of the result depend on."""
    return {
        "model": digest(job.model),
        "vision": job.vision,
        "language": job.language,
        "calibration": job.calibration,
        "prompts_per_episode": job.prompts_per_episode,
        "backend": job.backend,
        "has_feedback": job.has_feedback,
        "device": usable_device(job.device).type,
    }


def unique_frames(
    folder: Path, prompts: Sequence[RecordedPrompt], side_px: int
) -> tuple[list[Image.Image], dict[str | None, int]]:
    """Every picture that a prompt shows, once, black first; and the place of each name."""
    black = Image.fromarray(np.zeros((side_px, side_px, 3), np.uint8))
    names = sorted({name for prompt in prompts for name in prompt.frames if name is not None})
    frames = [black]
    for name in names:
        with Image.open(folder / name) as image:
            frames.append(image.convert("RGB"))
    return frames, {None: 0, **{name: number + 1 for number, name in enumerate(names)}}


def require_space(folder: Path, config: NvilaConfig, num_frames: int, num_prompts: int) -> None:
    """Refuse early what would not fit: activations of two layers, and the result."""
    vision, language = config.vision, config.language
    patches = num_frames * vision.grid_side**2 * vision.hidden_size
    tokens = num_prompts * (config.num_video_frames * config.tokens_per_frame + 200)
    activations = 2 * 4 * max(patches, tokens * language.hidden_size)
    per_layer = 2 * language.hidden_size * (language.hidden_size + 2 * language.intermediate_size)
    weights = language.num_hidden_layers * per_layer + 4 * language.vocab_size * (
        language.hidden_size
    )
    needed = activations + weights
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"about {needed / 1e9:.1f} GB are needed in {folder.parent}, {free / 1e9:.1f} GB are "
            "free; free some space or calibrate on fewer episodes"
        )

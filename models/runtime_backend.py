# SPDX-License-Identifier: Apache-2.0
"""Which engine answers: the fast kernels, or plain torch. Node, `ask` and `simulate` ask here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from nvila_ros.errors import ConfigError, KernelError
from nvila_ros.kernels import build
from nvila_ros.models import generate, weights
from nvila_ros.models.allocator import keep_freed_memory
from nvila_ros.models.config_files import load_config
from nvila_ros.models.generate import Choice
from nvila_ros.models.inputs import Network
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.runtime import Engine
from nvila_ros.models.runtime_memory import is_out_of_memory, out_of_memory, too_little
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.models.trie import TokenTrie
from nvila_ros.models.vision_engine import with_vision_backend

BACKENDS = ("auto", "torch", "kernels")

_log = logging.getLogger(__name__)


class InferenceEngine(Network, Protocol):
    """What policy and questions need, whoever computes it."""

    def catch_up(self) -> None:
        """Does what makes later calls faster, while nobody waits."""

    def choose(
        self,
        input_ids: Sequence[int] | Tensor,
        media: Sequence[Tensor] | Tensor,
        trie: TokenTrie,
        allowed: Collection[int] | None = None,
    ) -> Choice:
        """See `generate.choose`."""

    def generate_greedy(
        self,
        input_ids: Sequence[int] | Tensor,
        media: Sequence[Tensor] | Tensor = (),
        *,
        max_new_tokens: int = 32,
        stop_ids: Collection[int] = (),
    ) -> list[int]:
        """See `generate.generate_greedy`."""


class TorchEngine:
    """The network itself, layer by layer in plain torch: the reference, on any device."""

    name = "torch"

    def __init__(self, model: Nvila) -> None:
        self.model = model.eval()
        self.config = model.config
        self.newline_token_ids = model.newline_token_ids

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are."""
        return self.model.dtype

    @torch.inference_mode()
    def encode_frames(self, pixels: Tensor) -> Tensor:
        """See `Nvila.encode_frames`."""
        with out_of_memory(self.config, self.device, len(pixels)):
            return self.model.encode_frames(pixels)

    @torch.inference_mode()
    def encode_tiles(self, pixels: Tensor, block: tuple[int, int]) -> Tensor:
        """See `Nvila.encode_tiles`."""
        with out_of_memory(self.config, self.device, self.config.num_video_frames):
            return self.model.encode_tiles(pixels, block)

    @torch.inference_mode()
    def embed_text(self, ids: Sequence[int]) -> Tensor:
        """See `Nvila.embed_text`."""
        return self.model.embed_text(ids)

    def catch_up(self) -> None:
        """There is nothing to do."""

    def choose(
        self,
        input_ids: Sequence[int] | Tensor,
        media: Sequence[Tensor] | Tensor,
        trie: TokenTrie,
        allowed: Collection[int] | None = None,
    ) -> Choice:
        """See `generate.choose`."""
        with out_of_memory(self.config, self.device, self.config.num_video_frames):
            return generate.choose(self.model, input_ids, media, trie, allowed)

    def generate_greedy(
        self,
        input_ids: Sequence[int] | Tensor,
        media: Sequence[Tensor] | Tensor = (),
        *,
        max_new_tokens: int = 32,
        stop_ids: Collection[int] = (),
    ) -> list[int]:
        """See `generate.generate_greedy`."""
        with out_of_memory(self.config, self.device, self.config.num_video_frames):
            return generate.generate_greedy(
                self.model, input_ids, media, max_new_tokens=max_new_tokens, stop_ids=stop_ids
            )


def as_engine(model: Nvila | InferenceEngine) -> InferenceEngine:
    """A bare network answers in plain torch."""
    return TorchEngine(model) if isinstance(model, Nvila) else model


def load_engine(
    folder: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    backend: str = "auto",
    vision_backend: str = "auto",
    num_frames: int | None = None,
    quantizes: bool = False,
    on_notice: Callable[[str], None] = _log.warning,
) -> tuple[InferenceEngine, Tokenizer]:
    """A checkpoint folder -> what answers from it on this device, and its tokenizer.

    `on_notice` is told what was not used although it was there or wanted, and why.
    `vision_backend` may put an exported tower in place of the engine's own (`vision_engine`).
    CheckpointError for a folder that cannot be used, ConfigError for a device or backend that
    cannot be had or is too small.
    """
    place = usable_device(device)
    name, reason = choose_backend(backend, place)
    if quantizes and name == "torch":
        raise ConfigError(
            f"rounding weights at load needs the kernels backend, got torch ({reason}); "
            "quantize the checkpoint with `nvila quantize`"
        )
    _log.info("backend %s on %s: %s", name, place, reason)
    if place.type == "cpu":
        keep_freed_memory()
    model, tokenizer = _load(folder, place, dtype, num_frames)
    frames = num_frames or model.config.num_video_frames
    if name == "kernels":
        try:
            engine = Engine.from_model(model, max_frames=frames, quantizes=quantizes, releases=True)
            return with_vision_backend(engine, folder, vision_backend, on_notice), tokenizer
        except KernelError as error:
            if backend == "kernels" or quantizes:
                raise
            on_notice(f"{error}: plain torch answers instead of the fast kernels")
        model, tokenizer = _load(folder, place, dtype, num_frames)  # packing has used it up
    engine = with_vision_backend(TorchEngine(model), folder, vision_backend, on_notice)
    return engine, tokenizer


def _load(
    folder: Path | str, place: torch.device, dtype: torch.dtype | None, num_frames: int | None
) -> tuple[Nvila, Tokenizer]:
    try:
        return weights.load(folder, place, dtype)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        config = load_config(folder)
        raise too_little(config, place, num_frames or config.num_video_frames) from error


def usable_device(device: torch.device | str) -> torch.device:
    """'auto' is a CUDA GPU where there is one; a GPU that is not there is a ConfigError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"device is {device!r}; auto, cpu, cuda or cuda:1 is expected ({error})"
        ) from None
    if place.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (place.index or 0) >= count:
            raise ConfigError(
                f"device is {str(device)!r}, torch {torch.__version__} sees {count} CUDA GPUs; "
                "use cpu or auto, or install the driver and torch's CUDA wheels"
            )
    return place


def choose_backend(name: str, device: torch.device) -> tuple[str, str]:
    """'torch' or 'kernels', and why; ConfigError where what was asked for cannot be had."""
    if name not in BACKENDS:
        raise ConfigError(f"backend is {name!r}; one of {', '.join(BACKENDS)} is expected")
    if name == "torch":
        return name, "as asked"
    problem = why_no_kernels(device)
    if problem is None:
        reason = "as asked" if name == "kernels" else torch.cuda.get_device_name(device)
        return "kernels", reason
    if name == "kernels" and device.type != "cpu":
        raise ConfigError(f"backend is 'kernels', but {problem}; use torch or auto")
    if name == "kernels":
        return name, "as asked; without a GPU these are the slow twins, meant for tests"
    if device.type != "cpu":
        _log.warning("%s: plain torch answers instead of the fast kernels", problem)
    return "torch", problem


def why_no_kernels(device: torch.device) -> str | None:
    """What keeps the fast kernels from this device; None where nothing does."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    try:
        build.require(device.index or 0)
    except KernelError as error:
        return str(error)
    return None

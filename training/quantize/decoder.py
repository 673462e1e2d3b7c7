# SPDX-License-Identifier: Apache-2.0
"""The decoder, layer by layer: calibration prompts pass through the disk, int4 layers come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvila_ros.kernels import packing
from nvila_ros.kernels.packing import Int4Weight
from nvila_ros.kernels.reference import dequantize_int4
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.language import LanguageLayer, rotary_table
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.prompt import navigation_prompt, user_prompt
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.quantize import autoawq_backend, awq
from nvila_ros.training.quantize.recordings import RecordedPrompt
from nvila_ros.training.quantize.rounding import rounded
from nvila_ros.training.quantize.statistics import Recorder
from nvila_ros.training.quantize.stored import StoredPart, to_half
from nvila_ros.training.quantize.tower import FEATURES
from nvila_ros.training.quantize.workplace import Workplace

LENGTHS = "prompt_lengths.json"
KEPT_ROWS = 4096  # tokens that the search looks at
STRIDE_WIDTH = 1024  # of wider decoders the search takes fewer tokens into the MLP
# Up to here errors are fed back, which takes a (K, K) inverse: an 8B's widest only on a GPU.
MOST_INPUTS = {False: 9216, True: 32768}
EMBEDDING = "model.embed_tokens.weight"


class DecoderStage:
    """Runs the calibration prompts through each layer and packs it on the way."""

    def __init__(
        self,
        model: Path,
        config: NvilaConfig,
        workplace: Workplace,
        device: torch.device,
        *,
        has_feedback: bool,
    ) -> None:
        self._config = config
        self._language = replace(config.language, quantization=None)
        self._workplace = workplace
        self._device = device
        self._most_inputs = MOST_INPUTS[device.type == "cuda"] if has_feedback else 0
        self._part = StoredPart(model / "llm")
        self._ready_made: StoredPart | None = None  # what another tool has packed
        self._lengths: list[int] = []

    def run(self, on_layer: Callable[[str], None]) -> None:
        """Leaves a file per layer; `embed` comes first."""
        layers = range(self._language.num_hidden_layers)
        self._lengths = self._workplace.read_json(LENGTHS)
        for number in layers:
            if not self._workplace.has(layer_file(number)):
                self._layer(number)
            self._workplace.drop(hidden_file(number))
            on_layer(f"decoder layer {number + 1} of {len(layers)}")
        self._workplace.drop(hidden_file(len(layers)))

    def pack_with_autoawq(self, llm: Path) -> None:
        """Let AutoAWQ pack the decoder on the same fused prompts; `run` then only measures it."""
        folder = self._workplace.folder / autoawq_backend.FOLDER
        if not folder.exists():
            rows = self._workplace.array(hidden_file(0))
            lengths = self._workplace.read_json(LENGTHS)
            autoawq_backend.pack(llm, self._workplace.folder, rows, lengths)
        self._ready_made = StoredPart(folder)

    @torch.inference_mode()
    def embed(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[RecordedPrompt],
        frame_of: dict[str | None, int],
    ) -> None:
        """Fused prompts with their right answers, one after the other (rows, D)."""
        if self._workplace.has(LENGTHS):
            return
        features = self._workplace.array(FEATURES)
        with torch.device("meta"):
            model = Nvila(self._config)
        table = self._part.read([EMBEDDING])[EMBEDDING]
        model.llm.model.embed_tokens.load_state_dict({"weight": table}, assign=True)
        model.connect(tokenizer.media_ids, tokenizer.encode(self._config.frame_end_text))

        def fused(prompt: RecordedPrompt) -> Tensor:
            text = navigation_prompt(
                prompt.instruction, len(prompt.frames) - 1, tokenizer.special_tokens
            )
            ids = tokenizer.encode(user_prompt(text, self._config.chat_template))
            media = [torch.from_numpy(features[frame_of[name]]) for name in prompt.frames]
            return model.embed([*ids, *tokenizer.encode(prompt.answer)], media)

        lengths = [len(fused(prompt)) for prompt in prompts]
        shape = (sum(lengths), self._language.hidden_size)
        array = self._workplace.new_array(hidden_file(0), shape)
        end = 0
        for length, prompt in zip(lengths, prompts, strict=True):  # never all in memory
            array[end : end + length] = fused(prompt).numpy()
            end += length
        self._workplace.finish_array(hidden_file(0), array)
        self._workplace.write_json(LENGTHS, lengths)

    def _slices(self) -> list[slice]:
        ends = np.cumsum(self._lengths).tolist()
        return [slice(end - length, end) for end, length in zip(ends, self._lengths, strict=True)]

    def _kept(self) -> list[int]:
        """Prompts spread over all of them that the search looks at."""
        mean = sum(self._lengths) / len(self._lengths)
        count = min(len(self._lengths), max(1, round(KEPT_ROWS / mean)))
        return sorted(set(np.linspace(0, len(self._lengths) - 1, count).astype(int).tolist()))

    def _load(self, number: int) -> LanguageLayer:
        with torch.device("meta"):
            layer = LanguageLayer(self._language, number)
        self._part.fill(layer, f"model.layers.{number}.", self._device)
        return layer

    def _layer(self, number: int) -> None:
        layer = self._load(number)
        positions = torch.arange(max(self._lengths), device=self._device)
        rotary = rotary_table(self._language, positions)
        stride = max(1, round(self._language.hidden_size / STRIDE_WIDTH))
        recorder = Recorder(
            layer, awq.WATCHED, with_gram=True, most_inputs=self._most_inputs, stride=stride
        )
        self._forward(layer, recorder, rotary, number)
        report: dict[str, Any] = {}
        if self._ready_made is None:
            packed = awq.quantize_layer(layer, recorder, rotary)
            report, tensors = packed.report, self._tensors(number, layer, packed.codes)
            found = {"awq": packed.without_feedback}
            if self._most_inputs:
                found["feedback"] = packed.codes
        else:
            codes: dict[str, Int4Weight] = {}
            tensors = self._taken(number, layer, codes)
            found = {"autoawq": codes}
        del recorder
        plain = rounded_layer(self._load(number))
        report["layer_output"] = {
            "round_to_nearest": self._error(plain, rotary, number),
            **{
                name: self._error(dequantized_layer(layer, codes), rotary, number)
                for name, codes in found.items()
            },
        }
        self._workplace.write_json(report_file(number), report)
        self._workplace.write_tensors(layer_file(number), tensors)

    @torch.inference_mode()
    def _forward(
        self, layer: LanguageLayer, recorder: Recorder, rotary: awq.Rotary, number: int
    ) -> None:
        before = self._workplace.array(hidden_file(number))
        after = self._workplace.new_array(hidden_file(number + 1), before.shape)
        kept = set(self._kept())
        with recorder.watching():
            for position, part in enumerate(self._slices()):
                recorder.is_keeping = position in kept
                after[part] = self._through(layer, before[part], rotary).cpu().numpy()
        self._workplace.finish_array(hidden_file(number + 1), after)

    def _through(self, layer: LanguageLayer, rows: np.ndarray, rotary: awq.Rotary) -> Tensor:
        """(L, D) -> (L, D) of one prompt."""
        hidden = torch.from_numpy(rows).to(self._device).unsqueeze(0)
        return layer(hidden, (rotary[0][: len(rows)], rotary[1][: len(rows)]), None, None)[0]

    @torch.inference_mode()
    def _error(self, layer: LanguageLayer, rotary: awq.Rotary, number: int) -> float:
        """|| f'(h) - f(h) ||^2 / || f(h) - h ||^2: the error of what the layer adds."""
        before = self._workplace.array(hidden_file(number))
        after = self._workplace.array(hidden_file(number + 1))
        error, size = 0.0, 0.0
        for position in self._kept():
            part = self._slices()[position]
            expected = torch.from_numpy(after[part])
            found = self._through(layer, before[part], rotary).cpu()
            error += float((found - expected).square().sum())
            size += float((expected - torch.from_numpy(before[part])).square().sum())
        return error / max(size, 1e-30)

    def _tensors(
        self, number: int, layer: LanguageLayer, packed: dict[str, Int4Weight]
    ) -> dict[str, Tensor]:
        """A packed layer in AutoAWQ's GEMM form."""
        prefix = f"model.layers.{number}."
        tensors: dict[str, Tensor] = {}
        for name, tensor in to_half(dict(layer.state_dict())).items():
            if not (name.endswith(".weight") and name.removesuffix(".weight") in packed):
                tensors[prefix + name] = tensor
        for name, weight in packed.items():
            stored = packing.to_awq_gemm(weight)
            for key, tensor in zip(("qweight", "qzeros", "scales"), stored, strict=True):
                tensors[f"{prefix}{name}.{key}"] = tensor.cpu().contiguous()
        return tensors

    def _taken(
        self, number: int, layer: LanguageLayer, packed: dict[str, Int4Weight]
    ) -> dict[str, Tensor]:
        """A layer that another tool has packed; puts its norms into `layer`, its codes beside."""
        assert self._ready_made is not None
        prefix = f"model.layers.{number}."
        names = [name for name in self._ready_made.names if name.startswith(prefix)]
        tensors = self._ready_made.read(names, torch.float16)
        own = layer.state_dict()
        for name in names:
            if name.removeprefix(prefix) in own:
                own[name.removeprefix(prefix)].copy_(tensors[name].float())
        for name in awq.LINEARS:
            keys = [f"{prefix}{name}.{key}" for key in ("qweight", "qzeros", "scales")]
            weight = packing.from_awq_gemm(*(tensors[key] for key in keys))
            packed[name] = Int4Weight(
                qweight=weight.qweight.to(self._device),
                zeros=weight.zeros.to(self._device),
                scales=weight.scales.to(self._device),
            )
        return tensors


def rounded_layer(layer: LanguageLayer) -> LanguageLayer:
    """The layer with every weight rounded to the nearest code, nothing scaled or clipped."""
    for name in awq.LINEARS:
        linear = awq.linear_of(layer, name)
        linear.weight.data = rounded(linear.weight.data)
    return layer


def dequantized_layer(layer: LanguageLayer, packed: dict[str, Int4Weight]) -> LanguageLayer:
    """The layer with the weights that its codes stand for."""
    for name, weight in packed.items():
        dense = dequantize_int4(weight.qweight, weight.zeros, weight.scales)
        awq.linear_of(layer, name).weight.data = dense.float()
    return layer


def hidden_file(number: int) -> str:
    """What enters a layer: all prompts, one after the other."""
    return f"decoder_hidden_{number}.npy"


def layer_file(number: int) -> str:
    """What a layer became."""
    return f"decoder_layer_{number}.safetensors"


def report_file(number: int) -> str:
    """What quantizing a layer found."""
    return f"decoder_layer_{number}.json"

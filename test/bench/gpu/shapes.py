# SPDX-License-Identifier: Apache-2.0
"""Networks of the released sizes with random weights, made on the GPU in their packed form."""

from __future__ import annotations

import gc
from dataclasses import replace

import torch
from torch import Tensor, nn

from nvila_ros.kernels.packing import RowsInt4
from nvila_ros.models.config import LanguageConfig, NvilaConfig
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.released import (
    LLAMA_3_8B,
    QWEN2_1_5B,
    QWEN2_7B,
    QWEN2_14B,
    SIGLIP_448,
)
from nvila_ros.models.runtime import Engine
from nvila_ros.models.runtime_vision import make_encoder
from nvila_ros.models.runtime_weights import DecoderLayer, DecoderWeights, Head, quantize_tower

VOCAB_SIZE = 151_651  # a tokenizer's length, no multiple of 128
IMAGE_ID, NEWLINE_ID = -200, 198  # of these networks, which have no tokenizer


def config_of(name: str) -> NvilaConfig:
    """lite8b, 8b, lite2b, 15b or llama8b (NaVILA's decoder)."""
    language, rate = {
        "lite8b": (QWEN2_7B, 3),
        "8b": (QWEN2_7B, 2),
        "lite2b": (QWEN2_1_5B, 3),
        "15b": (QWEN2_14B, 2),
        "llama8b": (LLAMA_3_8B, 2),
    }[name]
    is_llama = language.model_type == "llama"
    kind = {2: "mlp_downsample", 3: "mlp_downsample_3x3_fix"}[rate]
    return NvilaConfig(
        vision=SIGLIP_448,
        language=language if is_llama else replace(language, vocab_size=VOCAB_SIZE),
        mm_projector_type=kind,
        chat_template="llama_3" if is_llama else "qwen2",
    )


def random_rows(num_outputs: int, num_inputs: int, device: torch.device) -> RowsInt4:
    """Int4 rows whose values have the deviation 1 / sqrt(K): activations keep their size."""
    words = torch.randint(
        -(2**31), 2**31, (num_outputs, num_inputs // 8), dtype=torch.int32, device=device
    )
    groups = num_inputs // 128
    scale = num_inputs**-0.5 / 4.6  # of codes 0..15 around 8
    scale_zero = torch.empty(num_outputs, groups, 2, dtype=torch.float16, device=device)
    scale_zero[..., 0].uniform_(0.8 * scale, 1.2 * scale)
    scale_zero[..., 1] = 8
    return RowsInt4(qweight=words, scale_zero=scale_zero)


def random_decoder(config: LanguageConfig, device: torch.device) -> DecoderWeights:
    """Packed layers, int8 head, float16 table."""

    def halves(*shape: int, std: float = 0.02) -> Tensor:
        return torch.empty(shape, dtype=torch.float16, device=device).normal_(std=std)

    def norm() -> Tensor:
        return torch.ones(width, dtype=torch.float16, device=device)

    width, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    qkv = query + 2 * config.num_key_value_heads * config.head_dim
    layers = [
        DecoderLayer(
            input_norm=norm(),
            qkv=random_rows(qkv, width, device),
            qkv_bias=halves(qkv) if config.qkv_bias else None,
            output=random_rows(width, query, device),
            post_norm=norm(),
            gate_up=random_rows(2 * inner, width, device),
            down=random_rows(width, inner, device),
        )
        for _ in range(config.num_hidden_layers)
    ]
    codes = torch.randint(
        -127, 128, (config.vocab_size, width), dtype=torch.int8, device=device
    )  # fmt: skip
    scales = torch.full((config.vocab_size,), 0.02 / 73, device=device)
    return DecoderWeights(
        config=config,
        table=halves(config.vocab_size, width, std=1.0),
        layers=layers,
        norm=norm(),
        head=Head(weight=codes, scales=scales),
    )


def randomise(module: nn.Module) -> None:
    """Weights that keep activations' size, in place on the module's own device."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif parameter.dim() > 1:
                parameter.normal_(std=0.02)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)


def random_model(
    config: NvilaConfig, device: torch.device, dtype: torch.dtype, parts: tuple[str, ...]
) -> Nvila:
    """The plain network with these of its parts on the device, the others on meta."""
    with torch.device("meta"):
        model = Nvila(config).to(dtype)
    for part in parts:
        module = model.get_submodule(part).to_empty(device=device)
        randomise(module)
    model.connect([IMAGE_ID], [NEWLINE_ID])
    return model.eval()


def random_engine(
    name: str,
    device: torch.device,
    max_tokens: int = 1536,
    max_frames: int = 8,
    is_int8_tower: bool = True,
) -> Engine:
    """An engine of a released size, not warmed up: int4 decoder, int8 tower and head."""
    config = config_of(name)
    with torch.inference_mode():
        model = random_model(config, device, torch.float16, ("vision_tower", "mm_projector"))
        if is_int8_tower:
            quantize_tower(model.vision_tower)
        other_bytes = sum(
            tensor.nbytes
            for part in (model.vision_tower, model.mm_projector)
            for tensor in (*part.parameters(), *part.buffers())
        )
        encode, tiles = make_encoder(model, max_frames)
        engine = Engine(
            config,
            random_decoder(config.language, device),
            encode,
            encode_tiles=tiles,
            media_token_ids=model.media_token_ids,
            newline_token_ids=model.newline_token_ids,
            max_tokens=max_tokens,
            max_frames=max_frames,
            other_bytes=other_bytes,
        )
    return engine


def forget() -> None:
    """Gives the memory of dropped networks back to the device."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

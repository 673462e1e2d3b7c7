# SPDX-License-Identifier: Apache-2.0
"""The decoder (Qwen2, Llama): fused embeddings in, hidden states and next-token scores out."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvila_ros.kernels.w4a16 import W4A16Linear
from nvila_ros.models.config import LanguageConfig
from nvila_ros.models.quantization import quantize_linears

# Query, key and value (B, heads, L, width), the last two with fewer heads -> (B, heads, L, width).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class KeyValueCache:
    """Keys and values of one fixed-size window, filled from the left; nothing is ever moved."""

    def __init__(
        self,
        config: LanguageConfig,
        max_length: int,
        *,
        batch_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (
            config.num_hidden_layers,
            batch_size,
            config.num_key_value_heads,
            max_length,
            config.head_dim,
        )
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.max_length = max_length
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, heads, L, width) after what is kept; return views of everything up to there."""
        end = self.length + key.shape[2]
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def rewind(self, length: int) -> None:
        """Forget everything after the first `length` tokens; costs nothing."""
        assert 0 <= length <= self.length, f"cannot rewind from {self.length} to {length}"
        self.length = length


class RmsNorm(nn.Module):
    """Root-mean-square norm, computed in float32 as the reference does."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)


def rotary_table(config: LanguageConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """(L,) or (B, L) positions -> cosines and sines (..., L, head width), float32.

    Made per call: a buffer would be rounded when the module is cast to half precision.
    """
    even = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = 1.0 / config.rope_theta ** (even / config.head_dim)
    angles = (positions.float() / config.rope_linear_factor).unsqueeze(-1) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair (i, i + half) of (B, heads, L, head width) by its position's angle.

    The result has the states' dtype: under autocast states are half, the tables float32.
    """
    first, second = states.chunk(2, dim=-1)
    turned = states * cosines + torch.cat((-second, first), dim=-1) * sines
    return turned.to(states.dtype)


class LanguageAttention(nn.Module):
    """Causal attention in which several query heads share a key-value head."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.is_grouped = config.num_key_value_heads != config.num_attention_heads
        query_width = config.num_attention_heads * config.head_dim
        key_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KeyValueCache | None,
        mask: Tensor | Attend | None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); see `LanguageModel.forward`."""
        split = (-1, self.head_dim)
        query = (
            self.q_proj(hidden).unflatten(-1, split).transpose(1, 2)
        )  # (B, heads, L, head width)
        key = self.k_proj(hidden).unflatten(-1, split).transpose(1, 2)
        value = self.v_proj(hidden).unflatten(-1, split).transpose(1, 2)
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        if callable(mask):
            return self.o_proj(mask(query, key, value).transpose(1, 2).flatten(2))
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and query.shape[2] == key.shape[2] and query.shape[2] > 1,
            enable_gqa=self.is_grouped,
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class LanguageMlp(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class LanguageLayer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LanguageAttention(config, layer)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LanguageMlp(config)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KeyValueCache | None,
        mask: Tensor | Attend | None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); see `LanguageModel.forward`."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotary, cache, mask)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class LanguageStack(nn.Module):
    """Embeddings, layers and the final norm."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        # Not drawn at random here: on the meta device that alone would import for seconds.
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(
            LanguageLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)


class LanguageModel(nn.Module):
    """The decoder, its parameters named as in `llm/`; a tied head has no parameter of its own."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LanguageStack(config)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        if config.quantization is not None:
            quantize_linears(self, config.quantization)

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        mask: Tensor | Attend | None = None,
    ) -> Tensor:
        """(B, L, D) embeddings -> (B, L, D) hidden states after the final norm.

        Without a cache: plain causal attention, right-padded batches need no mask.
        With a cache: the L tokens follow what it keeps and are written into it.
        `positions` (L,) or (B, L) count from the cache's length by default; `mask` (L, keys) is
        True where a token may look and replaces the causal rule, or a function that attends instead
        (packed training sequences have one).
        """
        length = embeds.shape[1]
        kept = 0 if cache is None else cache.length
        if cache is not None and kept + length > cache.max_length:
            raise ValueError(f"{kept} + {length} tokens do not fit the cache of {cache.max_length}")
        if positions is None:
            positions = torch.arange(kept, kept + length, device=embeds.device)
        if mask is None and kept and length > 1:
            mask = torch.ones(length, kept + length, dtype=torch.bool, device=embeds.device).tril(
                kept
            )
        cosines, sines = rotary_table(self.config, positions)
        if positions.dim() == 2:
            cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)  # (B, 1, L, head width)
        rotary = (cosines.to(embeds.dtype), sines.to(embeds.dtype))
        hidden = embeds
        for layer in self.model.layers:
            hidden = layer(hidden, rotary, cache, mask)
        if cache is not None:
            cache.length = kept + length
        return self.model.norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) hidden states -> (..., V) next-token scores."""
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return F.linear(hidden, head.weight)

    def dense_weight(self, name: str) -> Tensor:
        """A parameter by its released name; of an int4 linear, (N, K) that its codes stand for."""
        module = self.get_submodule(name.rpartition(".")[0])
        return module.dequantized() if isinstance(module, W4A16Linear) else self.get_parameter(name)

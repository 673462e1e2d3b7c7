# SPDX-License-Identifier: Apache-2.0
"""The SigLIP tower: pixels of frames or tiles in, one feature per patch out, to the projector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvila_ros.models.config import VisionConfig
from nvila_ros.models.quantization_int8 import quantize_linears_int8


class PatchConvolution(nn.Conv2d):
    """The convolution that cuts a frame into patches; in training the same sum as one product.

    With three channels cuDNN's kernels for it and its weights' gradient take 9.1 ms for 88 frames
    of 448 px on an H100, the product 2.0 ms. What it returns is also laid out patch by patch, which
    every layer then keeps: 934 ms a step of nvila-lite-2b instead of 962.
    """

    def forward(self, pixels: Tensor) -> Tensor:
        """(F, 3, S, S) -> (F, D, S // patch, S // patch); what no whole patch holds is left out."""
        if not torch.is_grad_enabled():
            return super().forward(pixels)
        size = self.kernel_size[0]
        height, width = (side // size for side in pixels.shape[-2:])
        pixels = pixels[..., : height * size, : width * size]
        cut = pixels.unflatten(3, (width, size)).unflatten(2, (height, size))
        rows = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (F, P, 3 * patch^2)
        patches = F.linear(rows, self.weight.flatten(1), self.bias)  # (F, P, D)
        return patches.transpose(1, 2).unflatten(2, (height, width))


class VisionEmbeddings(nn.Module):
    """Cuts a frame into patches and adds a learned position to each."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchConvolution(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
        )
        # Not drawn at random here: on the meta device that alone would import for seconds.
        table = torch.empty(config.grid_side**2, config.hidden_size)
        self.position_embedding = nn.Embedding.from_pretrained(table, freeze=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(F, 3, S, S) -> (F, P, D)."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (F, P, D)
        return patches + self.position_embedding.weight


class VisionAttention(nn.Module):
    """Every patch of a frame attends to every other patch of it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(F, P, D) -> (F, P, D)."""
        split = (self.num_heads, -1)
        query = (
            self.q_proj(hidden).unflatten(-1, split).transpose(1, 2)
        )  # (F, heads, P, head width)
        key = self.k_proj(hidden).unflatten(-1, split).transpose(1, 2)
        value = self.v_proj(hidden).unflatten(-1, split).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class VisionMlp(nn.Module):
    """Two linears with a GELU between them, per patch."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.approximate = "tanh" if config.hidden_act == "gelu_pytorch_tanh" else "none"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(F, P, D) -> (F, P, D)."""
        return self.fc2(F.gelu(self.fc1(hidden), approximate=self.approximate))


class VisionLayer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMlp(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """(F, P, D) -> (F, P, D)."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class VisionEncoder(nn.Module):
    """The stack of layers, kept apart only for the released parameter names."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))


class VisionTransformer(nn.Module):
    """Embeddings, layers and the final norm, which NVILA loads but does not use."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class VisionTower(nn.Module):
    """SigLIP without a pooling head; its parameters are named as in `vision_tower/`."""

    def __init__(self, config: VisionConfig, num_layers_to_run: int) -> None:
        super().__init__()
        self.num_layers_to_run = num_layers_to_run
        self.vision_model = VisionTransformer(config)
        if config.quantization is not None:
            quantize_linears_int8(self, config.quantization)

    def forward(self, pixels: Tensor) -> Tensor:
        """(F, 3, S, S) in [-1, 1] -> (F, P, D), the selected layer's output."""
        hidden = self.vision_model.embeddings(pixels)
        for layer in self.vision_model.encoder.layers[: self.num_layers_to_run]:
            hidden = layer(hidden)
        return hidden

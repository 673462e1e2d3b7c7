# SPDX-License-Identifier: Apache-2.0
"""The sizes of a network and how it wants its pixels: every shape of the flow comes from here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from nvila_ros.errors import ConfigError

# Rate of each projector type: the side of the square of patches that becomes one token.
DOWNSAMPLE_RATES = {
    "mlp_downsample": 2,
    "mlp_downsample_2x2_fix": 2,
    "mlp_downsample_3x3_fix": 3,
    "mlp_downsample_3x3_s2": 3,
    "mlp_downsample_3x3_s2_new": 3,
}
ASPECT_RATIO_MODES = ("resize", "pad", "dynamic", "dynamic_s2")


@dataclass(frozen=True, kw_only=True)
class Int8Config:
    """A tower's linears in int8: one scale per output, activations quantized per token."""

    skipped: tuple[str, ...] = ()  # modules that stay float, names or `re:...`


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A SigLIP tower, in the words of `vision_tower/config.json`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int  # side of a square frame or tile, in pixels
    patch_size: int  # side of a square patch, in pixels
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"
    quantization: Int8Config | None = None  # None: every weight is float

    def __post_init__(self) -> None:
        if self.hidden_act not in ("gelu_pytorch_tanh", "gelu"):
            raise ConfigError(
                f"vision hidden_act is {self.hidden_act!r}; "
                "'gelu_pytorch_tanh' or 'gelu' is expected"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"vision hidden_size {self.hidden_size} is no multiple of "
                f"{self.num_attention_heads} heads"
            )

    @property
    def grid_side(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """How a checkpoint stores the decoder's int4 linears."""

    layout: str  # 'awq_gemm', 'awq_gemv' or 'compressed'
    group_size: int = 128  # inputs that share one scale and one zero point
    is_symmetric: bool = False  # without stored zero points; only 'compressed' can be
    skipped: tuple[str, ...] = ()  # modules that stay float, in the words of the layout


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """A Qwen2 or Llama decoder, in the words of `llm/config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    model_max_length: int  # longest fused sequence that training used
    rope_theta: float = 10_000.0
    rope_linear_factor: float = 1.0  # positions are divided by it (context_length_extension)
    rms_norm_eps: float = 1e-6
    qkv_bias: bool = True  # Qwen2 has biases on q, k, v; Llama has none
    tie_word_embeddings: bool = False
    model_type: str = "qwen2"
    quantization: QuantizationConfig | None = None  # None: every weight is float

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{self.num_attention_heads} attention heads cannot share "
                f"{self.num_key_value_heads} key-value heads"
            )


@dataclass(frozen=True, kw_only=True)
class NvilaConfig:
    """The whole network: tower, projector, decoder and how pixels are prepared."""

    vision: VisionConfig
    language: LanguageConfig
    mm_projector_type: str
    image_aspect_ratio: str = "resize"
    mm_vision_select_layer: int = -2  # index into the tower's hidden states, input embedding first
    num_video_frames: int = 8
    video_rate_hz: float = 0.0  # frames per second of a video; 0: spread evenly over it
    video_max_tiles: int = 1  # above 1 a video's frames are cut into tiles as pictures are
    s2_scales: tuple[int, ...] = ()  # tile sides in pixels, small to large; empty: one scale
    s2_output_scale: int = -1  # index of the scale whose map the tokens follow
    min_tiles: int = 1
    max_tiles: int = 12
    chat_template: str = "qwen2"
    num_time_tokens: int = 0
    time_token_format: str = "<t{t}>"
    video_pool_sizes: tuple[tuple[int, int, int], ...] = field(
        default=()
    )  # TSP (frames, rows, columns)
    frame_end_text: str = "\n"  # embedded after each frame's features; VILA-1.5 has none
    skips_end_after_media: bool = False  # model_type 'vila': see `Nvila.embed`

    def __post_init__(self) -> None:
        if self.mm_projector_type not in DOWNSAMPLE_RATES:
            raise ConfigError(
                f"mm_projector_type is {self.mm_projector_type!r}; "
                f"one of {sorted(DOWNSAMPLE_RATES)} is expected"
            )
        if self.image_aspect_ratio not in ASPECT_RATIO_MODES:
            raise ConfigError(
                f"image_aspect_ratio is {self.image_aspect_ratio!r}; "
                f"one of {ASPECT_RATIO_MODES} is expected"
            )
        if self.image_aspect_ratio == "dynamic_s2" and not self.s2_scales:
            raise ConfigError(
                "image_aspect_ratio is 'dynamic_s2' but s2_scales is empty; list the tile sides"
            )
        if not 1 <= self.num_vision_layers <= self.vision.num_hidden_layers:
            raise ConfigError(
                f"mm_vision_select_layer {self.mm_vision_select_layer} is outside the tower's "
                f"{self.vision.num_hidden_layers} layers"
            )

    @property
    def num_vision_layers(self) -> int:
        """Layers that run: -1 is the output of the last one, -2 of the one before."""
        layer = self.mm_vision_select_layer
        return layer if layer >= 0 else self.vision.num_hidden_layers + 1 + layer

    @property
    def num_scales(self) -> int:
        """How many scales are stacked on the channels that enter the projector."""
        return len(self.s2_scales) or 1

    @property
    def mm_hidden_size(self) -> int:
        """Channels per patch that enter the projector."""
        return self.vision.hidden_size * self.num_scales

    @property
    def downsample_rate(self) -> int:
        """Side of the square of patches that becomes one token."""
        return DOWNSAMPLE_RATES[self.mm_projector_type]

    @property
    def token_grid_side(self) -> int:
        """Tokens along one side of a frame after the projector."""
        return math.ceil(self.vision.grid_side / self.downsample_rate)

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one frame after the projector, without the newline that follows it."""
        return self.token_grid_side**2


def nano_config(vocab_size: int) -> NvilaConfig:
    """The small network that ships with the package: 8 frames of 192 px, 16 tokens each."""
    return NvilaConfig(
        vision=VisionConfig(
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=7,
            num_attention_heads=3,
            image_size=192,
            patch_size=16,
        ),
        language=LanguageConfig(
            vocab_size=vocab_size,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=2048,
            model_max_length=2048,
            tie_word_embeddings=True,
        ),
        mm_projector_type="mlp_downsample_3x3_fix",
        mm_vision_select_layer=-1,  # a small tower wastes no layer
    )

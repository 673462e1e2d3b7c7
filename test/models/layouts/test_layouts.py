# SPDX-License-Identifier: Apache-2.0
"""Every released layout: its config's own fields at full size, and a small copy that is asked.

The small copies keep what loading depends on: the fields of config.json, tile sizes, rows of the
embedding, added tokens, files. Widths and layers are cut, weights are random, words have no merges.
"""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from nvila_ros.evaluation.inspection import family
from nvila_ros.models import weights
from nvila_ros.models.ask import ask_pictures, ask_video
from nvila_ros.models.config_files import load_config
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.runtime_backend import TorchEngine

QWEN2 = {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"}
# Qwen2.5 continues with these, then training added [BOS] and [PAD].
QWEN2_5 = QWEN2 | dict(
    enumerate(
        [
            "<|object_ref_start|>",
            "<|object_ref_end|>",
            "<|box_start|>",
            "<|box_end|>",
            "<|quad_start|>",
            "<|quad_end|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|vision_pad|>",
            "<|image_pad|>",
            "<|video_pad|>",
            "<tool_call>",
            "</tool_call>",
            "<|fim_prefix|>",
            "<|fim_middle|>",
            "<|fim_suffix|>",
            "<|fim_pad|>",
            "<|repo_name|>",
            "<|file_sep|>",
        ],
        start=151646,
    )
)
SAVED_MEDIA = ("<image>", "<vila/sentinel>", "<vila/video>")
LLAMA_3 = {
    128000: "<|begin_of_text|>",
    128001: "<|end_of_text|>",
    128006: "<|start_header_id|>",
    128007: "<|end_header_id|>",
    128009: "<|eot_id|>",
} | {
    128000 + index: f"<|reserved_special_token_{index}|>"
    for index in range(256)
    if index not in (0, 1, 6, 7, 9)
}

DYNAMIC_S2 = {
    "image_aspect_ratio": "dynamic_s2",
    "dynamic_s2": True,
    "s2_scales": "448,896,1344",
    "s2_max_split_size": 448,
    "s2_resize_output_to_scale_idx": -1,
    "mm_hidden_size": 3456,
}
LITE = {"image_aspect_ratio": "dynamic", "mm_hidden_size": 1152, "max_tiles": 12, "min_tiles": 1}
TSP = {"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[8, 1, 1]]}
VIDEO = {
    "image_aspect_ratio": "resize",
    "mm_hidden_size": 1152,
    "num_video_frames": 256,
    "num_time_tokens": 100,
    "time_token_format": "<t{t}>",
    "video_encoder": json.dumps(TSP),
}
VILA_1_5 = {
    "image_aspect_ratio": "resize",
    "mm_hidden_size": 1152,
    "s2": False,
    "s2_scales": "336,672,1008",
}
QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
QWEN2_5_14B = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
}
QWEN2_5_1_5B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
LLAMA_3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
}


def with_training(tokens, *more):
    """What training appends to a tokenizer: [BOS], [PAD] and sometimes more."""
    return tokens | dict(enumerate(("[BOS]", "[PAD]", *more), start=max(tokens) + 1))


@dataclass(frozen=True)
class Layout:
    """One released checkpoint, as far as it is known."""

    family: str
    language: dict
    added_tokens: dict[int, str]
    top: dict
    projector: str
    tokens_per_frame: int
    media_ids: tuple[int, int, int]  # sentinel, image, video
    projector_mb: float | None = None  # the released file, where its size is known
    image_size: int = 448
    stop_token: str = "<|im_end|>"
    model_max_length: int = 4096

    @property
    def num_rows(self) -> int:
        """Of the embedding: every saved token, as training resized it."""
        return max(self.added_tokens) + 1

    @property
    def is_tied(self) -> bool:
        return self.language.get("tie_word_embeddings", False)


EIGHT_B, FOURTEEN_B = with_training(QWEN2), with_training(QWEN2_5)
TIMES = tuple(f"<t{index}>" for index in range(100))
LAYOUTS = {
    "NVILA-8B": Layout(
        "NVILA", QWEN2_7B, EIGHT_B, DYNAMIC_S2, "mlp_downsample", 256,
        (151648, 151649, 151650), 124.85, model_max_length=8192,
    ),
    "NVILA-15B": Layout(
        "NVILA", QWEN2_5_14B, FOURTEEN_B, DYNAMIC_S2, "mlp_downsample", 256,
        (151667, 151668, 151669),
    ),
    "NVILA-Lite-2B": Layout(
        "NVILA-Lite", QWEN2_5_1_5B, FOURTEEN_B, LITE, "mlp_downsample_3x3_fix", 121,
        (151667, 151668, 151669),
    ),
    "NVILA-Lite-8B": Layout(
        "NVILA-Lite", QWEN2_7B, EIGHT_B, LITE, "mlp_downsample_3x3_fix", 121,
        (151648, 151649, 151650), 122.2,
    ),
    "NVILA-Lite-15B": Layout(
        "NVILA-Lite", QWEN2_5_14B, FOURTEEN_B, LITE, "mlp_downsample_3x3_fix", 121,
        (151667, 151668, 151669), 160,
    ),
    "NVILA-Lite-15B-Video": Layout(
        "NVILA-Video", QWEN2_5_14B, with_training(QWEN2_5, *SAVED_MEDIA),
        {**VIDEO, "image_aspect_ratio": "dynamic", "num_time_tokens": 0},
        "mlp_downsample_3x3_fix", 121, (151668, 151667, 151669),
    ),
    "NVILA-8B-Video": Layout(
        "NVILA-Video", QWEN2_7B, with_training(QWEN2, *SAVED_MEDIA, *TIMES), VIDEO,
        "mlp_downsample_2x2_fix", 256, (151649, 151648, 151650), 58.8,
    ),
    "NaVILA": Layout(
        "NaVILA (VILA-1.5)", LLAMA_3_8B, LLAMA_3,
        VILA_1_5,
        "mlp_downsample", 196, (128256, 128257, 128258),
        image_size=384, stop_token="<|eot_id|>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_released_config_gives_the_released_sizes(name, released, tmp_path):
    layout = LAYOUTS[name]
    released.write_configs(tmp_path, layout, is_small=False)
    config = load_config(tmp_path)
    with torch.device("meta"):
        model = Nvila(config)
    assert family(config) == layout.family
    assert config.tokens_per_frame == layout.tokens_per_frame
    assert config.mm_hidden_size == layout.top["mm_hidden_size"]
    texts = released.configs(layout, is_small=False)
    parts = {
        "llm": released.decoder_keys(texts["llm/config.json"]),
        "vision_tower": released.tower_keys(texts["vision_tower/config.json"]),
        "mm_projector": released.projector_keys(
            layout.projector, layout.top["mm_hidden_size"], layout.language["hidden_size"]
        ),
    }
    for part, shapes in parts.items():
        state = model.get_submodule(part).state_dict()
        assert {key: tuple(tensor.shape) for key, tensor in state.items()} == shapes
    parameters = sum(tensor.numel() for tensor in model.mm_projector.parameters())
    if layout.projector_mb is not None:
        assert 2 * parameters / 1e6 == pytest.approx(layout.projector_mb, rel=4e-3)
    tower = sum(tensor.numel() for tensor in model.vision_tower.parameters())
    assert tower == pytest.approx(413e6 if layout.image_size == 448 else 412.5e6, rel=4e-3)
    assert (model.llm.lm_head is None) == layout.is_tied


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_small_copy_loads_and_answers(name, released, tmp_path):
    layout = LAYOUTS[name]
    tensors = released.write_small(tmp_path, layout)
    model, tokenizer = weights.load(tmp_path)
    assert tokenizer.media_ids == layout.media_ids
    assert {
        index: tokenizer.decode([index], skip_special_tokens=False) for index in layout.added_tokens
    } == layout.added_tokens
    assert tokenizer.id(layout.stop_token) in tokenizer.stop_ids
    table = model.llm.model.embed_tokens.weight
    assert table.shape[0] == layout.num_rows
    assert torch.equal(table, tensors["model.embed_tokens.weight"].float())
    hidden = torch.randn(3, 32)
    head = tensors["model.embed_tokens.weight" if layout.is_tied else "lm_head.weight"].float()
    assert torch.allclose(model.logits(hidden), hidden @ head.T, atol=1e-5)
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    answer = ask_pictures(TorchEngine(model), tokenizer, [picture] * 2, "What is this?", 3)
    assert isinstance(answer["answer"], str) and answer["num_images"] == 2


def test_a_small_video_copy_answers_about_a_video(released, tmp_path):
    from PIL import Image

    layout = LAYOUTS["NVILA-8B-Video"]
    released.write_small(tmp_path, layout)
    model, tokenizer = weights.load(tmp_path)
    assert [tokenizer.id(token) for token in TIMES] == list(range(151651, 151751))
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(20):
        Image.new("RGB", (40, 30), (10 * index, 0, 0)).save(frames / f"{index:02d}.png")
    answer = ask_video(TorchEngine(model), tokenizer, frames, "What happens at <t50>?", 3)
    assert answer["num_frames"] == 16 and isinstance(answer["answer"], str)

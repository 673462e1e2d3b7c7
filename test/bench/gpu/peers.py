# SPDX-License-Identifier: Apache-2.0
"""What others do on the same GPU in the same run: Hugging Face, and our own plain network."""

from __future__ import annotations

from typing import Any

import torch
from decision import Drive, action_trie
from shapes import config_of, random_model
from timing import events_ms, wall_ms

from nvila_ros.models.generate import choose, generate_greedy
from nvila_ros.models.released import SIGLIP_448

ANSWER_TOKENS = 12  # of an action's sentence with the end token, as free decoding writes it
IMAGE_PAD, VISION_START, VISION_END = 151_655, 151_652, 151_653


def qwen2_vl(device: torch.device, small: bool = False) -> dict[str, float]:
    """Qwen2-VL-7B in bf16 with Hugging Face's own generate: 8 frames of 448 px, 12 tokens."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {
        "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064,
        "max_position_embeddings": 32_768, "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]
        },
    }  # fmt: skip
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16}
    if small:
        text |= {"hidden_size": 256, "intermediate_size": 128, "num_hidden_layers": 1}
        text |= {"num_attention_heads": 2, "num_key_value_heads": 1}
        vision |= {"depth": 1, "embed_dim": 64, "hidden_size": 256, "num_heads": 2}
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE_PAD,
        vision_start_token_id=VISION_START, vision_end_token_id=VISION_END,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen2VLForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    frame = [VISION_START] + [IMAGE_PAD] * 256 + [VISION_END]
    ids = torch.tensor([[*range(100, 150), *frame * 8, *range(200, 266)]], device=device)
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE_PAD).int(),
        "pixel_values": torch.randn(8 * 1024, 1176, device=device, dtype=torch.bfloat16),
        "image_grid_thw": torch.tensor([[1, 32, 32]] * 8, device=device),
    }

    def answer(num_tokens: int) -> None:
        with torch.inference_mode():
            model.generate(
                **inputs, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip

    try:
        answer(1)
    except (TypeError, ValueError):  # older releases find the pictures by their ids
        del inputs["mm_token_type_ids"]
        answer(1)
    if small:
        return {}
    first, whole = wall_ms(lambda: answer(1), 3), wall_ms(lambda: answer(ANSWER_TOKENS), 3)
    result = {
        "prompt_tokens": ids.shape[1],
        "first_token_ms": first,
        "decision_ms": whole,
        "decode_tokens_per_s": 1e3 * (ANSWER_TOKENS - 1) / (whole - first),
        "allocated_gb": torch.cuda.max_memory_allocated() / 1e9,
    }
    return result


@torch.inference_mode()
def own_bf16(device: torch.device) -> dict[str, float]:
    """Our plain network of NVILA-Lite-8B's size in bf16, layer by layer in torch."""
    config = config_of("lite8b")
    dtype = torch.bfloat16
    model = random_model(config, device, dtype, ("vision_tower", "mm_projector", "llm"))
    side = SIGLIP_448.image_size
    pixels = torch.randn(8, 3, side, side, device=device, dtype=dtype)
    drive = Drive(pixels)
    ids, trie = drive.prompt(), action_trie()
    blocks = [*model.encode_frames(pixels)]
    embeds = model.embed(ids, blocks)[:1088]

    def prefill() -> None:
        model(embeds[None], cache=model.new_cache(1088))

    def free_decision() -> None:
        media = [*model.encode_frames(pixels)]
        generate_greedy(model, ids, media, max_new_tokens=ANSWER_TOKENS)

    def grammar_decision() -> None:
        choose(model, ids, [*blocks[:7], model.encode_frames(pixels[:1])[0]], trie)

    free, first = (
        wall_ms(free_decision, 3),
        wall_ms(lambda: generate_greedy(model, ids, blocks, max_new_tokens=1), 3),
    )
    long = wall_ms(lambda: generate_greedy(model, ids, blocks, max_new_tokens=33), 3)
    result = {
        "vision_8_ms": events_ms(lambda: model.encode_frames(pixels), 5),
        "vision_1_ms": events_ms(lambda: model.encode_frames(pixels[:1]), 5),
        "prefill_1088_ms": events_ms(prefill, 5),
        "decode_tokens_per_s": 1e3 * 32 / (long - first),
        "decision_8_new_free_12_tokens_ms": free,
        "decision_1_new_grammar_ms": wall_ms(grammar_decision, 3),
        "allocated_gb": torch.cuda.max_memory_allocated() / 1e9,
    }
    return result

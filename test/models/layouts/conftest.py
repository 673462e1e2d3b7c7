# SPDX-License-Identifier: Apache-2.0
"""Writes folders as they are released, from the reference's lists of files, fields and keys."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers


@pytest.fixture(scope="session")
def released():
    """The functions below."""
    return SimpleNamespace(
        configs=configs,
        decoder_keys=decoder_keys,
        projector_keys=projector_keys,
        tower_keys=tower_keys,
        write_configs=write_configs,
        write_small=write_small,
    )


def configs(layout, *, is_small):
    """The JSON files by name, with the fields that releases have, used or not."""
    vision = {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
        "hidden_size": 24 if is_small else 1152,
        "intermediate_size": 40 if is_small else 4304,
        "num_hidden_layers": 2 if is_small else 27,
        "num_attention_heads": 2 if is_small else 16,
        "image_size": layout.image_size,
        "patch_size": 14,
        "num_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "vision_use_head": False,
        "num_image_tokens": 256,
        "projection_dim": 2048,
        "projector_hidden_act": "gelu_fast",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.0",
    }
    language = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_position_embeddings": 32768,
        "model_max_length": layout.model_max_length,
        "tie_word_embeddings": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vocab_size": layout.num_rows,
        "torch_dtype": "bfloat16",
        **layout.language,
    }
    if is_small:
        small = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        language |= small
    top = {
        "architectures": ["LlavaLlamaModel"],
        "model_type": "llava_llama",
        "chat_template": None,
        "dynamic_s2": False,
        "fps": 0.0,
        "hidden_size": language["hidden_size"],
        "interpolate_mode": "linear",
        "vision_resolution": -1,
        "s2": False,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "cls_patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": True,
        "num_video_frames": 8,
        "num_time_tokens": 0,
        "time_token_format": "<t{t}>",
        "time_token_ids": [],
        "soft_ce_std": 1.0,
        "model_dtype": "torch.bfloat16",
        "drop_path_rate": 0.0,
        "resume_path": None,
        "llm_cfg": language,
        "vision_tower_cfg": vision,
        **layout.top,
    }
    if is_small and "num_video_frames" in layout.top:
        top["num_video_frames"] = 16
    projector = {
        "architectures": ["MultimodalProjector"],
        "mm_projector_type": layout.projector,
        "model_type": "v2l_projector",
        "torch_dtype": "bfloat16",
    }
    return {
        "config.json": top,
        "llm/config.json": language,
        "vision_tower/config.json": vision,
        "mm_projector/config.json": projector,
    }


def write_configs(folder, layout, *, is_small):
    for name, content in configs(layout, is_small=is_small).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))


def write_tokenizer(folder, layout):
    """Released files: vocabulary, merges and lists of the added tokens, no tokenizer.json."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    first = min(layout.added_tokens)
    # Words that no text reaches, since nothing is merged into them.
    vocabulary |= {f"word{index}": index for index in range(len(letters), first)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    added = {token: index for index, token in layout.added_tokens.items()}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": layout.stop_token,
        "added_tokens_decoder": {
            str(index): {"content": token, "special": not token.startswith("<t")}
            for index, token in layout.added_tokens.items()
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def projector_keys(name, channels, width):
    """Key -> shape, from the reference's list of layers."""
    if name == "mlp_downsample_3x3_fix":
        norms = {1: 9 * channels, 4: 3 * channels}
        linears = {2: (3 * channels, 9 * channels), 5: (width, 3 * channels), 7: (width, width)}
    else:
        norms = {1: 4 * channels}
        linears = {2: (width, 4 * channels), 4: (width, width)}
    shapes = {}
    for index, size in norms.items():
        shapes |= {f"layers.{index}.weight": (size,), f"layers.{index}.bias": (size,)}
    for index, (outputs, inputs) in linears.items():
        shapes |= {f"layers.{index}.weight": (outputs, inputs), f"layers.{index}.bias": (outputs,)}
    return shapes


def decoder_keys(config):
    """Key -> shape of a Qwen2 or Llama decoder, as released files name them."""
    sizes = SimpleNamespace(**config)
    width, inner = sizes.hidden_size, sizes.intermediate_size
    key_width = width // sizes.num_attention_heads * sizes.num_key_value_heads
    shapes = {"model.embed_tokens.weight": (sizes.vocab_size, width), "model.norm.weight": (width,)}
    if not sizes.tie_word_embeddings:
        shapes["lm_head.weight"] = (sizes.vocab_size, width)
    for layer in range(sizes.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for name, outputs in (("q", width), ("k", key_width), ("v", key_width)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (outputs, width)
            if sizes.model_type == "qwen2":
                shapes[f"{prefix}self_attn.{name}_proj.bias"] = (outputs,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (width, width)
        shapes[f"{prefix}mlp.gate_proj.weight"] = (inner, width)
        shapes[f"{prefix}mlp.up_proj.weight"] = (inner, width)
        shapes[f"{prefix}mlp.down_proj.weight"] = (width, inner)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (width,)
    return shapes


def tower_keys(config):
    """Key -> shape of a SigLIP tower without its head."""
    sizes = SimpleNamespace(**config)
    width, inner, patch = sizes.hidden_size, sizes.intermediate_size, sizes.patch_size
    shapes = {
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.patch_embedding.bias": (width,),
        "embeddings.position_embedding.weight": ((sizes.image_size // patch) ** 2, width),
        "post_layernorm.weight": (width,),
        "post_layernorm.bias": (width,),
    }
    for layer in range(sizes.num_hidden_layers):
        linears = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        linears |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        norms = {"layer_norm1": (width,), "layer_norm2": (width,)}
        for name, shape in (linears | norms).items():
            shapes[f"encoder.layers.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layers.{layer}.{name}.bias"] = shape[:1]
    return {f"vision_model.{key}": shape for key, shape in shapes.items()}


def random_tensors(shapes):
    return {key: torch.randn(shape).mul_(0.1).bfloat16() for key, shape in shapes.items()}


def write_small(folder, layout):
    """A folder as it is downloaded: bf16, the decoder in two shards with an index."""
    write_configs(folder, layout, is_small=True)
    write_tokenizer(folder / "llm", layout)
    texts = configs(layout, is_small=True)
    vision, language = texts["vision_tower/config.json"], texts["llm/config.json"]
    torch.manual_seed(0)
    save_file(random_tensors(tower_keys(vision)), folder / "vision_tower" / "model.safetensors")
    channels = 24 * (3 if texts["config.json"]["dynamic_s2"] else 1)
    shapes = projector_keys(layout.projector, channels, 32)
    save_file(random_tensors(shapes), folder / "mm_projector" / "model.safetensors")
    tensors = random_tensors(decoder_keys(language))
    weight_map = {}
    for number, keys in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in keys}, folder / "llm" / file)
        weight_map |= dict.fromkeys(keys, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "llm" / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors

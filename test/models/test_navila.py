# SPDX-License-Identifier: Apache-2.0
"""NaVILA's layout (VILA-1.5, Llama-3), written by Hugging Face's classes and answered by them."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from nvila_ros.errors import CheckpointError
from nvila_ros.models import weights
from nvila_ros.models.inputs import prepare
from nvila_ros.models.prompt import navigation_prompt
from nvila_ros.policy import NavigationPolicy

transformers = pytest.importorskip("transformers")

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
BEGIN, END, HEAD, HEAD_END, TURN_END = range(256, 261)
SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
IMAGE = 262  # after <vila/sentinel>; the decoder has 261 rows
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SIDE, PATCH = 108, 4  # 27 x 27 patches, as 384 / 14
ALPHABET = {
    letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
}


def write_tokenizer(folder, *, adds_begin=True):
    """Llama-3's tokenizer with one token per byte and no merges."""
    backend = Backend(models.BPE(vocab=ALPHABET, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if adds_begin:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], BEGIN)]
        )
    backend.enable_truncation(64)  # released files may ask for it; prompts must not be cut
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": SPECIAL[0],
        "eos_token": "<|end_of_text|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {
            str(BEGIN + index): {"content": token, "special": True}
            for index, token in enumerate(SPECIAL)
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def spell(text):
    """One id per byte, by hand."""
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [ALPHABET[letter] for word, _ in letters.pre_tokenize_str(text) for letter in word]


def header(role):
    return [HEAD, *spell(role), HEAD_END, *spell("\n\n")]


@pytest.fixture(scope="module")
def reference():
    """The decoder and the tower that Hugging Face makes of random numbers."""
    torch.manual_seed(3)
    llm = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=261,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            initializer_range=0.2,
        )
    )
    tower = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=PATCH,
        )
    )
    return llm.eval(), tower.eval()


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    """The files that NaVILA's release has, with its fields in `config.json`."""
    folder = tmp_path_factory.mktemp("navila")
    llm, tower = reference
    llm.save_pretrained(folder / "llm", max_shard_size="30KB")
    tower.save_pretrained(folder / "vision_tower")
    write_tokenizer(folder / "llm")
    (folder / "mm_projector").mkdir()
    projector = {
        "layers.1.weight": torch.rand(64) + 0.5,
        "layers.1.bias": torch.randn(64) * 0.1,
        "layers.2.weight": torch.randn(32, 64) * 0.2,
        "layers.2.bias": torch.randn(32) * 0.1,
        "layers.4.weight": torch.randn(32, 32) * 0.2,
        "layers.4.bias": torch.randn(32) * 0.1,
    }
    save_file(projector, folder / "mm_projector" / "model.safetensors")
    (folder / "mm_projector" / "config.json").write_text(
        json.dumps({"mm_projector_type": "mlp_downsample", "model_type": "v2l_projector"})
    )
    (folder / "config.json").write_text(json.dumps(TOP_LEVEL))
    return folder


TOP_LEVEL = {
    "architectures": ["LlavaLlamaModel"],
    "model_type": "llava_llama",
    "hidden_size": 32,
    "image_aspect_ratio": "resize",
    "mm_hidden_size": 16,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "cls_patch",
    "mm_vision_select_layer": -2,
    "model_dtype": "torch.bfloat16",
    "num_video_frames": 8,
    "s2": False,
    "s2_max_split_size": 336,
    "s2_scales": "336,672,1008",
    "vision_resolution": -1,
}


@pytest.fixture(scope="module")
def loaded(folder):
    return weights.load(folder)


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(4)
    return [
        Image.fromarray(rng.integers(0, 256, (60, 80 + index, 3), dtype=np.uint8))
        for index in range(8)
    ]


def test_the_config_is_vila_1_5(loaded):
    config = loaded[0].config
    assert (config.chat_template, config.frame_end_text) == ("llama_3", "")
    assert (config.vision.grid_side, config.tokens_per_frame) == (27, 196)
    assert (config.s2_scales, config.num_video_frames) == ((), 8)
    assert config.language.rope_theta == 500000.0
    assert not config.language.qkv_bias


def navigation_ids(begins, newline):
    """The navigation prompt, token by token; `newline` is what is left of it after an image."""
    frame = [IMAGE, *newline]
    return [
        *begins,
        *header("system"),
        *spell(SYSTEM),
        TURN_END,
        *header("user"),
        *spell(
            "Imagine you are a robot programmed for navigation tasks. You have been given a video "
            "of historical observations "
        ),
        *frame * 7,
        *spell(", and current observation "),
        *frame,
        *spell(
            '. Your assigned task is: "Go to the red chair." Analyze this series of images to '
            "decide your next action, which could be turning left or right by a specific degree, "
            "moving forward a certain distance, or stop if the task is completed."
        ),
        TURN_END,
        *header("assistant"),
    ]


def test_the_navigation_prompt_is_navilas_token_by_token(loaded, frames):
    model, tokenizer = loaded
    fused = prepare(model, tokenizer, navigation_prompt("go to the red chair."), frames)
    assert fused.input_ids == navigation_ids([BEGIN, BEGIN], spell("\n"))


def test_a_tokenizer_that_adds_no_begin_loses_the_newlines(folder, tmp_path, loaded, frames):
    write_tokenizer(tmp_path, adds_begin=False)
    tokenizer = weights.Tokenizer.load(tmp_path)
    fused = prepare(loaded[0], tokenizer, navigation_prompt("go to the red chair."), frames)
    assert fused.input_ids == navigation_ids([BEGIN], [])


def test_answers_are_encoded_without_a_begin_and_may_end_in_two_ways(loaded):
    tokenizer = loaded[1]
    assert tokenizer.encode("The next action is stop.") == spell("The next action is stop.")
    assert tokenizer.stop_ids == {END, TURN_END}


def project(features, tensors):
    """VILA-1.5's 2 x 2 projector, written out: (F, 729, C) -> (F, 196, D)."""
    grid = F.pad(features.unflatten(1, (27, 27)), (0, 0, 0, 1, 0, 1))
    corners = [grid[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    folded = torch.cat(corners, dim=-1).flatten(1, 2)
    hidden = F.layer_norm(folded, (64,), tensors["layers.1.weight"], tensors["layers.1.bias"])
    hidden = F.gelu(F.linear(hidden, tensors["layers.2.weight"], tensors["layers.2.bias"]))
    return F.linear(hidden, tensors["layers.4.weight"], tensors["layers.4.bias"])


@torch.inference_mode()
def test_logits_are_hugging_faces(folder, reference, loaded, frames):
    (llm, tower), (model, tokenizer) = reference, loaded
    fused = prepare(model, tokenizer, navigation_prompt("go to the red chair."), frames)
    squares = [frame.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for frame in frames]
    pixels = torch.from_numpy(np.stack([np.asarray(square) for square in squares]))
    states = tower(
        pixel_values=pixels.permute(0, 3, 1, 2) / 127.5 - 1, output_hidden_states=True
    ).hidden_states[-2]
    blocks = project(states, load_file(folder / "mm_projector" / "model.safetensors"))
    assert torch.allclose(torch.stack(fused.media), blocks, atol=1e-5)

    ids = torch.tensor(fused.input_ids)
    text = llm.get_input_embeddings()(ids.clamp(max=260))
    cuts = (ids == IMAGE).nonzero().flatten().tolist()
    pieces, start = [], 0
    for cut, block in zip(cuts, blocks, strict=True):
        pieces += [text[start:cut], block]  # nothing but the prompt's own newline follows
        start = cut + 1
    embeds = torch.cat([*pieces, text[start:]])
    ours = model.embed(fused.input_ids, fused.media)
    assert torch.allclose(ours, embeds, atol=1e-5)
    expected = llm(inputs_embeds=embeds[None]).logits[0]
    assert torch.allclose(model.logits(model(ours[None])[0]), expected, atol=1e-4)


def test_it_drives(folder):
    policy = NavigationPolicy.load(folder)
    policy.reset("go to the red chair.")
    policy.observe(np.zeros((48, 64, 3), np.uint8), 0.0, 0.0, 0.0, 0.0)
    decision = policy.decide()
    assert decision.num_encoded_frames == 2  # the image and the black one before it
    assert sum(decision.probabilities) == pytest.approx(1.0)


def test_what_was_saved_loads_identically(loaded, tmp_path):
    weights.save(tmp_path, *loaded)
    model, tokenizer = weights.load(tmp_path)
    assert model.config == loaded[0].config
    assert model.newline_token_ids == ()
    prompt = "<|begin_of_text|>a<image>\nb"
    assert tokenizer.encode(prompt) == loaded[1].encode(prompt)
    expected = loaded[0].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("s2", True),
        ("mm_use_im_start_end", True),
        ("mm_vision_select_feature", "patch"),
        ("vision_resolution", 448),
    ],
)
def test_features_of_other_vila_models_are_refused(folder, tmp_path, key, value):
    for part in ("llm", "vision_tower", "mm_projector"):
        (tmp_path / part).symlink_to(folder / part)
    (tmp_path / "config.json").write_text(json.dumps({**TOP_LEVEL, key: value}))
    with pytest.raises(CheckpointError, match=rf"config\.json: {key} is {value!r}"):
        weights.load(tmp_path)

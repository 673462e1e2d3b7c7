# SPDX-License-Identifier: Apache-2.0
"""Samples in Llama-3's chat template, as a NaVILA checkpoint wants them for fine-tuning."""

import dataclasses

import numpy as np
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from nvila_ros.actions import ACTIONS
from nvila_ros.models.config import nano_config
from nvila_ros.models.inputs import prepare
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.prompt import navigation_prompt
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.data.encoding import IGNORED, encode
from nvila_ros.training.data.fuse import embed_batch
from nvila_ros.training.data.packing import pack
from nvila_ros.training.data.sample import Sample, Turn

SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)


def tokenizer() -> Tokenizer:
    """Llama-3's special tokens over single bytes; it opens every text with a begin of text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 256)]
    )
    return Tokenizer(backend, eos_token="<|end_of_text|>")


TOKENIZER = tokenizer()
CONFIG = nano_config(TOKENIZER.vocab_size)
CONFIG = dataclasses.replace(
    CONFIG,
    chat_template="llama_3",
    frame_end_text="",
    language=dataclasses.replace(CONFIG.language, model_max_length=8192),
)
FRAMES = tuple(np.random.default_rng(0).integers(0, 256, (3, 30, 30, 3), dtype=np.uint8))


def test_a_decision_is_what_the_policy_would_read() -> None:
    model = Nvila.from_scratch(CONFIG, std=0.1)
    model.connect(TOKENIZER.media_ids, ())
    turn = Turn(user="Go to the sofa.", answer=ACTIONS[2].sentence)
    row = Sample(key="r", source="s", kind="navigation", frames=FRAMES, turns=(turn,))
    encoded = encode(row, TOKENIZER, CONFIG)
    black = np.zeros_like(FRAMES[0])
    fused = prepare(model, TOKENIZER, navigation_prompt("Go to the sofa."), [black] * 5 + [*FRAMES])
    with torch.no_grad():
        expected = model.embed(fused.input_ids, fused.media)
        mine = embed_batch(model, pack([encoded]).to("cpu", torch.float32))[0]
    torch.testing.assert_close(mine[: len(expected)], expected, rtol=1e-5, atol=1e-5)
    learned = encoded.labels[encoded.labels != IGNORED].tolist()
    end = TOKENIZER.id("<|eot_id|>")
    assert learned == [*TOKENIZER.encode(ACTIONS[2].sentence), end]
    assert encoded.labels[len(expected)] != IGNORED


def test_later_turns_follow_the_template_without_another_beginning() -> None:
    turns = (Turn(user="<image>a", answer="b"), Turn(user="c", answer="d"))
    row = Sample(key="r", source="s", kind="image", frames=FRAMES[:1], turns=turns)
    ids = encode(row, TOKENIZER, CONFIG).ids.tolist()
    text = TOKENIZER.decode(ids, skip_special_tokens=False)
    head = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
    assert text.endswith("b<|eot_id|>" + head.format("user", "c") + head.format("assistant", "d"))

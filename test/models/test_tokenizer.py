# SPDX-License-Identifier: Apache-2.0
"""Reading tokenizer files in their released forms, and refusing broken ones."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import CheckpointError, InstructionError
from nvila_ros.models.prompt import navigation_prompt, user_prompt
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer

RELEASED = Path(__file__).parents[1] / "data" / "conformance" / "lite" / "llm"
TEXTS = [
    "Hello, world!\n\nHow's 1234 it?  ",
    "<|im_start|>user\nä<image>\n<|im_end|>",
    "日本語 e\u0301 \t x",
]


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(RELEASED, tmp_path / "llm")
    return tmp_path / "llm"


@pytest.fixture(scope="module")
def tokenizers():
    return Tokenizer.load(RELEASED), build_nano_tokenizer(["go"])


def edit_settings(folder, **changes):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("text", TEXTS)
def test_vocabulary_and_merges_alone_give_the_same_ids(folder, text):
    expected = Tokenizer.load(folder).encode(text)
    (folder / "tokenizer.json").unlink()
    assert Tokenizer.load(folder).encode(text) == expected


def test_media_tokens_are_added_after_the_saved_ones(folder):
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.media_ids == (261, 262, 263)
    assert tokenizer.encode("a<image>b")[1] == tokenizer.image_id == 262
    assert tokenizer.stop_ids == {258}
    assert {"<image>", "<|im_start|>", "[PAD]"} <= tokenizer.special_tokens


@pytest.mark.parametrize("text", TEXTS)
def test_saving_and_loading_keeps_every_id(folder, tmp_path, text):
    tokenizer = Tokenizer.load(folder)
    tokenizer.save(tmp_path / "copy")
    again = Tokenizer.load(tmp_path / "copy")
    assert again.encode(text) == tokenizer.encode(text)
    assert (again.media_ids, again.stop_ids) == (tokenizer.media_ids, tokenizer.stop_ids)


def test_decoding_drops_special_tokens(folder):
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("<|im_start|>hi there<|im_end|>")
    assert tokenizer.decode(ids) == "hi there"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>hi there<|im_end|>"


PIECES = ["<", "|", "image", ">", "im_end", "vila/video", "[PAD]", "\n", " ", "go", "é", "ﬁ", "≮"]


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.characters()), max_size=30).map("".join))
def test_no_accepted_instruction_adds_a_special_token(tokenizers, text):
    for tokenizer in tokenizers:
        special = {tokenizer.id(token) for token in tokenizer.special_tokens}
        plain = tokenizer.encode(user_prompt(navigation_prompt("go")))
        try:
            prompt = navigation_prompt(text, forbidden_tokens=tokenizer.special_tokens)
        except InstructionError:
            continue
        ids = tokenizer.encode(user_prompt(prompt))
        assert [i for i in ids if i in special] == [i for i in plain if i in special]


def test_a_token_list_of_another_checkpoint_is_refused(folder):
    edit_settings(folder, added_tokens_decoder={"7": {"content": "<|im_end|>", "special": True}})
    with pytest.raises(CheckpointError, match=r"<\|im_end\|>.*258.*7"):
        Tokenizer.load(folder)


def test_a_missing_end_token_is_refused(folder):
    edit_settings(folder, eos_token=None)
    with pytest.raises(CheckpointError, match="eos_token"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_truncated_file_is_refused_by_name(folder, name):
    path = folder / name
    path.write_text(path.read_text()[:200])
    with pytest.raises(CheckpointError):
        Tokenizer.load(folder)


@pytest.mark.parametrize("names", [["tokenizer_config.json"], ["tokenizer.json", "vocab.json"]])
def test_missing_files_are_named(folder, names):
    for name in names:
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=names[-1]):
        Tokenizer.load(folder)

# SPDX-License-Identifier: Apache-2.0
"""The small tokenizer: short prompts, no unknown text."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nvila_ros.actions import ACTIONS
from nvila_ros.models.prompt import navigation_prompt, user_prompt
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer

WORDS = ["walk", "to", "the", "red", "sofa", "turn", "left", "then"]
TOKENIZER = build_nano_tokenizer(WORDS)


def test_a_word_is_one_token_wherever_it_stands():
    assert len({tuple(TOKENIZER.encode(text)) for text in ("sofa", "Sofa", " sofa", " SOFA")}) == 1
    assert len(TOKENIZER.encode("Walk to the red sofa. Then turn left.")) == 10


def test_the_whole_prompt_is_short():
    ids = TOKENIZER.encode(user_prompt(navigation_prompt("Walk to the red sofa.")))
    assert ids.count(TOKENIZER.image_id) == 8
    assert len(ids) <= 40


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.sentence)
def test_an_answer_is_two_tokens(action):
    assert len(TOKENIZER.encode(action.sentence)) == 2


def test_a_newline_is_one_token():
    assert len(TOKENIZER.newline_ids) == 1
    assert TOKENIZER.decode(TOKENIZER.newline_ids) == "\n"


# Letters unknown to this Python ("Cn") may have a lower case in the tokenizer's own tables.
KNOWN = st.characters(exclude_categories=["Cs", "Cn"])


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
@example("\U00016ea0")
def test_any_text_encodes(text):
    assert all(0 <= index < TOKENIZER.vocab_size for index in TOKENIZER.encode(text))


@given(st.text(alphabet=KNOWN, max_size=40))
@example("A\u03a3")  # character by character: a sigma that ends a word is no exception
def test_any_text_keeps_its_lower_case_form(text):
    ids = TOKENIZER.encode(text)
    words = "".join(TOKENIZER.decode(ids, skip_special_tokens=False).split())
    lower = "".join(character.lower() for character in text)
    assert words == "".join(lower.split()) or "<" in text


def test_the_vocabulary_is_stable():
    again = build_nano_tokenizer(reversed(WORDS))
    assert again.encode("walk to the sofa") == TOKENIZER.encode("walk to the sofa")
    assert TOKENIZER.vocab_size == 256 + len(WORDS) + 3 + 3 + 1 + 3 + 4 + 11

# SPDX-License-Identifier: Apache-2.0
"""Batched training sequences are what the model sees when it drives."""

import pytest
import torch

from nvila_ros.models.config import nano_config
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.prompt import chat_prompt, navigation_prompt
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer
from nvila_ros.training.objectives import fuse
from nvila_ros.training.questions import question_words
from nvila_ros.training.sequences import SequenceBuilder

WORDS = [
    *question_words(),
    *("turn", "left", "then", "go", "through", "the", "blue", "door", "and", "stop", "red"),
    *("at", "chair"),
]
INSTRUCTION = "Turn left. Then go through the blue door and stop at the red chair."


@pytest.fixture(scope="module")
def model_and_sequences():
    tokenizer = build_nano_tokenizer(WORDS)
    config = nano_config(tokenizer.vocab_size)
    model = Nvila.from_scratch(config)
    model.connect(tokenizer.media_ids, tokenizer.newline_ids)
    return model, SequenceBuilder(tokenizer, config)


def test_fused_batch_equals_the_models_own_fusion(model_and_sequences):
    model, sequences = model_and_sequences
    features = torch.randn(8, 16, 256)
    prompt = chat_prompt([("user", navigation_prompt(INSTRUCTION))])
    expected = model.embed(sequences.tokenizer.encode(prompt), features)
    ids = torch.tensor(sequences.navigation_prompt(INSTRUCTION))[None]
    places = torch.tensor(sequences.navigation_image_places)
    fused = fuse(model, ids, features.flatten(0, 1)[None], places)
    assert torch.equal(fused[0], expected)


def test_only_answers_and_their_end_are_supervised(model_and_sequences):
    _, sequences = model_and_sequences
    ids, supervised = sequences.conversation(
        [
            ("Where is the red chair?", "It is ahead, two meters."),
            ("What is ahead?", "The blue door."),
        ]
    )
    text = sequences.tokenizer.decode(ids[supervised].tolist(), skip_special_tokens=False)
    assert text == " it is ahead, two meters.<|im_end|> the blue door.<|im_end|>"


def test_a_conversation_never_outgrows_its_room(model_and_sequences):
    _, sequences = model_and_sequences
    turn = ("Where is the red chair?", "It is 45 degrees left, one and a half meters.")
    ids, _ = sequences.conversation([turn] * 40)
    assert len(ids) <= sequences.view_length


def test_an_instruction_that_does_not_fit_is_an_error(model_and_sequences):
    _, sequences = model_and_sequences
    with pytest.raises(ValueError, match="at most"):
        sequences.navigation_prompt("go left " * 100)

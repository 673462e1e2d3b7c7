# SPDX-License-Identifier: Apache-2.0
"""The batched driver of training decides as the shipped policy's decoding does."""

import numpy as np
import pytest
import torch

from nvila_ros.action_trie import ActionTrie
from nvila_ros.models.generate import choose
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.prompt import navigation_prompt, user_prompt
from nvila_ros.training.objectives import AnswerTable, normalise
from nvila_ros.training.replay import FrameRing, history_indices
from nvila_ros.training.student import Student
from nvila_ros.training.vocabulary import build_sequences

INSTRUCTIONS = ("Turn left and stop at the red chair.", "Go through the blue door.", "Turn right.")


@pytest.fixture(scope="module")
def driving():
    sequences = build_sequences()
    tokenizer = sequences.tokenizer
    model = Nvila.from_scratch(sequences.config, std=0.08).eval()
    model.connect(tokenizer.media_ids, tokenizer.newline_ids)
    ring = FrameRing(64, 192, torch.device("cpu"), (16, 256))
    rng = np.random.default_rng(0)
    shown, prompts = [], [sequences.navigation_prompt(text) for text in INSTRUCTIONS]
    for number in range(len(INSTRUCTIONS)):
        frames = rng.integers(0, 256, (2 + 4 * number, 192, 192, 3), dtype=np.uint8)
        tickets = ring.put(torch.from_numpy(frames))
        indices = history_indices(len(frames))
        shown.append(np.where(indices < 0, 0, tickets[np.maximum(indices, 0)]))
    ids = np.full((3, sequences.prompt_length), sequences.pad_id)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    student = Student(model, AnswerTable(sequences.answers, sequences.pad_id), sequences, ring)
    return student, np.stack(shown), ids, np.array([len(prompt) for prompt in prompts])


def test_greedy_decisions_equal_the_policys_choice(driving):
    student, shown, ids, lengths = driving
    greedy, allowed = np.ones(3, bool), np.ones((3, 10), bool)
    decided = student.decide(shown, ids, lengths, greedy, allowed)
    tokenizer, model = student.sequences.tokenizer, student.model
    trie = ActionTrie(tokenizer)
    for text, tickets, index in zip(INSTRUCTIONS, shown, decided, strict=True):
        pixels = normalise(student.ring.pixels[torch.from_numpy(student.ring.slots(tickets))])
        with torch.inference_mode():
            blocks = model.encode_frames(pixels)
        prompt = tokenizer.encode(user_prompt(navigation_prompt(text)))
        assert choose(model, prompt, list(blocks), trie).index == index


def test_what_the_restraint_does_not_offer_is_never_chosen(driving):
    student, shown, ids, lengths = driving
    free = student.decide(shown, ids, lengths, np.ones(3, bool), np.ones((3, 10), bool))
    allowed = np.ones((3, 10), bool)
    allowed[np.arange(3), free] = False
    for greedy in (True, False):
        for _ in range(20):
            chosen = student.decide(shown, ids, lengths, np.full(3, greedy), allowed)
            assert allowed[np.arange(3), chosen].all()


def test_few_rows_at_once_decide_as_many_do(driving):
    student, shown, ids, lengths = driving
    few = Student(student.model, student.answers, student.sequences, student.ring, num_rows=2)
    rows = (shown, ids, lengths, np.ones(3, bool), np.ones((3, 10), bool))
    assert few.decide(*rows).tolist() == student.decide(*rows).tolist()

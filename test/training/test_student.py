# SPDX-License-Identifier: Apache-2.0
"""The batched driver of training decides as the shipped policy's decoding does."""

import numpy as np
import torch

from nvila_ros.action_trie import ActionTrie
from nvila_ros.models.generate import choose
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.prompt import navigation_prompt, user_prompt
from nvila_ros.training.objectives import AnswerTable, normalise
from nvila_ros.training.replay import EpisodeRecord, FrameRing
from nvila_ros.training.student import Student
from nvila_ros.training.vocabulary import build_sequences

INSTRUCTIONS = ("Turn left and stop at the red chair.", "Go through the blue door.", "Turn right.")


def test_greedy_decisions_equal_the_policys_choice():
    sequences = build_sequences()
    tokenizer = sequences.tokenizer
    model = Nvila.from_scratch(sequences.config, std=0.08).eval()
    model.connect(tokenizer.media_ids, tokenizer.newline_ids)
    ring = FrameRing(64, 192, torch.device("cpu"), (16, 256))
    rng = np.random.default_rng(0)
    records = []
    for number, text in enumerate(INSTRUCTIONS):
        record = EpisodeRecord(sequences.navigation_prompt(text))
        frames = rng.integers(0, 256, (2 + 4 * number, 192, 192, 3), dtype=np.uint8)
        record.tickets += ring.put(frames).tolist()
        record.shown.append(record.show())
        records.append(record)
    answers = AnswerTable(sequences.answers, sequences.pad_id)
    decided = Student(model, answers, sequences, ring).decide(records, np.ones(3, bool))

    trie = ActionTrie(tokenizer)
    for text, record, index in zip(INSTRUCTIONS, records, decided, strict=True):
        pixels = normalise(ring.pixels[torch.from_numpy(ring.slots(record.shown[-1]))])
        with torch.inference_mode():
            blocks = model.encode_frames(pixels)
        ids = tokenizer.encode(user_prompt(navigation_prompt(text)))
        assert choose(model, ids, list(blocks), trie).index == index

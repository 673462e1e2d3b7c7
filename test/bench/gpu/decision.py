# SPDX-License-Identifier: Apache-2.0
"""One navigation decision of a released size: the prompt's tokens, the tree, the frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from shapes import IMAGE_ID
from torch import Tensor

from nvila_ros.models.trie import TokenTrie

NUM_OPENING, NUM_TASK = 34, 66  # text tokens before the first frame and after the last one
NUM_HISTORY = 7
SPOKEN = "The next action is stop . move forward turn left right cm degrees space 1 2 3 4 5 7 0"
WORDS = {word: 1000 + index for index, word in enumerate(SPOKEN.split())}


def action_trie() -> TokenTrie:
    """The ten sentences with Qwen2's cuts: a token per word, digits apart."""
    opening = ["The", "next", "action", "is"]
    sentences = [["stop", "."]]
    sentences += [["move", "forward", "space", *cm, "cm", "."] for cm in ("25", "50", "75")]
    for side in ("left", "right"):
        sentences += [["turn", side, "space", *turn, "degrees", "."] for turn in ("15", "30", "45")]
    return TokenTrie([[WORDS[word] for word in opening + rest] for rest in sentences])


@dataclass
class Drive:
    """Frames of an episode as pixels, each encoded once, as the policy does it."""

    pixels: Tensor  # (N, 3, S, S)

    def prompt(self) -> list[int]:
        """Text, seven frames, text, the current frame, the task; one newline per line of frames."""
        text = iter(range(2000, 4000))
        ids = [next(text) for _ in range(NUM_OPENING)]
        for _ in range(NUM_HISTORY):
            ids += [IMAGE_ID, 198]
        ids += [next(text) for _ in range(5)]
        ids += [IMAGE_ID, 198]
        return ids + [next(text) for _ in range(NUM_TASK)]

    def shown(self, num_seen: int) -> list[int]:
        """Frames shown after `num_seen` of them: seven over the whole episode and the last one."""
        past = torch.linspace(0, num_seen - 1, NUM_HISTORY + 1)[:-1].long().tolist()
        return [*past, num_seen - 1]

# SPDX-License-Identifier: Apache-2.0
"""Texts as token ids with the places of frame features laid out, for batched training.

An expanded sequence holds, for each `<image>`, as many padding ids as a frame has features and then
the newline that ends every frame: the same sequence that `Nvila.embed` makes for one prompt. Frames
come before anything that differs between prompts, so their places are constants.
"""

from __future__ import annotations

import numpy as np

from nvila_ros.actions import ACTIONS
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.prompt import IMAGE_TOKEN, chat_prompt, navigation_prompt
from nvila_ros.models.tokenizer import Tokenizer

ANSWER_ROOM = 4  # ids after the longest prompt


class SequenceBuilder:
    """Prompts, answers and conversations of the small model, as ids."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: NvilaConfig,
        max_instruction_tokens: int = 64,
        view_length: int = 192,
        view_places: int = 56,
    ) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.tokens_per_frame = config.tokens_per_frame
        self.pad_id = tokenizer.id("<|endoftext|>")
        self.end_id = tokenizer.id("<|im_end|>")
        self.answers = [[*tokenizer.encode(a.sentence), self.end_id] for a in ACTIONS]
        bare = self._navigation_ids("x")
        self.navigation_image_places = self._places(bare)
        self.min_length = len(self._expand(bare))
        self.prompt_length = self.min_length + max_instruction_tokens + ANSWER_ROOM
        self.view_length, self.view_places = view_length, view_places
        self.view_image_places = self._places(
            self._chat_ids([("user", f"{IMAGE_TOKEN}\nx")], False)
        )

    def navigation_prompt(self, instruction: str) -> np.ndarray:
        """Expanded ids of the navigation prompt up to where the answer begins."""
        ids = self._expand(self._navigation_ids(instruction))
        limit = self.prompt_length - ANSWER_ROOM
        if len(ids) > limit:
            raise ValueError(
                f"the prompt of {instruction!r} has {len(ids)} ids, at most {limit} fit"
            )
        return np.array(ids, np.int64)

    def fits(self, instruction: str) -> bool:
        """Whether `navigation_prompt` takes the instruction."""
        length = len(self._expand(self._navigation_ids(instruction)))
        return length <= self.prompt_length - ANSWER_ROOM

    def conversation(self, turns: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """Questions and answers about one frame: expanded ids, and which of them are supervised.

        Answers and their end tokens are supervised. Turns that do not fit any more are left out.
        """
        ids: list[int] = []
        supervised: list[bool] = []
        for number, (question, answer) in enumerate(turns):
            content = f"{IMAGE_TOKEN}\n{question}" if number == 0 else question
            messages = [("user", content)] if number == 0 else [("system", ""), ("user", content)]
            text = chat_prompt(messages)
            if number:  # the template's system turn belongs to the first message only
                text = text.removeprefix(chat_prompt([("system", "")], add_generation_prompt=False))
            asked = self._expand(self.tokenizer.encode(text))
            answered = [*self.tokenizer.encode(answer), self.end_id]
            newline = list(self.tokenizer.newline_ids)
            if len(ids) + len(asked) + len(answered) + len(newline) > self.view_length:
                break
            ids += asked + answered + newline
            supervised += [False] * len(asked) + [True] * len(answered) + [False] * len(newline)
        return np.array(ids, np.int64), np.array(supervised)

    def _navigation_ids(self, instruction: str) -> list[int]:
        history = self.config.num_video_frames - 1
        return self._chat_ids([("user", navigation_prompt(instruction, history))], True)

    def _chat_ids(self, messages: list[tuple[str, str]], generate: bool) -> list[int]:
        return self.tokenizer.encode(chat_prompt(messages, add_generation_prompt=generate))

    def _expand(self, ids: list[int]) -> list[int]:
        frame = [self.pad_id] * self.tokens_per_frame + list(self.tokenizer.newline_ids)
        return [
            x for token in ids for x in (frame if token == self.tokenizer.image_id else [token])
        ]

    def _places(self, ids: list[int]) -> list[int]:
        places: list[int] = []
        position = 0
        for token in ids:
            if token == self.tokenizer.image_id:
                places += range(position, position + self.tokens_per_frame)
                position += self.tokens_per_frame + len(self.tokenizer.newline_ids)
            else:
                position += 1
        return places

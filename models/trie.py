# SPDX-License-Identifier: Apache-2.0
"""A finite set of answers as a tree of tokens, laid out so that one pass scores all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """A place where the answers part: the state after `node` is asked which token comes next."""

    node: int  # index into the tree's rows, -1 is the state before any token of the tree
    tokens: tuple[int, ...]  # the allowed next tokens
    answers: tuple[tuple[int, ...], ...]  # the answers that remain after each of them


class TokenTrie:
    """Token sequences as a tree; its rows are the tokens to read before each path's last branch."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.sequences = tuple(tuple(sequence) for sequence in sequences)
        if not self.sequences:
            raise ValueError("a trie needs at least one sequence")
        self.tokens: list[int] = []
        self.parents: list[int] = []  # row of the token before, -1 at the top
        self.branches: list[Branch] = []
        self._grow(node=-1, depth=0, answers=tuple(range(len(self.sequences))))

    def _grow(self, node: int, depth: int, answers: tuple[int, ...]) -> None:
        if len(answers) == 1:
            return  # decided: the rest needs no reading
        children: dict[int, list[int]] = {}
        for answer in answers:
            if depth == len(self.sequences[answer]):
                raise ValueError(
                    f"answer {answer} is the beginning of, or equal to, another answer"
                )
            children.setdefault(self.sequences[answer][depth], []).append(answer)
        if len(children) > 1:
            self.branches.append(
                Branch(node, tuple(children), tuple(tuple(group) for group in children.values()))
            )
        for token, group in children.items():
            if len(group) > 1:
                self.tokens.append(token)
                self.parents.append(node)
                self._grow(len(self.tokens) - 1, depth + 1, tuple(group))

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        """Tokens that all answers begin with: append them to the prompt and use `tail`."""
        shared: list[int] = []
        for column in zip(*self.sequences, strict=False):
            if len(set(column)) > 1:
                break
            shared.append(column[0])
        return tuple(shared)

    @cached_property
    def tail(self) -> TokenTrie:
        """The answers without their common prefix."""
        return TokenTrie([sequence[len(self.prefix) :] for sequence in self.sequences])

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Tokens between the prompt and each row."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def visibility(self) -> Tensor:
        """(rows, rows) bool: True where a row's path runs through the column's row or is it."""
        mask = torch.eye(len(self.tokens), dtype=torch.bool)
        for row, parent in enumerate(self.parents):
            if parent >= 0:
                mask[row] |= mask[parent]
        return mask

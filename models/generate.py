# SPDX-License-Identifier: Apache-2.0
"""Turns fused embeddings into an answer: free greedy text, or the likeliest of a finite set."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvila_ros.models.language import KeyValueCache
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.trie import TokenTrie


@dataclass(frozen=True)
class Choice:
    """One answer of a finite set, and how sure the network is of each."""

    index: int
    confidence: float  # probability of the choice among the allowed answers, in [0, 1]
    probabilities: tuple[float, ...]  # of every allowed answer, they sum to 1
    num_forward_passes: int


def prefill(model: Nvila, embeds: Tensor, cache: KeyValueCache) -> Tensor:
    """Read the fused prompt (L, D) into the cache; return the last hidden state (D,)."""
    return model(embeds.unsqueeze(0), cache=cache)[0, -1]


def decode(model: Nvila, token: int, cache: KeyValueCache) -> Tensor:
    """Read one more token into the cache; return its hidden state (D,)."""
    ids = torch.tensor([[token]], device=model.device)
    return model(model.llm.model.embed_tokens(ids), cache=cache)[0, -1]


@torch.inference_mode()
def generate_greedy(
    model: Nvila,
    input_ids: Sequence[int] | Tensor,
    media: Sequence[Tensor] | Tensor = (),
    *,
    max_new_tokens: int = 32,
    stop_ids: Collection[int] = (),
) -> list[int]:
    """The most likely next token, again and again; the stop token is not part of the answer."""
    embeds = model.embed(input_ids, media)
    cache = model.new_cache(embeds.shape[0] + max_new_tokens)
    hidden = prefill(model, embeds, cache)
    return continue_greedy(model, hidden, cache, max_new_tokens, stop_ids)


def continue_greedy(
    model: Nvila,
    hidden: Tensor,
    cache: KeyValueCache,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
) -> list[int]:
    """What follows a prompt that is in the cache and ended in `hidden` (D,), token by token."""
    answer: list[int] = []
    while True:
        token = int(model.logits(hidden).argmax())
        if token in stop_ids:
            return answer
        answer.append(token)
        if len(answer) >= max_new_tokens:
            return answer
        hidden = decode(model, token, cache)


@torch.inference_mode()
def choose(
    model: Nvila,
    input_ids: Sequence[int] | Tensor,
    media: Sequence[Tensor] | Tensor,
    trie: TokenTrie,
    allowed: Collection[int] | None = None,
) -> Choice:
    """Read a prompt and pick one answer; what all answers share is read with the prompt.

    `allowed` limits the choice to these answers; without it every answer is allowed.
    """
    ids = input_ids.tolist() if isinstance(input_ids, Tensor) else list(input_ids)
    embeds = model.embed([*ids, *trie.prefix], media)
    tail = trie.tail
    cache = model.new_cache(embeds.shape[0] + len(tail.tokens))
    choice = decode_choice(model, cache, prefill(model, embeds, cache), tail, allowed)
    return Choice(
        choice.index, choice.confidence, choice.probabilities, choice.num_forward_passes + 1
    )


@torch.inference_mode()
def decode_choice(
    model: Nvila,
    cache: KeyValueCache,
    hidden: Tensor,
    trie: TokenTrie,
    allowed: Collection[int] | None = None,
) -> Choice:
    """Pick one answer after a prompt that is in the cache and ended in `hidden` (D,).

    Forced tokens are never asked for, and all branches are read in one pass, each row seeing only
    its own path. The walk takes the most likely allowed token at each branch, so it equals free
    greedy decoding whenever that stays within the answers. The cache is left as it was.
    """
    states = hidden.reshape(1, -1)
    if trie.tokens:
        states = torch.cat((states, _read_tree(model, cache, trie)))
    nodes = [branch.node + 1 for branch in trie.branches]
    scores = model.logits(states[nodes]).float().cpu()  # (branches, V)
    rows = [row[list(branch.tokens)] for branch, row in zip(trie.branches, scores, strict=True)]
    return weigh(trie, rows, allowed, num_forward_passes=int(bool(trie.tokens)))


def weigh(
    trie: TokenTrie,
    rows: Sequence[Tensor],
    allowed: Collection[int] | None = None,
    num_forward_passes: int = 0,
) -> Choice:
    """The walk through the tree: `rows` are, per branch, the scores (A,) of its tokens.

    `allowed` limits the choice to these answers.
    """
    log_probabilities = torch.zeros(len(trie), dtype=torch.float64)
    offered = set(range(len(trie))) if allowed is None else set(allowed)
    if not offered:
        raise ValueError("no answer is allowed; allow at least one")
    remaining = set(range(len(trie)))
    for branch, row in zip(trie.branches, rows, strict=True):
        shares = row.double()
        is_open = torch.tensor([not offered.isdisjoint(answers) for answers in branch.answers])
        if is_open.any():
            shares = shares.masked_fill(~is_open, -torch.inf)
        for answers, log_share in zip(branch.answers, shares.log_softmax(-1), strict=True):
            log_probabilities[list(answers)] += log_share
        # Branches come from the top down: one that holds all remaining answers is on the walk.
        if remaining == {answer for answers in branch.answers for answer in answers}:
            remaining = set(branch.answers[int(shares.argmax())])
    (index,) = remaining
    probabilities = log_probabilities.exp().tolist()
    return Choice(index, probabilities[index], tuple(probabilities), num_forward_passes)


def _read_tree(model: Nvila, cache: KeyValueCache, trie: TokenTrie) -> Tensor:
    """All rows of the tree in one pass over the cached prompt -> their hidden states (rows, D)."""
    kept, rows = cache.length, len(trie.tokens)
    device = model.device
    embeds = model.llm.model.embed_tokens(torch.tensor([trie.tokens], device=device))
    positions = torch.tensor(trie.depths, device=device) + kept
    mask = torch.cat((torch.ones(rows, kept, dtype=torch.bool), trie.visibility), dim=1).to(device)
    states = model(embeds, positions=positions, cache=cache, mask=mask)[0]
    cache.rewind(kept)
    return states

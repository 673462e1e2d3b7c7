# SPDX-License-Identifier: Apache-2.0
"""Constrained choice against free greedy decoding and against scoring each answer on its own."""

import itertools

import pytest
import torch

from nvila_ros.models.generate import choose, decode_choice, generate_greedy, prefill
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.trie import TokenTrie

PROMPT = [1, 0, 2, 3]


def make_model(make_config, seed, vocab_size=4):
    return Nvila.from_scratch(make_config(vocab_size=vocab_size), seed=seed, std=0.5).eval()


def score_alone(model, sequences):
    """Log probability of each sequence after the prompt, without cache or tree."""
    scores = []
    for sequence in sequences:
        hidden = model(model.embed([*PROMPT, *sequence])[None])[0]
        logits = model.logits(hidden)
        total = 0.0
        for depth, token in enumerate(sequence):
            allowed = sorted(
                {other[depth] for other in sequences if other[:depth] == sequence[:depth]}
            )
            row = logits[len(PROMPT) - 1 + depth][allowed].log_softmax(-1)
            total += row[allowed.index(token)].item()
        scores.append(total)
    return scores


ALL_TRIPLES = list(itertools.product(range(4), repeat=3))


@pytest.mark.parametrize("seed", range(12))
def test_choice_equals_greedy_where_greedy_stays_inside(make_config, seed):
    model = make_model(make_config, seed)
    greedy = generate_greedy(model, PROMPT, max_new_tokens=3)
    trie = TokenTrie(ALL_TRIPLES)  # every greedy answer is allowed
    assert trie.sequences[choose(model, PROMPT, (), trie).index] == tuple(greedy)


@pytest.mark.parametrize("seed", range(12))
def test_choice_equals_greedy_in_a_smaller_set_that_holds_it(make_config, seed):
    model = make_model(make_config, seed)
    greedy = tuple(generate_greedy(model, PROMPT, max_new_tokens=3))
    others = [triple for index, triple in enumerate(ALL_TRIPLES) if index % 5 == seed % 5]
    trie = TokenTrie(sorted({greedy, *others}))
    assert trie.sequences[choose(model, PROMPT, (), trie).index] == greedy


@torch.inference_mode()
@pytest.mark.parametrize(
    "sequences",
    [
        [(0, 1), (0, 2), (1,), (3, 3, 3)],
        [(2, 0, 1), (2, 0, 2), (2, 1), (2, 3, 0, 0), (2, 3, 0, 1)],
        [(0,), (1,), (2,)],
        [(1, 2, 3)],
    ],
)
def test_probabilities_equal_scoring_each_answer_alone(make_config, sequences):
    model = make_model(make_config, seed=3)
    choice = choose(model, PROMPT, (), TokenTrie(sequences))
    expected = torch.tensor(score_alone(model, sequences)).exp()
    assert torch.allclose(torch.tensor(choice.probabilities), expected, atol=1e-4)
    assert sum(choice.probabilities) == pytest.approx(1.0)
    assert choice.confidence == choice.probabilities[choice.index]


@pytest.mark.parametrize("allowed", [{0}, {1, 3}, {0, 2, 4}, {0, 1, 2, 3, 4}])
def test_a_limited_choice_equals_choosing_among_those_alone(make_config, allowed):
    model = make_model(make_config, seed=6)
    sequences = [(2, 0, 1), (2, 0, 2), (2, 1), (2, 3, 0, 0), (2, 3, 0, 1)]
    limited = choose(model, PROMPT, (), TokenTrie(sequences), allowed)
    kept = sorted(allowed)
    alone = choose(model, PROMPT, (), TokenTrie([sequences[index] for index in kept]))
    assert limited.index == kept[alone.index]
    assert limited.confidence == pytest.approx(alone.confidence, abs=1e-5)
    barred = [p for index, p in enumerate(limited.probabilities) if index not in allowed]
    assert all(p == 0.0 for p in barred)


def test_nothing_allowed_is_an_error(make_config):
    with pytest.raises(ValueError, match="at least one"):
        choose(make_model(make_config, seed=6), PROMPT, (), TokenTrie([(1,), (2,)]), set())


@torch.inference_mode()
def test_choosing_leaves_the_cache_as_it_was(make_config):
    model = make_model(make_config, seed=4)
    trie = TokenTrie([(0, 1, 2), (0, 1, 3), (0, 2, 1), (3, 1)])
    cache = model.new_cache(len(PROMPT) + len(trie.tokens))
    hidden = prefill(model, model.embed(PROMPT), cache)
    first = decode_choice(model, cache, hidden, trie)
    assert cache.length == len(PROMPT)
    assert decode_choice(model, cache, hidden, trie) == first
    assert first.num_forward_passes == 1


def test_answers_that_part_after_the_prefix_need_one_pass(make_config):
    choice = choose(
        make_model(make_config, seed=5), PROMPT, (), TokenTrie([(1, 2), (1, 3), (1, 0)])
    )
    assert choice.num_forward_passes == 1


def test_greedy_ends_at_a_stop_token(make_config):
    model = make_model(make_config, seed=6)
    free = generate_greedy(model, PROMPT, max_new_tokens=6)
    stop = free[2]
    assert (
        generate_greedy(model, PROMPT, max_new_tokens=6, stop_ids={stop})
        == free[: free.index(stop)]
    )


def test_greedy_equals_reading_everything_again_for_each_token(make_config):
    model = make_model(make_config, seed=7, vocab_size=50)
    ids = list(PROMPT)
    with torch.inference_mode():
        for _ in range(5):
            ids.append(int(model.logits(model(model.embed(ids)[None])[0, -1]).argmax()))
    assert generate_greedy(model, PROMPT, max_new_tokens=5) == ids[len(PROMPT) :]

# SPDX-License-Identifier: Apache-2.0
"""The engine with kernels and graphs against the plain network on the same GPU."""

import copy

import pytest
import torch

from nvila_ros.models.generate import choose
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.runtime import Engine
from nvila_ros.models.trie import TokenTrie

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
IMAGE, NEWLINE = 900, 7
PROMPT = [1, 0, IMAGE, 2, 3, IMAGE, 5]
TRIE = TokenTrie([(2, 0, 1), (2, 0, 4), (2, 1, 3), (2, 3, 0, 0), (2, 3, 0, 1), (2, 5)])


@pytest.fixture
def model(make_config, make_language):
    config = make_config(
        language=make_language(
            vocab_size=203, hidden_size=256, intermediate_size=512, num_attention_heads=4,
            num_key_value_heads=2, head_dim=64,
        )
    )  # fmt: skip
    model = Nvila.from_scratch(config, seed=5, std=0.06).eval()
    model.connect([IMAGE], [NEWLINE])
    return model.half().cuda()


def seeded_frames(count):
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(4, 256, generator=generator).half().cuda() for _ in range(count)]


def shortfalls(model, media, answer):
    """How far the score of each answered token is below the best one; scores deviate by 0.9."""
    with torch.inference_mode():
        states = model(model.embed([*PROMPT, *answer], media)[None])[0]
        scores = model.logits(states[-len(answer) - 1 : -1])
    return [float(row.max() - row[token]) for row, token in zip(scores, answer, strict=True)]


@pytest.mark.parametrize("quantizes", [False, True])
def test_choices_and_answers_are_the_plain_networks(model, as_rounded, quantizes):
    """Against float32 with the very values that the engine's weights stand for.

    Rounding to four bits without calibration moves this random network's probabilities by 0.08 in
    the median and up to 0.34 (in plain float32, on any machine), so the network as it was before
    says nothing about the kernels. Plain float16 moves them by at most 0.0007.
    """
    expected_of = as_rounded(model) if quantizes else copy.deepcopy(model).float()
    frames = seeded_frames(3)
    wide = [frame.float() for frame in frames]
    engine = Engine.from_model(model, quantizes=quantizes)
    for pair in ((0, 1), (0, 2), (0, 2), (1, 2)) * 3:  # layouts come again: graphs
        got = engine.choose(PROMPT, [frames[index] for index in pair], TRIE)
        expected = choose(expected_of, PROMPT, [wide[index] for index in pair], TRIE)
        assert got.probabilities == pytest.approx(expected.probabilities, abs=0.005)
        engine.catch_up()
    answer = engine.generate_greedy(PROMPT, frames[:2], max_new_tokens=20)
    assert max(shortfalls(expected_of, wide[:2], answer)) < 0.01


@pytest.mark.parametrize("quantizes", [False, True])
def test_replayed_steps_equal_reading_the_answer_as_a_prompt(model, quantizes):
    engine = Engine.from_model(model, quantizes=quantizes)
    answer = engine.generate_greedy([1, 2, 3], max_new_tokens=12)
    fresh = Engine.from_model(model, quantizes=quantizes)
    for length in (1, 5, 11):
        assert fresh.generate_greedy([1, 2, 3, *answer[:length]], max_new_tokens=1) == [
            answer[length]
        ]


def test_frames_replayed_equal_frames_run(model):
    engine = Engine.from_model(model, max_frames=4)
    pixels = (torch.rand(4, 3, 40, 40, device="cuda") * 2 - 1).half()
    with torch.inference_mode():
        expected = model.encode_frames(pixels)
    for count in (1, 2, 4):
        got = engine.encode_frames(pixels[:count])
        assert torch.allclose(got, expected[:count], atol=5e-3)


def test_memory_is_measured(model):
    memory = Engine.from_model(model).memory()
    assert memory.allocated >= memory.weights + memory.cache
    assert memory.reserved >= memory.allocated

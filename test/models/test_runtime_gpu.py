# SPDX-License-Identifier: Apache-2.0
"""The engine with kernels and graphs against the plain network on the same GPU."""

import pytest
import torch

from nvila_ros.models.generate import choose, generate_greedy
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


@pytest.mark.parametrize("quantizes", [False, True])
def test_choices_and_answers_are_the_plain_networks(model, quantizes):
    frames = [torch.randn(4, 256, device="cuda").half() for _ in range(3)]
    engine = Engine.from_model(model, quantizes=quantizes)
    tolerance = 0.05 if quantizes else 0.01  # four bits without calibration, or fp16 alone
    for pair in ((0, 1), (0, 2), (0, 2), (1, 2)) * 3:  # layouts come again: graphs
        media = [frames[index] for index in pair]
        got, expected = engine.choose(PROMPT, media, TRIE), choose(model, PROMPT, media, TRIE)
        assert got.probabilities == pytest.approx(expected.probabilities, abs=tolerance)
    if not quantizes:
        answer = engine.generate_greedy(PROMPT, frames[:2], max_new_tokens=20)
        expected = generate_greedy(model, PROMPT, frames[:2], max_new_tokens=20)
        assert answer[:4] == expected[:4]


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

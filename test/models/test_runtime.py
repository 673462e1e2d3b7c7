# SPDX-License-Identifier: Apache-2.0
"""The engine against the plain network: same answers, nothing read twice, packed weights."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from nvila_ros.errors import ConfigError
from nvila_ros.kernels import packing, reference
from nvila_ros.kernels.packing import RowsInt4
from nvila_ros.models import runtime
from nvila_ros.models.generate import choose, generate_greedy
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.runtime import Engine
from nvila_ros.models.runtime_cache import Sequence1D, fuse
from nvila_ros.models.runtime_weights import round_to_nearest
from nvila_ros.models.trie import TokenTrie
from nvila_ros.policy import NavigationPolicy

IMAGE, NEWLINE = 900, 7  # an image's id may lie beyond the table's rows
PROMPT = [1, 0, IMAGE, 2, 3, IMAGE, 5]
TRIE = TokenTrie([(2, 0, 1), (2, 0, 4), (2, 1, 3), (2, 3, 0, 0), (2, 3, 0, 1), (2, 5)])


@pytest.fixture
def make_model(make_config, make_language):
    """Networks of 203 tokens (no multiple of 8), by seed; int4 needs inputs in groups of 128."""

    def make(seed=1, **language):
        config = make_config(language=make_language(**{"vocab_size": 203, **language}))
        model = Nvila.from_scratch(config, seed=seed, std=0.25).eval()
        model.connect([IMAGE], [NEWLINE])
        return model

    return make


@pytest.fixture
def wide(make_model):
    return make_model(hidden_size=128, intermediate_size=256, num_attention_heads=2,
                      num_key_value_heads=1, head_dim=64)  # fmt: skip


@pytest.fixture
def frames(make_model):
    with torch.inference_mode():
        return [torch.randn(4, 32, generator=torch.Generator().manual_seed(9)) for _ in range(6)]


def count_rows(engine):
    """Rows of every pass from here on."""
    counts, read = [], engine._decoder.read

    def counted(embeds, *layout):
        counts.append(len(embeds))
        return read(embeds, *layout)

    engine._decoder.read = counted
    return counts


def close(choice, expected):
    assert choice.index == expected.index
    assert choice.probabilities == pytest.approx(expected.probabilities, abs=2e-5)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("language", [{}, {"tie_word_embeddings": True, "qkv_bias": False}])
def test_choices_are_the_networks_own(make_model, frames, seed, language):
    model = make_model(seed, **language)
    engine = Engine.from_model(model)
    for allowed in (None, {0, 3, 5}):
        close(
            engine.choose(PROMPT, frames[:2], TRIE, allowed),
            choose(model, PROMPT, frames[:2], TRIE, allowed),
        )


@pytest.mark.parametrize("max_new_tokens", [1, 8, 9, 21])
def test_greedy_answers_are_the_networks_own(make_model, frames, max_new_tokens):
    model = make_model(3)
    engine = Engine.from_model(model)
    for _ in range(2):  # the second time nothing of the prompt is new
        got = engine.generate_greedy(PROMPT, frames[:2], max_new_tokens=max_new_tokens)
        assert got == generate_greedy(model, PROMPT, frames[:2], max_new_tokens=max_new_tokens)


def test_ends_after_pictures_are_skipped_as_by_the_network(make_model, frames):
    model = make_model(3)
    model.connect([IMAGE], [NEWLINE], skipped_token_ids=[5])
    engine = Engine.from_model(model)
    got = engine.generate_greedy(PROMPT, frames[:2], max_new_tokens=8)
    assert got == generate_greedy(model, PROMPT, frames[:2], max_new_tokens=8)
    assert got == generate_greedy(model, PROMPT[:-1], frames[:2], max_new_tokens=8)


def test_greedy_ends_before_a_stop_token(make_model, frames):
    model = make_model(3)
    engine = Engine.from_model(model)
    free = engine.generate_greedy(PROMPT, frames[:2], max_new_tokens=20)
    for position in (0, 3, 12):
        stopped = engine.generate_greedy(
            PROMPT, frames[:2], max_new_tokens=20, stop_ids={free[position]}
        )
        assert stopped == free[: free.index(free[position])]


def test_a_drive_reads_only_what_changed_and_answers_as_if_it_read_all(make_model, frames):
    model = make_model(5)
    engine = Engine.from_model(model)
    counts = count_rows(engine)
    shown = [(0, 1), (0, 2), (0, 2), (3, 2), (0, 1), (0, 0)]
    for pair in shown:
        media = [frames[index] for index in pair]
        close(engine.choose(PROMPT, media, TRIE), choose(model, PROMPT, media, TRIE))
    rest = len(TRIE.prefix) + len(TRIE.tail.tokens)
    block = 4 + 1
    everything, last = len(PROMPT) - 2 + 2 * block + rest, block + 1 + rest
    again, both = 1 + len(TRIE.tail.tokens), last + 2 + block
    assert counts == [everything, last, again, both, both, last]


def test_another_question_about_the_same_frames_keeps_them(make_model, frames):
    model = make_model(5)
    engine = Engine.from_model(model)
    engine.choose(PROMPT, frames[:2], TRIE)
    counts = count_rows(engine)
    prompt = [*PROMPT[:-1], 6, 8]
    close(engine.choose(prompt, frames[:2], TRIE), choose(model, prompt, frames[:2], TRIE))
    assert counts == [2 + len(TRIE.prefix) + len(TRIE.tail.tokens)]


def test_what_was_answered_is_kept_for_what_follows(make_model, frames):
    model = make_model(4)
    engine = Engine.from_model(model)
    answer = engine.generate_greedy(PROMPT, frames[:2], max_new_tokens=6)
    counts = count_rows(engine)
    prompt = [*PROMPT, *answer, 11, 12]
    expected = generate_greedy(model, prompt, frames[:2], max_new_tokens=5)
    assert engine.generate_greedy(prompt, frames[:2], max_new_tokens=5) == expected
    assert counts == [3]


def test_equal_features_in_another_tensor_are_read_again(make_model, frames):
    engine = Engine.from_model(make_model(4))
    engine.choose(PROMPT, frames[:2], TRIE)
    counts = count_rows(engine)
    engine.choose(PROMPT, [frames[0].clone(), frames[1]], TRIE)
    assert counts[0] > 10


def test_a_tree_of_one_answer_asks_nothing(make_model, frames):
    engine = Engine.from_model(make_model(4))
    choice = engine.choose(PROMPT, frames[:2], TokenTrie([(3, 4)]))
    assert (choice.index, choice.confidence, choice.num_forward_passes) == (0, 1.0, 0)


def test_a_longer_prompt_gets_a_larger_cache(make_model, frames):
    model = make_model(4)
    engine = Engine.from_model(model, max_tokens=64)
    prompt = [*PROMPT, *range(80)]
    close(engine.choose(prompt, frames[:2], TRIE), choose(model, prompt, frames[:2], TRIE))
    assert engine.max_tokens == 128
    with pytest.raises(ConfigError, match="fewer frames"):
        engine.choose([*PROMPT, *[1] * 600], frames[:2], TRIE)


def test_a_long_prompt_is_read_in_parts(make_model, frames, monkeypatch):
    monkeypatch.setattr(runtime, "ROWS_AT_ONCE", 5)
    model = make_model(4)
    engine = Engine.from_model(model)
    counts = count_rows(engine)
    close(
        engine.choose(PROMPT, frames[:2], TRIE),
        choose(model, PROMPT, frames[:2], TRIE),
    )
    assert counts == [5, 5, 5, 1 + len(TRIE.tail.tokens)]


@pytest.fixture
def rounded(wide, as_rounded):
    """The float network whose weights are what the rounded ones stand for."""
    return as_rounded(wide)


def test_rounded_weights_answer_as_the_values_they_stand_for(wide, rounded):
    frames = [torch.randn(4, 128), torch.randn(4, 128)]
    engine = Engine.from_model(copy.deepcopy(wide), quantizes=True)
    assert isinstance(engine._weights.layers[0].qkv, RowsInt4)
    assert engine._weights.head.weight.dtype == torch.int8
    for _ in range(2):
        close(
            engine.choose(PROMPT, frames, TRIE),
            choose(rounded, PROMPT, frames, TRIE),
        )
        assert engine.generate_greedy(PROMPT, frames, max_new_tokens=12) == generate_greedy(
            rounded, PROMPT, frames, max_new_tokens=12
        )


def test_rounding_is_within_half_a_step_of_each_group():
    weight = torch.randn(24, 256)
    int4 = round_to_nearest(weight)
    back = reference.dequantize_int4(int4.qweight, int4.zeros, int4.scales).float()
    error = (weight - back).abs().unflatten(1, (-1, 128)).amax(-1)
    assert bool((error <= 0.51 * int4.scales.float() + 1e-3).all())


def test_released_weights_are_stored_once(wide):
    engine = Engine.from_model(wide, quantizes=True, releases=True)
    assert {tensor.device.type for tensor in wide.llm.parameters()} == {"meta"}
    answers = engine.generate_greedy(PROMPT, [torch.randn(4, 128)] * 2, max_new_tokens=3)
    assert len(answers) == 3


def test_memory_counts_a_tied_head_once(make_model):
    tied = Engine.from_model(make_model(1, tie_word_embeddings=True)).memory()
    untied = Engine.from_model(make_model(1)).memory()
    assert untied.weights - tied.weights == 203 * 32 * 4


def test_frames_go_through_the_tower_in_batches(make_model):
    model = make_model(2)
    pixels = torch.rand(5, 3, 40, 40) * 2 - 1
    with torch.inference_mode():
        expected = model.encode_frames(pixels)
    assert torch.allclose(
        Engine.from_model(model, max_frames=2).encode_frames(pixels), expected, atol=1e-5
    )


def test_fused_rows_are_the_networks_own(make_model, frames):
    model = make_model(2)
    ids = [IMAGE, IMAGE, 4, 5, IMAGE]
    sequence = fuse(ids, frames[:3], model.media_token_ids, model.newline_token_ids)
    table = model.llm.model.embed_tokens.weight.detach()
    for start in (0, 3, 5, 11, len(sequence) - 1):
        assert torch.equal(sequence.embed(table, start), model.embed(ids, frames[:3])[start:])
    with pytest.raises(ValueError, match="places for 3"):
        fuse(ids, frames[:2], model.media_token_ids, ())


def test_shared_beginnings():
    first = Sequence1D((1, 2, (5, 0), (5, 1), 3))
    assert first.num_shared(Sequence1D((1, 2, (5, 0), (6, 1)))) == 3
    assert first.num_shared(Sequence1D(())) == 0
    assert first.num_shared(first.followed_by([4])) == 5


def test_a_policy_drives_alike_on_both_backends(tiny_folder):
    plain = NavigationPolicy.load(tiny_folder, backend="torch")
    fast = NavigationPolicy.load(tiny_folder, backend="kernels")
    rng = np.random.default_rng(3)
    for policy in (plain, fast):
        policy.reset("Go through the red door and stop at the chair.")
    for unit in range(14):
        image = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        decisions = []
        for policy in (plain, fast):
            policy.observe(image, 0.25 * unit, 0.0, 0.0, float(unit))
            decisions.append(policy.decide())
            policy.tried(decisions[-1])
        assert decisions[0].index == decisions[1].index
        assert decisions[0].probabilities == pytest.approx(decisions[1].probabilities, abs=1e-4)


def test_a_tower_of_int8_linears_is_used(wide):
    engine = Engine.from_model(wide, quantizes=True)
    layers = wide.vision_tower.vision_model.encoder.layers
    assert not any(isinstance(part, nn.Linear) for part in layers.modules())
    pixels = torch.rand(1, 3, 40, 40) * 2 - 1
    assert bool(torch.isfinite(engine.encode_frames(pixels)).all())
    assert packing.ROWS_GROUP == 128

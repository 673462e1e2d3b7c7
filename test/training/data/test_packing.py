# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nvila_ros.errors import DataError
from nvila_ros.models.config import nano_config
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.data.attention import SampleAttention, dense_mask, has_varlen
from nvila_ros.training.data.encoding import IGNORED, Encoded, encode
from nvila_ros.training.data.fuse import embed_batch
from nvila_ros.training.data.packing import PackedBatch, fill_bins, pack, padding_share
from nvila_ros.training.data.sample import Sample, Turn
from nvila_ros.training.vocabulary import build_tokenizer

TOKENIZER = build_tokenizer()
CONFIG = nano_config(TOKENIZER.vocab_size)


@pytest.fixture(scope="module")
def model() -> Nvila:
    model = Nvila.from_scratch(CONFIG, std=0.1)
    model.connect(TOKENIZER.media_ids, TOKENIZER.newline_ids)
    return model


@pytest.fixture(scope="module")
def samples() -> list[Encoded]:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(9)]
    turn = Turn(user="Go to the red chair.", answer="The next action is stop.")
    look = Turn(user="<image>\nWhere is it?", answer="It is ahead.")
    rows = [
        Sample(key="n", source="s", kind="navigation", frames=tuple(frames), turns=(turn,)),
        Sample(key="i", source="s", kind="image", frames=(frames[0],), turns=(look,), weight=0.5),
        Sample(key="t", source="s", kind="text", frames=(), turns=(Turn(user="a", answer="b"),)),
        Sample(key="j", source="s", kind="image", frames=(frames[3],), turns=(look,)),
    ]
    return [encode(row, TOKENIZER, CONFIG) for row in rows]


def losses(model: Nvila, batch: PackedBatch, implementation: str) -> torch.Tensor:
    """Cross entropies of the batch's targets, in order."""
    batch = batch.to("cpu", torch.float32)
    embeds = embed_batch(model, batch)
    attention = SampleAttention(batch.segments, "cpu", implementation)  # type: ignore[arg-type]
    hidden = model(embeds, batch.positions, None, attention)[0]
    targets = batch.targets
    learned = targets != IGNORED
    return F.cross_entropy(model.logits(hidden[learned]), targets[learned], reduction="none")


@pytest.mark.parametrize("implementation", ["dense", "split", "flex"])
@pytest.mark.parametrize("length", [None, 512])
def test_packed_losses_equal_those_of_each_sample_alone(
    model: Nvila, samples: list[Encoded], implementation: str, length: int | None
) -> None:
    with torch.no_grad():  # flex_attention has no backward pass on a CPU
        alone = torch.cat([losses(model, pack([one]), "split") for one in samples])
        packed = losses(model, pack(samples, length=length), implementation)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_packed_gradients_equal_those_of_each_sample_alone(
    model: Nvila, samples: list[Encoded]
) -> None:
    gradients = []
    for batches in ([pack([one]) for one in samples], [pack(samples, multiple=128)]):
        model.zero_grad()
        torch.cat([losses(model, batch, "split") for batch in batches]).sum().backward()
        weights = dict(model.named_parameters())
        gradients.append(
            {
                name: weight.grad.clone()
                for name, weight in weights.items()
                if weight.grad is not None
            }
        )
    model.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            gradients[1][name], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-6
        )


def num_learned(sample: Encoded) -> int:
    return int((sample.labels != IGNORED).sum())


def test_what_one_sample_holds_changes_nothing_in_another(
    model: Nvila, samples: list[Encoded]
) -> None:
    with torch.no_grad():
        here = losses(model, pack([samples[1], samples[2], samples[3]]), "split")
        there = losses(model, pack([samples[0], samples[2], samples[0]]), "split")
    middle = num_learned(samples[2])
    first, other = num_learned(samples[1]), num_learned(samples[0])
    torch.testing.assert_close(here[first : first + middle], there[other : other + middle])


def test_a_batch_names_its_samples_and_weighs_their_targets(samples: list[Encoded]) -> None:
    batch = pack(samples, multiple=128)
    assert len(batch) % 128 == 0 and batch.num_padding == len(batch) - sum(batch.lengths)
    assert batch.keys == ("n", "i", "t", "j") and sum(batch.segments) == len(batch)
    assert batch.num_targets == sum(num_learned(one) for one in samples)
    weights = batch.target_weights[batch.targets != IGNORED]
    assert weights.sum() == batch.num_targets - 0.5 * num_learned(samples[1])
    assert (batch.target_weights[batch.targets == IGNORED] == 0).all()
    starts = np.cumsum([0, *batch.lengths])
    assert (batch.positions[starts] == 0).all() and batch.sample_ids[-1] == -1


def test_a_batch_knows_which_rows_are_learned(samples: list[Encoded]) -> None:
    batch = pack(samples, multiple=128)
    assert torch.equal(batch.target_rows, (batch.targets != IGNORED).nonzero().squeeze(-1))


def test_the_first_layer_is_given_no_view(model: Nvila, samples: list[Encoded]) -> None:
    # Compiled layers would be compiled once for it and once for the others.
    for chosen in (samples, samples[2:3]):
        batch = pack(chosen).to("cpu", torch.float32)
        assert not any(
            embed_batch(model, batch, touches_all=touches)._is_view() for touches in (True, False)
        )


def test_a_batch_without_pictures_still_runs_the_tower(model: Nvila, samples) -> None:
    model.zero_grad()
    losses(model, pack([samples[2]]), "split").sum().backward()
    gradients = [weight.grad for weight in model.mm_projector.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    model.zero_grad()


def test_the_dense_mask_is_causal_within_samples() -> None:
    assert dense_mask((2, 1)).tolist() == [
        [True, False, False],
        [True, True, False],
        [False, False, True],
    ]


def test_bins_hold_everything_once_and_never_too_much() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(10, 900, 200).tolist()
    tiles = rng.integers(0, 9, 200).tolist()
    bins = fill_bins(lengths, 1024, 20, tiles)
    assert sorted(i for members in bins for i in members) == list(range(200))
    assert all(sum(lengths[i] for i in members) <= 1024 for members in bins)
    assert all(sum(tiles[i] for i in members) <= 20 for members in bins)
    assert padding_share(lengths, fill_bins(lengths, 1024), 1024) < 0.08
    with pytest.raises(DataError, match="does not fit"):
        fill_bins([2000], 1024)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("implementation", ["flex", "varlen"])
def test_the_fast_ways_equal_the_mask(implementation: str) -> None:
    if implementation == "varlen" and not has_varlen():
        pytest.skip("this torch has no varlen attention")
    torch.manual_seed(0)
    segments = (130, 1, 257, 64)
    heads = [
        torch.randn(1, count, sum(segments), 64, device="cuda", dtype=torch.bfloat16)
        for count in (8, 2, 2)
    ]
    pairs = []
    for name in ("dense", implementation):
        inputs = [states.clone().requires_grad_() for states in heads]
        attention = SampleAttention(segments, "cuda", name, torch.bfloat16)  # type: ignore[arg-type]
        mixed = attention(*inputs)
        mixed.float().square().sum().backward()
        pairs.append([mixed, *(states.grad for states in inputs)])
    for fast, slow in zip(*pairs, strict=True):
        torch.testing.assert_close(fast, slow, rtol=2e-2, atol=5e-2)


def test_equal_tiles_are_encoded_once(model: Nvila, samples: list[Encoded]) -> None:
    """Three frames of history: five black tiles are one; twice the sample adds no tile."""
    frames = tuple(np.full((40, 40, 3), 40 * n, np.uint8) for n in range(1, 4))
    turn = Turn(user="Go to the red chair.", answer="The next action is stop.")
    row = Sample(key="n", source="s", kind="navigation", frames=frames, turns=(turn,))
    short = encode(row, TOKENIZER, CONFIG)
    batch = pack([short, samples[1], short])
    assert len(short.tiles) == 8 and len(batch.pixels) == 5 and batch.num_tiles == (8, 1, 8)
    with torch.no_grad():
        together = losses(model, batch, "split")
        alone = torch.cat([losses(model, pack([one]), "split") for one in (short, samples[1])])
    torch.testing.assert_close(together[: len(alone)], alone, rtol=1e-4, atol=1e-4)

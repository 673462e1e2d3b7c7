# SPDX-License-Identifier: Apache-2.0
"""Where features go in a sequence, and that the network runs without looking at its data."""

import pytest
import torch

from nvila_ros.models.config import nano_config
from nvila_ros.models.nvila import Nvila


def test_each_media_id_becomes_its_block_and_a_newline(tiny_model, tokenizer):
    frames = torch.randn(2, 4, 32)
    ids = [tokenizer.image_id, 5, 6, tokenizer.image_id]
    table = tiny_model.llm.model.embed_tokens
    fused = tiny_model.embed(ids, frames)
    newline = table(torch.tensor(tokenizer.newline_ids))
    expected = torch.cat((frames[0], newline, table(torch.tensor([5, 6])), frames[1], newline))
    assert torch.equal(fused, expected)


def test_text_alone_is_the_embedding_table(tiny_model):
    assert torch.equal(
        tiny_model.embed([3, 1, 2]), tiny_model.llm.model.embed_tokens.weight[[3, 1, 2]]
    )


def test_blocks_may_differ_in_length_and_ids_may_lie_beyond_the_table(make_config):
    model = Nvila.from_scratch(make_config(vocab_size=10))
    model.connect(media_token_ids=[10, 11], newline_token_ids=[7])
    fused = model.embed(torch.tensor([1, 11, 2, 10]), [torch.zeros(3, 32), torch.zeros(5, 32)])
    assert fused.shape == (1 + 3 + 1 + 1 + 5 + 1, 32)


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ([1, 10, 8, 2], [1, 7, 2]),  # the message's end is lost after a picture
        ([1, 10, 9, 8, 8, 2, 8], [1, 7, 2, 8]),  # all of them, and only directly after it
        ([8, 1, 10, 2, 8], [8, 1, 7, 2, 8]),
        ([10, 8, 10, 8], [7, 7]),
    ],
)
def test_ends_directly_after_a_block_are_skipped_where_the_reference_does(make_config, ids, kept):
    model = Nvila.from_scratch(make_config(vocab_size=10))
    blocks = [torch.zeros(0, 32)] * ids.count(10)
    model.connect([10], [7], skipped_token_ids=[8, 9])
    table = model.llm.model.embed_tokens.weight
    assert torch.equal(model.embed(ids, blocks), table[kept])
    model.connect([10], [7])
    assert len(model.embed(ids, blocks)) == len(ids)


@pytest.mark.parametrize("num_blocks", [0, 2])
def test_places_and_blocks_must_agree(tiny_model, tokenizer, num_blocks):
    with pytest.raises(ValueError, match="places for 1"):
        tiny_model.embed([tokenizer.image_id], torch.zeros(num_blocks, 4, 32))


def test_a_lone_tile_stands_for_every_scale(make_config):
    config = make_config(
        mm_projector_type="mlp_downsample", image_aspect_ratio="dynamic_s2", s2_scales=(40, 80, 120)
    )
    model = Nvila.from_scratch(config)
    pixels = torch.rand(1, 3, 40, 40)
    patches = model.vision_tower(pixels)
    expected = model.mm_projector(torch.cat((patches, patches, patches), dim=-1))
    assert torch.equal(model.encode_frames(pixels), expected)


def test_training_path_never_asks_for_a_value(make_config):
    """On the meta device there are no values: a host sync or a boolean index would fail."""
    with torch.device("meta"):
        model = Nvila(make_config())
        features = model.encode_frames(torch.empty(16, 3, 40, 40))
        hidden = model(torch.empty(2, 50, 32))
        logits = model.logits(hidden)
    assert features.shape == (16, 4, 32)
    assert logits.shape == (2, 50, 300)


def test_the_forward_is_one_graph(make_config):
    """What torch.compile captures without a break needs no more than its tracer to be tested."""
    model = Nvila.from_scratch(make_config())
    encode = torch.compile(model.encode_frames, backend="eager", fullgraph=True)
    read = torch.compile(model, backend="eager", fullgraph=True)
    features = encode(torch.rand(2, 3, 40, 40))
    assert torch.equal(read(features), model(features))


def test_mixed_precision_stays_near_float32(make_config):
    model = Nvila.from_scratch(make_config(), std=0.1)
    pixels, text = torch.rand(2, 3, 40, 40), torch.randn(2, 5, 32)

    def read():
        return model.logits(model(torch.cat((model.encode_frames(pixels), text), dim=1)))

    expected = read()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = read()
    mixed.float().sum().backward()
    assert (mixed.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_gradients_reach_every_part(tiny_model):
    features = tiny_model.encode_frames(torch.rand(2, 3, 40, 40))
    tiny_model.logits(tiny_model(features.flatten(0, 1)[None])).square().mean().backward()
    assert (
        tiny_model.vision_tower.vision_model.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    )
    assert tiny_model.llm.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_from_scratch_repeats_with_its_seed_and_leaves_the_global_one(make_config):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (Nvila.from_scratch(make_config(), seed=3) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_the_nano_network_fits_its_budget():
    with torch.device("meta"):
        model = Nvila(nano_config(1024))
    assert sum(parameter.numel() for parameter in model.parameters()) <= 7_800_000
    assert model.config.tokens_per_frame == 16

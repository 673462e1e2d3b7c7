# SPDX-License-Identifier: Apache-2.0
"""A decoder layer over many rows: twins and kernels against the model's own layer."""

import pytest
import torch
from torch import nn

from nvila_ros.kernels import packing, prefill, reference
from nvila_ros.kernels.packing import Int4Weight
from nvila_ros.kernels.prefill import LayerShape, LayerWeights
from nvila_ros.models.config import LanguageConfig
from nvila_ros.models.language import KeyValueCache, LanguageLayer, rotary_table

CONFIG = LanguageConfig(
    vocab_size=64,
    hidden_size=256,
    intermediate_size=384,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=64,
    model_max_length=64,
)
SHAPE = LayerShape(num_heads=4, num_kv_heads=2, head_dim=64, eps=CONFIG.rms_norm_eps)
KEPT, ROWS, SLOTS = 5, 12, 32
HALF_ROUNDING = 1.5e-3  # relative, a whole layer of fp16 roundings


def random_linear(num_outputs, num_inputs):
    codes = torch.randint(0, 16, (num_outputs, num_inputs), dtype=torch.uint8)
    groups = (num_outputs, num_inputs // 128)
    zeros = torch.randint(6, 10, groups, dtype=torch.uint8)
    scales = (torch.rand(groups) + 0.5).half() / 4 / num_inputs**0.5
    return packing.to_rows(Int4Weight(qweight=packing.pack(codes), zeros=zeros, scales=scales))


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return LayerWeights(
        input_norm=torch.rand(256) + 0.5,
        qkv=random_linear(512, 256),
        qkv_bias=torch.randn(512) / 4,
        output=random_linear(256, 256),
        post_norm=torch.rand(256) + 0.5,
        gate_up=random_linear(768, 256),
        down=random_linear(256, 384),
    )


def as_model_layer(weights):
    """The same layer in the model's own module, dense float32."""
    dense = {name: reference.dense_rows(getattr(weights, name)).float() for name in
             ("qkv", "output", "gate_up", "down")}  # fmt: skip
    layer = LanguageLayer(CONFIG, 0)
    attention, mlp = layer.self_attn, layer.mlp
    linears = (attention.q_proj, attention.k_proj, attention.v_proj)
    for linear, weight, bias in zip(
        linears, dense["qkv"].split((256, 128, 128)), weights.qkv_bias.split((256, 128, 128)),
        strict=True,
    ):  # fmt: skip
        linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
    gate, up = dense["gate_up"].chunk(2)
    for linear, weight in (
        (attention.o_proj, dense["output"]), (mlp.gate_proj, gate), (mlp.up_proj, up),
        (mlp.down_proj, dense["down"]),
    ):  # fmt: skip
        linear.weight = nn.Parameter(weight)
    layer.input_layernorm.weight = nn.Parameter(weights.input_norm)
    layer.post_attention_layernorm.weight = nn.Parameter(weights.post_norm)
    return layer


def cos_sin_table():
    cosines, sines = rotary_table(CONFIG, torch.arange(SLOTS))
    return torch.cat((cosines[:, :32], sines[:, :32]), dim=1)


def run_layer(weights, hidden, mask=None):
    """`KEPT` rows, then the others after them, through the function that is tested."""
    device = hidden.device
    k_cache, v_cache = (torch.zeros(2, SLOTS, 64, device=device, dtype=hidden.dtype)
                        for _ in range(2))  # fmt: skip
    answers = []
    for start, end in ((0, KEPT), (KEPT, KEPT + ROWS)):
        places = torch.arange(start, end, dtype=torch.int32, device=device)
        answers.append(
            prefill.prefill_layer(
                hidden[start:end], weights, SHAPE, cos_sin_table().to(device), places, places,
                k_cache, v_cache, end, mask if start else None,
            )
        )  # fmt: skip
    return torch.cat(answers)


def expected_layer(weights, hidden, mask=None):
    layer, cache = as_model_layer(weights), KeyValueCache(CONFIG, SLOTS)
    answers = []
    for start, end in ((0, KEPT), (KEPT, KEPT + ROWS)):
        causal = torch.ones(end - start, end, dtype=torch.bool).tril(start)
        rotary = rotary_table(CONFIG, torch.arange(start, end))
        seen = causal if mask is None or not start else mask
        answers.append(layer(hidden[None, start:end], rotary, cache, seen)[0])
        cache.length = end
    return torch.cat(answers).detach()


def tree_mask():
    torch.manual_seed(1)
    mask = torch.rand(ROWS, KEPT + ROWS) < 0.4
    mask[:, :KEPT] = True
    mask[torch.arange(ROWS), KEPT + torch.arange(ROWS)] = True
    return mask


def relative_error(found, exact):
    assert found.isfinite().all()
    return float((found.double().cpu() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("mask", [None, tree_mask()], ids=["causal", "tree"])
def test_the_twins_follow_the_models_layer(weights, mask):
    hidden = torch.randn(KEPT + ROWS, 256)
    exact = expected_layer(weights, hidden, mask)
    assert relative_error(run_layer(weights, hidden, mask), exact) < 1e-5


def test_keys_go_where_their_slots_say(weights):
    k_cache, v_cache = torch.zeros(2, 8, 64), torch.zeros(2, 8, 64)
    qkv = torch.randn(2, 512)
    places, slots = torch.tensor([3, 1]), torch.tensor([6, 2])
    prefill.rope_cache(qkv, cos_sin_table(), places, slots, k_cache, v_cache, 4)
    assert torch.equal(v_cache[:, 6], qkv[0, 384:].view(2, 64))
    assert torch.equal(v_cache[:, 2], qkv[1, 384:].view(2, 64))
    written = k_cache.abs().sum(dim=(0, 2)) > 0
    assert written.nonzero().flatten().tolist() == [2, 6]


def on_gpu(weights):
    def moved(part):
        if isinstance(part, packing.RowsInt4):
            return packing.RowsInt4(qweight=part.qweight.cuda(), scale_zero=part.scale_zero.cuda())
        return part.half().cuda()

    return LayerWeights(**{name: moved(part) for name, part in vars(weights).items()})


@pytest.mark.gpu
@pytest.mark.parametrize("mask", [None, tree_mask()], ids=["causal", "tree"])
def test_the_kernels_follow_the_models_layer(weights, mask):
    hidden = torch.randn(KEPT + ROWS, 256).half()
    exact = expected_layer(weights, hidden.float(), mask)
    found = run_layer(on_gpu(weights), hidden.cuda(), None if mask is None else mask.cuda())
    assert relative_error(found, exact) < HALF_ROUNDING


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 1536, 3584, 5120])
def test_norms_of_many_rows(width):
    hidden, weight = torch.randn(17, width).half().cuda(), torch.rand(width).half().cuda()
    found = prefill.rms_norm(hidden, weight, 1e-6)
    assert (
        relative_error(found, reference.rms_norm(hidden.float(), weight.float(), 1e-6).cpu()) < 6e-4
    )


@pytest.mark.gpu
@pytest.mark.parametrize("width", [8, 1000, 18944])
def test_swiglu_of_many_rows(width):
    both = torch.randn(19, 2 * width).half().cuda() * 4
    assert relative_error(prefill.silu_mul(both), reference.silu_mul(both.double()).cpu()) < 4e-4


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows, num_keys", [(9, 9), (64, 300), (300, 1088), (1088, 1088)])
def test_attention_after_a_kept_prefix(num_rows, num_keys):
    query = torch.randn(num_rows, 28, 128).half().cuda()
    k_cache, v_cache = (torch.randn(4, 1152, 128).half().cuda() for _ in range(2))
    k_cache[:, num_keys:] = torch.nan  # slots out of sight
    found = prefill.attention_rows(query, k_cache, v_cache, num_keys)
    exact = reference.attention_rows(query.float(), k_cache.float(), v_cache.float(), num_keys)
    assert relative_error(found, exact.cpu()) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows, num_keys", [(9, 33), (30, 1001), (64, 1152)])
def test_attention_of_a_trees_rows(num_rows, num_keys):
    query = torch.randn(num_rows, 28, 128).half().cuda()
    k_cache, v_cache = (torch.randn(4, 1200, 128).half().cuda() for _ in range(2))
    mask = torch.rand(num_rows, num_keys, device="cuda") < 0.5
    mask[:, 0] = True
    found = prefill.attention_rows(query, k_cache, v_cache, num_keys, mask)
    exact = reference.attention_rows(
        query.float(), k_cache.float(), v_cache.float(), num_keys, mask
    )
    assert relative_error(found, exact.cpu()) < 1e-3


@pytest.mark.gpu
def test_the_dense_weight_is_the_twins_bit_for_bit(weights):
    rows = on_gpu(weights).gate_up
    out = torch.full((768, 256), torch.nan, device="cuda").half()
    assert torch.equal(prefill.dequantize(rows, out=out), reference.dense_rows(rows))

# SPDX-License-Identifier: Apache-2.0
"""The whole step: its twin says what the model says, kernels and the one launch what it says."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nvila_ros.kernels import decode, decode_persistent, packing
from nvila_ros.kernels.decode_persistent_plan import RELEASED, Cut
from nvila_ros.kernels.decode_step import DecodeStep, StepShape, StepWeights
from nvila_ros.kernels.w4a16 import W4A16Linear
from nvila_ros.models.config import LanguageConfig, QuantizationConfig
from nvila_ros.models.language import KeyValueCache, LanguageModel, rotary_table

PLACES = 96
CONFIG = LanguageConfig(
    vocab_size=300,
    hidden_size=512,
    intermediate_size=768,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=128,
    max_position_embeddings=PLACES,
    model_max_length=PLACES,
    quantization=QuantizationConfig(layout="awq_gemm"),
)
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def make_model() -> LanguageModel:
    """Random codes and biases; a head whose int8 rows are exact."""
    torch.manual_seed(0)
    model = LanguageModel(CONFIG)
    for module in model.modules():
        if isinstance(module, W4A16Linear):
            module.qweight.random_(-(2**31), 2**31 - 1)
            module.zeros.random_(0, 16)
            module.scales.copy_(torch.rand_like(module.scales) * 0.004 + 0.002)
            if module.bias is not None:
                torch.nn.init.normal_(module.bias)
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    assert model.lm_head is not None
    model.lm_head.weight.data = torch.randint(-127, 128, (300, 512)).float() * 0.01
    return model.eval()


def make_step(
    model: LanguageModel, device: str, is_persistent: bool = False, has_head: bool = False
) -> DecodeStep:
    dtype = torch.float32 if device == "cpu" else torch.float16

    def rows(*linears: W4A16Linear) -> packing.RowsInt4:
        parts = [packing.to_rows(linear.int4_weight) for linear in linears]
        joined = packing.concatenate_rows(parts)
        return packing.RowsInt4(
            qweight=joined.qweight.to(device), scale_zero=joined.scale_zero.to(device)
        )

    def there(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype)

    layers = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        heads = (attention.q_proj, attention.k_proj, attention.v_proj)
        layers.append(
            SimpleNamespace(
                input_norm=there(layer.input_layernorm.weight),
                qkv=rows(*heads),
                qkv_bias=there(torch.cat([head.bias for head in heads])),
                output=rows(attention.o_proj),
                post_norm=there(layer.post_attention_layernorm.weight),
                gate_up=rows(mlp.gate_proj, mlp.up_proj),
                down=rows(mlp.down_proj),
            )
        )
    weights = StepWeights(
        table=there(model.model.embed_tokens.weight),
        layers=layers,
        norm=there(model.model.norm.weight),
        head=(model.lm_head.weight / 0.01).round().to(device, torch.int8),
        head_scales=torch.full((300,), 0.01, device=device),
    )
    shape = StepShape(num_heads=4, num_kv_heads=2, head_dim=128, eps=CONFIG.rms_norm_eps)
    cosines, sines = rotary_table(CONFIG, torch.arange(PLACES))
    cos_sin = torch.cat((cosines[:, :64], sines[:, :64]), dim=-1).to(device)
    caches = [torch.zeros(3, 2, PLACES, 128, dtype=dtype, device=device) for _ in range(2)]
    return DecodeStep(
        weights, shape, *caches, cos_sin, is_persistent=is_persistent, has_head=has_head
    )


@torch.no_grad()
def greedy(model: LanguageModel, first: int, count: int) -> tuple[list[int], KeyValueCache]:
    """The model's own answer, token by token."""
    cache = KeyValueCache(CONFIG, PLACES)
    tokens = [first]
    for _ in range(count):
        hidden = model(model.model.embed_tokens(torch.tensor([tokens[-1:]])), cache=cache)
        tokens.append(int(model.logits(hidden[0, -1]).argmax()))
    return tokens, cache


@torch.no_grad()
def test_the_twin_of_the_step_is_the_model() -> None:
    model = make_model()
    tokens, cache = greedy(model, 7, 12)
    step = make_step(model, "cpu")
    step.begin(torch.tensor([7]), 0)
    for _ in range(12):
        step.launch()
    assert step.history[:13].tolist() == tokens
    assert step.position.tolist() == [12] and step.token.tolist() == tokens[-1:]
    for found, expected in ((step.keys, cache.keys), (step.values, cache.values)):
        torch.testing.assert_close(found[:, :, :12], expected[:, 0, :, :12], rtol=1e-3, atol=1e-3)


class Layers:
    """The one launch as the kernels do it; `edit` changes what the last layer gives."""

    def __init__(self, step: DecodeStep, edit: Callable[[Tensor], object] = lambda hidden: None):
        self.cut = Cut(RELEASED[1], 132, 12, 6)
        self.step, self.edit = step, edit
        self.places: list[int] = []

    def launch(self, token: Tensor, place: Tensor, table: Tensor, *rest: object) -> None:
        step = self.step
        self.places.append(int(place[0]))
        decode.embed(token, table, out=step._hidden)
        for index, layer in enumerate(step.weights.layers):
            step._launch_layer(index, layer)
        self.edit(step._hidden)
        if self.cut.has_head:
            self.finish()

    def finish(self) -> None:
        step, weights = self.step, self.step.weights
        decode.head_argmax(
            step._hidden, weights.norm, step.shape.eps, (weights.head, weights.head_scales),
            out=step.token, position=step._place, history=step.history,
        )  # fmt: skip


def assert_as_made(step: DecodeStep, caches: tuple[Tensor, Tensor]) -> None:
    assert step.keys.equal(caches[0]) and step.values.equal(caches[1])
    assert not step.history.any()
    assert step.position.tolist() == [0] and step.token.tolist() == [0]


@torch.no_grad()
@pytest.mark.parametrize(
    ("factor", "agrees"), [(1.0, True), (1.001, True), (1.2, False), (float("nan"), False)]
)
def test_one_launch_that_is_off_is_not_used(factor: float, agrees: bool) -> None:
    step = make_step(make_model(), "cpu")
    step.keys.normal_(), step.values.normal_()
    before = step.keys.clone(), step.values.clone()
    assert step._agrees(Layers(step, lambda hidden: hidden.mul_(factor))) == agrees
    assert_as_made(step, before)


@torch.no_grad()
@pytest.mark.parametrize(
    ("faults", "agrees"),
    [
        ([], True),
        (["token"], True),  # one close choice of four may turn
        (["token", "token"], False),
        (["place"] * 4, False),
        (["history"] * 4, False),
    ],
)
def test_a_head_inside_the_launch_that_chooses_otherwise_is_not_used(
    faults: list[str], agrees: bool
) -> None:
    step = make_step(make_model(), "cpu")
    left = list(faults)

    class Faulty(Layers):
        def finish(self) -> None:
            super().finish()
            fault = left.pop() if left else None
            position = int(step.position)
            if fault == "token":
                step.token.add_(1)
                step.history[position] += 1
            elif fault == "place":
                step._place[1] += 1
            elif fault == "history":
                step.history[position] = 0

    step._persistent = Faulty(step)
    step.keys.normal_(), step.values.normal_()
    before = step.keys.clone(), step.values.clone()
    assert step._heads_agree(step._persistent) == agrees and not left
    assert_as_made(step, before)


@pytest.mark.parametrize(
    "ways", [pytest.param(ways, marks=needs_gpu) for ways in ((False,), (True,), (True, True))]
)
def test_a_captured_step_follows_its_twin(ways: tuple[bool, ...]) -> None:
    model = make_model()
    twin = make_step(model, "cpu")
    step = make_step(model, "cuda", *ways)
    step.begin(torch.tensor([7], device="cuda"), 0)
    step.launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.launch()
    step.begin(torch.tensor([7], device="cuda"), 0)
    twin.begin(torch.tensor([7]), 0)
    for _ in range(PLACES - 1):  # the twin is led along: rounding may turn a close choice
        graph.replay()
        twin.launch()
        twin.token.copy_(step.token.cpu())
    filled = slice(0, PLACES - 1)
    for found, expected in ((step.keys, twin.keys), (step.values, twin.values)):
        difference = found[:, :, filled].cpu().float() - expected[:, :, filled]
        assert float(difference.norm() / expected[:, :, filled].norm()) < 5e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("has_head", [False, True])
def test_thousands_of_replays_say_the_same(has_head: bool) -> None:
    """Also while the number of layers ever run wraps, and while another stream is busy."""
    step = make_step(make_model(), "cuda", is_persistent=True, has_head=has_head)
    assert step._persistent is not None, "this GPU has no room for the one launch"
    first = torch.tensor([7], device="cuda")
    step.begin(first, 0)
    step.launch()
    step._persistent.exchange.epochs.sub_(12)  # an even number: words stay in step
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.launch()
    other, square = torch.cuda.Stream(), torch.randn(2048, 2048, device="cuda")
    texts = set()
    for _ in range(40):
        with torch.cuda.stream(other):
            square = (square @ square).clamp_(-1, 1)
        step.begin(first, 0)
        for _ in range(PLACES - 1):
            graph.replay()
        texts.add(tuple(step.history.tolist()))
    assert len(texts) == 1


@torch.no_grad()
def test_settling_leaves_the_step_as_it_was_made(monkeypatch) -> None:
    step = make_step(make_model(), "cpu")
    step.keys.normal_(), step.values.normal_()
    before = step.keys.clone(), step.values.clone()

    def steps_ms(launch) -> float:
        for _ in range(decode_persistent.TIMED_STEPS + 1):
            launch()
        return 0.7

    monkeypatch.setattr(decode_persistent, "steps_ms", steps_ms)
    monkeypatch.setattr(
        decode_persistent, "settle", lambda layers, series_ms: [series_ms() for _ in range(2)]
    )
    step._persistent = layers = Layers(step)
    step._settle(layers)
    num_steps = decode_persistent.TIMED_STEPS + 1
    places = [*range(PLACES - num_steps, PLACES)]  # whole steps, none past the cache
    assert layers.places == 2 * places
    assert_as_made(step, before)


@torch.no_grad()
@pytest.mark.parametrize("inside_ms", [0.69, 0.75])
def test_the_head_goes_where_whole_steps_are_faster(inside_ms: float, monkeypatch) -> None:
    step = make_step(make_model(), "cpu")
    step._persistent = layers = Layers(step)
    hiccups = [9.0]

    def steps_ms(launch) -> float:
        hiccup = hiccups.pop() if hiccups and layers.cut.has_head else 0.0
        return (inside_ms if layers.cut.has_head else 0.72) + hiccup

    monkeypatch.setattr(decode_persistent, "steps_ms", steps_ms)
    monkeypatch.setattr(decode_persistent, "settle", lambda layers, series_ms: None)
    step._settle(layers, chooses_head=True)
    assert layers.cut.has_head == (inside_ms < 0.72)

# SPDX-License-Identifier: Apache-2.0
"""Tower layers written out by hand train as the plain ones do."""

import copy
import importlib.util
from types import SimpleNamespace

import pytest
import torch

from nvila_ros.models.config import VisionConfig
from nvila_ros.models.vision import VisionLayer
from nvila_ros.training import tower_layers
from nvila_ros.training.tower_layers import can_fuse, fused_layer

IS_WITH_TRITON = importlib.util.find_spec("triton") is not None


def layer_of(dtype=torch.float64, width=48, inner=80, heads=2, device="cpu"):
    config = VisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=heads,
        image_size=56,
        patch_size=14,
    )
    torch.manual_seed(3)
    layer = VisionLayer(config).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return layer.to(device, dtype).train()


def trained(layers, ways, hidden, slope):
    """Output, and gradients by the input and every parameter, of layers one after another."""
    hidden = hidden.clone().requires_grad_()
    output = hidden
    for layer, way in zip(layers, ways, strict=True):
        output = way(layer, output)
    output.backward(slope)
    names = [
        f"{number} {name}"
        for number, layer in enumerate(layers)
        for name, _ in layer.named_parameters()
    ]
    slopes = [p.grad for layer in layers for p in layer.parameters()]
    return {"output": output.detach(), "input": hidden.grad} | dict(zip(names, slopes, strict=True))


def plain(layer, hidden):
    return layer(hidden)


def frames(shape=(3, 7, 48), dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("turned", [frozenset(), frozenset({"fc1", "fc2"})])
def test_output_and_gradients_equal_the_plain_layers(turned, monkeypatch):
    monkeypatch.setattr(tower_layers, "turned_products", turned)
    layers = [layer_of(), layer_of()]
    hidden, slope = frames()
    ours = trained(copy.deepcopy(layers), [fused_layer] * 2, hidden, slope)
    theirs = trained(layers, [plain] * 2, hidden, slope)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-10, msg=name)


def test_the_key_bias_learns_nothing():
    layer = layer_of()
    hidden, slope = frames()
    assert trained([layer], [plain], hidden, slope)["0 self_attn.k_proj.bias"].abs().max() < 1e-10


def test_half_precision_is_as_near_as_the_plain_layers():
    hidden, slope = frames()
    exact = trained([layer_of()], [plain], hidden, slope)
    halves = [each.bfloat16() for each in (hidden, slope)]
    ours = trained([layer_of(torch.bfloat16)], [fused_layer], *halves)
    theirs = trained([layer_of(torch.bfloat16)], [plain], *halves)
    for name, expected in exact.items():
        if "k_proj.bias" in name:
            continue  # zero
        errors = [
            float((each[name].double() - expected).norm() / expected.norm())
            for each in (ours, theirs)
        ]
        assert errors[0] < 1.3 * errors[1] + 2e-3, (name, errors)


def test_gradients_accumulate_over_two_batches():
    layer, other = layer_of(), layer_of()
    hidden, slope = frames()
    for _ in range(2):
        ours = trained([layer], [fused_layer], hidden, slope)
        theirs = trained([other], [plain], hidden, slope)
    torch.testing.assert_close(ours["0 mlp.fc1.weight"], theirs["0 mlp.fc1.weight"])
    torch.testing.assert_close(ours["0 self_attn.v_proj.bias"], theirs["0 self_attn.v_proj.bias"])


def deep_tower(dtype, num_layers=12, width=72):
    """Weights as a network's start has them, biases as training leaves them, all in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    layers = [layer_of(width=width, inner=4 * width, heads=1) for _ in range(num_layers)]
    with torch.no_grad():
        for name, parameter in (each for layer in layers for each in layer.named_parameters()):
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
                continue
            scale = parameter.shape[1] ** -0.5 if parameter.dim() > 1 else 0.1
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(values * scale)
    return [layer.bfloat16().to(dtype) for layer in layers]


def test_half_precision_of_a_deep_tower_is_as_near_as_the_plain_ones():
    """The stream is rounded no more often than the plain layers' sums by much.

    Gradients by queries and keys are far off either way: attention's own backward pass subtracts
    what nearly cancels. It is no measure of the layers.
    """
    halves = [each.bfloat16() for each in frames((2, 64, 72))]
    runs = {}
    for name, dtype, way in (
        ("exact", torch.float64, plain),
        ("plain", torch.bfloat16, plain),
        ("ours", torch.bfloat16, fused_layer),
    ):
        layers = deep_tower(dtype)
        inputs = [each.to(dtype) for each in halves]
        runs[name] = trained(layers, [way] * len(layers), *inputs)
    exact = runs.pop("exact")

    def distance(name, part):
        """Geometric mean over layers."""
        found = [key for key in exact if part in key]
        errors = [
            (runs[name][key].double() - exact[key]).norm() / exact[key].norm() for key in found
        ]
        return float(torch.stack(errors).log().mean().exp())

    parts = ("output", "q_proj.w", "k_proj.w", "v_proj", "out_proj", "mlp", "norm")
    for part in parts:
        assert distance("ours", part) < 1.2 * distance("plain", part), part
    for name in runs:
        assert distance(name, "q_proj.w") > 1.8 * distance(name, "v_proj")


def test_two_forward_passes_before_their_backward_passes():
    layer, other = layer_of(), layer_of()
    hidden, slope = frames()
    pairs = [(hidden, slope), (hidden.flip(0) * 2, slope.flip(1))]
    for each, way in ((layer, fused_layer), (other, plain)):
        outputs = [way(each, rows) for rows, _ in pairs]  # nothing asks for the rows' gradient
        for output, (_, slopes) in zip(outputs, pairs, strict=True):
            output.backward(slopes)
    found = {name: parameter.grad for name, parameter in layer.named_parameters()}
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-10, msg=name)


def test_layers_of_a_tower_are_fused_and_given_back():
    layers = [layer_of(), layer_of()]
    encoder = SimpleNamespace(layers=layers)
    vision_model = SimpleNamespace(encoder=encoder)
    tower = SimpleNamespace(vision_model=vision_model, num_layers_to_run=1)
    calls = []

    def compiled(hidden):  # stands for what `compile_layers` left
        calls.append(hidden)
        return VisionLayer.forward(layers[0], hidden)

    layers[0].forward = compiled
    undo = tower_layers.fuse_tower(SimpleNamespace(vision_tower=tower))
    hidden, _ = frames()
    fused = layers[0](hidden)
    assert not calls
    assert "forward" not in layers[1].__dict__  # it does not run
    with torch.no_grad():
        torch.testing.assert_close(layers[0](hidden), fused)
    assert len(calls) == 1
    undo()
    torch.testing.assert_close(layers[0](hidden), fused)
    assert len(calls) == 2


def test_layers_made_again_give_the_same():
    hidden, slope = frames()
    checkpoint = torch.utils.checkpoint.checkpoint

    def again(layer, rows):
        return checkpoint(fused_layer, layer, rows, use_reentrant=False)

    ours = trained([layer_of()], [again], hidden, slope)
    theirs = trained([layer_of()], [plain], hidden, slope)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-10, msg=name)


def test_unusual_layers_go_their_old_way():
    hidden, _ = frames()
    layer = layer_of()
    assert can_fuse(layer, hidden)
    assert not can_fuse(layer, hidden.bfloat16())
    with torch.no_grad():
        assert not can_fuse(layer, hidden)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_fuse(layer, hidden)
    assert not can_fuse(copy.deepcopy(layer).eval(), hidden)
    frozen, other, hooked = (copy.deepcopy(layer) for _ in range(3))
    frozen.mlp.fc1.bias.requires_grad_(False)
    assert not can_fuse(frozen, hidden)

    class Adapted(torch.nn.Linear):
        pass

    other.self_attn.q_proj = Adapted(48, 48).double()
    assert not can_fuse(other, hidden)
    hooked.mlp.register_forward_hook(lambda *_: None)
    assert not can_fuse(hooked, hidden)


def kernel_distances(device, dtype, num_rows, width):
    """Largest relative distance of each kernel's results from its twin's in float64."""
    from nvila_ros.training import tower_triton

    torch.manual_seed(0)
    rows, slope, around = (
        torch.randn(num_rows, width, dtype=dtype, device=device) for _ in range(3)
    )
    rows = rows * 3 + 1
    weight, bias, shift, extra = (torch.randn(width, dtype=dtype, device=device) for _ in range(4))
    precise = [each.double().cpu() for each in (rows, slope, around, weight, bias)]
    pairs = []
    for vectors in ((None, None), (shift, extra)):
        others = [each if each is None else each.double().cpu() for each in vectors]
        normed = tower_triton.norm(rows, weight, bias, 1e-6, *vectors)
        expected = tower_layers.norm(precise[0], *precise[3:], 1e-6, *others)
        pairs += zip(normed, expected, strict=True)
        inputs = (slope, rows, around, *normed[2:], weight, vectors[0])
        twins = (precise[1], precise[0], precise[2], *expected[2:], precise[3], others[0])
        ours = tower_triton.norm_backward(*inputs)
        pairs += zip(ours, tower_layers.norm_backward(*twins), strict=True)
    pairs.append((tower_triton.gelu(rows), tower_layers.gelu(precise[0])))
    by_rows, by_precise = slope.clone(), precise[1].clone()
    bias_slopes = tower_triton.gelu_backward(rows, by_rows)
    pairs.append((bias_slopes, tower_layers.gelu_backward(precise[0], by_precise)))
    pairs.append((by_rows, by_precise))
    pairs.append((tower_triton.column_sums(slope), tower_layers.column_sums(precise[1])))
    return [float((a.double().cpu() - b).norm() / b.norm()) for a, b in pairs]


@pytest.mark.gpu
@pytest.mark.skipif(not IS_WITH_TRITON, reason="needs Triton")
@pytest.mark.parametrize(("num_rows", "width"), [(2048, 1152), (1111, 4304), (37, 72)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
def test_kernels_equal_their_twins(dtype, limit, num_rows, width):
    assert max(kernel_distances("cuda", dtype, num_rows, width)) < limit


@pytest.mark.gpu
@pytest.mark.skipif(not IS_WITH_TRITON, reason="needs Triton")
def test_a_layer_on_the_gpu_is_as_near_as_the_plain_one():
    sizes = {"width": 1152, "inner": 4304, "heads": 16}
    hidden, slope = frames((2, 256, 1152))
    exact = trained([layer_of(**sizes)], [plain], hidden, slope)
    halves = [each.to("cuda", torch.bfloat16) for each in (hidden, slope)]
    make = {"dtype": torch.bfloat16, "device": "cuda", **sizes}
    ours = trained([layer_of(**make)], [fused_layer], *halves)
    theirs = trained([layer_of(**make)], [plain], *halves)
    for name, expected in exact.items():
        if "k_proj.bias" in name:
            continue  # zero
        errors = [
            float((each[name].double().cpu() - expected).norm() / expected.norm())
            for each in (ours, theirs)
        ]
        assert errors[0] < 1.3 * errors[1] + 2e-3, (name, errors)

# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import torch

from nvila_ros.config import load
from nvila_ros.errors import ConfigError
from nvila_ros.models.config import LanguageConfig, NvilaConfig, VisionConfig
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.released import QWEN2_7B
from nvila_ros.training.fp8 import PrecisionConfig, make_adamw, to_float8, wide_linears
from nvila_ros.training.fp8_adamw import Float8AdamW

LANGUAGE = LanguageConfig(
    vocab_size=160,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=128,
    model_max_length=128,
)
VISION = VisionConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=56,
    patch_size=14,
)


def small_model() -> Nvila:
    config = NvilaConfig(vision=VISION, language=LANGUAGE, mm_projector_type="mlp_downsample")
    return Nvila.from_scratch(config, seed=1).bfloat16()


def precision(**changes) -> PrecisionConfig:
    return PrecisionConfig(**{"compute": "float8_tensor", "float8_min_width": 64, **changes})


def relative(value, expected):
    return float((value.detach().double() - expected).norm() / expected.norm())


def test_a_recipe_reads_into_it_and_a_misspelt_key_is_an_error():
    assert load(PrecisionConfig, {"compute": "float8_row"}).float8_min_width == 3584
    with pytest.raises(ConfigError, match="float8_parts"):
        load(PrecisionConfig, {"float8_part": ["llm"]})
    with pytest.raises(ConfigError, match="float8_row"):
        load(PrecisionConfig, {"compute": "float8"})
    with pytest.raises(ConfigError, match="projector"):
        load(PrecisionConfig, {"float8_parts": ["llm", "projector"]})


def test_wide_linears_of_the_decoder_are_those_of_the_paper():
    config = replace(QWEN2_7B, num_hidden_layers=1, vocab_size=4096)
    with torch.device("meta"):
        model = Nvila(
            NvilaConfig(vision=VISION, language=config, mm_projector_type="mlp_downsample")
        )
    names = [name.rpartition(".")[2] for name in wide_linears(model.llm, 3584)]
    assert names == ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # k and v are narrow
    assert not wide_linears(model.vision_tower, 3584)


@pytest.mark.parametrize("compute", ["float8_tensor", "float8_row"])
def test_products_and_gradients_are_near_those_of_float64(compute):
    pytest.importorskip("torchao")
    model = small_model()
    names = to_float8(model, precision(compute=compute))
    assert "llm.model.layers.0.mlp.gate_proj" in names and "llm.lm_head" not in names
    assert not any(name.endswith("k_proj") for name in names)  # 32 wide
    linear = model.get_submodule(names[0])
    inputs = torch.randn(48, 64, dtype=torch.bfloat16, requires_grad=True)
    output = linear(inputs)
    slope = torch.randn_like(output)
    output.backward(slope)
    x, w, g = inputs.detach().double(), linear.weight.detach().double(), slope.double()
    bias = linear.bias.detach().double()
    assert 1e-3 < relative(output, x @ w.t() + bias) < 0.06  # not bfloat16 in disguise
    assert relative(inputs.grad, g @ w) < 0.08
    assert relative(linear.weight.grad, g.t() @ x) < 0.08


def test_parameters_keep_their_names_and_the_tower_is_chosen_apart():
    pytest.importorskip("torchao")
    model = small_model()
    before = list(model.state_dict())
    names = to_float8(model, precision(float8_parts=("vision_tower",)))
    assert list(model.state_dict()) == before
    assert all(name.startswith("vision_tower.") for name in names)


def test_frozen_linears_stay_and_nothing_to_convert_is_an_error():
    pytest.importorskip("torchao")
    model = small_model()
    with pytest.raises(ConfigError, match="float8_min_width"):
        to_float8(model, precision(float8_min_width=3584))
    model.llm.requires_grad_(False)
    with pytest.raises(ConfigError, match="learns"):
        to_float8(model, precision())


def test_bfloat16_changes_nothing():
    model = small_model()
    assert to_float8(model, PrecisionConfig()) == []
    assert PrecisionConfig().token_multiple == 1 and precision().token_multiple == 128


def test_the_optimizer_is_the_one_asked_for():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(3))], "lr": 0.5}]
    float8 = make_adamw(groups, PrecisionConfig(optimizer_states="float8"))
    assert isinstance(float8, Float8AdamW) and float8.param_groups[0]["lr"] == 0.5
    assert isinstance(make_adamw(groups, PrecisionConfig()), torch.optim.AdamW)

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from nvila_ros.errors import ConfigError
from nvila_ros.models.config import nano_config
from nvila_ros.training.family import load_family
from nvila_ros.training.stage_recipe import (
    RECIPES,
    STAGES,
    families,
    load_stage,
    override,
    recipe_path,
)

NANO = recipe_path("nano", "4_image_sft")
LAUNCH = RECIPES.parent / "launch"


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("stage", STAGES)
def test_every_shipped_recipe_loads_and_shows_the_papers_values(family: str, stage: str) -> None:
    recipe = load_stage(recipe_path(family, stage))
    assert (recipe.family, recipe.stage) == (family, stage)
    assert recipe.paper is not None and recipe.paper.learning_rate
    assert recipe.schedule.weight_decay == 0.0 and recipe.schedule.warmup_share == 0.03


def test_the_four_families_and_the_toy_are_shipped() -> None:
    assert families() == ["nano", "nvila-8b", "nvila-lite-2b", "nvila-lite-8b", "toy"]


def test_the_released_families_divide_among_128_gpus() -> None:
    for family in ("nvila-8b", "nvila-lite-8b", "nvila-lite-2b"):
        for stage in STAGES:
            assert load_stage(recipe_path(family, stage)).batch.sequences % 128 == 0


def test_what_learns_is_the_papers() -> None:
    learns = {
        stage: set(load_stage(recipe_path("nvila-8b", stage)).learn.parts) for stage in STAGES
    }
    assert learns["1_align"] == {"mm_projector"}
    assert learns["2_visual_pretrain"] == {"vision_tower", "mm_projector"}
    assert learns["3_token_pretrain"] == {"mm_projector", "llm"}
    for stage in STAGES[3:]:
        assert learns[stage] == {"vision_tower", "mm_projector", "llm"}


def test_the_nano_family_is_the_shipped_network() -> None:
    assert load_family(RECIPES / "nano").network == nano_config(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learn.lmm=1e-3", "unknown key 'lmm'; did you mean 'llm'"),
        ("shedule.steps=4", "unknown key 'shedule'; did you mean 'schedule'"),
        ("data.loader.max_token=4", "unknown key 'max_token'"),
        ("precision.compute=float4", "float4"),
        ("batch.sequences=two", "sequences is 'two', expected int"),
        ("schedule.samples=7", "give one of them"),
        ("time_std=0.0", "time_std is 0.0"),
        ("score_scenes=-1", "score_scenes is -1"),
        ("learn.llm=3", "between 0 and 1"),
        ("stage=8_more", "expected one of 1_align"),
        ("data.sources.9.weight=2", "no place of a list"),
        ("stage.name=2", "stage holds '4_image_sft'"),
        ("steps", "expected key=value"),
    ],
)
def test_a_wrong_override_is_an_error_naming_it(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_stage(NANO, [text])


def test_float8_moments_are_refused_beside_float32() -> None:
    overrides = ["precision.compute=float32", "precision.optimizer_states=float8"]
    with pytest.raises(ConfigError, match="keeps weights in bfloat16"):
        load_stage(NANO, overrides)


def test_an_unknown_key_in_a_file_is_an_error_naming_file_and_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(NANO.read_text() + "learning_rate: 1.0e-3\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: unknown key 'learning_rate'"):
        load_stage(path)


def test_a_missing_or_broken_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_stage(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_stage(broken)
    broken.write_text("- 1")
    with pytest.raises(ConfigError, match="holds list"):
        load_stage(broken)
    with pytest.raises(ConfigError, match="families are nano"):
        recipe_path("nanno", "1_align")


def test_overrides_read_numbers_as_people_write_them() -> None:
    recipe = load_stage(NANO, ["learn.llm=1e-5", "learn.vision_tower=null", "engine.keep=3"])
    assert recipe.learn.llm == pytest.approx(1e-5)
    assert recipe.learn.vision_tower is None
    assert recipe.engine.keep == 3


def test_overrides_reach_into_lists_and_new_keys() -> None:
    mapping = {"a": [{"b": 1}]}
    override(mapping, "a.0.b=2")
    override(mapping, "c.d=[1, 2]")
    assert mapping == {"a": [{"b": 2}], "c": {"d": [1, 2]}}


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_reads_every_launch_file(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    content = yaml.safe_load(path.read_text())
    assert config.num_processes == content["num_processes"]
    name = path.name
    count = 128 if name.startswith("16x8") else int(name[0])
    assert config.num_processes == count
    kind = str(config.distributed_type).rpartition(".")[2].lower()
    expected = {"fsdp": "fsdp", "zero2": "deepspeed", "zero3": "deepspeed"}
    assert kind == expected.get(name.removesuffix(".yaml").partition("_")[2], "no")


def test_the_rate_rises_and_falls_to_nothing() -> None:
    from nvila_ros.training.schedule import rate_factor, stage_progress

    schedule = load_stage(NANO, ["schedule.warmup_share=0.1", "schedule.steps=100"]).schedule
    factors = [rate_factor(stage_progress(step, 0, schedule), schedule) for step in range(100)]
    assert factors[0] == pytest.approx(0.05)
    assert max(factors) == pytest.approx(1.0, abs=1e-3)
    assert factors[9] < 1.0 <= factors[10] + 1e-3
    assert 0.0 < factors[-1] < 1e-3
    middle = 0.1 + 0.9 / 2
    assert rate_factor(middle, schedule) == pytest.approx(0.5)
    assert all(math.isfinite(factor) for factor in factors)


def test_a_stage_may_be_as_long_as_its_samples() -> None:
    from nvila_ros.training.schedule import is_over, stage_progress

    schedule = load_stage(NANO, ["schedule.steps=null", "schedule.samples=50"]).schedule
    assert stage_progress(7, 25, schedule) == 0.5
    assert not is_over(7, 49, schedule)
    assert is_over(7, 50, schedule)

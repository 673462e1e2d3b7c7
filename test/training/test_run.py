# SPDX-License-Identifier: Apache-2.0
"""The whole training run at toy size: fleets drive, the model learns, its weights drive again."""

import json
from pathlib import Path

import pytest
import torch

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.training.checkpoint import load_moments, load_run, save_run
from nvila_ros.training.recipe import load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(recipe):
    assert load_recipe(recipe).stages


def test_a_misspelt_key_names_the_nearest(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("minute: 3\nstages: [{name: see, share: 1.0}]\n")
    with pytest.raises(ConfigError, match="minutes"):
        load_recipe(path)


def test_an_ablation_changes_the_recipe():
    changes = ["minutes=4", "network={num_video_frames: 1}", "start_from="]
    recipe = load_recipe(RECIPES / "nano_resume.yaml", changes)
    assert (recipe.minutes, recipe.network.num_video_frames, recipe.start_from) == (4, 1, None)
    with pytest.raises(ConfigError, match="key=value"):
        load_recipe(RECIPES / "nano_resume.yaml", ["minutes"])


def test_shares_must_add_up(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("minutes: 3\nstages: [{name: see, share: 0.4}]\n")
    with pytest.raises(ConfigError, match=r"0\.4"):
        load_recipe(path)


def test_saved_weights_load_identically_and_others_are_refused(tmp_path):
    model, heads = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
    save_run(tmp_path, model, heads)
    other, other_heads = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
    load_run(tmp_path, other, other_heads)
    assert torch.equal(model.weight, other.weight) and torch.equal(heads.bias, other_heads.bias)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_run(tmp_path, torch.nn.Linear(4, 2))
    with pytest.raises(CheckpointError, match="holds no"):
        load_run(tmp_path / "nothing", model)


def test_optimizer_state_goes_on_where_it_was(tmp_path):
    def steps(model, optimizer, count):
        torch.manual_seed(count)
        for _ in range(count):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()

    models = [torch.nn.Linear(3, 2) for _ in range(2)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in models]
    steps(models[0], optimizers[0], 3)
    save_run(tmp_path, models[0], torch.nn.Linear(1, 1), [optimizers[0]])
    load_run(tmp_path, models[1])
    assert load_moments(tmp_path, [optimizers[1]]) == 2
    for key in ("exp_avg", "exp_avg_sq"):
        kept, loaded = (o.state[m.weight][key] for o, m in zip(optimizers, models, strict=True))
        assert torch.allclose(kept, loaded, rtol=0.01)
    steps(models[1], optimizers[1], 1)


@pytest.mark.slow
def test_a_toy_run_trains_logs_and_saves(tmp_path):
    from nvila_ros.training.run_nano import build_trainer

    recipe = tmp_path / "recipe.yaml"
    text = (RECIPES / "nano_rehearsal.yaml").read_text()
    recipe.write_text(text.replace("minutes: 2.5", "minutes: 15\nmax_steps: 3\nnum_twins: 1"))
    out = tmp_path / "run"
    out.mkdir()
    build_trainer(load_recipe(recipe), out, torch.device("cpu")).run()
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    questions = [line["question"] for line in lines if "question" in line]
    assert lines[-1]["steps"] == 3 and all(4.0 < question < 6.1 for question in questions)
    assert questions[-1] <= questions[0]
    assert lines[-1]["twin_decisions"] > 0
    assert sorted(path.name for path in out.glob("weights-*")) != []

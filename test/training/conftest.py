# SPDX-License-Identifier: Apache-2.0
"""Toy stages as processes of their own: they can be killed, and there can be two of them."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("toy_stage.py")
ROOT = SCRIPT.parents[2]
sys.path.append(str(SCRIPT.parent))  # what several tests share: engine_runs, scale_units


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The module `toy_stage.py`."""
    specification = importlib.util.spec_from_file_location("toy_stage", SCRIPT)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["toy_stage"] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def launch(tmp_path: Path, toy: ModuleType) -> Callable[..., SimpleNamespace]:
    """Runs a toy stage in `num_ranks` processes; returns codes, output, log and folder."""
    recipe = toy.write_recipe(tmp_path / "recipes")

    def run(
        name: str, num_ranks: int = 1, environment: dict[str, str] | None = None, **settings: Any
    ) -> SimpleNamespace:
        settings = {"recipe": str(recipe), "runs": str(tmp_path / name), **settings}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = []
        for rank in range(num_ranks):
            variables = {**os.environ, "OMP_NUM_THREADS": "1"}
            if settings.get("device") != "cuda":
                variables["DS_ACCELERATOR"] = "cpu"
            found = os.environ.get("PYTHONPATH", "").split(os.pathsep)
            variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, found)])
            if num_ranks > 1 or environment:
                places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks}
                places |= {"LOCAL_WORLD_SIZE": num_ranks, "MASTER_PORT": port}
                variables |= {key: str(value) for key, value in places.items()}
                variables["MASTER_ADDR"] = "127.0.0.1"
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(SCRIPT), json.dumps(settings)],
                    env={**variables, **(environment or {})},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        texts = [process.communicate(timeout=240)[0] for process in processes]
        folder = tmp_path / name / "toy" / "1_align"
        log = folder / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return SimpleNamespace(
            codes=[process.returncode for process in processes],
            text="\n".join(texts),
            folder=folder,
            log=[json.loads(line) for line in lines],
        )

    return run

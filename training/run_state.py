# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run under way: written aside, forced to the disk, then renamed into place.

    RUN/checkpoints/step-00000200/
        state.json      step, samples, ranks, recipe
        learner/        weights and optimizer (torch.distributed.checkpoint, or DeepSpeed's own)
        rank-00000.pt   of each rank: where its data stands, its random numbers

A run killed at any moment leaves the newest whole checkpoint; `.unfinished-*` is swept at the next
start. Only what learns is stored: frozen weights are those of the stage's start.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvila_ros.errors import CheckpointError, TrainingError
from nvila_ros.training.distributed import Ranks

STATE_FILE = "state.json"
UNFINISHED = ".unfinished-"
PREFIX = "step-"


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step that is whole."""
    found = sorted(folder.glob(f"{PREFIX}*/{STATE_FILE}"))
    return found[-1].parent if found else None


def sweep(folder: Path) -> None:
    """Removes what a killed run left half written."""
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def random_states() -> dict[str, Any]:
    """Of every generator that a step may draw from."""
    version, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    inner_version, inner, gauss = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (
            version,
            torch.from_numpy(np.asarray(keys, np.int64)),
            position,
            has_gauss,
            cached,
        ),
        "python": (inner_version, list(inner), gauss),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """What `random_states` gave."""
    torch.set_rng_state(states["torch"])
    version, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((version, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    inner_version, inner, gauss = states["python"]
    random.setstate((inner_version, tuple(inner), gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


class RunState:
    """Saves and restores what a run needs to go on as if it had never stopped."""

    def __init__(self, folder: Path, ranks: Ranks, learner: Any, optimizer: Any, keep: int) -> None:
        """`learner` and `optimizer` are what Accelerate prepared."""
        self.folder, self.ranks = folder / "checkpoints", ranks
        self.learner, self.optimizer, self.keep = learner, optimizer, keep
        if ranks.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)
        ranks.wait()

    def save(self, step: int, own: Mapping[str, Any], shared: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, whole or not at all; TrainingError where there is no room.

        `own` is this rank's (data position), `shared` what all ranks have in common.
        """
        target = self.folder / f"{PREFIX}{step:08d}"
        aside = self.folder / f"{UNFINISHED}{target.name}"
        problem: BaseException | None = None
        if self.ranks.is_main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self.ranks.wait()
        with _collected_errors() as errors:
            self._write_learner(aside / "learner")
            content = {"own": dict(own), "random": random_states()}
            _write_synced(aside / f"rank-{self.ranks.rank:05d}.pt", content)
        problem = errors[0] if errors else None
        if not self.ranks.all_agree(problem is None):
            self._give_up(aside, problem)
        if self.ranks.is_main:
            with _collected_errors() as errors:
                state = {"step": step, "num_ranks": self.ranks.count, **shared}
                _write_text_synced(aside / STATE_FILE, json.dumps(state, indent=2) + "\n")
                _sync_folder(aside)
                if target.exists():  # an earlier run's, saved at the same step
                    shutil.rmtree(target)
                aside.replace(target)
                _sync_folder(self.folder)
            problem = errors[0] if errors else None
        if not self.ranks.all_agree(problem is None):
            self._give_up(aside, problem)
        if self.ranks.is_main:
            for old in sorted(self.folder.glob(f"{PREFIX}*"))[: -self.keep]:
                shutil.rmtree(old)
        self.ranks.wait()
        return target

    def restore(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Puts weights, optimizer and random numbers back; returns (own, shared)."""
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        if state["num_ranks"] != self.ranks.count:
            raise TrainingError(
                f"{path} was saved by {state['num_ranks']} ranks and this run has "
                f"{self.ranks.count}; resume with as many, since each has its place in the data"
            )
        try:
            self._read_learner(path / "learner")
            content = torch.load(path / f"rank-{self.ranks.rank:05d}.pt", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); remove it to go on from the one before"
            ) from error
        restore_random_states(content["random"])
        return content["own"], state

    def _write_learner(self, folder: Path) -> None:
        if self.ranks.kind == "deepspeed":
            self.learner.save_checkpoint(str(folder), tag="state", exclude_frozen_parameters=True)
            return
        import torch.distributed.checkpoint as dcp

        state = self._learner_state()
        with _one_rank_is_meant():
            writer = dcp.FileSystemWriter(folder, sync_files=True)
            dcp.save(state, storage_writer=writer, no_dist=self.ranks.count == 1)

    def _read_learner(self, folder: Path) -> None:
        if self.ranks.kind == "deepspeed":
            self.learner.load_checkpoint(
                str(folder), tag="state", load_module_strict=False, load_lr_scheduler_states=False
            )
            return
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        state = self._learner_state()
        with _one_rank_is_meant():
            reader = dcp.FileSystemReader(folder)
            dcp.load(state, storage_reader=reader, no_dist=self.ranks.count == 1)
        set_state_dict(
            self.learner,
            self.optimizer.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(strict=False, ignore_frozen_params=True),
        )

    def _learner_state(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        model, optimizer = get_state_dict(
            self.learner,
            self.optimizer.optimizer,
            options=StateDictOptions(ignore_frozen_params=True),
        )
        return {"model": model, "optimizer": optimizer}

    def _give_up(self, aside: Path, problem: BaseException | None) -> None:
        self.ranks.wait()
        if self.ranks.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        kept = newest(self.folder)
        free = shutil.disk_usage(self.folder).free
        why = _reason(problem) if problem else "another rank failed"
        raise TrainingError(
            f"the checkpoint {aside.name.removeprefix(UNFINISHED)} could not be saved ({why}); "
            f"{free / 1e9:.2f} GB are free in {self.folder}. Nothing is lost up to "
            f"{kept.name if kept else 'the start of the stage'}: make room, then go on with "
            "--resume"
        ) from problem


def _reason(problem: BaseException) -> str:
    """One line; what torch wraps with the traces of all ranks is taken out."""
    failures = getattr(problem, "failures", None)
    if failures:
        problem = next(iter(failures.values()))[0]
    return str(problem).strip().partition("\n")[0] or type(problem).__name__


@contextlib.contextmanager
def _one_rank_is_meant() -> Iterator[None]:
    """Without torch's warning that one process saves alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


@contextlib.contextmanager
def _collected_errors() -> Iterator[list[BaseException]]:
    """Errors of writing, kept so that all ranks can act on them together."""
    from torch.distributed.checkpoint.api import CheckpointException

    errors: list[BaseException] = []
    try:
        yield errors
    except (OSError, RuntimeError, CheckpointException) as error:
        errors.append(error)


def _write_synced(path: Path, content: Any) -> None:
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def _write_text_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

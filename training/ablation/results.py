# SPDX-License-Identifier: Apache-2.0
"""What an ablation left in its folder, read back: the log, the exams, answers in unseen apartments.

ablations.jsonl  JSON lines of `experiment`: the corpus, what each arm learned from and reached
exams.jsonl      JSON lines of `exams`: one per arm and seed
held_out.npz     costs (N, 10), apartments (N,) and arm_NAME (N, 10) log probabilities
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.errors import DataError

LOG_FILE, EXAMS_FILE, HELD_OUT_FILE = "ablations.jsonl", "exams.jsonl", "held_out.npz"
EXAM_KEYS = ("arm", "seed", "success", "spl", "stopped", "decisions", "regret")
Line = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Results:
    """One folder; every trained arm is in `trained`, in the order of training."""

    log: list[Line]
    trained: dict[str, Line]  # arm -> what it learned from, its steps and scores
    exams: dict[str, dict[int, Line]]  # arm -> seed -> the episode; of other models, too
    costs: np.ndarray  # (N, 10) float32 costs-to-go of N decisions that no arm has learned from
    apartments: np.ndarray  # (N,) int64
    answers: dict[str, np.ndarray]  # arm -> (N, 10) log probabilities


def read_results(folder: Path) -> Results:
    """All of a folder; a file that is missing, cut or of another kind is a DataError."""
    log = _json_lines(folder / LOG_FILE, ())
    trained: dict[str, Line] = {}
    for line in log:
        if "arm" in line:
            trained.setdefault(line["arm"], {}).update(line)
    trained = {arm: line for arm, line in trained.items() if "train_s" in line}
    if not trained:
        raise DataError(
            f"{folder / LOG_FILE} holds no arm that was trained to its end; expected lines with "
            "'train_s'. Let `python -m nvila_ros.training.ablation` finish its first arm"
        )
    exams: dict[str, dict[int, Line]] = {}
    for line in _json_lines(folder / EXAMS_FILE, EXAM_KEYS):
        exams.setdefault(line["arm"], {})[line["seed"]] = line  # of two, the later one counts
    if not exams:
        raise DataError(
            f"{folder / EXAMS_FILE} holds no episode; run `python -m "
            f"nvila_ros.training.ablation.exams --run {folder}`"
        )
    return Results(log, trained, exams, *_held_out(folder / HELD_OUT_FILE, trained))


def _json_lines(file: Path, keys: tuple[str, ...]) -> list[Line]:
    """Objects, one a line, each with all of `keys`."""
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} cannot be read ({error}); give the folder that the ablation's --out and the "
            "exams' --run named"
        ) from None
    lines = []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise DataError(
                f"{file}, line {number} of {len(texts)} is cut or no JSON object: {text[:60]!r}; "
                "copy the file again once the run is over, or take the line out"
            )
        missing = [key for key in keys if key not in line]
        if missing:
            raise DataError(f"{file}, line {number} lacks {', '.join(missing)}")
        lines.append(line)
    return lines


def _held_out(
    file: Path, arms: dict[str, Line]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Costs, apartments and the answers of each of `arms`."""
    try:
        with np.load(file) as found:
            arrays = {name: found[name] for name in found.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read ({error}); copy it again") from None
    wanted = ["costs", "apartments", *(f"arm_{arm}" for arm in arms)]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise DataError(f"{file} lacks {', '.join(missing)}; it and {LOG_FILE} are not of one run")
    costs, apartments = arrays["costs"], arrays["apartments"]
    answers = {arm: arrays[f"arm_{arm}"] for arm in arms}
    shapes = {arm: found.shape for arm, found in answers.items() if found.shape != costs.shape}
    if shapes or costs.ndim != 2 or not len(costs) or apartments.shape != costs.shape[:1]:
        raise DataError(
            f"{file}: costs {costs.shape}, apartments {apartments.shape} and answers {shapes} do "
            "not fit each other; expected (N, 10), (N,) and (N, 10)"
        )
    return costs, apartments, answers

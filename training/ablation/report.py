# SPDX-License-Identifier: Apache-2.0
"""Tables of an ablation: `python -m nvila_ros.training.ablation.report RUN [--json F] [--plot F]`.

Success is a share of episodes (Wilson interval); pairs of arms drove the same episodes (paired
bootstrap, McNemar's exact test). Answers in unseen apartments go together within an apartment, so
whole apartments are drawn again. No interval holds what another seed of training would change:
the recipe's repeated arm shows that.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.errors import DataError, NvilaError
from nvila_ros.evaluation.compare import bootstrap, mcnemar
from nvila_ros.evaluation.metrics import bootstrap_means, mean_interval, wilson_interval
from nvila_ros.training.ablation.results import Line, Results, read_results
from nvila_ros.training.ablation.scaling_plot import write_plot
from nvila_ros.training.ablation.scores import decision_scores

# An arm and the one that it is held against; pairs of which an arm is missing are left out.
PAIRS = (
    ("plain_again", "plain"),
    ("frames_1", "plain"),
    ("frames_4", "plain"),
    ("projector_2x2", "plain"),
    ("delta_half", "random_half"),
    ("delta_half", "plain"),
    ("random_half", "plain"),
    ("own_drives", "oracle_drives"),
    ("own_drives", "plain"),
    ("oracle_drives", "plain"),
    ("not_seeing", "seeing"),
    ("seeing", "plain"),
    ("episodes_4th", "plain"),
    ("episodes_16th", "episodes_4th"),
    ("episodes_64th", "episodes_16th"),
)
# Lines of the log that belong to no arm, by a key that only they have.
CORPUS = {"corpus": "oracle_success", "newer_drives": "newer_frames", "delta": "delta_percentiles"}
LEARNED_FROM = (
    "steps", "episodes", "decisions", "newer_episodes", "newer_decisions", "train_s"
)  # fmt: skip
EPISODE_MEANS = {"spl": "spl", "num_decisions": "decisions", "own_regret": "regret"}
SEED = 0


def summarise(results: Results, facts: dict[str, str]) -> dict[str, Any]:
    """Everything that the tables and the plot show; `facts` say where and with what it ran."""
    summary: dict[str, Any] = {"machine": facts}
    for name, key in CORPUS.items():
        lines = [line for line in results.log if key in line]
        if lines:
            summary[name] = {
                k: _rounded(v) for k, v in lines[0].items() if k not in ("s", "encoded")
            }
    seeds = sorted({seed for episodes in results.exams.values() for seed in episodes})
    summary["exams"] = {"num_seeds": len(seeds), "first": seeds[0], "last": seeds[-1]}
    summary["held_out"] = {
        "num_decisions": len(results.costs),
        "num_apartments": len(np.unique(results.apartments)),
    }
    names = [*results.trained, *(arm for arm in results.exams if arm not in results.trained)]
    values = {arm: _values(results, arm) for arm in results.trained}
    summary["arms"] = {arm: _arm(results, arm, values.get(arm)) for arm in names}
    summary["pairs"] = [
        _pair(results, values, arm, against)
        for arm, against in PAIRS
        if arm in values and against in values
    ]
    return summary


def apartment_interval(values: np.ndarray, apartments: np.ndarray) -> tuple[float, float]:
    """(N,) values of decisions in (N,) apartments -> 95 % interval of their mean.

    Apartments are drawn with replacement, all decisions of each (a ratio of two means). With few
    of them such an interval is too narrow rather than too wide.
    """
    _, groups = np.unique(apartments, return_inverse=True)
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    means = bootstrap_means(np.stack([sums, counts], 1), SEED)  # (R, 2)
    low, high = np.quantile(means[:, 0] / means[:, 1], [0.025, 0.975])
    return float(low), float(high)


def _values(results: Results, arm: str) -> dict[str, np.ndarray]:
    """Agreement and regret of each decision, (N,)."""
    found = decision_scores(results.costs, results.answers[arm].astype(np.float32))
    return {key: found[key] for key in ("agreement", "regret")}


def _arm(results: Results, arm: str, values: dict[str, np.ndarray] | None) -> Line:
    trained, episodes = results.trained.get(arm, {}), list(results.exams.get(arm, {}).values())
    found = {key: _rounded(trained[key]) for key in LEARNED_FROM if key in trained}
    if episodes:
        arrived, count = sum(bool(row["success"]) for row in episodes), len(episodes)
        found |= {"num_examined": count, "num_arrived": arrived}
        found |= _mean("success", arrived / count, wilson_interval(arrived, count))
        found["num_never_stopped"] = sum(not row["stopped"] for row in episodes)
        for name, key in EPISODE_MEANS.items():
            column = np.array([row[key] for row in episodes], float)
            found |= _mean(name, column.mean(), mean_interval(column))
    for name, column in (values or {}).items():
        found |= _mean(name, column.mean(), apartment_interval(column, results.apartments))
    return found


def _pair(
    results: Results, values: dict[str, dict[str, np.ndarray]], arm: str, against: str
) -> Line:
    """Differences, `arm` less `against`: over seeds that both drove, and over decisions."""
    found: Line = {"arm": arm, "against": against}
    one, other = (results.exams.get(name, {}) for name in (arm, against))
    seeds = sorted(one.keys() & other.keys())
    if seeds:
        keys = {"success": "success", "spl": "spl", "own_regret": "regret"}
        columns = {
            name: np.array([float(one[s][key]) - float(other[s][key]) for s in seeds])
            for name, key in keys.items()
        }
        won, lost = (int((columns["success"] == sign).sum()) for sign in (1, -1))
        found |= {"num_pairs": len(seeds), "won": won, "lost": lost}
        found["p"] = _rounded(mcnemar(lost, won))
        for name, column in columns.items():
            found |= _mean(name, column.mean(), bootstrap(column, SEED)[:2])
    regret = values[arm]["regret"] - values[against]["regret"]
    return found | _mean("regret", regret.mean(), apartment_interval(regret, results.apartments))


def _mean(name: str, value: float, interval: tuple[float, float] | None) -> Line:
    """A mean beside its 95 % interval."""
    return {name: _rounded(value), f"{name}_95": _rounded(interval)}


def _rounded(value: Any) -> Any:
    """Four digits behind the point are more than any interval here is worth."""
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return round(float(value), 4) if isinstance(value, (float, np.floating)) else value


def as_json(summary: dict[str, Any]) -> str:
    """JSON with an arm and a pair per line."""
    parts = []
    for key, value in summary.items():
        text = json.dumps(value)
        if key == "arms":
            rows = [f"  {json.dumps(name)}: {json.dumps(arm)}" for name, arm in value.items()]
            text = "{\n" + ",\n".join(rows) + "\n }"
        elif key == "pairs":
            text = "[\n" + ",\n".join(f"  {json.dumps(pair)}" for pair in value) + "\n ]"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def tables(summary: dict[str, Any]) -> str:
    """Two Markdown tables: arms and pairs."""
    lines = [
        "| arm | steps | episodes | success (95 %) | SPL | never stopped | decisions | own regret "
        "| agreement | regret (95 %) |",
        "|" + " --- |" * 10,
    ]
    for name, arm in summary["arms"].items():
        success = "not examined"
        if "success" in arm:
            success = f"{_percent(arm)} {arm['num_arrived']} of {arm['num_examined']}"
        cells = [name, arm.get("steps", ""), arm.get("episodes", ""), success]
        cells += [_number(arm, "spl"), arm.get("num_never_stopped", "")]
        cells += [f"{arm['num_decisions']:.1f}" if "num_decisions" in arm else ""]
        cells += [_number(arm, key) for key in ("own_regret", "agreement")]
        lines.append(f"| {' | '.join(map(str, [*cells, _number(arm, 'regret', True)]))} |")
    lines += ["", "| pair | success, points (95 %) | won, lost | p | SPL | own regret | regret |"]
    lines.append("|" + " --- |" * 7)
    for pair in summary["pairs"]:
        cells = [f"{pair['arm']} - {pair['against']}"]
        if "success" in pair:
            cells += [_percent(pair, "+"), f"{pair['won']}, {pair['lost']}", f"{pair['p']:.3f}"]
        else:
            cells += ["no common seed", "", ""]
        cells += [_number(pair, key, True, "+") for key in ("spl", "own_regret", "regret")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(line: Line, sign: str = "") -> str:
    low, high = line["success_95"]
    value, low, high = (f"{100 * share:{sign}.1f}" for share in (line["success"], low, high))
    return f"{value} ({low} to {high})"


def _number(line: Line, key: str, with_interval: bool = False, sign: str = "") -> str:
    if key not in line:
        return ""
    text, interval = f"{line[key]:{sign}.3f}", line[f"{key}_95"]
    if with_interval and interval:
        text += f" ({interval[0]:{sign}.3f} to {interval[1]:{sign}.3f})"
    return text


def _facts(pairs: list[str]) -> dict[str, str]:
    """['commit=89e7c38'] -> {'commit': '89e7c38'}."""
    wrong = [pair for pair in pairs if not pair.partition("=")[2]]
    if wrong:
        raise DataError(f"--fact {wrong[0]!r} is no KEY=VALUE")
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}


def main(arguments: list[str] | None = None) -> None:
    """Command line of the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the ablation's --out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything, for the docs")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="success over episodes, SVG")
    parser.add_argument(
        "--fact", action="append", default=[], metavar="KEY=VALUE",
        help="machine, commit, versions: what the folder does not know",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        summary = summarise(read_results(given.folder), _facts(given.fact))
        if given.plot:
            write_plot(summary["arms"], given.plot)
    except NvilaError as error:
        parser.exit(1, f"error: {error}\n")
    if given.json:
        given.json.write_text(as_json(summary), encoding="utf-8")
    print(tables(summary))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Report of a run: one HTML file that needs nothing else, and the numbers for `nvila compare`.

index.html         the page
report.json        the run: metrics with intervals, one row per episode
episodes.jsonl.gz  what the page draws of each episode, without the pictures
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvila_ros import __version__
from nvila_ros.actions import ACTIONS, SENTENCE_OPENING
from nvila_ros.errors import DataError
from nvila_ros.evaluation import html_report_groups as groups
from nvila_ros.evaluation import report
from nvila_ros.evaluation.html_report_entries import (
    MIN_PICTURES,
    EpisodeEntry,
    Json,
    css_colours,
    entry_of_rollout,
    payload,
    table_row,
)
from nvila_ros.evaluation.rollout import Rollout

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE_NAME, RUN_NAME, EPISODES_NAME = "index.html", "report.json", "episodes.jsonl.gz"
MAX_PICTURE_BYTES = 18_000_000  # of the page, as base64; the rest of it is below 10 KB per episode
BASE64_GROWTH = 4 / 3
DEFAULT_RADIUS_M = 1.0


def write_rollout_report(folder: Path, run: Json, rollouts: Sequence[Rollout]) -> Path:
    """The report of the simulator's rollouts; `run` is what `nvila simulate --json` says."""
    return write_report(folder, run, [entry_of_rollout(rollout) for rollout in rollouts])


def write_report(folder: Path, run: Json, entries: Sequence[EpisodeEntry]) -> Path:
    """Writes the three files and returns the page's path.

    `run` says what was run (`title`, `model`, `device`, ..., any names); metrics are computed here.
    DataError without episodes.
    """
    if not entries:
        raise DataError(
            "there are no episodes to report on; check the range of seeds, or whether the run "
            "was stopped before its first episode had ended"
        )
    keys = [entry.key for entry in entries]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"episode {twice} is there twice; each episode needs a key of its own")
    folder.mkdir(parents=True, exist_ok=True)
    radius_m = float(run.get("success_radius_m", DEFAULT_RADIUS_M))
    summary = report.summarise([entry.metrics for entry in entries])
    rows = [report.episode_row(entry.metrics, key=entry.key, kind=entry.kind) for entry in entries]
    facts = {name: value for name, value in run.items() if name not in ("episodes", "intervals")}
    content = {**facts, **summary, "version": __version__, "episodes": rows}
    _replace(folder / RUN_NAME, json.dumps(content, allow_nan=False).encode())
    with gzip.open(folder / f".{EPISODES_NAME}.tmp", "wt", compresslevel=5) as file:
        for entry in entries:
            file.write(json.dumps({"key": entry.key, **payload(entry, 0, radius_m)}) + "\n")
    (folder / f".{EPISODES_NAME}.tmp").replace(folder / EPISODES_NAME)
    page = folder / PAGE_NAME
    _write_page(page, facts, summary, entries, radius_m)
    return page


def pictures_per_episode(entries: Sequence[EpisodeEntry], budget_bytes: int) -> int:
    """How many pictures of each episode fit into the budget; at least the first and the last."""
    sizes = [
        BASE64_GROWTH * len(decision.picture)
        for entry in entries
        for decision in entry.decisions
        if decision.picture is not None
    ]
    if sum(sizes) <= budget_bytes:
        return max((len(entry.decisions) for entry in entries), default=0)
    mean_bytes = sum(sizes) / len(sizes)
    return max(MIN_PICTURES, int(budget_bytes / mean_bytes / len(entries)))


def _write_page(
    page: Path, run: Json, summary: Json, entries: Sequence[EpisodeEntry], radius_m: float
) -> None:
    """Streams the page: no more than one episode's text is held at a time."""
    count = pictures_per_episode(entries, MAX_PICTURE_BYTES)
    kinds = groups.failures(entries)
    context = {
        "title": run.get("title") or _title(run),
        "facts": facts_to_show(run),
        "summary": summary,
        "metrics": report.ROWS,
        "charts": [
            ("Success by distance to the goal", groups.success_by_distance(entries)),
            ("Success by doors named", groups.success_by_doors(entries)),
            ("Success by what the instruction names", groups.success_by_kind(entries)),
            ("How episodes failed, of all", [share for _, share in kinds]),
        ],
        "latency": groups.latency_histogram(entries),
        "outcomes": {"success": "success", **groups.FAILURE_WORDS},
        "outcome_counts": [
            ("success", sum(entry.metrics.success for entry in entries)),
            *((kind, share.count) for kind, share in kinds),
        ],
        "episodes": _rows(entries, count, radius_m),
        "num_pictures": count,
        "all_pictures": all(len(entry.decisions) <= count for entry in entries),
        "runs": ["driven path"],
        **page_constants(),
    }
    temporary = page.with_name(f".{page.name}.tmp")
    with temporary.open("wb") as file:
        environment().get_template("report.html.jinja").stream(context).dump(file, "utf-8")
    temporary.replace(page)


def _rows(entries: Sequence[EpisodeEntry], num_pictures: int, radius_m: float) -> Iterator[Json]:
    for entry in entries:
        drawn = payload(entry, num_pictures, radius_m)
        yield {**table_row(entry), "payload": safe_json([drawn])}


def page_constants() -> Json:
    """What both pages need for drawing."""
    names = [action.sentence.removeprefix(SENTENCE_OPENING).strip(" .") for action in ACTIONS]
    return {
        "constants": safe_json({"actions": names, "colours": css_colours()}),
        "version": __version__,
    }


def environment() -> Environment:
    """Jinja with this room's templates; everything that is put in is escaped."""
    import jinja2

    folder = Path(__file__).parent / "templates"
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["counted"] = report.counted
    return made


def safe_json(content: Any) -> str:
    """JSON that can stand inside a script element: no text in it can end the element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def facts_to_show(run: Json) -> list[tuple[str, str]]:
    """(name, value) of what was run, as far as it is one number or word."""
    shown = []
    for name, value in run.items():
        if name == "title" or name in report.ROWS or not isinstance(value, (str, int, float, list)):
            continue
        if isinstance(value, list) and len(value) > 4:
            continue
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        if isinstance(value, list):
            text = ", ".join(map(str, value))
        shown.append((name.replace("_", " "), text))
    return shown


def _title(run: Json) -> str:
    control = run.get("control", "none")
    title = f"Closed loop, driven by the {run.get('policy', 'model')}"
    return title if control == "none" else f"{title}, {control} control"


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)

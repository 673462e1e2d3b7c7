# SPDX-License-Identifier: Apache-2.0
"""What mkdocs cannot find in docs/: the page of figures, made from docs/benchmarks/*.json.

mkdocs.yml names this file under `hooks`. `python tools/docs_hooks.py` prints the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "docs" / "benchmarks"
PAGE = "benchmarks/figures.md"
# Machine state beside a figure; it stays in the JSON file.
_LEFT_OUT = ("gpu_state", "gpu_state_after", "gpu_state_before")


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs once it knows the files in docs/; adds the page of figures."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=figures_page(BENCHMARKS)))
    return files


def figures_page(folder: Path) -> str:
    """The Markdown of the page: a chapter per JSON file in `folder`, its summary first."""
    lines = [
        "# Figures",
        "",
        "Made from the JSON files beside it when the site is built; nothing here is typed.",
        "How each was taken: [the notes](README.md). Four digits here, all of them in the files.",
    ]
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        lines += ["", f"## {path.name}", "", f"[The file]({path.name})", ""]
        if isinstance(content, dict) and isinstance(content.get("summary"), list):
            lines += [*summary_table(content.pop("summary")), ""]
        lines += ["| figure | value |", "| --- | --- |"]
        lines += [f"| `{name}` | {_shown(value)} |" for name, value in flat(content)]
    return "\n".join(lines) + "\n"


def summary_table(rows: list[dict[str, Any]]) -> list[str]:
    """Goals beside what was measured: rows have figure, measured, target, met and maybe floor."""
    lines = [
        "| figure | measured | goal | met | computed floor |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        met = {True: "yes", False: "**no**"}.get(row.get("met"), "-")
        cells = [_shown(row.get(key, "-")) for key in ("figure", "measured", "target")]
        lines.append(f"| {' | '.join(cells)} | {met} | {_shown(row.get('floor', '-'))} |")
    return lines


def flat(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested mappings with its dotted name; a list of plain values is one leaf."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key not in _LEFT_OUT:
                yield from flat(value, f"{name}.{key}" if name else key)
    elif isinstance(content, list) and any(isinstance(value, (dict, list)) for value in content):
        for index, value in enumerate(content):
            yield from flat(value, f"{name}.{index}")
    else:
        yield name, content


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return str(value).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    print(figures_page(BENCHMARKS))

# SPDX-License-Identifier: Apache-2.0
"""Apartments of the embedded simulator to shards, one unit of seeds per shard, on any machine."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvila_ros.errors import SceneError
from nvila_ros.training.data.shard_writing import write_index, write_shards
from nvila_ros.training.data.stream import BrokenRow
from nvila_ros.training.scale import ScaleSettings, Unit, run_units
from nvila_ros.training.simulator_source import SimulatorOptions, scene_samples

META_SUFFIX = ".json"


@dataclass(frozen=True, kw_only=True)
class GenerateJob:
    """Shards of one training stage's samples; sent to every process."""

    seeds: tuple[int, ...]
    seeds_per_unit: int = 16
    options: SimulatorOptions = field(default_factory=lambda: SimulatorOptions(stage="navigation"))
    quality: int = 92

    def units(self) -> list[Unit]:
        """Consecutive seeds, each unit named after its first."""
        starts = range(0, len(self.seeds), self.seeds_per_unit)
        return [
            Unit(
                f"{self.options.stage}-{self.seeds[start]:09d}",
                tuple(self.seeds[start : start + self.seeds_per_unit]),
            )
            for start in starts
        ]

    def proof(self, unit: Unit) -> str:
        """See `Job`."""
        return f"{unit.name}.tar"

    def worker(self) -> Callable[[Unit], dict[str, bytes]]:
        """See `Job`."""
        return self._generate

    def describe(self) -> dict[str, Any]:
        """See `Job`."""
        return {
            "what": "simulator",
            "seeds": [self.seeds[0], self.seeds[-1] + 1],
            "seeds_per_unit": self.seeds_per_unit,
            "quality": self.quality,
            **dataclasses.asdict(self.options),
        }

    def _generate(self, unit: Unit) -> dict[str, bytes]:
        """A shard and what it holds; seeds whose apartment has no route are listed."""
        skipped: list[BrokenRow] = []
        source = f"simulator_{self.options.stage}"

        def samples() -> Any:
            for seed in unit.content:
                try:
                    yield from scene_samples(seed, self.options, source)
                except SceneError as error:
                    skipped.append(BrokenRow(source, "seeds", str(seed), str(error)))

        with tempfile.TemporaryDirectory() as folder:
            written = write_shards(
                samples(),
                folder,
                max_samples=10**9,
                max_bytes=10**12,
                quality=self.quality,
                writes_index=False,
            )
            (name, counts) = next(iter(written.shards.items()), ("", {"records": 0, "samples": 0}))
            content = (Path(folder) / name).read_bytes() if name else b"\0" * 10240
        meta = {**counts, "skipped": [row.row for row in skipped]}
        return {
            f".{unit.name}{META_SUFFIX}": json.dumps(meta).encode(),
            self.proof(unit): content,
        }


def generate(
    job: GenerateJob,
    folder: Path,
    scale: ScaleSettings | None = None,
    on_done: Callable[[Unit, bool], None] = lambda unit, was_there: None,
) -> dict[str, Any]:
    """Makes what is missing, then the index over all units that are there."""
    units = job.units()
    num_made = run_units(job, units, folder, scale, on_done)
    shards: dict[str, dict[str, int]] = {}
    skipped: list[str] = []
    for meta_path in sorted(folder.glob(f".{job.options.stage}-*{META_SUFFIX}")):
        name = f"{meta_path.name[1:].removesuffix(META_SUFFIX)}.tar"
        if (folder / name).exists():
            meta = json.loads(meta_path.read_text())
            shards[name] = {"records": meta["records"], "samples": meta["samples"]}
            skipped += meta["skipped"]
    write_index(folder, shards)
    return {
        "num_units": len(units),
        "num_made": num_made,
        "num_records": sum(shard["records"] for shard in shards.values()),
        "num_samples": sum(shard["samples"] for shard in shards.values()),
        "skipped_seeds": skipped,
    }

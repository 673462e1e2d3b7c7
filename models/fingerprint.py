# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint an engine file was made from: a short hash of its tower and projector."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nvila_ros.models.config_files import read_json
from nvila_ros.models.part_files import checkpoint_folder, tensor_files

PARTS = ("vision_tower", "mm_projector")
SAMPLE_BYTES = 4096
STRIDE_BYTES = 1 << 20
NUM_DIGITS = 16
# Of config.json: what changes the features beside weights and the parts' own configuration.
KEYS = (
    "mm_vision_select_layer",
    "mm_projector_type",
    "image_aspect_ratio",
    "s2_scales",
    "num_scales",
)


def vision_fingerprint(folder: Path | str) -> str:
    """16 hexadecimal digits; 4 KiB of every MiB are read, so an 8B's tower takes no time.

    CheckpointError for a folder that is no checkpoint.
    """
    folder = checkpoint_folder(folder)
    digest = hashlib.sha256()
    config = read_json(folder / "config.json")
    digest.update(repr([(key, config.get(key)) for key in KEYS]).encode())
    for part in PARTS:
        digest.update((folder / part / "config.json").read_bytes())
        for path in tensor_files(folder / part):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                for begin in range(0, size, STRIDE_BYTES):
                    file.seek(begin)
                    digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:NUM_DIGITS]

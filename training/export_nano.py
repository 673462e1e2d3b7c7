# SPDX-License-Identifier: Apache-2.0
"""Turns a training run into a checkpoint that drives: `... .export_nano RUN FOLDER`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from nvila_ros.models import weights
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.checkpoint import NETWORK_FILE, load_run
from nvila_ros.training.vocabulary import NetworkShape, build_sequences


def main() -> None:
    """Command line of the export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    changes = arguments.run / NETWORK_FILE
    shape = json.loads(changes.read_text()) if changes.is_file() else {}
    sequences = build_sequences(NetworkShape(**shape))
    model = Nvila.from_scratch(sequences.config)
    load_run(arguments.run, model)
    weights.save(arguments.folder, model, sequences.tokenizer, dtype=torch.float16)


if __name__ == "__main__":
    main()

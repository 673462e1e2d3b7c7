# SPDX-License-Identifier: Apache-2.0
"""The command `nvila merge`: a fine-tuned adapter becomes part of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nvila_ros.cli_options import JsonOption, print_json

app = typer.Typer()


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder that `nvila train` wrote.")],
    model: Annotated[Path, typer.Argument(help="Checkpoint folder that training started from.")],
    out: Annotated[
        Path, typer.Option("--out", "--output", help="New folder in the released layout.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Add a fine-tuned adapter to its checkpoint: the result needs no adapter any more."""
    from nvila_ros.training.adapter_files import merge as merge_folder

    merge_folder(adapter, model, out)
    files = sorted(str(path) for path in out.rglob("*.safetensors"))
    if as_json:
        print_json({"adapter": str(adapter), "model": str(model), "out": str(out), "files": files})
    else:
        typer.echo("\n".join(files))

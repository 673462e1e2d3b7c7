# SPDX-License-Identifier: Apache-2.0
"""The command line `nvila`: demo, simulate and render; heavy imports wait inside the commands.

Exit codes: 0 done, 2 wrong usage, 3 unusable input (configuration, checkpoint, instruction, image),
4 a system library is missing, 5 the robot did not arrive (only with --require-success), 6 a
checkpoint's answers differ from the reference, 130 stopped by Ctrl-C. Anything else is a defect and
shows its trace.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from nvila_ros import (
    __version__,
    cli_checkpoints,
    cli_dashboard,
    cli_data,
    cli_delta_loss,
    cli_doctor,
    cli_export,
    cli_merge,
    cli_quantize,
    cli_record,
    cli_report,
    cli_train,
    cli_vlnce,
)
from nvila_ros.cli_options import (
    EXIT_INPUT,
    EXIT_INTERRUPTED,
    EXIT_NOT_ARRIVED,
    EXIT_SYSTEM_LIBRARY,
    NANO_FOLDER,
    BackendName,
    BackendOption,
    JsonOption,
    ModelOption,
    VisionBackendName,
    VisionBackendOption,
    print_json,
    writable_folder,
)
from nvila_ros.cli_scale import GpusOption, RayOption, episode_evaluator
from nvila_ros.errors import ConfigError, NvilaError, SystemLibraryError
from nvila_ros.patience import PATIENT_THREADS

MAX_SEEDS = 100_000
# Of a folder that the user named or of a full disk, not of our own.
_FAULTS_OF_A_PLACE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG),
}

app = typer.Typer(
    name="nvila",
    help="Vision-and-language navigation with NVILA: say where to go, the robot drives.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(cli_checkpoints.app)  # their commands stand beside these
app.add_typer(cli_quantize.app)
app.add_typer(cli_export.app)
app.add_typer(cli_merge.app)
app.add_typer(cli_report.app)
app.add_typer(cli_record.app)
app.add_typer(cli_doctor.app)
cli_data.app.add_typer(cli_delta_loss.app)
cli_data.app.add_typer(cli_record.data_app)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_train.app)
app.add_typer(cli_dashboard.app)
app.add_typer(cli_vlnce.app)


class ControlName(str, enum.Enum):
    """What is taken from the model to see whether it was needed."""

    none = "none"
    blind = "blind"
    deaf = "deaf"


class DriverName(str, enum.Enum):
    """Who chooses the motions."""

    model = "model"
    oracle = "oracle"


SeedsOption = Annotated[
    str, typer.Option("--seeds", "--seed", help="Episodes A:B (B excluded) or one number.")
]
ControlOption = Annotated[
    ControlName,
    typer.Option(help="What the model must do without: blind to images, deaf to the words."),
]
SharedDeviceOption = Annotated[
    str, typer.Option(help="Torch device that all --workers share: cpu, cuda, cuda:1 or auto.")
]
RequireOption = Annotated[
    bool, typer.Option("--require-success", help=f"Exit with {EXIT_NOT_ARRIVED} on a failure.")
]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Vision-and-language navigation with NVILA: say where to go, the robot drives."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def demo(
    instruction: Annotated[
        str | None, typer.Option(help="Where to go.", show_default="the episode's own")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Apartment and start.")] = None,
    model: ModelOption = NANO_FOLDER,
    output: Annotated[
        Path, typer.Option("--output", "--out", help="Folder for video, plan and result.")
    ] = Path("demo"),
    timeout_s: Annotated[float, typer.Option(help="Wall time after which the drive ends.")] = 100.0,
    dashboard: Annotated[
        bool, typer.Option(help="Serve a page to watch by, where NiceGUI is installed.")
    ] = True,
    require_success: RequireOption = False,
) -> None:
    """Drive one episode through real ROS 2 topics: simulator and navigator are two processes."""
    from nvila_ros.nodes.demo import DEFAULT_SEED, DemoSettings, run_demo

    settings = DemoSettings(
        instruction=instruction,
        seed=DEFAULT_SEED if seed is None else seed,
        model_path=model,
        output=output,
        timeout_s=timeout_s,
        dashboard=dashboard,
    )
    writable_folder(output)
    result = run_demo(settings)
    if require_success and not result["success"]:
        raise typer.Exit(EXIT_NOT_ARRIVED)


@app.command()
def simulate(
    seeds: SeedsOption,
    control: ControlOption = ControlName.none,
    policy: Annotated[DriverName, typer.Option(help="Who drives.")] = DriverName.model,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes.", show_default="number of cores")
    ] = None,
    model: ModelOption = NANO_FOLDER,
    device: SharedDeviceOption = "cpu",
    backend: BackendOption = BackendName.auto,
    vision_backend: VisionBackendOption = VisionBackendName.auto,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Decide in the mirror too: twice the time.")
    ] = False,
    ask: Annotated[
        bool, typer.Option("--ask", help="Before STOP, ask the model whether it sees the goal.")
    ] = False,
    max_decisions: Annotated[
        int, typer.Option(min=1, help="After which an episode counts as failed.")
    ] = 200,
    plans: Annotated[
        Path | None, typer.Option(help="Folder for a floor plan of every episode.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for one HTML page about the run, and its numbers.")
    ] = None,
    ray: RayOption = None,
    gpus: GpusOption = 0.0,
    keep: Annotated[
        Path | None,
        typer.Option(help="Folder for finished episodes: a run that was stopped goes on."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Drive episodes in closed loop without ROS and measure how well it goes."""
    from nvila_ros.config import EvaluationConfig
    from nvila_ros.evaluation.pool import EvaluationJob, evaluate
    from nvila_ros.evaluation.simulate import simulate as run

    job = EvaluationJob(
        seeds=parse_seeds(seeds),
        driver=policy.value,
        model_path=model if policy is DriverName.model else None,
        device=device,
        backend=backend.value,
        vision_backend=vision_backend.value,
        control=control.value,
        mirrors=mirror,
        asks=ask,
        config=EvaluationConfig(max_decisions=max_decisions),
        keeps_frames=report is not None,
    )
    for folder in (plans, report, keep):
        if folder is not None:
            writable_folder(folder)
    evaluator = evaluate if ray is None and keep is None else episode_evaluator(ray, gpus, keep)
    run(
        job,
        num_workers=workers,
        as_json=as_json,
        plans=plans,
        report_folder=report,
        evaluator=evaluator,
    )


@app.command()
def render(
    seed: Annotated[int, typer.Option(min=0, help="Apartment.")],
    output: Annotated[
        Path, typer.Option("--output", "--out", help="Folder for the pictures.")
    ] = Path("views"),
    as_json: JsonOption = False,
) -> None:
    """Draw an apartment: a view of every room and the whole from above."""
    from nvila_ros.sim.layout import generate_scene
    from nvila_ros.sim.pictures import save_pictures
    from nvila_ros.sim.world import World

    writable_folder(output)
    files = [str(path) for path in save_pictures(World(generate_scene(seed)), output)]
    if as_json:
        print_json({"seed": seed, "files": files})
    else:
        typer.echo("\n".join(files))


def parse_seeds(text: str) -> tuple[int, ...]:
    """'900000:900200' -> those numbers, the last one excluded; '7' -> (7,)."""
    first, separator, last = text.partition(":")
    try:
        begin = int(first)
        end = int(last) if separator else begin + 1
    except ValueError:
        raise ConfigError(f"seeds are {text!r}, expected A:B with two whole numbers") from None
    if not 0 <= begin < end or end - begin > MAX_SEEDS:
        raise ConfigError(f"seeds are {text!r}, expected 0 <= A < B and at most {MAX_SEEDS}")
    return tuple(range(begin, end))


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turns the package's errors into a message on stderr and an exit code."""
    try:
        yield
    except SystemLibraryError as error:
        sys.stderr.write(f"nvila: {error}\n")
        sys.exit(EXIT_SYSTEM_LIBRARY)
    except NvilaError as error:
        sys.stderr.write(f"nvila: {error}\n")
        sys.exit(EXIT_INPUT)
    except OSError as error:
        if error.errno not in _FAULTS_OF_A_PLACE or error.filename is None:
            raise
        sys.stderr.write(
            f"nvila: {error.filename}: {error.strerror}; "
            "name a place that can be read and written\n"
        )
        sys.exit(EXIT_INPUT)
    except KeyboardInterrupt:
        sys.stderr.write("nvila: stopped\n")
        sys.exit(EXIT_INTERRUPTED)


def main() -> None:
    """Entry point of the console script."""
    for name, value in PATIENT_THREADS.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(format="nvila: %(message)s")  # on stderr
    logging.getLogger("nvila_ros").setLevel(logging.INFO)
    with exit_codes():
        app()


if __name__ == "__main__":
    main()

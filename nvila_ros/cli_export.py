# SPDX-License-Identifier: Apache-2.0
"""Commands export and bench vision: a checkpoint's parts for other engines, and who is fastest."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvila_ros.cli_options import BackendName, BackendOption, DeviceOption, JsonOption, print_json
from nvila_ros.errors import ConfigError

if TYPE_CHECKING:
    from nvila_ros.models.export import Exported
    from nvila_ros.models.nvila import Nvila
    from nvila_ros.models.onnx_vision import Roundings

app = typer.Typer()
bench_app = typer.Typer(help="Measure.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

DEFAULT_CALIBRATION = "700000:700016"
DEFAULT_FLOAT_LAYERS = "0.fc1,0.fc2,1.fc1,1.fc2"  # measured on the nano: docs/export.md
MAX_FRAMES = 64


class Part(str, enum.Enum):
    """What is written."""

    vision = "vision"
    language = "language"


class Precision(str, enum.Enum):
    """Of the tower's products; int8 with one constant scale per linear for its activations."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class FloatType(str, enum.Enum):
    """Of what is not int8."""

    fp16 = "fp16"
    fp32 = "fp32"


class EngineName(str, enum.Enum):
    """Whose file is written."""

    onnx = "onnx"
    tensorrt_rtx = "tensorrt-rtx"
    tensorrt = "tensorrt"


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    part: Annotated[Part, typer.Option(help="Tower and projector, or the decoder.")] = Part.vision,
    precision: Annotated[Precision, typer.Option(help="Of the tower.")] = Precision.fp16,
    float_type: Annotated[
        FloatType | None,
        typer.Option(help="Of the rest beside int8.", show_default="fp32 for onnx, else fp16"),
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="Whose file.")] = EngineName.onnx,
    gpu: Annotated[
        str,
        typer.Option(help="For tensorrt-rtx: sm75, sm80, sm86, sm89, sm120, several by commas."),
    ] = "current",
    frames: Annotated[str, typer.Option(help="Frames per pass, least and most.")] = "1,8",
    calibration: Annotated[
        str, typer.Option(help="For int8: seeds A:B to drive, or a folder of recorded prompts.")
    ] = DEFAULT_CALIBRATION,
    float_layers: Annotated[
        str | None,
        typer.Option(
            help="For int8: what of the tower stays in floats, such as 0.fc1,fc2, or none.",
            show_default=DEFAULT_FLOAT_LAYERS,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder.", show_default="MODEL/vision_engine, where it is looked for"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the tower and projector as ONNX or a TensorRT engine, or the decoder for other servers.

    TensorRT-RTX engines are built for any GeForce card, with no GPU here.
    """
    if part is Part.language:
        from nvila_ros.models.export_language import export_language

        if out is None:
            raise ConfigError("--part language needs --out, a new folder")
        report = export_language(model, out)
        _say(report, as_json, f"{out}: {report['architecture']}, for {report['readers']}")
        return
    counts = _frames(frames)
    floats = float_type or (FloatType.fp32 if engine is EngineName.onnx else FloatType.fp16)
    if precision is not Precision.int8:
        floats = FloatType(precision.value)
        if float_layers is not None or float_type not in (None, floats):
            option = "--float-type" if float_layers is None else "--float-layers"
            raise ConfigError(f"{option} is for --precision int8, precision is {precision.value}")
    written, report = _export_vision(
        model,
        precision.value,
        floats.value,
        engine,
        gpu.split(","),
        counts,
        calibration,
        float_layers or DEFAULT_FLOAT_LAYERS,
        out,
    )
    lines = [
        f"{each.path}: {each.precision}, {each.num_bytes / 1e6:.1f} MB, {each.seconds:.1f} s"
        for each in written
    ]
    error = report["relative_error"]
    lines.append(f"by ONNX Runtime {error:.1e} from the network (relative)")
    _say(report, as_json, "\n".join(lines))


def _export_vision(
    model: Path,
    precision: str,
    float_type: str,
    engine: EngineName,
    gpus: list[str],
    counts: list[int],
    calibration: str,
    float_layers: str,
    out: Path | None,
) -> tuple[list[Exported], dict[str, Any]]:
    from nvila_ros.models import tensorrt_engine
    from nvila_ros.models.engine_file import FOLDER
    from nvila_ros.models.export import export_engine, export_onnx, relative_error
    from nvila_ros.models.fingerprint import vision_fingerprint
    from nvila_ros.models.onnx_float_layers import float_text

    library = engine.value.replace("-", "_")
    if engine is not EngineName.onnx:  # before minutes of work
        tensorrt_engine.import_library(library)
        tensorrt_engine.check_gpus(library, gpus)
    fingerprint, place = vision_fingerprint(model), out or model / FOLDER
    network, scales, pixels = _network(model, precision, calibration, float_layers)
    written = [
        export_onnx(
            network,
            place,
            fingerprint=fingerprint,
            precision=precision,
            float_type=float_type,
            frames=counts,
            scales=scales,
        )
    ]
    if engine is not EngineName.onnx:
        written.append(
            export_engine(
                written[0].path,
                place,
                library,
                fingerprint=fingerprint,
                precision=precision,
                gpus=gpus,
                frames=counts,
                float_layers=float_text(network) if precision == "int8" else "",
            )
        )
    report = {
        "fingerprint": fingerprint,
        "files": [{**vars(each), "path": str(each.path)} for each in written],
        "relative_error": relative_error(written[0].path, fingerprint, network, pixels),
    }
    return written, report


def _network(
    model: Path, precision: str, calibration: str, float_layers: str
) -> tuple[Nvila, Roundings | None, Any]:
    """What is exported, how its activations are rounded in int8, and two frames to check it on."""
    import torch

    if precision == "int8":
        from rich.console import Console

        from nvila_ros.models.config_files import load_config
        from nvila_ros.models.onnx_calibration import calibrate
        from nvila_ros.models.onnx_float_layers import float_names
        from nvila_ros.training.quantize.static_vision import int8_vision

        floats = float_names(float_layers, load_config(model).num_vision_layers)
        with Console(stderr=True).status("calibration") as status:
            network, samples = int8_vision(
                model, calibration, floats, on_progress=lambda what, *_: status.update(what)
            )
            status.update("rounding of activations")
            scales = calibrate(network, samples)
        return network, scales, torch.stack(samples[-2:])
    from nvila_ros.models.export import load_vision

    network = load_vision(model)
    side = network.config.vision.image_size
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return network, None, pixels


@bench_app.command("vision")
def bench_vision(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    frames: Annotated[str, typer.Option(help="Frames per pass, each measured.")] = "1,8",
    device: DeviceOption = "auto",
    backend: BackendOption = BackendName.auto,
    as_json: JsonOption = False,
) -> None:
    """Time every vision backend that is installed and exported, beside the least possible time."""
    from nvila_ros.evaluation.vision_bench import measure, table

    result = measure(model, _frames(frames), device, backend.value)
    if as_json:
        print_json(result)
        return
    from rich.console import Console

    Console().print(table(result))


def _frames(text: str) -> list[int]:
    try:
        counts = [int(number) for number in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or max(counts) > MAX_FRAMES:
        raise ConfigError(
            f"frames is {text!r}; numbers from 1 to {MAX_FRAMES} such as 1,8 expected"
        )
    return counts


def _say(report: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        print_json(report)
    else:
        sys.stdout.write(text + "\n")

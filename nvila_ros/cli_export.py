# SPDX-License-Identifier: Apache-2.0
"""Commands export and bench vision: a checkpoint's parts for other engines, and who is fastest."""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass
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
bench_app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)
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


FloatTypeOption = Annotated[
    FloatType | None,
    typer.Option(help="Of the rest beside int8.", show_default="fp32 for onnx, else fp16"),
]
GpuOption = Annotated[
    str, typer.Option(help="For tensorrt-rtx: sm75, sm80, sm86, sm89, sm120, several by commas.")
]
CalibrationOption = Annotated[
    str, typer.Option(help="For int8: seeds A:B to drive, or a folder of recorded prompts.")
]
FloatLayersOption = Annotated[
    str | None,
    typer.Option(
        help="For int8: what of the tower stays in floats, such as 0.fc1,fc2, or none.",
        show_default=DEFAULT_FLOAT_LAYERS,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "--output",
        help="Folder.",
        show_default="MODEL/vision_engine, where it is looked for",
    ),
]


@dataclass(frozen=True)
class _VisionRequest:
    """One export of tower and projector."""

    model: Path
    precision: Precision
    float_type: FloatType
    engine: EngineName
    gpus: list[str]
    frames: list[int]
    calibration: str
    float_layers: str
    out: Path | None

    @property
    def library(self) -> str:
        """The engine's Python module, 'onnx' for none."""
        return self.engine.value.replace("-", "_")

    @property
    def is_int8(self) -> bool:
        return self.precision is Precision.int8


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    part: Annotated[Part, typer.Option(help="Tower and projector, or the decoder.")] = Part.vision,
    precision: Annotated[Precision, typer.Option(help="Of the tower.")] = Precision.fp16,
    float_type: FloatTypeOption = None,
    engine: Annotated[EngineName, typer.Option(help="Whose file.")] = EngineName.onnx,
    gpu: GpuOption = "current",
    frames: Annotated[str, typer.Option(help="Frames per pass, least and most.")] = "1,8",
    calibration: CalibrationOption = DEFAULT_CALIBRATION,
    float_layers: FloatLayersOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the tower and projector as ONNX or a TensorRT engine, or the decoder for other servers.

    TensorRT-RTX engines are built for any GeForce card, with no GPU here.
    """
    if part is Part.language:
        _export_language(model, out, as_json)
        return
    request = _VisionRequest(
        model=model,
        precision=precision,
        float_type=_float_type(precision, float_type, engine, float_layers),
        engine=engine,
        gpus=gpu.split(","),
        frames=_frames(frames),
        calibration=calibration,
        float_layers=float_layers or DEFAULT_FLOAT_LAYERS,
        out=out,
    )
    written, report = _export_vision(request)
    lines = [
        f"{each.path}: {each.precision}, {each.num_bytes / 1e6:.1f} MB, {each.seconds:.1f} s"
        for each in written
    ]
    error = report["relative_error"]
    lines.append(f"by ONNX Runtime {error:.1e} from the network (relative)")
    _say(report, as_json, "\n".join(lines))


def _export_language(model: Path, out: Path | None, as_json: bool) -> None:
    from nvila_ros.models.export_language import export_language

    if out is None:
        raise ConfigError("--part language needs --out, a new folder")
    report = export_language(model, out)
    _say(report, as_json, f"{out}: {report['architecture']}, for {report['readers']}")


def _float_type(
    precision: Precision,
    float_type: FloatType | None,
    engine: EngineName,
    float_layers: str | None,
) -> FloatType:
    """What is not int8 is computed in this; ConfigError for an option that says nothing here."""
    if precision is Precision.int8:
        return float_type or (FloatType.fp32 if engine is EngineName.onnx else FloatType.fp16)
    floats = FloatType(precision.value)
    if float_layers is not None or float_type not in (None, floats):
        option = "--float-type" if float_layers is None else "--float-layers"
        raise ConfigError(f"{option} is for --precision int8, precision is {precision.value}")
    return floats


def _export_vision(request: _VisionRequest) -> tuple[list[Exported], dict[str, Any]]:
    """The files written, ONNX first, and what the command reports of them."""
    from nvila_ros.models import tensorrt_engine
    from nvila_ros.models.engine_file import FOLDER
    from nvila_ros.models.export import export_engine, export_onnx, relative_error
    from nvila_ros.models.fingerprint import vision_fingerprint
    from nvila_ros.models.onnx_float_layers import float_text

    if request.engine is not EngineName.onnx:  # before minutes of work
        tensorrt_engine.import_library(request.library)
        tensorrt_engine.check_gpus(request.library, request.gpus)
    fingerprint, place = vision_fingerprint(request.model), request.out or request.model / FOLDER
    network, scales, pixels = _network(request)
    written = [
        export_onnx(
            network,
            place,
            fingerprint=fingerprint,
            precision=request.precision.value,
            float_type=request.float_type.value,
            frames=request.frames,
            scales=scales,
        )
    ]
    if request.engine is not EngineName.onnx:
        written.append(
            export_engine(
                written[0].path,
                place,
                request.library,
                fingerprint=fingerprint,
                precision=request.precision.value,
                gpus=request.gpus,
                frames=request.frames,
                float_layers=float_text(network) if request.is_int8 else "",
            )
        )
    report = {
        "fingerprint": fingerprint,
        "files": [{**vars(each), "path": str(each.path)} for each in written],
        "relative_error": relative_error(written[0].path, fingerprint, network, pixels),
    }
    return written, report


def _network(request: _VisionRequest) -> tuple[Nvila, Roundings | None, Any]:
    """What is exported, how its activations are rounded in int8, and two frames to check it on."""
    import torch

    if request.is_int8:
        from rich.console import Console

        from nvila_ros.models.config_files import load_config
        from nvila_ros.models.onnx_calibration import calibrate
        from nvila_ros.models.onnx_float_layers import float_names
        from nvila_ros.training.quantize.static_vision import int8_vision

        num_layers = load_config(request.model).num_vision_layers
        floats = float_names(request.float_layers, num_layers)
        with Console(stderr=True).status("calibration") as status:
            network, samples = int8_vision(
                request.model,
                request.calibration,
                floats,
                on_progress=lambda what, *_: status.update(what),
            )
            status.update("rounding of activations")
            scales = calibrate(network, samples)
        return network, scales, torch.stack(samples[-2:])
    from nvila_ros.models.export import load_vision

    network = load_vision(request.model)
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

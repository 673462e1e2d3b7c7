# SPDX-License-Identifier: Apache-2.0
"""Commands record, replay, view and `data from-bag`: drives as MCAP files, there and back."""

from __future__ import annotations

import enum
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nvila_ros.cli_options import (
    NANO_FOLDER,
    BackendName,
    BackendOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    print_json,
)
from nvila_ros.ros_environment import added_environment, require_rclpy, share_folder

app = typer.Typer()
data_app = typer.Typer()

BagArgument = Annotated[Path, typer.Argument(help=".mcap file, or rosbag2 folder with one.")]
InstructionOption = Annotated[
    str | None, typer.Option(help="What the robot was told, where the bag does not hold it.")
]
ImageOption = Annotated[
    str | None,
    typer.Option(
        "--image", "--image-topic", help="Camera topic.", show_default="the first with images"
    ),
]
OdometryOption = Annotated[
    str | None,
    typer.Option(
        "--odom",
        "--odom-topic",
        help="Odometry topic.",
        show_default="the first nav_msgs/Odometry",
    ),
]


class LabelName(str, enum.Enum):
    """What the rows' answers are."""

    driven = "driven"
    decided = "decided"


@app.command()
def record(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", "--out", help="File.", show_default="drive_<time>.mcap"),
    ] = None,
    image: Annotated[str, typer.Option("--image", "--image-topic", help="Camera topic.")] = "image",
    odom: Annotated[str, typer.Option("--odom", "--odom-topic", help="Odometry topic.")] = "odom",
    cmd_vel: Annotated[str, typer.Option(help="Velocity topic.")] = "cmd_vel",
    instruction: Annotated[
        str | None, typer.Option(help="What the robot is told, if you drive it yourself.")
    ] = None,
    namespace: Annotated[str, typer.Option(help="Of the robot.")] = "",
    rate: Annotated[
        float,
        typer.Option("--rate", "--image-rate", min=0.0, help="Most images per second; 0 is all."),
    ] = 0.0,
    scan: Annotated[
        str | None, typer.Option(help="Topic of a lidar.", show_default="none is recorded")
    ] = None,
    topics: Annotated[str, typer.Option(help="More topics, separated by commas.")] = "",
) -> None:
    """Record camera, odometry, velocities and decisions until Ctrl-C."""
    require_rclpy()
    os.environ.update(added_environment(os.environ))
    from nvila_ros.nodes.recorder_node import main

    names = {"image": image, "odom": odom, "cmd_vel": cmd_vel, "scan": scan or "scan"}
    remaps = [f"{name}:={topic}" for name, topic in names.items() if topic != name]
    remaps += [f"__ns:=/{namespace.strip('/')}"] if namespace else []
    values: dict[str, Any] = {"max_image_rate_hz": rate, "scan": str(scan is not None).lower()}
    texts = {"output": output, "instruction": instruction, "extra_topics": topics}
    values |= {name: _quoted(str(text)) for name, text in texts.items() if text}
    arguments = ["--ros-args"]
    for remap in remaps:
        arguments += ["-r", remap]
    for name, value in values.items():
        arguments += ["-p", f"{name}:={value}"]
    code = main([sys.argv[0], *arguments])
    if code:
        raise typer.Exit(code)


@app.command()
def replay(
    bag: BagArgument,
    model: ModelOption = NANO_FOLDER,
    device: DeviceOption = "auto",
    backend: BackendOption = BackendName.auto,
    instruction: InstructionOption = None,
    image: ImageOption = None,
    odom: OdometryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the policy over a recording without a robot; compare with the recorded decisions."""
    from nvila_ros.recording.bag_episodes import cut_episodes
    from nvila_ros.recording.bag_reader import BagTopics, read_recording
    from nvila_ros.recording.replay import replay as run
    from nvila_ros.recording.replay import require_decisions, summary

    recording = read_recording(bag, BagTopics(image=image, odometry=odom))
    episodes = cut_episodes(recording, instruction)
    require_decisions(recording, episodes)
    from nvila_ros.policy import NavigationPolicy

    policy = NavigationPolicy.load(model, device, backend=backend.value)
    result = {
        "bag": str(bag),
        "model": str(model),
        "cut": recording.cut or None,
        **summary(run(recording, episodes, policy)),
    }
    if as_json:
        print_json(result)
    else:
        _print_replay(result)


@app.command()
def view(bag: BagArgument) -> None:
    """Open a recording in rerun where it is installed; say how to look at it elsewhere."""
    from nvila_ros.recording.bag_reader import mcap_file

    file = mcap_file(bag)
    viewer = shutil.which("rerun")
    if viewer is not None:
        # It listens on every interface unless told otherwise. Without a screen it serves a page.
        options = ["--bind", "127.0.0.1"]
        if not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
            options.append("--web-viewer")
        raise typer.Exit(subprocess.run([viewer, *options, str(file)], check=False).returncode)
    config = share_folder() / "config"
    typer.echo(
        f"rerun is not installed (.venv/bin/pip install rerun-sdk, 700 MB). {file} opens in\n"
        f"  Foxglove or Lichtblick: open the file, then import the layout {config}/foxglove.json\n"
        f"  RViz: ros2 bag play {file} --clock, and rviz2 -d {config}/navigator.rviz"
    )
    raise typer.Exit(0)


@data_app.command("from-bag")
def from_bag(
    bag: BagArgument,
    output: Annotated[Path, typer.Option("--output", "-o", "--out", help="Folder for the shards.")],
    instruction: InstructionOption = None,
    labels: Annotated[
        LabelName, typer.Option(help="What odometry shows, or what the model had decided.")
    ] = LabelName.driven,
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="Also episodes that the navigator gave up.")
    ] = False,
    image: ImageOption = None,
    odom: OdometryOption = None,
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "recordings",
    as_json: JsonOption = False,
) -> None:
    """Turn a driven recording, by joystick or by the model, into training rows."""
    import dataclasses

    from nvila_ros.recording.bag_episodes import cut_episodes
    from nvila_ros.recording.bag_reader import BagTopics, read_recording
    from nvila_ros.recording.training_rows import Labels, RowCounts, require_rows, samples
    from nvila_ros.training.data.shard_writing import write_shards

    recording = read_recording(bag, BagTopics(image=image, odometry=odom))
    episodes = cut_episodes(recording, instruction)
    counts = RowCounts()
    rows = samples(
        recording,
        episodes,
        counts,
        labels=Labels(labels.value),
        keeps_failed=keep_failed,
        source=name,
    )
    written = write_shards(rows, output, prefix=recording.path.stem)
    require_rows(recording, counts)
    result = {
        "bag": str(bag),
        "folder": str(output),
        "cut": recording.cut or None,
        **dataclasses.asdict(counts),
        "num_broken": len(written.broken),
        "shards": written.shards,
    }
    if as_json:
        print_json(result)
        return
    typer.echo(f"{counts.num_rows} rows of {counts.num_episodes} episodes in {output}")
    for label, count in dataclasses.asdict(counts).items():
        if count and label not in ("num_rows", "num_episodes"):
            typer.echo(f"  {label.removeprefix('num_').replace('_', ' ')}: {count}")
    typer.echo(f"look at them: nvila data check {output} --sheet sheet.png")


def _quoted(text: str) -> str:
    """As YAML reads it on a ROS command line: a string, whatever is in it."""
    import json

    return json.dumps(text, ensure_ascii=False)


def _print_replay(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    low, high = result["agreement_interval"]
    table = Table(title=f"{result['bag']}: {result['num_decisions']} decisions")
    table.add_column("recorded")
    table.add_column("replayed")
    table.add_column("times", justify="right")
    for row in result["differences"]:
        table.add_row(row["recorded"], row["replayed"], str(row["count"]))
    if result["differences"]:
        console.print(table)
    console.print(
        f"{result['agreement']:.1%} of {result['num_decisions']} decisions agree "
        f"(95 % interval {low:.1%} to {high:.1%}), {result['kind_agreement']:.1%} in kind"
    )
    if result["mean_distance"] is not None:
        console.print(f"mean total variation of the probabilities {result['mean_distance']:.4f}")
    console.print(f"median latency {1e3 * result['latency_p50_s']:.0f} ms")

# SPDX-License-Identifier: Apache-2.0
"""The command `nvila dashboard`: see and steer the robot in a browser."""

from __future__ import annotations

import importlib.util
import os
from typing import Annotated

import typer

from nvila_ros.errors import SystemLibraryError

app = typer.Typer()

TOKEN_VARIABLE = "NVILA_DASHBOARD_TOKEN"


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8642,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Serve other machines; needs a token.")
    ] = False,
    token: Annotated[
        str,
        typer.Option(
            envvar=TOKEN_VARIABLE, help="Better given by the variable.", show_default="a fresh one"
        ),
    ] = "",
    namespace: Annotated[str, typer.Option(help="ROS namespace of the navigator.")] = "",
    image_topic: Annotated[str, typer.Option(help="Camera topic.")] = "image",
    odom_topic: Annotated[str, typer.Option(help="Odometry topic.")] = "odom",
    compressed: Annotated[
        bool, typer.Option("--compressed", help="Subscribe to <image topic>/compressed.")
    ] = False,
) -> None:
    """Serve a page with camera, decisions, floor plan, and buttons; prints what to open."""
    for module, remedy in (
        ("rclpy", "run `make setup` for pip's wheels, or source a ROS 2 installation"),
        ("nicegui", "install the extra: pip install 'nvila_ros[dashboard]'"),
    ):
        if importlib.util.find_spec(module) is None:
            raise SystemLibraryError(f"{module} was not found; {remedy}")
    from nvila_ros.ros_environment import added_environment

    os.environ.update(added_environment(os.environ))
    os.environ[TOKEN_VARIABLE] = token
    arguments = ["--ros-args", "-r", f"image:={image_topic}", "-r", f"odom:={odom_topic}"]
    if namespace:
        arguments += ["-r", f"__ns:=/{namespace.strip('/')}"]
    parameters = {
        "host": host,
        "port": port,
        "allow_remote": str(allow_remote).lower(),
        "image_transport": "compressed" if compressed else "raw",
    }
    for name, value in parameters.items():
        arguments += ["-p", f"{name}:={value}"]
    from nvila_ros.nodes.dashboard_node import main

    if code := main(arguments):
        raise typer.Exit(code)

# SPDX-License-Identifier: Apache-2.0
"""The command `nvila dashboard`: see and steer the robot in a browser."""

from __future__ import annotations

import importlib.util
import os
from typing import Annotated

import typer

from nvila_ros.errors import SystemLibraryError, install_hint
from nvila_ros.ros_environment import added_environment, require_rclpy

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
    image: Annotated[str, typer.Option("--image", "--image-topic", help="Camera topic.")] = "image",
    odom: Annotated[str, typer.Option("--odom", "--odom-topic", help="Odometry topic.")] = "odom",
    compressed: Annotated[
        bool, typer.Option("--compressed", help="Subscribe to <image topic>/compressed.")
    ] = False,
) -> None:
    """Serve a page with camera, decisions, floor plan, and buttons; prints what to open."""
    require_rclpy()
    if importlib.util.find_spec("nicegui") is None:
        raise SystemLibraryError(f"nicegui was not found; {install_hint('dashboard')}")
    os.environ.update(added_environment(os.environ))
    os.environ[TOKEN_VARIABLE] = token
    arguments = ["--ros-args", "-r", f"image:={image}", "-r", f"odom:={odom}"]
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
    from nvila_ros.nodes.dashboard_node import serve

    serve(arguments)

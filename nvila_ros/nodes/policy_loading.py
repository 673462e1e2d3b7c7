# SPDX-License-Identifier: Apache-2.0
"""How the navigator node gets its policy: in a process of its own, or in the worker thread."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvila_ros.decision import Policy
from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.policy_process import PolicyProcess


class PolicyLoader:
    """Called in the worker thread, again after the policy's process was lost."""

    def __init__(self, settings: NavigatorConfig) -> None:
        self._settings = settings
        self._process: PolicyProcess | None = None
        self._is_canceled = False

    def __call__(self) -> Policy:
        """Returns when the policy can decide; whatever loading throws otherwise."""
        arguments = load_arguments(self._settings)
        if not self._settings.model_process:
            from nvila_ros.policy import NavigationPolicy

            return NavigationPolicy.load(**arguments)
        self._process = PolicyProcess(self._settings.history.num_frames, arguments)
        if self._is_canceled:
            self._process.kill()
        return self._process.wait_until_loaded()

    def cancel(self) -> None:
        """Nobody waits for the policy any more: its process ends, also while it loads."""
        self._is_canceled = True
        if self._process is not None:
            self._process.kill()

    def progress(self) -> str:
        """What loading is at."""
        return "loading the model" if self._process is None else self._process.progress


def policy_loader(
    settings: NavigatorConfig, load_policy: Callable[[NavigatorConfig], Policy] | None = None
) -> Callable[[], Policy]:
    """What the worker thread calls; `load_policy` takes the place of a checkpoint's model."""
    if load_policy is not None:
        return functools.partial(load_policy, settings)
    return PolicyLoader(settings)


def shipped_folder() -> Path:
    """Of the small model that is used where no model_path is given."""
    from nvila_ros import models

    # Not found through a module of the room: importing one would cost this process torch.
    return Path(next(iter(models.__path__))) / "nano"


def shipped_model_warning(settings: NavigatorConfig, use_sim_time: bool) -> str:
    """What to tell before the shipped model moves something; empty where it may.

    Simulated time is what tells a simulator from a robot: the demo and the launch files of all
    simulators set it, and a robot has none.
    """
    folder = shipped_folder()
    path = Path(settings.model_path) if settings.model_path else folder
    if use_sim_time or not settings.execute or path.resolve() != folder.resolve():
        return ""
    return (
        f"the shipped model {folder.name} knows nothing but the embedded simulator and must not "
        "drive a robot: give model_path, or execute:=false to watch what it decides "
        "(docs/robot.md). In a simulator set use_sim_time:=true"
    )


def load_arguments(settings: NavigatorConfig) -> dict[str, Any]:
    """Of NavigationPolicy.load."""
    return {
        "folder": str(settings.model_path or shipped_folder()),
        "device": settings.device,
        "history": settings.history,
        "backend": settings.backend,
        "vision_backend": settings.vision_backend,
        "quantizes": settings.round_weights,
    }

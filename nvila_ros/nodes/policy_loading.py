# SPDX-License-Identifier: Apache-2.0
"""How the navigator node gets its policy: in a process of its own, or in the worker thread."""

from __future__ import annotations

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


def load_arguments(settings: NavigatorConfig) -> dict[str, Any]:
    """Of NavigationPolicy.load."""
    from nvila_ros import models

    # Not found through a module of the room: importing one would cost this process torch.
    shipped = Path(next(iter(models.__path__))) / "nano"
    return {
        "folder": str(settings.model_path or shipped),
        "device": settings.device,
        "history": settings.history,
        "backend": settings.backend,
        "vision_backend": settings.vision_backend,
        "quantizes": settings.round_weights,
    }

# SPDX-License-Identifier: Apache-2.0
"""Where an episode's time goes: moving, or standing and waiting for an image or for the model."""

from __future__ import annotations

from nvila_ros.navigator_status import Phase

_MAX_STEP_S = 1.0  # between two ticks; a longer one was a pause of the whole process


class EpisodeTimes:
    """Seconds of the running episode, or of the last one; pauses do not count."""

    def __init__(self) -> None:
        self.begin(0.0)

    def begin(self, now_s: float) -> None:
        """A new episode."""
        self._last_s = now_s
        self.duration_s = self.waiting_s = self.moving_s = self.silent_s = 0.0

    def add(self, phase: Phase, is_silent: bool, now_s: float) -> None:
        """The time since the last call was spent in this phase; silent sensors count apart."""
        step_s = min(max(now_s - self._last_s, 0.0), _MAX_STEP_S)
        self._last_s = now_s
        if phase in (Phase.WAITING, Phase.THINKING):
            if is_silent:
                self.silent_s += step_s
            else:
                self.waiting_s += step_s
        elif phase is Phase.MOVING:
            self.moving_s += step_s
        else:
            return
        self.duration_s += step_s

    def waiting_share(self) -> float:
        """Of the time in which it could have moved, in [0, 1]."""
        useful_s = self.waiting_s + self.moving_s
        return self.waiting_s / useful_s if useful_s > 0.0 else 0.0

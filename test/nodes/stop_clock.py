# SPDX-License-Identifier: Apache-2.0
"""How long a stop took, and how long the machine itself stood still meanwhile."""

import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Stop:
    """One row of the table of measured stops."""

    fault: str
    stop_s: float
    bound_s: float
    stall_s: float  # the longest time in which this machine did not run us at all

    def line(self):
        note = f", the machine stalled for {self.stall_s:.2f} s" if self.stall_s > 0.03 else ""
        return f"{self.fault:<58} {self.stop_s:6.3f} s  (bound {self.bound_s:.2f} s{note})"


class StallMeter:
    """How long the machine kept a thread that only sleeps from running."""

    def __init__(self):
        self.worst_s = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            begin_s = time.monotonic()
            time.sleep(0.005)
            self.worst_s = max(self.worst_s, time.monotonic() - begin_s - 0.005)

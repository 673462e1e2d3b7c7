# SPDX-License-Identifier: Apache-2.0
"""Threads of a model that wait: asleep, so that other processes have the cores."""

from __future__ import annotations

# OpenMP's threads wait for each other by spinning. Where other processes want the cores too, as on
# every robot, a decision on two of them took 1 to 4 s, and 0.16 s when they sleep instead. It is
# read when torch is imported, so it belongs into the environment before that.
PATIENT_THREADS = {"OMP_WAIT_POLICY": "passive"}

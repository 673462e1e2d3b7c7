# SPDX-License-Identifier: Apache-2.0
"""Waiting on an event, never for a time."""

import time

import pytest


@pytest.fixture
def waiting_for():
    def wait(condition, deadline_s=30.0):
        end_s = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end_s, "it did not happen"
            time.sleep(0.01)

    return wait

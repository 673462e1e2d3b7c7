# SPDX-License-Identifier: Apache-2.0
"""Memory that is freed is used again without asking the system for new pages."""

import os
import subprocess
import sys

import pytest

from nvila_ros.models import allocator
from nvila_ros.models.allocator import VARIABLES

CHILD = """
import resource, torch
from nvila_ros.models.allocator import keep_freed_memory

def layers():
    rows = torch.ones(1152, 768)
    for _ in range(4):
        inner = torch.nn.functional.gelu(torch.cat((rows, rows, rows), 1))
        rows = rows + inner[:, :768]

torch.set_num_threads(1)
done = keep_freed_memory()
for _ in range(5):
    layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    layers()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(**variables):
    """Whether the setting was made, and page faults of ten passes like a tower's."""
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    output = subprocess.run(
        [sys.executable, "-c", CHILD],
        capture_output=True, text=True, check=True, env={**environment, **variables},
    ).stdout.split()  # fmt: skip
    return output[0], int(output[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_kept_memory_takes_no_new_pages():
    done, kept = page_faults()
    # Without it 0 to 80,000: whether glibc learns by itself depends on where blocks happen to lie.
    assert done == "True" and kept < 10_000


def test_a_users_own_setting_stays():
    assert page_faults(MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()

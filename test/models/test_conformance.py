# SPDX-License-Identifier: Apache-2.0
"""The reference implementation's answers on tiny checkpoints in the released layout."""

import json
from pathlib import Path

import pytest

from nvila_ros.evaluation import conformance

DATA = Path(__file__).parents[1] / "data" / "conformance"


@pytest.mark.parametrize("variant", ["lite", "nvila"])
def test_answers_equal_the_reference(variant):
    cases = json.loads((DATA / variant / "expected" / "cases.json").read_text())
    results = conformance.check(DATA / variant)
    assert [result.case for result in results] == list(cases) and len(cases) == 14
    for result in results:
        assert result.passed, result
        assert result.tiles_equal is (None if result.case == "text" else True)
        assert result.num_greedy_compared == 8

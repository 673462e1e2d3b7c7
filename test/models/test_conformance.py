# SPDX-License-Identifier: Apache-2.0
"""The reference implementation's answers on tiny checkpoints in the released layout."""

from pathlib import Path

import pytest

from nvila_ros.evaluation import conformance

DATA = Path(__file__).parents[1] / "data" / "conformance"


@pytest.mark.parametrize("variant", ["lite", "nvila"])
def test_answers_equal_the_reference(variant):
    results = conformance.check(DATA / variant)
    assert [result.case for result in results] == ["one_500x300", "text"]
    assert [result.tiles_equal for result in results] == [True, None]
    for result in results:
        assert result.passed, result
        assert result.num_greedy_compared == 8

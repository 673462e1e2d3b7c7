# SPDX-License-Identifier: Apache-2.0
"""docs/safety.md promises nothing that no test holds."""

import ast
import re
from pathlib import Path

from nvila_ros.navigator_status import Result

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "safety.md").read_text(encoding="utf-8")


def functions_in(pattern):
    """Names of all functions at the top of the matching files."""
    return {
        node.name
        for path in (ROOT / "test" / "nodes").glob(pattern)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }


def test_every_row_of_the_fault_table_has_its_test_and_every_fault_test_its_row():
    named = set(re.findall(r"`(test_\w+)` \|", TEXT))
    assert len(named) >= 20 and not named - functions_in("test_*.py")
    faults = {name for name in functions_in("test_fault*.py") if name.startswith("test_")}
    assert not faults - named


def test_every_result_code_is_told():
    assert all(f"{result.name} {int(result)}" in TEXT for result in Result)

"""The table of requirements is whole, and each of them is named by a test or has a reason not to be."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.vospace.conformance import LEVELS, requirements

TESTS = Path(__file__).parents[1]
COUNTS = {"M": 197, "M*": 38, "S": 30, "O": 30, "D": 105, "C": 14}


def named() -> Iterator[str]:
    """Every requirement that a marker names."""
    for file in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("holds", "pytest.mark.holds"):
                yield from (ast.literal_eval(argument) for argument in node.args)


def test_the_table_is_whole() -> None:
    rows = requirements()
    assert list(rows) == [f"R{number}" for number in range(1, 415)]
    levels = [row.level for row in rows.values()]
    assert {level: levels.count(level) for level in LEVELS} == COUNTS
    assert all(row.wording and row.section for row in rows.values())


def test_each_requirement_has_a_test_or_a_reason() -> None:
    rows, marks = requirements(), set(named())
    assert marks <= rows.keys()
    assert {name for name, row in rows.items() if name not in marks and not row.reason} == set()
    assert not [row.name for row in rows.values() if row.reason and row.level == "M"]

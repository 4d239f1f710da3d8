"""What plain VOSpace cannot carry is said to users, in the words of the tests that need more."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_reasons_are_those_of_the_document() -> None:
    needed = {
        reason
        for path in (ROOT / "tests").rglob("*.py")
        for reason in re.findall(r"\.needs_gateway\(\s*\"([^\"]+)\"", path.read_text())
    }
    text = (ROOT / "docs/semantics.rst").read_text()
    table = text[text.index("for one of these reasons:") :]
    told = {line[:39].strip() for line in table.splitlines() if len(line) > 39 and line[0].isalpha()}
    assert needed and told - {"reason"} == needed

"""Which test holds which requirement of VOSpace 2.1: the marker ``holds`` and the table that ``--conformance`` writes.

``requirements.tsv`` has one line a requirement: number, level, wording, and for what is not offered the reason.
A requirement is held when every test that names it passed, and at least one did.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TABLE = Path(__file__).with_name("requirements.tsv")
LEVELS = {
    "M": "mandatory",
    "M*": "mandatory if the feature is offered",
    "S": "should",
    "O": "optional",
    "D": "the standard is silent: decision",
    "C": "needed by clients",
}
MANDATORY = ("M", "M*")
HELD, NOT_MET, NO_TEST, NOT_OFFERED = "held", "not met", "no test", "not offered"


@dataclass
class Requirement:
    """One line of the table."""

    name: str
    level: str
    wording: str
    section: str
    reason: str = ""
    """Why it is not offered; empty for what is."""
    tests: dict[str, bool] = field(default_factory=dict)
    """Test functions that hold it, and whether all their cases passed."""

    @property
    def result(self) -> str:
        if self.tests:
            return HELD if all(self.tests.values()) else NOT_MET
        return NOT_OFFERED if self.reason else NO_TEST


def requirements() -> dict[str, Requirement]:
    """All of them, by name, in order."""
    found: dict[str, Requirement] = {}
    section = ""
    for line in TABLE.read_text().splitlines():
        if line.startswith("# "):
            section = line[2:]
            continue
        number, level, wording, *reason = line.split("\t")
        found[f"R{number}"] = Requirement(f"R{number}", level, wording, section, "".join(reason))
    return found


class Conformance:
    """Collects marks and results, and writes the table."""

    def __init__(self, target: Path) -> None:
        # Constants
        self._target = target
        self._requirements = requirements()
        # Mutable state
        self._held_by: dict[str, list[str]] = defaultdict(list)
        """Requirements of each test case, by node id."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for mark in item.iter_markers("holds"):
                unknown = set(mark.args) - self._requirements.keys()
                if unknown:
                    raise pytest.UsageError(f"{item.nodeid} holds {unknown}, which is in no table")
                self._held_by[item.nodeid] += mark.args

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        function = report.nodeid.partition("[")[0].removeprefix("tests/")
        for name in self._held_by.get(report.nodeid, ()):
            tests = self._requirements[name].tests
            # Set-up and end count: a daemon that is not sound afterwards holds nothing.
            tests[function] = tests.get(function, True) and report.passed

    def unmet(self) -> list[Requirement]:
        """Mandatory requirements without a test that passed."""
        return [r for r in self._requirements.values() if r.level in MANDATORY and r.result in (NOT_MET, NO_TEST)]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._target.write_text(self.document())
        if self.unmet() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        results = [r.result for r in self._requirements.values()]
        counts = ", ".join(f"{results.count(name)} {name}" for name in (HELD, NOT_MET, NO_TEST, NOT_OFFERED))
        terminalreporter.section("conformance")
        terminalreporter.line(f"{len(results)} requirements: {counts}; see {self._target}")
        for requirement in self.unmet():
            terminalreporter.line(f"MANDATORY {requirement.name} {requirement.wording}: {requirement.result}")

    # -- the document ------------------------------------------------------------------------------------------------

    def document(self) -> str:
        """The table as reStructuredText."""
        every = list(self._requirements.values())
        parts = [
            "Conformance\n===========\n",
            "The requirements of VOSpace 2.1, and of UWS 1.1, VOSI 1.1 and SSO 2.0 as far as VOSpace needs them, each\n"
            "with the tests that hold it. ``pytest --conformance docs/conformance.rst`` writes this page.\n",
            _table(["level", "meaning", HELD, NOT_MET, NO_TEST, NOT_OFFERED, "all"], self._counts(every)),
        ]
        for section in dict.fromkeys(r.section for r in every):
            rows = [[r.name, r.level, r.wording, _tests(r), _result(r)] for r in every if r.section == section]
            parts += [
                f"{section}\n{'-' * len(section)}\n",
                _table(["", "level", "requirement", "tests", "result"], rows),
            ]
        return "\n".join(parts)

    @staticmethod
    def _counts(every: list[Requirement]) -> list[list[str]]:
        rows = []
        for level, meaning in [*LEVELS.items(), ("all", "")]:
            results = [r.result for r in every if level in (r.level, "all")]
            counts = [str(results.count(name)) for name in (HELD, NOT_MET, NO_TEST, NOT_OFFERED)]
            rows.append([level, meaning, *counts, str(len(results))])
        return rows


def _tests(requirement: Requirement) -> str:
    return ", ".join(f"``{name.removesuffix('.py')}``" for name in requirement.tests)


def _result(requirement: Requirement) -> str:
    return f"{NOT_OFFERED}: {requirement.reason}" if requirement.result == NOT_OFFERED else requirement.result


def _cell(text: str) -> str:
    # A star or a trailing underscore would begin or end mark-up.
    return text if text.startswith("``") else text.replace("\\", "\\\\").replace("*", "\\*").replace("_ ", "\\_ ")


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [header, *rows]:
        lines += [("   * - " if number == 0 else "     - ") + _cell(cell) for number, cell in enumerate(row)]
    return "\n".join([line.rstrip() for line in lines]) + "\n"


# -- hooks, called from tests/conftest.py --------------------------------------------------------------------------


def add_option(parser: pytest.Parser) -> None:
    """``--conformance FILE`` and ``--on-postgresql``."""
    parser.addoption("--conformance", metavar="FILE", type=Path, help="write the table of requirements to FILE")
    parser.addoption("--on-postgresql", action="store_true", help="test conformance on PostgreSQL instead of SQLite")


def configure(config: pytest.Config) -> None:
    """The marker, and the report if it was asked for."""
    config.addinivalue_line("markers", "holds(requirement, ...): the test holds these requirements of VOSpace 2.1")
    target = config.getoption("--conformance")
    if target is not None:
        config.pluginmanager.register(Conformance(target), "conformance")

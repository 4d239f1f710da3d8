"""``--plain``: the mounts of a run use the standard's calls alone, because its daemons do not offer the gateway binding.

What the standard cannot carry is marked ``needs_gateway("reason")``; docs/semantics.rst lists the reasons.
"""

from collections.abc import Sequence

import pytest

_on = False


def add_option(parser: pytest.Parser) -> None:
    parser.addoption("--plain", action="store_true", help="daemons of the tests do not offer the gateway binding")


def configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_gateway(reason): plain VOSpace cannot carry what the test is about")
    global _on
    _on = chosen(config)


def chosen(config: pytest.Config) -> bool:
    """Whether mounts of this run are plain."""
    return bool(config.getoption("--plain"))


def skip_what_needs_the_gateway(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    if chosen(config):
        for item in items:
            if marker := item.get_closest_marker("needs_gateway"):
                (reason,) = marker.args
                item.add_marker(pytest.mark.skip(reason=f"plain VOSpace: {reason}"))


def on() -> bool:
    """The same, for a test that asks less then."""
    return _on


def options(given: Sequence[str]) -> list[str]:
    """What a daemon is told besides ``given``."""
    return ["--no-gateway"] if _on and "--no-gateway" not in given else []

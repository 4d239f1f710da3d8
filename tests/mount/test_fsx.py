"""The short form of ``make fsx``: random operations on a mount beside a local file system find no difference.

Each run has its own daemon and mount, and the same operations each time.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import plain

SCRIPT = Path(__file__).parents[2] / "scripts/fsx.py"


def fsx(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, SCRIPT, "--quiet", "--seed", "1", *options, *["--standard"] * plain.on()]
    return subprocess.run(command, capture_output=True, text=True, timeout=150)


@pytest.mark.parametrize(
    "options",
    [
        ("--setting", "cold", "--ops", "400"),
        ("--setting", "small", "--ops", "300", "--mib", "80"),
        ("--setting", "cut", "--ops", "250", "--every", "2"),
        pytest.param(
            ("--setting", "trees", "--ops", "2000"),
            marks=pytest.mark.needs_gateway("mode, owner and times are not kept"),
        ),
    ],
    ids=["cold", "small", "cut", "trees"],
)
def test_nothing_differs(options: tuple[str, ...]) -> None:
    done = fsx(*options)
    assert done.returncode == 0, done.stderr
    assert "nothing differs" in done.stdout


@pytest.mark.parametrize("setting", ["plain", "trees"])
def test_a_difference_is_found(setting: str) -> None:
    done = fsx("--setting", setting, "--ops", "1000", "--local", "--spoil")
    assert done.returncode == 1 and f"FAILED, --setting {setting} --seed 1" in done.stderr
    assert "instead of" in done.stderr

"""The systemd units of docs/operations.rst: systemd takes them as they are, and their commands do what they are for."""

import configparser
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import BIN, Daemon, eventually, unmount

DOCUMENT = Path(__file__).parents[2] / "docs/operations.rst"
INSTALLED = "/opt/vosfs/.venv/bin"


def units() -> dict[str, str]:
    """Their texts, by the program that they run."""
    found = {}
    for part in DOCUMENT.read_text().split(".. code-block:: ini\n")[1:]:
        lines = []
        for line in part.splitlines():
            if line and not line.startswith("   "):
                break
            lines.append(line[3:])
        text = "\n".join(lines).strip() + "\n"
        found["vosfsd" if f"{INSTALLED}/vosfsd" in text else "vosfs"] = text
    return found


def commands(unit: str, key: str) -> list[list[str]]:
    """What a unit runs, as systemd reads it."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(unit.replace("\\\n", " "))
    return [shlex.split(parser["Service"][key].removeprefix("-"))] if key in parser["Service"] else []


@pytest.mark.parametrize("name", ["vosfsd", "vosfs"])
def test_systemd_takes_them(tmp_path: Path, name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze: the package systemd is missing")
    file = tmp_path / f"{name}.service"
    text = units()[name].replace(INSTALLED, str(BIN))
    for spoilt, complaint in ((text, ""), (text.replace("Restart=", "Restrat="), "Restrat")):
        file.write_text(spoilt)
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True)
        # Units of the host's own may be complained of too.
        ours = [line for line in done.stderr.splitlines() if str(file) in line or file.name in line]
        assert complaint in "".join(ours) and bool(ours) == bool(complaint), done.stderr


def test_a_mount_is_started_killed_started_and_stopped(
    daemon: Daemon, tmp_path: Path, make_mount: Callable[..., Path]
) -> None:
    """What systemd does with ``Restart=on-failure``: the same command again, into what the dead one left."""
    unit, point = units()["vosfs"], tmp_path / "space-mnt"
    point.mkdir()
    places = {
        INSTALLED: str(BIN), "https://vospace.example.org/vos": daemon.url, "/etc/vosfs/token": str(daemon.token_file),
        "/var/cache/vosfs": str(tmp_path / "cache"), " /space ": f" {point} ", "-o allow_other": "-o deadline=10",
    }  # fmt: skip
    for there, here in places.items():
        assert there in unit
        unit = unit.replace(there, here)
    unit = unit.replace("umount /space", f"umount {point}")
    (start,), (stop,) = commands(unit, "ExecStart"), commands(unit, "ExecStop")

    def begin() -> subprocess.Popen[bytes]:
        with open(tmp_path / "log", "a") as log:
            process = subprocess.Popen(start, stderr=log)
        eventually("it is mounted", lambda: os.path.ismount(point), 30)
        return process

    try:
        process = begin()
        (point / "f").write_bytes(b"saved")
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
        with pytest.raises(OSError, match="not connected"):
            os.listdir(point)
        process = begin()
        assert (point / "f").read_bytes() == b"saved"
        (point / "g").write_bytes(b"at the end")
        assert subprocess.run(stop, timeout=60).returncode == 0
        # Success: systemd does not start it again.
        assert process.wait(30) == 0 and os.listdir(point) == []
        # And by the signal alone, as at a shutdown with files open.
        process = begin()
        fd = os.open(point / "g", os.O_RDONLY)
        process.terminate()
        assert process.wait(60) == 0
        # There is nobody left to close it; whether the kernel asks is its own affair.
        with contextlib.suppress(OSError):
            os.close(fd)
        assert os.listdir(point) == []
        assert daemon.request("GET", "/files/g")[2] == b"at the end"
    finally:
        unmount(point)

"""Services of others that the tests run against: real ones, started for one run on loopback."""

import ctypes
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

START_S = 60.0
_LIBC = ctypes.CDLL(None)


def start(command: Sequence[str], **how: Any) -> "subprocess.Popen[bytes]":
    """Start a program that also ends when the tests are killed: nobody would miss it, nor its 100 MB."""
    pr_set_pdeathsig = 1
    return subprocess.Popen(command, preexec_fn=lambda: _LIBC.prctl(pr_set_pdeathsig, signal.SIGKILL), **how)


def until(what: str, holds: Callable[[], bool], processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Look again until it holds, as long as all processes live."""
    end = time.monotonic() + START_S
    pause = threading.Event()
    while not holds():
        for process in processes:
            assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        assert time.monotonic() < end, f"never: {what}"
        pause.wait(0.05)


def answers(url: str) -> bool:
    """Whether an HTTP server is there, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError as exc:
        exc.close()
    except OSError:
        return False
    return True

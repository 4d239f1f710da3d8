"""The longest wait, looked at when all other tests have run (pytest takes files by name)."""

import concurrent.futures

import pytest

from tests.vospace.support import WAIT_CAP_S


@pytest.mark.holds("R411", "R408")
def test_no_wait_is_endless(endless_wait: "concurrent.futures.Future[float]") -> None:
    """It ends before connections do, though nothing happened, and it did wait."""
    assert 5 < endless_wait.result(WAIT_CAP_S) < WAIT_CAP_S

"""Node ids: no two alike, none that means something else, and what is made together lies together."""

import time

import pytest

from vosfs.metadata.node import ID_BITS, ID_RANDOM_BITS, ID_TIME_SHIFT, ROOT_ID, STAGING_ID, new_id

TICKS = 1 << ID_BITS - ID_RANDOM_BITS


@pytest.mark.parametrize("tick", [0, 1, TICKS - 1, TICKS, 100 * TICKS + 7])
def test_ids_of_one_moment_lie_together(monkeypatch: pytest.MonkeyPatch, tick: int) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: (tick << ID_TIME_SHIFT) + 123)
    ids = {new_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    first = (tick % TICKS) << ID_RANDOM_BITS
    assert all(first < id < first + (1 << ID_RANDOM_BITS) + 3 for id in ids)
    # Signed 64 bits, as a database and stat(2) have them, and neither of those that are given.
    assert max(ids) < 1 << 63 and not ids & {0, ROOT_ID, STAGING_ID}


@pytest.mark.parametrize("drawn", [b"\0" * 5, b"\xff" * 5])
def test_no_draw_is_one_that_means_something(monkeypatch: pytest.MonkeyPatch, drawn: bytes) -> None:
    monkeypatch.setattr("os.urandom", lambda size: drawn[:size])
    for tick in (0, TICKS - 1):
        monkeypatch.setattr(time, "time_ns", lambda tick=tick: tick << ID_TIME_SHIFT)
        assert new_id() not in (0, ROOT_ID, STAGING_ID) and new_id() < 1 << 63

"""What the benchmarks make of their figures, and the relay that puts a distance between a mount and its server."""

import socket
import sys
import threading
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from bench import relay  # noqa: E402 (after the path)
from bench.report import aligned, list_table, lower_is_better, mark_of, ratio_of, table_of  # noqa: E402
from bench.rounds import EVERYDAY, Result, cut_short, errors_of, far  # noqa: E402

ROUND_TRIP_S = 0.05


# -- figures ---------------------------------------------------------------------------------------------------------


def _rounds(row: str, **values: list[float]) -> list[Result]:
    return [{"label": target, row: value} for target, found in values.items() for value in found]


@pytest.mark.parametrize(
    "row, lower", [("tar_x_1500_s", True), ("create_4k_per_s", False), ("cold_read_cpu_per_GiB_s", True)]
)
def test_seconds_are_better_when_lower_and_rates_when_higher(row: str, lower: bool) -> None:
    assert lower_is_better(row) == lower
    results = _rounds(row, vosfs=[2, 1, 30], sshfs=[4, 4, 1])
    assert ratio_of(results, row, "sshfs") == (2 if lower else 0.5), "of the medians"


def test_no_ratio_without_both_or_to_nothing() -> None:
    row = "cold_read_cpu_per_GiB_s"
    assert ratio_of(_rounds(row, vosfs=[1]), row, "sshfs") is None
    assert ratio_of(_rounds(row, sshfs=[1]), row, "sshfs") is None
    assert ratio_of(_rounds(row, vosfs=[0], sshfs=[1]), row, "sshfs") is None


def test_a_missed_goal_is_marked_with_what_was_asked() -> None:
    suite = far(10)
    assert mark_of("rcold_seq_read_MBps", {"sshfs": 4.9, "rclone": 0.2}, suite) == "<-- asked: 5 x sshfs"
    assert mark_of("rcold_seq_read_MBps", {"sshfs": 5.0, "rclone": 0.9}, suite) == ""
    assert "slower" in mark_of("mkdir_per_s", {"sshfs": 0.4, "local": 0.01}, EVERYDAY)
    assert mark_of("mkdir_per_s", {"sshfs": 0.6, "local": 0.01}, EVERYDAY) == "", "the local disk is no peer"


def test_a_table_has_the_spread_and_a_ratio_to_each_other_target() -> None:
    results = _rounds("mkdir_per_s", local=[400, 500, 600], sshfs=[10, 20, 30], vosfs=[50, 40, 60])
    table = table_of(results, ["local", "sshfs", "vosfs"], EVERYDAY)
    assert table[0] == ["row", "local", "sshfs", "vosfs", "vosfs/local", "vosfs/sshfs", ""]
    assert table[1] == ["mkdir_per_s", "500 (400–600)", "20.0 (10.0–30.0)", "50.0 (40.0–60.0)", "0.10", "2.50", ""]
    assert len(table) == 2, "rows that nobody has are left out"
    widths = {len(line) for line in aligned([row[:-1] for row in table]).splitlines()}
    assert len(widths) == 1, "all in columns"
    assert list_table(table).startswith(".. list-table::\n   :header-rows: 1\n\n   * - row\n     - local\n")


def test_what_failed_and_what_was_cut_short_is_told() -> None:
    result: Result = {"git_error": "x", "error": "y", "find_n": 12, "seq_write_MiB": 64, "mkdir_per_s_n": 3, "a_s": 1}
    assert errors_of(result) == {"git_error": "x", "error": "y"}
    assert cut_short(result, 64) == ["find_n=12", "mkdir_per_s_n=3"]


# -- the relay -------------------------------------------------------------------------------------------------------


async def test_every_chunk_takes_half_a_round_trip_and_none_waits_for_another(autojump_clock: MockClock) -> None:
    line = relay._Line()
    line.round_trip_s = ROUND_TRIP_S
    near, source = trio.testing.memory_stream_pair()
    sink, far_end = trio.testing.memory_stream_pair()
    begun = trio.current_time()
    arrived: list[float] = []

    async def send() -> None:
        for number in range(10):
            await near.send_all(bytes([number]) * 100)
            await trio.sleep(0.001)
        await near.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay._carry, line, source, sink, begun)
        nursery.start_soon(send)
        data = b""
        while piece := await far_end.receive_some():
            data += piece
            arrived.append(trio.current_time() - begun)
    assert data == b"".join(bytes([number]) * 100 for number in range(10))
    assert arrived[0] == pytest.approx(ROUND_TRIP_S / 2 - relay.ROUNDING_S)
    assert arrived[-1] == pytest.approx(ROUND_TRIP_S / 2 - relay.ROUNDING_S + 0.009)


async def test_a_connection_costs_a_round_trip_before_its_first_byte(autojump_clock: MockClock) -> None:
    line = relay._Line()
    line.round_trip_s = ROUND_TRIP_S
    near, source = trio.testing.memory_stream_pair()
    sink, far_end = trio.testing.memory_stream_pair()
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay._carry, line, source, sink, begun + ROUND_TRIP_S)
        await near.send_all(b"hello")
        assert await far_end.receive_some() == b"hello"
        assert trio.current_time() - begun == pytest.approx(1.5 * ROUND_TRIP_S - relay.ROUNDING_S)
        await near.send_eof()


def test_the_program_carries_both_ways_and_passes_on_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(relay.__file__).parents[1]))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def echo() -> None:
            connection, _ = listener.accept()
            with connection:
                data = b"".join(iter(lambda: connection.recv(65536), b""))
                connection.sendall(data[::-1])

        thread = threading.Thread(target=echo)
        thread.start()
        between = relay.Relay(listener.getsockname()[1])
        try:
            between.far(1)
            sent = bytes(range(256)) * 4000
            with socket.create_connection(("127.0.0.1", between.port), 20) as sock:
                sock.sendall(sent)
                sock.shutdown(socket.SHUT_WR)
                assert b"".join(iter(lambda: sock.recv(65536), b"")) == sent[::-1]
        finally:
            between.close()
            thread.join(20)

"""A long way to a server: every chunk is handed on after half of a round trip, in both directions.

As on a real line, what follows a chunk does not wait for it, so bandwidth is not limited; and a connection costs one
round trip before its first byte.  Unlike on one, nothing is lost and TCP's slow start is not seen.  Run as a program
it says ``READY port=N``, takes a new round trip, in milliseconds, with each line of its input, and says OK.
"""

import socket
import statistics
import subprocess
import sys
import threading
import time
from functools import partial

import trio

CHUNK_BYTES = 256 * 1024
UNDER_WAY_MAX = 2048
"""Chunks that one direction of a connection holds: 512 MiB, or 80 000 small messages/s at 50 ms."""
ROUNDING_S = 0.0005
"""epoll waits whole milliseconds, rounded up: that much too long in the mean."""
SAMPLES = 40
BULK_BYTES = 256 << 20


class _Line:
    """The line that all connections share."""

    def __init__(self) -> None:
        self.round_trip_s = 0.0


async def _wait_until(due: float) -> None:
    if due - ROUNDING_S > trio.current_time():
        await trio.sleep_until(due - ROUNDING_S)


async def _carry(line: _Line, source: trio.SocketStream, sink: trio.SocketStream, not_before: float) -> None:
    """One direction of a connection, until its end."""
    entry, exit = trio.open_memory_channel[tuple[float, bytes]](UNDER_WAY_MAX)

    async def take() -> None:
        async with entry:
            while data := await source.receive_some(CHUNK_BYTES):
                await entry.send((max(trio.current_time(), not_before) + line.round_trip_s / 2, bytes(data)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        async for due, data in exit:
            await _wait_until(due)
            await sink.send_all(data)
    await sink.send_eof()


async def _connection(line: _Line, port: int, near: trio.SocketStream) -> None:
    begun = trio.current_time()
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        async with near:
            await _wait_until(begun + line.round_trip_s / 2)
            async with await trio.open_tcp_stream("127.0.0.1", port) as far, trio.open_nursery() as nursery:
                far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # The client hears that it is connected after one round trip, and only then speaks.
                nursery.start_soon(_carry, line, near, far, begun + line.round_trip_s)
                nursery.start_soon(_carry, line, far, near, begun)
    except* (OSError, trio.BrokenResourceError):
        # One side went away: so does the other.
        pass


async def _obey(line: _Line) -> None:
    async for order in trio.wrap_file(sys.stdin):
        line.round_trip_s = float(order) / 1000
        print("OK", flush=True)
    raise SystemExit


async def _serve(port: int) -> None:
    line = _Line()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        print(f"READY port={listeners[0].socket.getsockname()[1]}", flush=True)
        nursery.start_soon(trio.serve_listeners, partial(_connection, line, port), listeners)
        await _obey(line)


# -- what it costs ---------------------------------------------------------------------------------------------------


class Relay:
    """The program, started; closing its input ends it."""

    def __init__(self, port: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.relay", str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if not said.startswith("READY port="):
            raise OSError("the relay does not start")
        self.port = int(said.partition("=")[2])

    def far(self, round_trip_ms: float) -> None:
        """From now on the server is that far away."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(round_trip_ms, file=self.process.stdin, flush=True)
        if self.process.stdout.readline() != "OK\n":
            raise OSError("the relay ended")

    def close(self) -> None:
        """End it, if it did not end by itself."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.terminate()
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()


def _answer(listener: socket.socket) -> None:
    """Send back single bytes, and BULK_BYTES to who sends two at once."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(2):
                connection.sendall(data if len(data) == 1 else bytes(BULK_BYTES))


def _tried(port: int) -> tuple[float, float]:
    """Milliseconds of a round trip (median), and MB/s of one stream."""
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for _ in range(SAMPLES):
            begun = time.perf_counter()
            sock.sendall(b"x")
            sock.recv(1)
            times.append(time.perf_counter() - begun)
        buffer = bytearray(1 << 20)
        left, begun = BULK_BYTES, time.perf_counter()
        sock.sendall(b"xx")
        while left:
            left -= sock.recv_into(buffer)
        return 1e3 * statistics.median(times), BULK_BYTES / 1e6 / (time.perf_counter() - begun)


def costs(round_trips_ms: list[float]) -> list[tuple[str, float, float]]:
    """What a round trip and a stream take without the relay, through it, and through it with each delay."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=_answer, args=(listener,), daemon=True).start()
        relay = Relay(port)
        try:
            found = [("without the relay", *_tried(port))]
            for round_trip_ms in [0.0, *round_trips_ms]:
                relay.far(round_trip_ms)
                found.append((f"through it, {round_trip_ms:g} ms", *_tried(relay.port)))
            return found
        finally:
            relay.close()


if __name__ == "__main__":
    trio.run(_serve, int(sys.argv[1]))

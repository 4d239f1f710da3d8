"""How fast the NGAS driver moves a long blob, against a bare HTTP client on the same server: ``python -m bench.ngas``.

The server is the stand-in of the tests in a process of its own: a thread for each request, ``recv_into`` and ``sendfile``
as the real one has them, and a CRC-32 of what arrives.  The bare client sends with ``sendall`` and reads with ``recv_into``, and looks
at nothing.
"""

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.processes import CHECKOUT
from bench.report import aligned, machine

sys.path.append(str(CHECKOUT))

from vosfs.backends.failover import Servers  # noqa: E402 (after the path)
from vosfs.backends.ngams import Server  # noqa: E402
from vosfs.backends.ngas import NgasBackend  # noqa: E402

PIECE_BYTES = 1 << 20
GOAL = 0.8
"""Of the bare client's rate."""
START_S_MAX = 20.0


class Bare:
    """A client that does nothing but move bytes."""

    def __init__(self, address: str) -> None:
        self._address = address

    def write(self, data: memoryview, name: str) -> str:
        connection = http.client.HTTPConnection(self._address)
        target = f"/QARCHIVE?filename={name}&mime_type=application/octet-stream&crc_variant=crc32"
        connection.putrequest("POST", target)
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders()
        for at in range(0, len(data), PIECE_BYTES):
            connection.send(data[at : at + PIECE_BYTES])
        answer = connection.getresponse()
        if b"SUCCESS" not in answer.read():
            sys.exit(f"ngas: the server answers {answer.status}")
        connection.close()
        return name

    def read(self, name: str, length: int) -> int:
        connection = http.client.HTTPConnection(self._address)
        connection.request("GET", f"/RETRIEVE?file_id={name}")
        answer, buffer, got = connection.getresponse(), bytearray(PIECE_BYTES), 0
        while count := answer.readinto(buffer):
            got += count
        connection.close()
        return got


class Driver:
    """What the daemon does with a body that it receives, and with one that it sends."""

    def __init__(self, address: str, directory: Path) -> None:
        host, _, port = address.partition(":")
        self._backend = NgasBackend(Servers([Server(host, int(port), ("", ""))]), "bench", directory)

    def write(self, data: memoryview, name: str) -> str:
        writer = self._backend.create(len(data))
        for at in range(0, len(data), PIECE_BYTES):
            writer.write(data[at : at + PIECE_BYTES])
        return writer.finish(True).locator

    def read(self, name: str, length: int) -> int:
        reader = self._backend.open(name, 0, length)
        got = sum(len(piece) for piece in reader.stream(0, length))
        reader.close()
        return got


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _ratios(bare: list[float], driver: list[float]) -> str:
    ratios = [b / d for b, d in zip(bare, driver, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def measure(address: str, directory: Path, mib: int, rounds: int) -> bool:
    """Print the table; whether the goal is met."""
    data = memoryview(os.urandom(mib << 20))
    clients: dict[str, Bare | Driver] = {"bare": Bare(address), "driver": Driver(address, directory)}
    times: dict[tuple[str, str], list[float]] = {(name, way): [] for name in clients for way in ("write", "read")}
    for number in range(rounds + 1):
        for name, client in clients.items():
            made: list[str] = []
            wrote = _seconds(lambda c=client, m=made, n=number: m.append(c.write(data, f"bare-{n}.bin")))
            got: list[int] = []
            read = _seconds(lambda c=client, m=made, g=got: g.append(c.read(m[0], len(data))))
            if got != [len(data)]:
                sys.exit(f"ngas: {name} read {got} of {len(data)} bytes")
            if number:
                # The first round warms up.
                times[name, "write"].append(wrote)
                times[name, "read"].append(read)
    rows, fine = [["", "bare, MiB/s", "driver, MiB/s", f"driver/bare, {GOAL:.0%} asked"]], True
    for way in ("write", "read"):
        bare, driver = times["bare", way], times["driver", way]
        rows.append([way, *(f"{mib / statistics.median(t):.0f}" for t in (bare, driver)), _ratios(bare, driver)])
        fine &= statistics.median(b / d for b, d in zip(bare, driver, strict=True)) >= GOAL
    print(aligned(rows))
    if not fine:
        print(
            f"Below {GOAL:.0%} of the bare client; single rounds differ much where others use the machine: see --rounds."
        )
    return fine


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="bench.ngas", description="Compare the NGAS driver with a bare HTTP client.")
    parser.add_argument("--mib", type=int, default=256, help="of the blob (default 256)")
    parser.add_argument("--rounds", type=int, default=7, help="counted, interleaved (default 7)")
    args = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="vosfs-bench-", dir="/var/tmp") as work:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.services.ngas", work, "0"], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            ready = server.stdout.readline().split()
            if ready[:1] != ["READY"]:
                sys.exit("ngas: the stand-in does not start")
            print(f"{about['cpu']}, {about['cores']} cores, load {about['load_before']} before, {args.mib} MiB")
            fine = measure(ready[1].removeprefix("http://"), Path(work), args.mib, args.rounds)
        finally:
            server.terminate()
            server.wait(START_S_MAX)
    sys.exit(not fine)


if __name__ == "__main__":
    main()

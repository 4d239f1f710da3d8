"""Command line of the benchmarks."""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import workload

from bench import relay
from bench.processes import CHECKOUT, remove, uninterrupted
from bench.report import aligned, machine, report
from bench.rounds import EVERYDAY, Suite, errors_of, far, on_objects, run_rounds

RESULTS = CHECKOUT / "bench-results"
DEFAULT = ["local", "sshfs", "vosfs"]
PROGRAMS = {"sshfs": ["sshfs", "ssh-keygen"], "rclone": ["rclone"], "s3fs": ["s3fs"]}


def ask_remount(door: str) -> None:
    """The cold hook: have the bench that runs us remount, and wait for it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(door)
        said = connection.recv(4096).decode()
    if said != "ok":
        sys.exit(said or "the bench went away")


def _round_trips(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description="Compare the mount with others and the local disk.")
    parser.add_argument("--far", type=_round_trips, metavar="MS,...", help="mounts of servers that are this far away")
    parser.add_argument("--objects", action="store_true", help="mounts of an object store")
    parser.add_argument("--rounds", type=int, default=3, help="over all targets (default 3)")
    parser.add_argument("--targets", type=lambda text: text.split(","), help=f"default {','.join(DEFAULT)}, or all")
    parser.add_argument("--steps", type=workload.chosen_steps, help="see workload.py")
    parser.add_argument("--big", type=int, metavar="MIB", help="of the large file (default 512; far away 64)")
    parser.add_argument("--cap", type=float, default=8, metavar="S", help="for a loop of small operations (default 8)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where to make the work directory")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="append the tables there in reStructuredText")
    parser.add_argument("--remount", metavar="SOCKET", help=argparse.SUPPRESS)
    return parser


@contextlib.contextmanager
def _suites(args: argparse.Namespace) -> Iterator[list[Suite]]:
    """What was asked for; an object store runs as long as it is measured."""
    if args.far:
        yield [far(round_trip_ms) for round_trip_ms in args.far]
    elif args.objects:
        from bench import objects

        if lacks := objects.missing():
            sys.exit(f"bench: {lacks}")
        with objects.running(args.rounds * objects.ROUND_BYTES) as service:
            yield [on_objects(objects.targets(service))]
    else:
        yield [EVERYDAY]


def _completed(args: argparse.Namespace, suite: Suite) -> None:
    """Fill in what was not given, for all suites alike."""
    args.targets = args.targets or (DEFAULT if suite is EVERYDAY else list(suite.targets))
    args.steps = args.steps or suite.steps
    args.big = args.big or (64 if args.far else 512)
    if unknown := [name for name in args.targets if name not in suite.targets]:
        sys.exit(f"bench: no target {', '.join(unknown)}; there are {', '.join(suite.targets)}")
    _check_programs(args.targets)


def _check_programs(targets: Sequence[str]) -> None:
    needed = {"git", "tar", "find", "grep", "ls", "rm"}
    needed.update(program for target in targets for program in PROGRAMS.get(target, ()))
    if missing := sorted(program for program in needed if not shutil.which(program)):
        sys.exit(f"bench: missing: {', '.join(missing)}; as root, make bench and its kin install them")


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(suites: list[Suite], args: argparse.Namespace, prefix: Path) -> bool:
    """Measure and report; whether nothing failed."""
    about = machine()
    work = Path(tempfile.mkdtemp(prefix="vosfs-bench-", dir=args.dir)).resolve()
    fine = True
    try:
        if args.far:
            rows = [[name, f"{ms:.2f}", f"{rate:.0f}"] for name, ms, rate in relay.costs(args.far)]
            print(aligned([["the relay", "round trip, ms", "one stream, MB/s"], *rows]) + "\n")
        for suite in suites:
            _completed(args, suite)
            named = prefix.with_name(f"{prefix.name}-{suite.name}")
            results = run_rounds(suite, args, work, named)
            report(suite, results, about, args, named)
            fine &= not any(errors_of(result) for result in results)
    finally:
        with uninterrupted():
            remove(work)
    return fine


def main() -> None:
    """Entry point."""
    args = _parser().parse_args()
    if args.remount:
        return ask_remount(args.remount)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _terminated)
    RESULTS.mkdir(exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(workload.__file__).parent), str(CHECKOUT)])
    try:
        with _suites(args) as suites:
            fine = _run(suites, args, RESULTS / time.strftime("%Y%m%dT%H%M%S"))
    except KeyboardInterrupt:
        sys.exit("bench: interrupted")
    if not fine:
        sys.exit(1)


if __name__ == "__main__":
    main()

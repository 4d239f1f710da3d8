"""Rounds over all targets: the workload in a process of its own, and what came of it."""

import argparse
import contextlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import workload

from bench.processes import STOP_S_MAX, BenchError, last_line, remove
from bench.targets import Local, Rclone, Sshfs, Target, Vosfs

WORKLOAD_S_MAX = 2400

Result = dict[str, object]


@dataclass(frozen=True)
class Suite:
    """Targets and what is done on them."""

    name: str
    targets: Mapping[str, Callable[[Path], Target]]
    steps: Sequence[str]
    goals: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    """For a row: how many times the speed of which target vosfs should have."""
    round_trip_ms: float = 0
    """How far the servers are away."""


EVERYDAY = Suite(
    "everyday", {"local": Local, "sshfs": Sshfs, "rclone": Rclone, "vosfs": Vosfs}, workload.EVERYDAY
)  # fmt: skip


def far(round_trip_ms: float) -> Suite:
    """Mounts of servers that are this far away."""

    def behind_relay(kind: Callable[[Path, bool], Target]) -> Callable[[Path], Target]:
        return lambda directory: kind(directory, True)

    return Suite(
        f"far-{round_trip_ms:g}ms",
        {"sshfs": behind_relay(Sshfs), "rclone": behind_relay(Rclone), "vosfs": behind_relay(Vosfs)},
        workload.FAR,
        {"rcold_seq_read_MBps": [("sshfs", 5)], "tar_x_1500_s": [("sshfs", 4)], "rcold_ls_lR_1500_s": [("sshfs", 10)]},
        round_trip_ms,
    )


def on_objects(targets: Mapping[str, Callable[[Path], Target]]) -> Suite:
    """Mounts of one object store."""
    reads = [("s3fs", 1.5), ("rclone", 1.0)]
    return Suite(
        "objects", targets, ["objects"],
        {
            "rcold_seq_read_MBps": reads, "warm_seq_read_MBps": reads,
            "create_4k_per_s": [("s3fs", 2)], "create_64k_per_s": [("s3fs", 2)],
        },
    )  # fmt: skip


def _run_workload(target: Target, directory: Path, steps: Sequence[str], args: argparse.Namespace) -> Result:
    """The workload in a process of its own; when it asks for a remount, it gets one."""
    script = Path(workload.__file__)
    door = directory / "door"
    door.unlink(missing_ok=True)
    command = [
        sys.executable, script, target.point, "--steps", ",".join(steps), "--cap", args.cap, "--big", args.big,
        "--state", target.processes.state, "--material", directory.parent / "material",
    ]  # fmt: skip
    if target.remounts:
        command += ["--cold-hook", shlex.join([sys.executable, "-m", "bench", "--remount", str(door)])]
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(door))
        listener.listen()
        output = stack.enter_context(open(directory / "workload.json", "w+"))
        log = stack.enter_context(open(target.processes.logs / "workload.log", "w"))
        process = subprocess.Popen(
            [str(word) for word in command], stdout=output, stderr=log, start_new_session=True, cwd="/"
        )
        stack.callback(_end_group, process)
        deadline = time.monotonic() + WORKLOAD_S_MAX
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise BenchError(f"workload: no end after {WORKLOAD_S_MAX} s")
            if select.select([listener], [], [], 0.2)[0]:
                _answer(listener, target)
        output.seek(0)
        lines = output.read().splitlines()
    if process.returncode or not lines:
        raise BenchError(f"workload, exit status {process.returncode}: {last_line(Path(log.name))}")
    return json.loads(lines[-1])


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the workload and what it runs, if it did not end by itself."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S_MAX / 6)


def _answer(listener: socket.socket, target: Target) -> None:
    """Remount for the workload's cold hook, and tell it how that went."""
    connection, _ = listener.accept()
    with connection:
        try:
            target.remount()
            said = "ok"
        except (BenchError, OSError, subprocess.SubprocessError) as exc:
            said = f"remount: {exc}"
            print(f"  {said}", flush=True)
        with contextlib.suppress(OSError):
            connection.sendall(said.encode())


def ask_remount(door: str) -> None:
    """The cold hook: have the bench that runs us remount, and wait for it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(door)
        said = connection.recv(4096).decode()
    if said != "ok":
        sys.exit(said or "the bench went away")


def _run_steps(target: Target, directory: Path, suite: Suite, args: argparse.Namespace) -> Result:
    """The suite's steps; where the server is far away, what they look at is made while it is near."""
    if not suite.round_trip_ms:
        return _run_workload(target, directory, args.steps, args)
    prepared = errors_of(_run_workload(target, directory, ["far_prepare"], args))
    if prepared:
        return dict(prepared)
    target.far(suite.round_trip_ms)
    try:
        return _run_workload(target, directory, args.steps, args)
    finally:
        target.far(0)


def measure(name: str, directory: Path, suite: Suite, args: argparse.Namespace) -> Result:
    """One round on one target: all figures, or as many as there are and an ``error``."""
    begin = time.monotonic()
    result: Result = {"label": name}
    directory.mkdir()
    target = suite.targets[name](directory)
    problems = []
    try:
        target.start()
        result |= _run_steps(target, directory, suite, args)
        problems += [f"{kind} process ended" for kind in target.processes.dead()]
    except (BenchError, OSError, ValueError, subprocess.SubprocessError) as exc:
        problems.append(str(exc))
    finally:
        try:
            target.stop()
        except BenchError as exc:
            problems.append(str(exc))
    if problems:
        result["error"] = "; ".join(problems)
    mib = {kind: round(peak / workload.MIB, 1) for kind, peak in target.processes.peak_bytes.items()}
    return result | {"label": name, "rss_peak_MiB": mib, "wall_s": time.monotonic() - begin}


def errors_of(result: Result) -> dict[str, str]:
    """What failed in a round, by name."""
    return {name: str(value) for name, value in result.items() if name == "error" or name.endswith("_error")}


def cut_short(result: Result, big_mib: int) -> list[str]:
    """What the cap ended before it was complete: its figure is still a rate."""
    whole = {"bigdir_n": workload.BIG_DIRECTORY, "find_n": workload.TREE_FILES, "seq_write_MiB": big_mib}
    return [
        f"{name}={value}"
        for name, value in result.items()
        if (name in whole and value != whole[name]) or (name not in whole and name.endswith(("_per_s_n", "_truncated")))
    ]


def _keep_logs(result: Result, directory: Path, prefix: Path) -> None:
    """Save the logs of a round that went wrong or has warnings of ours."""
    text = ""
    for log in sorted((directory / "logs").glob("*.log")):
        content = log.read_text(errors="replace")
        if errors_of(result) or any(word in content for word in (" WARNING ", " ERROR ", "Traceback")):
            text += f"==> {log.name}\n{content}\n"
    if text:
        prefix.with_name(prefix.name + ".log").write_text(text)


def run_rounds(suite: Suite, args: argparse.Namespace, work: Path, prefix: Path) -> list[Result]:
    """All rounds, each saved as soon as it is done."""
    results = []
    for number in range(1, args.rounds + 1):
        for name in args.targets:
            directory = work / f"{suite.name}-{name}-{number}"
            result = measure(name, directory, suite, args) | {"round": number}
            saved = prefix.with_name(f"{prefix.name}-{name}-{number}")
            saved.with_name(saved.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
            _keep_logs(result, directory, saved)
            results.append(result)
            errors = errors_of(result)
            print(
                f"round {number}/{args.rounds}  {name:6}  {result['wall_s']:4.0f} s  load {os.getloadavg()[0]:.1f}  "
                + (f"{len(errors)} ERRORS" if errors else "no errors"),
                flush=True,
            )
            for step, text in errors.items():
                print(f"  {step}: {text}", flush=True)
            remove(directory)
    return results

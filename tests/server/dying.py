"""A vosfsd that kills itself between two steps: ``dying.py ARMED ARGUMENTS...``.

While the file ARMED holds a number n, the process ends by SIGKILL before its n-th step from then on; ``ARMED.steps`` has
how many it made.  A step is a call that changes what outlives the process: of the file system, of SQLite, of obstore.
With ``gc`` for ARGUMENTS' first, everything unused is collected, however young.
"""

import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import trio

from server import daemon, housekeeping

NOW_S = -60.0


class Steps:
    """Counts, and ends it all."""

    def __init__(self, armed: Path) -> None:
        self._armed = str(armed)
        self._done = 0

    def step(self) -> None:
        try:
            with open(self._armed) as file:
                last = int(file.read() or 0)
        except FileNotFoundError:
            self._done = 0
            return
        if self._done == last:
            os.kill(os.getpid(), signal.SIGKILL)
        self._done += 1
        with open(self._armed + ".steps", "w") as file:
            file.write(str(self._done))

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, with a step before it."""

        def counted(*arguments: Any, **named: Any) -> Any:
            self.step()
            return call(*arguments, **named)

        return counted

    def statement(self, text: str) -> None:
        if not text.lstrip().upper().startswith(("SELECT", "PRAGMA", "--")):
            self.step()


class Writer:
    """A writer of obstore's, each call with a step before it."""

    def __init__(self, writer: Any, steps: Steps) -> None:
        self.write, self.close = steps.before(writer.write), steps.before(writer.close)
        self.__exit = writer.__exit__

    def __exit__(self, *why: Any) -> Any:
        return self.__exit(*why)


def install(steps: Steps) -> None:
    for name in ("write", "fdatasync", "fsync", "rename", "unlink", "mkdir"):
        setattr(os, name, steps.before(getattr(os, name)))
    for name in ("put", "delete"):
        setattr(obstore, name, steps.before(getattr(obstore, name)))
    open_writer, connect, os_open = obstore.open_writer, sqlite3.connect, os.open

    def counted_writer(*arguments: Any, **named: Any) -> Any:
        steps.step()
        return Writer(open_writer(*arguments, **named), steps)

    def counted_connection(*arguments: Any, **named: Any) -> Any:
        connection = connect(*arguments, **named)
        connection.set_trace_callback(steps.statement)
        return connection

    def counted_open(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_CREAT:
            steps.step()
        return os_open(path, flags, *rest, **named)

    obstore.open_writer, sqlite3.connect, os.open = counted_writer, counted_connection, counted_open  # type: ignore


def collect(arguments: list[str]) -> None:
    """All that ``vosfsd gc`` does, waiting for no lease and no receipt."""
    parser = daemon._parser()
    cfg = daemon.dev_config(parser.parse_args(arguments))

    async def work() -> None:
        with daemon.opened(cfg) as (store, backend):
            await store.begin_space(cfg.space.owner)
            await housekeeping.empty_trash(store)
            await housekeeping.collect(store, backend, NOW_S)
            await housekeeping.collect_orphans(store, backend, NOW_S)

    trio.run(work)


def main() -> None:
    install(Steps(Path(sys.argv[1])))
    del sys.argv[:2]
    sys.argv.insert(0, "vosfsd")
    if sys.argv[1] == "gc":
        collect(sys.argv[2:])
    else:
        daemon.main()


if __name__ == "__main__":
    main()

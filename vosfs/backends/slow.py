"""A directory of a file system that moves files to tape and leaves their names (an HSM), as a storage.

Such a file has a length and no blocks.  Who reads it waits in the kernel until a robot has found the tape, so it is never
opened before a command of the site's has brought it back.  The command may return at once or when the file is there:
only the blocks tell.
"""

import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable

from vosfs.backends.backend import NEARLINE, ONLINE, STAGING, BlobReader, Over
from vosfs.backends.posix import PosixBackend
from vosfs.errors import BlobMissing, NotOnline, QuietError, ServiceUnavailable

log = logging.getLogger(__name__)

PATH = "{path}"
"""What stands for the file in the command."""
INODE_BYTES = 4096
"""Files below this are taken to be here: some file systems keep them in the inode, without blocks, and they are not worth moving."""
STAGING_MAX = 500
"""Files on their way at once, each perhaps with a process that waits for it."""
STAGE_S = 6 * 3600.0
"""A file that has not come by then is asked for again."""
RETRY_S = 60.0
"""After a command that failed, before the next is tried."""
STOP_S = 5.0
"""For commands to end when the daemon does."""


class _Request:
    """A file that was asked for."""

    __slots__ = ("process", "until", "came", "failed")

    def __init__(self, process: "subprocess.Popen[bytes] | None", until: float) -> None:
        self.process = process
        """Until it has ended."""
        self.until = until
        """The request counts for nothing after this."""
        self.came = False
        """The file was seen on disk: the request is over when the process is."""
        self.failed = False


class SlowDirectory(Over):
    """Backend (see ``backend.py`` for every method's contract) of a directory whose files may be on tape."""

    def __init__(self, directory: PosixBackend, command: tuple[str, ...]) -> None:
        super().__init__(directory)
        # Dependencies
        self._directory = directory
        """INVARIANT: keeps no descriptor, as files that are open are not moved to tape."""
        # Constants
        self._command = command
        # Mutable state
        self._guard = threading.Lock()
        self._requests: dict[str, _Request] = {}
        """By locator; INVARIANT: at most STAGING_MAX."""

    # -- where blobs are ---------------------------------------------------------------------------------------------

    def locality(self, locator: str) -> str:
        here = self._is_here(locator)
        with self._guard:
            self._settle(locator, here)
            request = self._requests.get(locator)
        if here:
            return ONLINE
        return NEARLINE if request is None or request.failed else STAGING

    def _is_here(self, locator: str) -> bool:
        try:
            status = os.stat(self._directory.path(locator))
        except FileNotFoundError as exc:
            raise BlobMissing(f"blob {locator} is missing") from exc
        return status.st_blocks > 0 or status.st_size < INODE_BYTES

    def _settle(self, locator: str, here: bool) -> None:
        """See what became of a request.  With the guard held."""
        request = self._requests.get(locator)
        if request is None:
            return
        request.came = request.came or here
        if request.process is not None and (status := request.process.poll()) is not None:
            request.process = None
            if status:
                log.warning("%s for blob %s ended with status %d", self._command[0], locator, status)
                request.failed, request.until = True, time.monotonic() + RETRY_S
        if (request.came and request.process is None) or request.until < time.monotonic():
            self._end(self._requests.pop(locator))

    @staticmethod
    def _end(request: _Request) -> None:
        if request.process is not None:
            request.process.kill()
            request.process.wait()

    def stage(self, locator: str) -> None:
        if self._is_here(locator):
            return
        with self._guard:
            self._settle(locator, False)
            if (request := self._requests.get(locator)) is not None:
                if request.failed:
                    raise ServiceUnavailable(f"{self._command[0]} failed a moment ago")
                return
            if len(self._requests) >= STAGING_MAX:
                self._settle_all()
            if len(self._requests) >= STAGING_MAX:
                raise ServiceUnavailable(f"{STAGING_MAX} files are on their way already")
            self._requests[locator] = _Request(self._asked(locator), time.monotonic() + STAGE_S)

    def _settle_all(self) -> None:
        """Perhaps nobody looked at files again that have come.  With the guard held."""
        for locator in list(self._requests):
            try:
                here = self._is_here(locator)
            except BlobMissing:
                here = True
            self._settle(locator, here)

    def _asked(self, locator: str) -> "subprocess.Popen[bytes]":
        path = os.path.abspath(self._directory.path(locator))
        command = [part.replace(PATH, path) for part in self._command]
        try:
            # No shell, and nothing of a client's: the path is made of a locator that was made here.
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        except OSError as exc:
            raise ServiceUnavailable(f"{command[0]}: {exc.strerror}") from exc

    # -- Backend -----------------------------------------------------------------------------------------------------

    def check(self, space: str) -> None:
        super().check(space)
        if shutil.which(self._command[0]) is None:
            raise QuietError(f"[storage] stage_command: there is no program {self._command[0]}")

    def open(self, locator: str, start: int = 0, stop: int = 0) -> BlobReader:
        if not self._is_here(locator):
            raise NotOnline(f"blob {locator} is not on disk")
        return super().open(locator, start, stop)

    def open_now(self, locator: str) -> None:
        """Never: nobody knows how long a file system behind tape takes to say where a file is."""

    def sync(self, locators: Iterable[str]) -> None:
        # What has gone to tape already is safe there.
        super().sync(locator for locator in locators if self._is_here(locator))

    def remove(self, locator: str) -> None:
        with self._guard:
            request = self._requests.pop(locator, None)
            if request is not None:
                self._end(request)
        super().remove(locator)

    def close(self) -> None:
        """End the commands that still wait: who needs the files asks again."""
        with self._guard:
            requests, self._requests = self._requests, {}
        running = [request.process for request in requests.values() if request.process is not None]
        for process in running:
            process.terminate()
        end = time.monotonic() + STOP_S
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        super().close()

"""Short files, whose pages the kernel gets with their open(2)."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Daemon, eventually

FILES, ROUNDS, READERS = 8, 40, 6


def text(number: int) -> bytes:
    """One version of a file: every line says which, and each is longer or shorter than the one before."""
    return b"version %06d\n" % number * (1 + number * 37 % 900)


def read_at_once(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        # The next one finds no pages, and asks while others are opened.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


def test_many_who_open_short_files_that_change_elsewhere_each_read_one_version(
    daemon: Daemon, make_mount: Callable[..., Path]
) -> None:
    here, there = make_mount(daemon, "here"), make_mount(daemon, "there")
    names = [f"f{number}" for number in range(FILES)]
    for name in names:
        (there / name).write_bytes(text(0))
    eventually("all are seen", lambda: all((here / name).exists() for name in names))
    failures: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            for name in names:
                data = read_at_once(here / name)
                if len(set(data.splitlines())) > 1 or len(data) % 15:
                    failures.append(f"{name}: {data[:40]!r}... of {len(data)} bytes")

    threads = [threading.Thread(target=read) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, ROUNDS):
            for name in names:
                (there / "new").write_bytes(text(number))
                os.rename(there / "new", there / name)
    finally:
        done.set()
        for thread in threads:
            thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "a mount that waits for itself"
    assert failures == []
    eventually("the last version", lambda: all((here / name).read_bytes() == text(ROUNDS - 1) for name in names))


@pytest.mark.parametrize("length", [1, 100, 4095, 4096, 4097, 16384, 16385, 70000])
def test_what_is_opened_after_a_change_elsewhere_is_read_whole(
    daemon: Daemon, make_mount: Callable[..., Path], length: int
) -> None:
    here, there = make_mount(daemon, "here"), make_mount(daemon, "there")
    (there / "f").write_bytes(b"a" * 9000)
    eventually("it is seen", lambda: (here / "f").exists())
    assert (here / "f").read_bytes() == b"a" * 9000
    (there / "f").write_bytes(b"b" * length)
    eventually("it changed", lambda: (here / "f").read_bytes() == b"b" * length)
    with open(here / "f", "rb") as file:
        assert file.read() == b"b" * length and file.read() == b""

"""Whose a private cache directory is: a mount that lives keeps it, one that died left what it owes."""

import os
import subprocess
from pathlib import Path

from vosfs.cache import journal
from vosfs.cache.journal import Journal
from vosfs.mount import JOURNAL, LOCK, _private_cache, claimed


def _gone(directory: Path) -> bool:
    with claimed(directory) as gone:
        return gone


def test_a_number_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    """In a container the next mount has the number of the one that died."""
    left, lock = _private_cache(tmp_path)
    written = Journal(left / JOURNAL, b"whose")
    written.add(b"owed")
    written.close()
    assert left.name == f"mount-{os.getpid()}" and not _gone(left)
    os.close(lock)
    assert _gone(left)
    mine, lock = _private_cache(tmp_path)
    assert mine != left and journal.records(left / JOURNAL) == [b"whose", b"owed"], "the next mount is to send it"
    assert not _gone(mine)
    os.close(lock)


def test_nobody_takes_a_directory_that_is_in_use(tmp_path: Path) -> None:
    """Whatever its name says: on another host, or in another container, the number means nothing."""
    theirs = tmp_path / f"mount-{2**22 + 1}"
    theirs.mkdir()
    (theirs / LOCK).touch()
    holder = subprocess.Popen(["flock", theirs / LOCK, "sh", "-c", "echo held; read _"], stdin=-1, stdout=-1)
    assert holder.stdin and holder.stdout and holder.stdout.readline()
    _, lock = _private_cache(tmp_path)
    assert theirs.exists() and not _gone(theirs)
    holder.communicate(b"\n")
    assert _gone(theirs)
    os.close(lock)
    _, lock = _private_cache(tmp_path)
    assert not theirs.exists(), "it owed nothing"
    os.close(lock)


def test_one_of_an_older_version_goes_by_its_number(tmp_path: Path) -> None:
    for number in (os.getppid(), 2**22 + 1):
        (tmp_path / f"mount-{number}").mkdir()
    assert [_gone(tmp_path / f"mount-{number}") for number in (os.getppid(), 2**22 + 1)] == [False, True]

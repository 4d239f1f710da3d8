"""The FUSE device: how it is mounted, and one word of its handshake that libfuse does not know.

Before every write(2) the kernel asks the file system for ``security.capability``, in case the write must clear it: one
request more for each, unless the file system says that it clears set-user-ID, set-group-ID and capabilities itself
(FUSE_HANDLE_KILLPRIV_V2, Linux 5.12).  libfuse learnt to say so in 3.17, Debian 12 has 3.14, and pyfuse3 does not let
its user add to the reply.  So libfuse is given one end of a socket pair in the device's place for its first exchange,
the reply is completed on its way, and then the device takes that end's number.
"""

import array
import contextlib
import errno
import os
import select
import socket
import struct
import subprocess

NO_OPENDIR_SUPPORT = 1 << 24
"""FUSE_NO_OPENDIR_SUPPORT: opendir(3) may be answered ENOSYS (Linux 5.1)."""
CACHE_SYMLINKS = 1 << 23
"""FUSE_CACHE_SYMLINKS: a link's target never changes."""
HANDLE_KILLPRIV_V2 = 1 << 28
"""FUSE_HANDLE_KILLPRIV_V2."""
_WANTED = CACHE_SYMLINKS | HANDLE_KILLPRIV_V2
_MESSAGE_BYTES_MAX = 8192
"""FUSE_MIN_READ_BUFFER: the kernel refuses to fill a shorter one."""
_FLAGS = struct.Struct("=I")
_OFFERED_AT, _AGREED_AT = 40 + 12, 16 + 12
"""Where FUSE_INIT and its reply have their flags: behind a header, and major, minor and max_readahead."""
FUSERMOUNT = "fusermount3"
FUSERMOUNT_S = 10.0


def mount(mountpoint: str, options: list[str]) -> int:
    """Mount, and return the device.  OSError with what fusermount3(1) says if it does not."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        escaped = ",".join(option.replace("\\", "\\\\").replace(",", "\\,") for option in options)
        done = _fusermount(["-o", escaped, "--", mountpoint], theirs.fileno())
        if done.returncode:
            raise OSError(errno.EPERM, done.stderr.strip() or f"{FUSERMOUNT} failed")
        _, passed, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(array.array("i").itemsize), socket.MSG_DONTWAIT)
    descriptors = array.array("i")
    for _, _, data in passed:
        descriptors.frombytes(data)
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def unmount(mountpoint: str, device: int) -> None:
    """Take the mount away and close its device, unless somebody else took it away already."""
    poller = select.poll()
    poller.register(device, 0)
    gone = any(events & select.POLLERR for _, events in poller.poll(0))
    # Before the rest: an umount(2) that asked this process something would wait for ever.
    os.close(device)
    if not gone:
        _fusermount(["-u", "-q", "-z", "--", mountpoint])


def _fusermount(arguments: list[str], channel: int = -1) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [FUSERMOUNT, *arguments], env={**os.environ, "_FUSE_COMMFD": str(channel)}, text=True, check=False,
            pass_fds=[channel] if channel >= 0 else [], capture_output=True, timeout=FUSERMOUNT_S,
        )  # fmt: skip
    except FileNotFoundError:
        raise OSError(errno.ENOENT, f"{FUSERMOUNT} is missing: install the package fuse3") from None
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"{FUSERMOUNT} does not end") from None


class Handshake:
    """The first exchange between the kernel and libfuse, with this in the middle."""

    def __init__(self, device: int) -> None:
        # Dependencies
        self._device = device
        # Mutable state
        self._ours, self._libfuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.offered = 0
        """The kernel's flags."""

    @property
    def descriptor(self) -> int:
        """For libfuse: a socket first, the device once the handshake is complete.  libfuse closes it."""
        return self._libfuse.fileno()

    def begin(self) -> None:
        """Hand the kernel's FUSE_INIT to libfuse."""
        message = os.read(self._device, _MESSAGE_BYTES_MAX)
        self.offered = _FLAGS.unpack_from(message, _OFFERED_AT)[0]
        self._ours.send(message)

    def complete(self) -> bool:
        """Hand libfuse's reply to the kernel, and the device to libfuse; False if libfuse has not replied yet."""
        try:
            reply = bytearray(self._ours.recv(_MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False
        if len(reply) > _AGREED_AT:
            # Not an error, which is a header alone.
            agreed = _FLAGS.unpack_from(reply, _AGREED_AT)[0]
            _FLAGS.pack_into(reply, _AGREED_AT, agreed | self.offered & _WANTED)
        os.write(self._device, reply)
        os.dup2(self._device, self._libfuse.detach(), inheritable=False)
        self._ours.close()
        return True

    def close(self) -> None:
        """Give up what libfuse did not take."""
        self._ours.close()
        with contextlib.suppress(OSError):
            self._libfuse.close()

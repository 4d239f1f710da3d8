"""The FUSE handshake with this in the middle: what libfuse replied reaches the kernel, with what it left out."""

import os
import socket
import struct

from vosfs.device import CACHE_SYMLINKS, HANDLE_KILLPRIV_V2, Handshake

ASYNC_READ = 1


def begun(offered: int) -> tuple[socket.socket, Handshake]:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    handshake = Handshake(device.detach())
    kernel.send(bytes(40) + struct.pack("=IIII", 7, 40, 1 << 20, offered) + bytes(48))
    handshake.begin()
    assert not handshake.complete()
    return kernel, handshake


def agreed(offered: int, reply: bytes) -> bytes:
    """What the kernel is told, when libfuse replies so."""
    kernel, handshake = begun(offered)
    libfuse = handshake.descriptor
    assert struct.unpack_from("=I", os.read(libfuse, 8192), 40 + 12) == (offered,)
    os.write(libfuse, reply)
    assert handshake.complete()
    told = kernel.recv(8192)
    # From here on libfuse's descriptor is the device.
    kernel.send(b"a request")
    assert os.read(libfuse, 8192) == b"a request"
    os.write(libfuse, b"an answer")
    assert kernel.recv(8192) == b"an answer"
    os.close(libfuse)
    kernel.close()
    return told


def reply(flags: int) -> bytes:
    return struct.pack("=IiQ", 80, 0, 1) + struct.pack("=IIII", 7, 38, 1 << 20, flags) + bytes(48)


def test_what_libfuse_does_not_know_is_agreed_on() -> None:
    offered = ASYNC_READ | HANDLE_KILLPRIV_V2 | CACHE_SYMLINKS
    assert agreed(offered, reply(ASYNC_READ)) == reply(ASYNC_READ | HANDLE_KILLPRIV_V2 | CACHE_SYMLINKS)


def test_an_older_kernel_is_told_nothing_that_it_does_not_know() -> None:
    assert agreed(ASYNC_READ, reply(ASYNC_READ)) == reply(ASYNC_READ)


def test_an_error_goes_through_as_it_is() -> None:
    error = struct.pack("=IiQ", 16, -71, 1)
    assert agreed(HANDLE_KILLPRIV_V2, error) == error


def test_given_up_in_the_middle() -> None:
    kernel, handshake = begun(ASYNC_READ)
    handshake.close()
    handshake.close()
    kernel.close()

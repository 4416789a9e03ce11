"""PORT [drop-in]: tries to connect in ways that keep a connection in the kernel; prints what came of each."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import sys

if sys.argv[2:] == ["drop-in"]:
    import bertha_socket as socket
else:
    import socket  # type: ignore[no-redef]

_ADDRESS = ("127.0.0.1", int(sys.argv[1]))
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
_SIGCHLD = 17
_SYS_IO_URING_SETUP = 425
_IPPROTO_MPTCP = 262


def connect() -> socket.socket:
    return socket.create_connection(_ADDRESS, timeout=20)


def low_water() -> socket.socket:
    sock = socket.socket()
    sock.settimeout(20)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 4)
    sock.connect(_ADDRESS)
    return sock


def fast_open() -> socket.socket:
    """As programs do that know of it: connect() where the kernel cannot."""
    sock = socket.socket()
    sock.settimeout(20)
    try:
        sock.sendto(b"", socket.MSG_FASTOPEN, _ADDRESS)
    except OSError as error:
        print("fast open:", error.strerror)
        sock.connect(_ADDRESS)
    return sock


def passed_on() -> socket.socket:
    """Another process could connect it."""
    sock = socket.socket()
    sock.settimeout(20)
    left, right = socket.socketpair()
    with left, right:
        socket.send_fds(left, [b"x"], [sock.fileno()])
    sock.connect(_ADDRESS)
    return sock


def cloned() -> socket.socket:
    """A child that the C library's fork() knows nothing of."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    child = libc.syscall(_SYS_CLONE, _SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        try:
            connect()
            os._exit(1)
        except ConnectionRefusedError:
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 2:
        raise ConnectionRefusedError(111, "Connection refused")
    return socket.socket()


def again() -> socket.socket:
    """With a socket whose first connect() has failed, to where nothing is required or nobody answers."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = unused.getsockname()
    sock = socket.socket()
    sock.setblocking(False)
    try:
        _begin(sock, nobody)
        for _ in range(2):  # the kernel may tell of the first once more
            try:
                _begin(sock, _ADDRESS)
                break
            except ConnectionAbortedError:
                pass
    except BaseException:
        sock.close()
        raise
    sock.settimeout(20)
    return sock


def _begin(sock: socket.socket, address: tuple[str, int]) -> None:
    error = sock.connect_ex(address)
    if error not in (0, errno.EINPROGRESS):
        raise OSError(error, os.strerror(error))
    select.select([], [sock], [], 20)
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def multipath() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, _IPPROTO_MPTCP)
    sock.settimeout(20)
    sock.connect(_ADDRESS)
    return sock


def ring() -> None:
    """What could connect without a call that could be refused."""
    parameters = ctypes.create_string_buffer(120)
    made = ctypes.CDLL(None, use_errno=True).syscall(_SYS_IO_URING_SETUP, 8, parameters)
    print("ring:", "made" if made >= 0 else os.strerror(ctypes.get_errno()))


ring()
for way in (connect, low_water, fast_open, passed_on, cloned, again, multipath):
    try:
        with way() as done:
            try:
                done.sendall(b"PING\r\n")
                print(f"{way.__name__}: {done.recv(100)!r}")
            except OSError as error:
                print(f"{way.__name__}: later {error.strerror}")
    except OSError as error:
        print(f"{way.__name__}: {error.strerror}")

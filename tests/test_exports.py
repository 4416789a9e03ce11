"""The preload library shows the world exactly the calls of native/calls.list, and needs the C library alone.

A symbol too many could replace one of the program's; one too few is a call that goes past the shim; a
library that it needs is loaded into every program that runs under it.
"""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIM = ROOT / "bertha_socket" / "lib" / "libbertha_shim.so"
CALLS = ROOT / "native" / "calls.list"

#: What other shims take over (ip2unix, VMA/XLIO, VCL and LDP, rsocket, socket_wrapper, Slim, SocksDirect),
#: all of them together, and what none of them does and a program can notice.
# fmt: off
PEERS = [
    "socket", "bind", "listen", "accept", "accept4", "connect", "getpeername", "getsockname", "setsockopt",
    "getsockopt", "shutdown", "close", "fcntl", "fcntl64", "ioctl", "read", "write", "readv", "writev",
    "recv", "send", "recvfrom", "sendto", "recvmsg", "sendmsg", "recvmmsg", "sendmmsg", "sendfile",
    "sendfile64", "select", "pselect", "poll", "ppoll", "epoll_create", "epoll_create1", "epoll_ctl",
    "epoll_wait", "epoll_pwait", "dup", "dup2", "dup3", "socketpair", "pipe", "fork", "vfork", "clone",
    "daemon", "__read_chk", "__recv_chk", "__recvfrom_chk", "__poll_chk", "__ppoll_chk", "open", "open64",
    "openat", "creat", "fopen", "fopen64", "eventfd", "signalfd", "timerfd_create", "epoll_pwait2",
    "splice", "tee", "vmsplice", "preadv2", "pwritev2", "close_range", "closefrom", "posix_spawn", "fdopen",
    "syscall", "pidfd_getfd",
]
# fmt: on
NOT_OURS = {
    "tee": "both ends are pipes: no connection can be meant",
    "vmsplice": "the same",
    "pidfd_getfd": "takes a descriptor of another process: not in our books (docs/users/limits.md)",
}


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(scope="module")
def calls() -> list[str]:
    lines = (line.split("#", 1)[0].strip() for line in CALLS.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def dynamic() -> str:
    assert SHIM.exists(), f"{SHIM} is not built: run `make -C native`"
    return _run("readelf", "--wide", "--dynamic", str(SHIM))


def test_list_is_well_formed(calls: list[str]) -> None:
    assert calls
    assert [c for c in calls if not re.fullmatch(r"[A-Za-z_]\w*", c)] == []
    assert sorted(c for c in set(calls) if calls.count(c) > 1) == []


def test_nothing_is_missing_that_others_take_over(calls: list[str]) -> None:
    assert sorted(set(PEERS) - set(calls) - set(NOT_OURS)) == []
    assert sorted(set(NOT_OURS) & set(calls)) == [], "taken over after all"


def test_exports_are_the_list(calls: list[str], dynamic: str) -> None:
    exported = {line.split()[-1] for line in _run("nm", "-D", "--defined-only", str(SHIM)).splitlines()}
    assert sorted(exported - set(calls)) == [], "exported and not listed in native/calls.list"
    assert sorted(set(calls) - exported) == [], "listed in native/calls.list and not exported"


def test_exports_have_no_version(dynamic: str) -> None:
    # The dynamic linker would not take a versioned symbol for the C library's one of the same name.
    assert "(VERDEF)" not in dynamic


def test_needs_the_c_library_alone(dynamic: str) -> None:
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    allowed = {"libc.so.6"} | {n for n in needed if re.fullmatch(r"ld-linux[-\w]*\.so\.\d+", n)}
    if tuple(int(n) for n in platform.libc_ver()[1].split(".")) < (2, 34):
        allowed |= {"libdl.so.2", "libpthread.so.0"}  # part of the C library since
    assert "libc.so.6" in needed
    assert needed <= allowed


def test_is_position_independent_and_finds_nothing_by_path(dynamic: str) -> None:
    assert "(TEXTREL)" not in dynamic
    assert "(RPATH)" not in dynamic
    assert "(RUNPATH)" not in dynamic


def test_stack_is_not_executable(dynamic: str) -> None:
    segments = _run("readelf", "--wide", "--segments", str(SHIM))
    stack = next(line for line in segments.splitlines() if "GNU_STACK" in line)
    assert " RWE" not in stack

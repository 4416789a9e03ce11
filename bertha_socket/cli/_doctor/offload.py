"""Probes of what later implementations stand on: BPF, XDP, kernel TLS, SMC.  Nothing needs them yet."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

from bertha_socket.cli._doctor import Finding, no, ok, probe
from bertha_socket.cli._doctor._libc import syscall

_AREA = "offload (later)"
_BPF_PROG_LOAD = 5
_SOCKET_FILTER = 1
_XDP = 6
_AF_XDP = 44
_AF_SMC = 43
_TCP_ULP = 31
_MPTCP = 262
# r0 = 2 (XDP_PASS); exit
_PROGRAM = struct.pack("=BBhi", 0xB7, 0, 0, 2) + struct.pack("=BBhi", 0x95, 0, 0, 0)


def _load(kind: int) -> Finding:
    instructions = ctypes.create_string_buffer(_PROGRAM, len(_PROGRAM))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    # union bpf_attr for BPF_PROG_LOAD: type, instruction count, instructions, licence; zeros after that
    attributes = struct.pack(
        "=IIQQ", kind, len(_PROGRAM) // 8, ctypes.addressof(instructions), ctypes.addressof(licence)
    ).ljust(120, b"\0")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    try:
        fd = syscall("bpf", _BPF_PROG_LOAD, buffer, len(attributes))
    except NotImplementedError as error:
        return no(str(error))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            return no("not allowed for this user", "run the agent as root, or with CAP_BPF and CAP_NET_ADMIN")
        return no(f"bpf: {error.strerror}", "use a kernel with CONFIG_BPF_SYSCALL")
    os.close(fd)
    return ok("a program was loaded")


@probe(_AREA, "eBPF")
def bpf() -> Finding:
    """Loading the smallest program there is."""
    return _load(_SOCKET_FILTER)


@probe(_AREA, "XDP")
def xdp() -> Finding:
    """Loading a program for a network interface (it is attached to none)."""
    return _load(_XDP)


def _socket(family: int, kind: int, protocol: int, missing: str) -> Finding:
    try:
        socket.socket(family, kind, protocol).close()
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            return no("not allowed for this user", "run the agent as root")
        return no(f"{error.strerror}", missing)
    return ok("a socket could be made")


@probe(_AREA, "AF_XDP")
def af_xdp() -> Finding:
    """Packets past the network stack."""
    return _socket(_AF_XDP, socket.SOCK_RAW, 0, "use a kernel with CONFIG_XDP_SOCKETS")


@probe(_AREA, "AF_SMC")
def af_smc() -> Finding:
    """The kernel's own shared memory and RDMA transport."""
    return _socket(_AF_SMC, socket.SOCK_STREAM, 0, "modprobe smc")


@probe(_AREA, "MPTCP")
def mptcp() -> Finding:
    """Several paths for one connection."""
    return _socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP, "sysctl net.mptcp.enabled=1")


@probe(_AREA, "kernel TLS")
def ktls() -> Finding:
    """The tls protocol on a connected socket of ours."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as connection:
            try:
                connection.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
            except OSError as error:
                return no(f"TCP_ULP tls: {error.strerror}", "modprobe tls")
    return ok("a connection took it")

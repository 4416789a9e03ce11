"""Programs and calls that the preload library cannot reach, as far as this host has them."""

from __future__ import annotations

import ctypes
import errno
import os

from bertha_socket.cli._command import CommandError
from bertha_socket.cli._doctor import Finding, limited, ok, probe
from bertha_socket.cli._doctor._libc import syscall
from bertha_socket.cli._preload import find_library
from bertha_socket.cli._target import inspect

_AREA = "programs"
# Programs that speak TCP and that are often static, Go, or setuid; only those installed are judged.
_OFTEN_USED = (
    *(
        "python3",
        "curl",
        "wget",
        "ssh",
        "redis-server",
        "redis-cli",
        "memcached",
        "nginx",
        "psql",
        "postgres",
    ),
    *(
        "haproxy",
        "envoy",
        "java",
        "node",
        "iperf3",
        "sudo",
        "docker",
        "kubectl",
        "caddy",
        "etcd",
        "prometheus",
    ),
    *("busybox", "consul", "traefik"),
)


@probe(_AREA, "static, setuid and Go programs")
def unhookable() -> Finding:
    """Judged as bertha-run judges them."""
    shim = find_library().elf
    good = 0
    bad: list[str] = []
    for name in _OFTEN_USED:
        try:
            target = inspect([name], os.environ, shim)
        except CommandError:
            continue
        if target.hookable is False:
            bad.append(f"{name} ({target.verdict})")
        else:
            good += 1
    text = f"of the usual programs, {good} here can be hooked"
    if not bad:
        return ok(f"{text}, and all of them")
    return limited(f"{text}; these run plain: {', '.join(bad)}", "bertha-run --info PROGRAM says why")


@probe(_AREA, "io_uring")
def io_uring() -> Finding:
    """Operations given to io_uring never pass the C library."""
    parameters = ctypes.create_string_buffer(120)  # struct io_uring_params
    try:
        fd = syscall("io_uring_setup", 2, parameters)
    except NotImplementedError as error:
        return ok(str(error))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM, errno.EACCES):
            return ok("not usable here, so no program uses it")
        return limited(f"io_uring_setup: {error.strerror}")
    os.close(fd)
    return limited(
        "usable here: connections of programs that use it stay plain", "switch it off in such a program"
    )

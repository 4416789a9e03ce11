"""Probes of the kernel and the C library."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
from pathlib import Path

from bertha_socket.cli._doctor import Finding, limited, no, ok, probe
from bertha_socket.cli._doctor._libc import libc, result

_AREA = "kernel"
_SO_NETNS_COOKIE = 71
_SO_PEERPIDFD = 77
_NETLINK_SOCK_DIAG = 4
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000


@probe(_AREA, "kernel and C library", essential=True)
def versions() -> Finding:
    """Named for reports; what they can do is found below."""
    kernel = f"{platform.system()} {platform.release()} {platform.machine()}"
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        library = None
    if not library:
        return no(f"{kernel}, and no glibc", "use a distribution with glibc: the library is made for it")
    return ok(f"{kernel}, {library}")


@probe(_AREA, "processors")
def processors() -> Finding:
    """A waiting program may look at the ring for a while only if its peer can run meanwhile."""
    count = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    if count < 2:
        return limited(
            "1 processor for this process: waiting always sleeps, never spins",
            "allow the programs two processors or more (taskset, cpuset)",
        )
    if quota is not None and quota < 2:
        return limited(
            f"{count} processors, but a quota of {quota:.2f}: spinning eats the peer's share",
            "set BERTHA_SPIN_US=0, or raise cpu.max",
        )
    return ok(f"{count} processors: spinning is useful")


def _cpu_quota() -> float | None:
    """Processors' worth of time that the nearest limiting cgroup allows (version 2)."""
    try:
        line = next(x for x in Path("/proc/self/cgroup").read_text().splitlines() if x.startswith("0::"))
    except (OSError, StopIteration):
        return None
    root = Path("/sys/fs/cgroup")
    folder = root / line[3:].lstrip("/")
    quotas: list[float] = []
    for each in (folder, *folder.parents):
        if not each.is_relative_to(root):
            break
        try:
            limit, period = (each / "cpu.max").read_text().split()
            if limit != "max":
                quotas.append(int(limit) / int(period))
        except (OSError, ValueError):
            continue
    return min(quotas, default=None)


@probe(_AREA, "eventfd")
def eventfd() -> Finding:
    """The cheapest way to wake a sleeping peer."""
    try:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        return limited(f"{error.strerror}: peers are woken through the kernel's connection", "allow eventfd2")
    try:
        os.eventfd_write(fd, 1)
        if os.eventfd_read(fd) != 1:
            return no("an eventfd does not count", "report this as a defect")
    finally:
        os.close(fd)
    return ok("works")


@probe(_AREA, "pidfd")
def pidfd() -> Finding:
    """How the agent knows that a process is gone, and that a pid is still the same process."""
    remedy = "use Linux 6.5 or later, or allow the call; until then the agent goes by pid"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return limited(f"pidfd_open: {error.strerror}", remedy)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        try:
            fd = struct.unpack("i", one.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))[0]
        except OSError as error:
            return limited(f"pidfd_open works, SO_PEERPIDFD does not: {error.strerror}", remedy)
        os.close(fd)
    return ok("pidfd_open and SO_PEERPIDFD work")


@probe(_AREA, "network namespaces told apart")
def netns_cookie() -> Finding:
    """SO_NETNS_COOKIE: without it, equal addresses in two namespaces cannot be told apart."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as any_socket:
        try:
            cookie = struct.unpack("Q", any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]
        except OSError as error:
            return limited(
                f"SO_NETNS_COOKIE: {error.strerror}: connections between namespaces stay plain",
                "use Linux 5.14 or later",
            )
    return ok(f"SO_NETNS_COOKIE works; this is namespace {cookie}")


@probe(_AREA, "sock_diag")
def sock_diag() -> Finding:
    """The look-up of a single socket, by which a claim is checked against what the kernel knows."""
    from bertha_socket.agent import sockdiag

    try:
        diag = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    except OSError as error:
        return limited(
            f"{error.strerror}: connections between namespaces stay plain", "load inet_diag, tcp_diag"
        )
    with diag, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        address = bytes(10) + b"\xff\xff\x7f\0\0\1"
        try:
            found = sockdiag.is_listening(diag, address, port)
        except OSError as error:
            return limited(
                f"{error.strerror}: connections between namespaces stay plain", "load inet_diag, tcp_diag"
            )
    if found is None:
        return limited("a listening socket of ours was not found", "load tcp_diag")
    return ok("finds a listening socket of ours")


@probe(_AREA, "restartable sequences")
def rseq() -> Finding:
    """The processor one runs on, read from memory: spinning beside a peer on the same one is avoided."""
    try:
        size = ctypes.c_uint.in_dll(libc, "__rseq_size").value
    except ValueError:
        size = 0
    if size:
        return ok("the C library has registered rseq")
    libc.sched_getcpu.restype = ctypes.c_int
    try:
        here = result(libc.sched_getcpu())
    except (AttributeError, OSError) as error:
        return limited(f"neither rseq nor sched_getcpu: {error}", "set BERTHA_SPIN_US=0 on busy hosts")
    return limited(f"not registered; sched_getcpu works (processor {here})", "use glibc 2.35 or later")


@probe(_AREA, "user namespaces")
def user_namespaces() -> Finding:
    """Whether this user can make network namespaces; tests and experiments want them, programs do not."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            done = libc.unshare(ctypes.c_int(_CLONE_NEWUSER | _CLONE_NEWNET))
            code = 0 if done == 0 else min(ctypes.get_errno(), 254)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        return ok("this user can make user and network namespaces")
    why = os.strerror(code) if 0 < code < 255 else "the child failed"
    return limited(
        f"unshare: {why}: no networks of one's own without root",
        "sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces, or the LSM's setting",
    )


@probe(_AREA, "restrictions")
def restrictions() -> Finding:
    """Seccomp filter, security modules, yama: named, because they explain what fails above."""
    notes: list[str] = []
    remedy = None
    try:
        text = Path("/proc/self/status").read_text()
    except OSError as error:
        return limited(f"/proc/self/status: {error.strerror}", "mount /proc")
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    if status.get("Seccomp", "0").strip() == "2":
        notes.append("a seccomp filter is in force")
        remedy = "calls that fail above may be the filter's doing: change the container's seccomp profile"
    try:
        notes.append(f"security modules: {Path('/sys/kernel/security/lsm').read_text().strip()}")
    except OSError:
        notes.append("security modules: not told (securityfs is not mounted)")
    try:
        confined = Path("/proc/self/attr/current").read_text().strip().rstrip("\0")
        if confined and confined != "unconfined" and "unconfined_t" not in confined:
            notes.append(f"confined as {confined}")
            remedy = remedy or "calls that fail above may be the profile's doing"
    except OSError:
        pass
    try:
        scope = Path("/proc/sys/kernel/yama/ptrace_scope").read_text().strip()
        notes.append(f"yama ptrace_scope={scope}, which is no obstacle: descriptors are passed, never taken")
    except OSError:
        pass
    return limited("; ".join(notes), remedy) if remedy else ok("; ".join(notes))

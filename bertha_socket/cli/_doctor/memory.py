"""Probes of memory and descriptors: what the links between programs are made of."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
from pathlib import Path

from bertha_socket.cli._doctor import Finding, limited, no, ok, probe

_AREA = "memory"
_MIB = 1 << 20
_HIDDEN_FROM = 960  # where the shim keeps its own descriptors (bertha_hide_fd)
_ROOM = 256 * _MIB  # below this much free memory, links of busy programs may fail


def _link_size() -> int:
    """Bytes of address space of one link; most of them never become memory."""
    from bertha_socket import _native

    return int(_native.lib.agent_link_size())


@probe(_AREA, "sealed memfd", essential=True)
def sealed() -> Finding:
    """Memory that neither end can shrink under the other."""
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    try:
        fd = os.memfd_create("bertha-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        return no(f"memfd_create: {error.strerror}", "allow memfd_create (seccomp filter, vm.memfd_noexec)")
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        os.ftruncate(fd, 0)
    except PermissionError:
        return ok("made, sealed, and not to be shrunk any more")
    except OSError as error:
        return no(f"sealing: {error.strerror}", "use a kernel with file seals")
    finally:
        os.close(fd)
    return no("a seal against shrinking has no effect", "use a kernel with file seals")


@probe(_AREA, "shared mapping", essential=True)
def mapping() -> Finding:
    """A link's whole address space, mapped twice, and a byte from one mapping to the other."""
    size = _link_size()
    room = f"a link ({size // _MIB} MiB of addresses)"
    fd = os.memfd_create("bertha-doctor", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        with mmap.mmap(fd, size) as one, mmap.mmap(fd, size) as other:
            one[size - 1] = 42
            if other[size - 1] != 42:
                return no("two mappings of one memfd differ", "report this as a defect")
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EFBIG:
            return no(f"{room} exceeds the file size limit", "ulimit -f unlimited")
        if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
            return no(f"{room} does not fit into the limit on address space", "ulimit -v unlimited")
        return no(f"{room} cannot be mapped: {error}", "see 'memory limit' and 'overcommit' below")
    finally:
        os.close(fd)
    bound = resource.getrlimit(resource.RLIMIT_AS)[0]
    if bound != resource.RLIM_INFINITY:
        return limited(
            f"room for about {bound // size} links a process ({bound // _MIB} MiB of addresses allowed)",
            "ulimit -v unlimited",
        )
    return ok(f"{room} can be mapped")


@probe(_AREA, "overcommit")
def overcommit() -> Finding:
    """vm.overcommit_memory=2 counts address space as if it were memory."""
    path = Path("/proc/sys/vm/overcommit_memory")
    try:
        mode = path.read_text().strip()
    except OSError as error:
        return limited(f"{path}: {error.strerror}", "mount /proc")
    if mode != "2":
        return ok(f"vm.overcommit_memory={mode}: address space alone costs nothing")
    return limited(
        "vm.overcommit_memory=2: what the library reserves counts as used",
        "sysctl vm.overcommit_memory=0, or raise vm.overcommit_ratio",
    )


def _cgroup_limits() -> list[tuple[str, int, int]]:
    """(file, limit, used) of each memory cgroup that this process is in, of both hierarchies' versions."""
    found: list[tuple[str, int, int]] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if not controllers:
            names = ("memory.max", "memory.current")
        folder = root / path.lstrip("/")
        for each in (folder, *folder.parents):
            if not each.is_relative_to(root):
                break
            try:
                text = (each / names[0]).read_text().strip()
                if text != "max" and int(text) < 1 << 60:
                    found.append((str(each / names[0]), int(text), int((each / names[1]).read_text())))
            except (OSError, ValueError):
                continue
    return found


@probe(_AREA, "memory limit")
def memory_limit() -> Finding:
    """Free memory, of the host and of every cgroup above us."""
    import psutil

    free = int(psutil.virtual_memory().available)
    where, remedy = "the host", "free some, or use fewer connections"
    for path, limit, used in _cgroup_limits():
        if limit - used < free:
            free, where, remedy = limit - used, path, f"raise {path}"
    text = f"{max(free, 0) // _MIB} MiB are free ({where})"
    return ok(text) if free >= _ROOM else limited(f"{text}: connections beyond run plain", remedy)


@probe(_AREA, "descriptors")
def descriptors() -> Finding:
    """The library's own descriptors lie out of the program's way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, _HIDDEN_FROM))
    except OSError as error:
        if error.errno == errno.EBADF:
            return ok(f"{soft} (soft), {hard} (hard); not tried, standard input is closed")
        return limited(
            f"only {soft} (soft limit; hard {hard}): the library's own lie among the program's",
            f"ulimit -n {min(hard, 4096) if hard > soft else '4096, which root must allow'}",
        )
    return ok(f"{soft} (soft), {hard} (hard)")

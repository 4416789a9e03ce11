"""Network namespaces for a measurement: made by it, and gone with it even if it is killed.

A namespace here has no name: a ``cat`` reading from a pipe keeps it, and ends when the pipe's other end (this
process) does.  Needs root; without it a bench uses the caller's own loopback and says so.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bertha_socket._bench import tools


@dataclass
class Host:
    """One place where programs run: a namespace of ours, or the caller's own (``holder`` None)."""

    address: str
    holder: subprocess.Popen[bytes] | None = None

    @property
    def enter(self) -> list[str]:
        """What to put before a command so that it runs here."""
        if self.holder is None:
            return []
        return [tools.find("nsenter"), f"--net=/proc/{self.holder.pid}/ns/net"]

    def kernel_octets(self) -> int | None:
        """IP bytes received in this namespace so far, by the kernel's count; None for a shared one."""
        return self._count("netstat", "IpExt:", "InOctets")

    def kernel_datagrams(self) -> int | None:
        """UDP datagrams sent in this namespace so far, by the kernel's count; None for a shared one."""
        return self._count("snmp", "Udp:", "OutDatagrams")

    def _count(self, file: str, of: str, name: str) -> int | None:
        if self.holder is None:
            return None
        lines = Path(f"/proc/{self.holder.pid}/net/{file}").read_text(encoding="ascii").splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            if names.startswith(of):
                return int(dict(zip(names.split(), values.split(), strict=True))[name])
        return None

    def close(self) -> None:
        if self.holder is not None and self.holder.stdin is not None:
            self.holder.stdin.close()
            self.holder.wait(timeout=10)


def _ip(*arguments: str, host: Host | None = None) -> None:
    command = [*(host.enter if host else []), tools.find("ip"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def _namespace() -> Host:
    ours = os.stat("/proc/self/ns/net").st_ino
    holder = subprocess.Popen(
        [tools.find("unshare"), "--net", "--", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    host = Host("127.0.0.1", holder)
    for _ in range(2000):
        if holder.poll() is not None:
            raise OSError("unshare --net failed: no network namespace can be made here")
        if os.stat(f"/proc/{holder.pid}/ns/net").st_ino != ours:
            _ip("link", "set", "lo", "up", host=host)
            return host
        time.sleep(0.001)
    host.close()
    raise OSError("unshare --net made no namespace within 2 s")


def available() -> bool:
    """Whether namespaces can be made here."""
    return os.geteuid() == 0


def single() -> Host:
    """A namespace with only a loopback interface; the caller's own one without root."""
    return _namespace() if available() else Host("127.0.0.1")


def pair() -> tuple[Host, Host]:
    """Two namespaces joined by a veth pair (client, server)."""
    if not available():
        raise tools.Unavailable("two network namespaces need root")
    client, server = _namespace(), _namespace()
    try:
        assert client.holder is not None
        assert server.holder is not None
        _ip(
            *("link", "add", "veth0", "netns", str(client.holder.pid), "type", "veth"),
            *("peer", "name", "veth0", "netns", str(server.holder.pid)),
        )
        for host, address in ((client, "10.77.0.1"), (server, "10.77.0.2")):
            _ip("addr", "add", f"{address}/24", "dev", "veth0", host=host)
            _ip("link", "set", "veth0", "up", host=host)
            host.address = address
    except BaseException:
        client.close()
        server.close()
        raise
    return client, server

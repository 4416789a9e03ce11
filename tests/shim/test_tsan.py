"""Threads that share connections, epoll sets and links, under the thread sanitizer: library and program.

gcc's runtime knows locks and atomics, but neither fences nor what another process orders by shared memory, so
some of what it reports is none.  What is reported here and known is named below, each with what it is; a
report with none of these functions at either end of it is a new one, and fails the test.  What is loaded must
be built for it: an uninstrumented program does not survive the library's constructor.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, eventually, free_port, require_program
from tests.harness.directory import listed_ports

_HERE = Path(__file__).parent
_NATIVE = _HERE.parents[1] / "native"
_HINTS = "a hint, read without the lock and looked at again with it"
_OTHERS = "memory of a slot, whose former use another process has ended: the sanitizer does not see that"
_KNOWN = {
    "has_room": _HINTS,
    "spin_learn": "what waits have taught: any value will do",
    "spin_budget": "the same",
    "lose": "the same",
    "eset_new": "a set's record that was another's, ordered by the kernel's close and epoll_create",
    "forget_set": "the same",
    "eset_ctl": "a member's record, of a number that another thread has closed: ordered by that",
    "claim": _OTHERS,
    "conn_tied": _OTHERS,
    "take_claim": _OTHERS,
    "ring_write": _OTHERS,
    "slot_reset": _OTHERS,
}
#: Its record of a descriptor that the kernel gave to another thread is not always ended.
_MAKERS = frozenset({"accept", "accept4", "epoll_create1", "eventfd", "socket"})
#: What another process orders may be reported at any place, by chance; not so often in a row.
_RUNS = 4
_REPORT = re.compile(
    r"WARNING: ThreadSanitizer: (.*?) \(pid=\d+\)\n(.*?)\n(?:  Location|  Thread |SUMMARY)", re.S
)
_MADE = re.compile(r"#0 (\w+) \S*libsanitizer/")
_OURS = re.compile(r"#\d+ (\w+) (?:core|calls|door)/")


def _is_known(kind: str, stacks: str) -> bool:
    """Whether the innermost function of ours is a known one, at either end."""
    ends = [found[0] for stack in stacks.split("Previous") if (found := _OURS.findall(stack))]
    made = _MADE.findall(stacks)
    both = len(made) == 2 or (len(made) == 1 and "failed to restore the stack" in stacks)
    known = any(end in _KNOWN for end in ends) or (both and _MAKERS.issuperset(made))
    return kind == "data race" and known


def _one_run(host: Host, words: list[str | Path], reports: Path) -> dict[str, str]:
    """The reports of which neither end is known, by the innermost functions of ours."""
    port = free_port()
    server = host.spawn([*words, "server", port, "nofork"], shim=False, label="stress")
    host.wait_port(server, port)
    if not host.rehearse:
        directory = Path(f"{host.agent_path}.dir")
        eventually(lambda: port in listed_ports(directory), "the server in the directory")
    for seed in (1, 2):
        assert "ok" in host.run([*words, "client", port, seed, 4, 25], shim=False, timeout=120)
    assert server.running
    server.stop()
    new = {}
    for file in reports.glob("report.*"):
        for report in _REPORT.finditer(file.read_text()):
            kind, stacks = report.groups()
            if not _is_known(kind, stacks):
                new[f"{kind}: {[_OURS.findall(one)[:1] for one in stacks.split('Previous')]}"] = report.group(
                    0
                )
        file.unlink()
    return new


@pytest.mark.slow
@pytest.mark.timeout(400)  # most of it is a compiler
def test_threads_under_the_thread_sanitizer(host: Host, tmp_path: Path) -> None:
    compiler = require_program("cc")
    stress = tmp_path / "stress"
    flags = ["-std=gnu11", "-O1", "-g", "-D_GNU_SOURCE", "-fsanitize=thread", "-pthread"]
    command = [compiler, *flags, str(_HERE / "c" / "stress.c"), "-o", str(stress)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    if done.returncode != 0:
        pytest.skip("the compiler has no thread sanitizer")
    if subprocess.run([stress], capture_output=True, timeout=20, check=False).returncode != 2:
        pytest.skip("a program with the thread sanitizer does not start here")  # its addresses
    done = subprocess.run(
        ["make", "-s", "-C", str(_NATIVE), "VARIANT=tsan", f"LIBDIR={tmp_path}", "lib"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    env = {"TSAN_OPTIONS": f"exitcode=0 log_path={tmp_path}/report"}
    if not host.rehearse:
        env["LD_PRELOAD"] = str(tmp_path / "libbertha_shim_tsan.so")
    # A sanitized setpriv there is none: the environment is set behind it.
    words = ["env", *(f"{name}={value}" for name, value in env.items()), stress]
    again = _one_run(host, words, tmp_path)
    for _ in range(1, _RUNS):
        if again:
            new = _one_run(host, words, tmp_path)
            again = {place: report for place, report in new.items() if place in again}
    log = host.finish()
    assert_carried(log, "stress", role="client", min_connections=202)
    assert not again, f"met in each of {_RUNS} runs:\n" + "\n\n".join(again.values())

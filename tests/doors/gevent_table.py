"""gevent's own socket tests: plain, and with both libraries patched in either order.

    python -m tests.doors.gevent_table [--source DIRECTORY] [MODULE]...

Prints a table in Markdown, as in docs/users/late-suites.md.  Its exit code is 1 when a test that passes plain
does not pass with both patched.  In a network namespace of its own where that can be had.  Some minutes.

Tests of gevent's examples need those, which are in its source distribution only: DIRECTORY is one, unpacked.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from tests.harness.connlog import read_connlog

MODULES: Final = (
    *("test__socket", "test__socketpair", "test__socket_close", "test__socket_errors", "test__socket_ex"),
    *("test__socket_send_memoryview", "test__socket_ssl", "test__socket_timeout", "test__server"),
    *("test__server_pywsgi", "test__pywsgi", "test__ssl", "test__select", "test__selectors"),
    *("test__subprocess", "test__monkey", "test__monkey_select"),
    *("test__makefile_ref", "test__greenio", "test__greenness", "test__backdoor", "test__refcount"),
    *("test__socket_dns", "test__socket_dns6", "test__ares_timeout"),
    *("test__example_udp_client", "test__example_udp_server", "test__example_portforwarder"),
    *("test__example_echoserver", "test__example_wsgiserver"),
)
_PLAIN: Final = [sys.executable]
FIRST: Final = [sys.executable, "-m", "bertha_socket.monkey"]
#: gevent has patched by then, but does it again when a test asks: that does nothing.
_GEVENT: Final = "import gevent.monkey\ngevent.monkey.patch_all()\nimport runpy, sys\n"
LAST: Final = [
    *(sys.executable, "-c"),
    _GEVENT + "runpy.run_module('bertha_socket.monkey', run_name='__main__', alter_sys=True)",
]
#: What the second order is compared with: some tests want to be the first to patch.
LAST_PLAIN: Final = [
    *(sys.executable, "-c"),
    _GEVENT + "del sys.argv[0]\nrunpy.run_path(sys.argv[0], run_name='__main__')",
]
_SECONDS: Final = 300


class Run(NamedTuple):
    """What one module said of its tests, and what carried its connections."""

    ok: int
    skipped: int
    #: Those that failed, by name.
    bad: frozenset[str]
    shm: int
    plain: int


def _number(text: str, what: str) -> int:
    found = re.findall(what, text)
    return int(found[-1]) if found else 0


def _run(text: str, shm: int, plain: int) -> Run:
    """From what unittest prints at the end."""
    bad = frozenset(re.findall(r"^(?:FAIL|ERROR|UNEXPECTED SUCCESS): (.+)$", text, re.M))
    ran, skipped = _number(text, r"Ran (\d+) tests? in"), _number(text, r"skipped=(\d+)")
    if not re.search(r"^(OK|FAILED)\b", text, re.M):
        bad |= {"(did not come to an end)"}
    return Run(max(0, ran - skipped - len(bad)), skipped, bad, shm, plain)


def source_tree(folder: Path, source: Path | None) -> Path:
    """gevent as in its source tree, where the tests look for the examples; without `source` they find none,
    and skip, instead of taking ours for them."""
    tree = folder / "tree"
    tree.mkdir()
    spec = importlib.util.find_spec("gevent")
    assert spec is not None and spec.origin is not None
    (tree / "gevent").symlink_to(Path(spec.origin).parent)
    if source is not None:
        (tree / "examples").symlink_to((source / "examples").resolve(strict=True))
        (tree / "setup.py").touch()
    return tree


def run(file: Path, before: list[str], folder: Path, tree: Path | None = None) -> Run:
    """Runs the tests of one file; with `tree`, of the file of that name there."""
    log = folder / "log"
    log.unlink(missing_ok=True)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("BERTHA_")}
    environ |= {"BERTHA_AGENT": str(folder / "agent.sock"), "BERTHA_CONNLOG": str(log)}
    environ |= {"GEVENTTEST_COVERAGE": "0", "PYTHONWARNINGS": "ignore"}
    where = file.parent
    if tree is not None:
        environ["PYTHONPATH"] = str(tree)
        file, where = tree / "gevent" / "tests" / file.name, tree
    command = [*before, str(file), "-v"]
    try:
        done = subprocess.run(
            command, env=environ, cwd=where, capture_output=True, timeout=_SECONDS, check=False
        )
        text = (done.stdout + done.stderr).decode("utf-8", "replace")
    except subprocess.TimeoutExpired as error:
        text = (error.stderr or b"").decode("utf-8", "replace")
    lines = read_connlog(log)
    shm = sum(1 for line in lines if line.implementation == "shm")
    return _run(text, shm, len(lines) - shm)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=Path, help="gevent's source distribution, unpacked")
    parser.add_argument("modules", nargs="*", default=list(MODULES))
    args = parser.parse_args()
    spec = importlib.util.find_spec("gevent.tests")
    if spec is None or spec.origin is None:
        print("gevent is not installed", file=sys.stderr)
        return 2
    if "BERTHA_TABLE" not in os.environ and os.geteuid() == 0 and shutil.which("unshare"):
        inside = 'ip link set lo up; exec "$@"'
        again = [sys.executable, "-m", "tests.doors.gevent_table", *sys.argv[1:]]
        command = ["unshare", "-n", "sh", "-c", inside, "sh", *again]
        environ = {**os.environ, "BERTHA_TABLE": "inside"}
        return subprocess.run(command, env=environ, check=False).returncode
    print(
        "| module | plain: ok | skipped | ours first: ok | lost | shm | plain | gevent's first: ok | lost |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    worse: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bertha-gevent-") as name:
        folder = Path(name)
        examples = source_tree(folder, args.source)
        agent = [str(Path(sys.executable).parent / "bertha"), "agent", "--foreground"]
        environ = {**os.environ, "BERTHA_AGENT": str(folder / "agent.sock")}
        with subprocess.Popen(agent, env=environ) as serving:
            try:
                for module in args.modules:
                    file = Path(spec.origin).parent / f"{module}.py"
                    tree = examples if module.startswith("test__example_") else None
                    plain, first, last, last_plain = (
                        run(file, before, folder, tree) for before in (_PLAIN, FIRST, LAST, LAST_PLAIN)
                    )
                    lost = [first.bad - plain.bad, last.bad - last_plain.bad]
                    cells = [f"gevent `{module}`", plain.ok, plain.skipped]
                    cells += [first.ok, len(lost[0]), first.shm, first.plain, last.ok, len(lost[1])]
                    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
                    for order, which in zip(("ours first", "gevent's first"), lost, strict=True):
                        worse += [f"{module} {test} ({order})" for test in sorted(which)]
            finally:
                serving.terminate()
    for line in worse:
        print(f"- {line}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())

"""All modules, plain and under bertha-run, into docs/users/cpython-suite.md.

    python -m tests.cpython.table [MODULE]... [--output FILE] [--timeout SECONDS] [--door bertha-run|monkey]
        [--no-patience]

Takes some fifteen minutes.  Its exit code is 1 when a test that passes plain does not pass under bertha-run.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

from tests.cpython.suite import MODULES, ModuleRun, Suite, differences, unavailable

_DEFAULT = Path(__file__).parents[2] / "docs" / "users" / "cpython-suite.md"

_HEAD = """\
# CPython's own tests over shared memory

Written by `.venv/bin/python -m tests.cpython.table{options}` (some fifteen minutes, in the checkout,
after `make venv`).

Each module of CPython's test suite that has to do with stream sockets, run twice in a network namespace
of its own: plain, and under `bertha-run`, with clients and servers both hooked.  *Connections* is the
proof from the connection log (`BERTHA_CONNLOG`) of what carried them: *shm* counts ends of connections on
shared memory, *plain* those that stayed with the kernel, with the reasons below.  AF_VSOCK is left out.

"""
_PATIENT = """\
Under `bertha-run`, and only there, `socket.accept` and `socket.connect` of the tests are *patient*: after
the kernel has made the connection they sleep 1 and 4 ms, and `accept` sends nothing once, which makes the
library look at the connection. These tests connect, exchange five bytes and close while the server is
still in `accept`, so without that many connections would end before both ends had found each other,
rightly plain, and the table would say little about shared memory. It makes no test easier: bytes, errors
and readiness are judged as they are. `--no-patience` runs the tests as they are.

"""
_HURRIED = """\
The tests run as they are (`--no-patience`): many of their connections have ended before both ends have
found each other, and are plain for that.

"""


def _row(module: str, plain: ModuleRun, shim: ModuleRun) -> str:
    worse = differences(plain, shim)
    bad = plain.count("fail", "error", "hang", "crash")
    cells: list[object] = [f"`{module}`", plain.count("ok"), plain.count("skip"), bad]
    cells += [shim.count("ok"), len(worse), shim.shm, shim.plain]
    return "| " + " | ".join(map(str, cells)) + " |"


def render(runs: dict[str, tuple[ModuleRun, ModuleRun]], patient: bool) -> str:
    """The page."""
    head = _HEAD.format(options="" if patient else " --no-patience") + (_PATIENT if patient else _HURRIED)
    lines = [
        head + f"CPython {platform.python_version()}, Linux {platform.release().split('-')[0]}.",
        "",
        "| module | plain: ok | skipped | not ok | bertha-run: ok | lost | connections: shm | plain |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(name, plain, shim) for name, (plain, shim) in runs.items()),
    ]
    total = [
        sum(plain.count("ok") for plain, _ in runs.values()),
        sum(plain.count("skip") for plain, _ in runs.values()),
        sum(plain.count("fail", "error", "hang", "crash") for plain, _ in runs.values()),
        sum(shim.count("ok") for _, shim in runs.values()),
        sum(len(differences(*pair)) for pair in runs.values()),
        sum(shim.shm for _, shim in runs.values()),
        sum(shim.plain for _, shim in runs.values()),
    ]
    lines += ["| all | " + " | ".join(map(str, total)) + " |", ""]
    lost = [(name, how) for pair in runs.values() for name, how in differences(*pair).items()]
    lines += ["## Passes plain and not under bertha-run", ""]
    lines += [f"- `{name}`: {how}" for name, how in lost] or ["None."]
    reasons: dict[str, int] = {}
    for _, shim in runs.values():
        for reason, n in shim.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + n
    lines += ["", "## Why connections stayed plain", ""]
    lines += [f"- {n}: {reason}" for reason, n in sorted(reasons.items(), key=lambda r: -r[1])] or [
        "None did."
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("modules", nargs="*", default=list(MODULES))
    parser.add_argument("--output", type=Path, default=_DEFAULT)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--door", choices=("bertha-run", "monkey"), default="bertha-run")
    parser.add_argument("--no-patience", action="store_true", help="accept() and connect() as they are")
    args = parser.parse_args()
    if (why := unavailable()) is not None:
        print(why, file=sys.stderr)
        return 2
    suite = Suite(args.timeout, door=args.door, patient=not args.no_patience)
    runs: dict[str, tuple[ModuleRun, ModuleRun]] = {}
    for module in args.modules:
        plain, shim = suite.run(module, False), suite.run(module, True)
        runs[module] = (plain, shim)
        print(_row(module, plain, shim), flush=True)
        for complaint in (plain.complaint, shim.complaint):
            if complaint:
                print(f"    {complaint}", flush=True)
        for name, how in differences(plain, shim).items():
            print(f"    {how}: {name}\n{shim.details.get(name, '')}", flush=True)
    args.output.write_text(render(runs, not args.no_patience))
    return 1 if any(differences(*pair) for pair in runs.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs the tests of one module of CPython's test package; a JSON line for the beginning and the end of each.

A script, not a module: it runs under bertha-run in a namespace of its own and must load nothing of ours.

    child.py OUT TIMEOUT MODULE [--skip FILE] [--only GLOB]... [--ignore GLOB]... [--resource NAME]...
        [--patient]

OUT is appended to. A test that takes longer than TIMEOUT seconds ends the process (with every thread's
stack on stderr); the caller starts it again with --skip FILE, the ids to leave out, a line each.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import fnmatch
import json
import os
import sys
import time
import unittest
from collections.abc import Iterator
from typing import Any, TextIO

# Made by unittest instead of a test when setUpModule or setUpClass fails.
_ERROR_HOLDER = "_ErrorHolder"


def _patient() -> None:
    """Makes both ends wait a moment after the kernel's connection is made, and the server look at it.

    These tests connect, exchange five bytes and close, all while the server's accept() returns: most
    connections would end before the server has seen the client's claim, rightly plain. What is to be judged
    is the other sort.
    """
    import socket

    accept, connect = socket.socket.accept, socket.socket.connect

    def patient_accept(self: socket.socket) -> tuple[socket.socket, Any]:
        connection, address = accept(self)
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            time.sleep(0.001)
            with contextlib.suppress(OSError):
                connection.send(b"")  # nothing, but the shim looks at the connection
        return connection, address

    def patient_connect(self: socket.socket, address: Any) -> None:
        connect(self, address)
        if self.family in (socket.AF_INET, socket.AF_INET6) and self.type == socket.SOCK_STREAM:
            time.sleep(0.004)

    socket.socket.accept = patient_accept  # type: ignore[method-assign]
    socket.socket.connect = patient_connect  # type: ignore[assignment,method-assign]


def _flatten(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from _flatten(item)
        else:
            yield item


class _Result(unittest.TestResult):
    """Writes what happens as it happens: what is not written yet is what hung."""

    def __init__(self, out: TextIO, timeout: float) -> None:
        super().__init__()
        self._out = out
        self._timeout = timeout
        self._outcome = ""
        self._detail = ""
        self._began = 0.0

    def _write(self, **line: Any) -> None:
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()

    def startTest(self, test: unittest.TestCase) -> None:
        self._outcome, self._detail = "ok", ""
        self._began = time.monotonic()
        self._write(event="begin", id=test.id())
        faulthandler.dump_traceback_later(self._timeout, exit=True)
        super().startTest(test)

    def stopTest(self, test: unittest.TestCase) -> None:
        faulthandler.cancel_dump_traceback_later()
        super().stopTest(test)
        seconds = round(time.monotonic() - self._began, 3)
        self._write(event="end", id=test.id(), outcome=self._outcome, detail=self._detail, seconds=seconds)

    def _note(self, outcome: str, test: Any, detail: str) -> None:
        if type(test).__name__ == _ERROR_HOLDER:  # not a test of its own: startTest was not called
            self._write(event="end", id=test.id(), outcome=outcome, detail=detail, seconds=0)
        elif self._outcome not in ("fail", "error"):
            self._outcome, self._detail = outcome, detail

    def addError(self, test: Any, err: Any) -> None:
        self._note("error", test, self._text(err, test))

    def addFailure(self, test: Any, err: Any) -> None:
        self._note("fail", test, self._text(err, test))

    def addSkip(self, test: Any, reason: str) -> None:
        self._note("skip", test, reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self._note("ok", test, "")

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._note("fail", test, "unexpected success")

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            failed = issubclass(err[0], test.failureException)
            self._note("fail" if failed else "error", test, self._text(err, subtest))

    def _text(self, err: Any, test: Any) -> str:
        text: str = self._exc_info_to_string(err, test)  # type: ignore[attr-defined]
        return text[-3000:]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("timeout", type=float)
    parser.add_argument("module")
    parser.add_argument("--skip")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--ignore", action="append", default=[])
    parser.add_argument("--resource", action="append", default=[])
    parser.add_argument("--patient", action="store_true")
    args = parser.parse_args()
    skip: set[str] = set()
    if args.skip:
        with open(args.skip) as file:
            skip = set(file.read().split("\n"))

    from test import support  # type: ignore[import-not-found]
    from test.support import os_helper  # type: ignore[import-not-found]

    support.verbose = 0
    support.use_resources = args.resource

    def wanted(test: unittest.TestCase) -> bool:
        name = test.id()
        if name in skip or any(fnmatch.fnmatchcase(name, glob) for glob in args.ignore):
            return False
        return not args.only or any(fnmatch.fnmatchcase(name, glob) for glob in args.only)

    if args.patient:
        _patient()
    tests = unittest.defaultTestLoader.loadTestsFromName(args.module)
    chosen = unittest.TestSuite(test for test in _flatten(tests) if wanted(test))
    with open(args.out, "a") as out, os_helper.temp_cwd(f"cpython-{os.getpid()}"):
        chosen.run(_Result(out, args.timeout))
        out.write(json.dumps({"event": "complete"}) + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    return 0


if __name__ == "__main__":
    # No interpreter shutdown: what a test has left running (threads, processes) is not what is judged here;
    # but exit handlers run, as the connection log's.
    sys.exit(main())

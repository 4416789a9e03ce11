"""One test of each outcome (not collected by pytest: `test_cpython` runs it through the harness)."""

from __future__ import annotations

import os
import threading
import unittest


class Sample(unittest.TestCase):
    def test_a_ok(self) -> None:
        assert True

    def test_b_fails(self) -> None:
        self.fail("on purpose")

    def test_c_hangs(self) -> None:
        threading.Event().wait()

    def test_d_crashes(self) -> None:
        os.abort()

    def test_e_skips(self) -> None:
        self.skipTest("on purpose")

    def test_f_ok_after_all(self) -> None:
        assert True

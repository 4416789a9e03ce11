"""native/Makefile does what developers rely on: nothing twice, everything that changed, and no more.

Runs on a library of two functions, so that it takes a second.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

_FILES = {
    "native/core/answer.h": "#define ANSWER 42\nint answer(void);\n",
    "native/core/answer.c": '#include "answer.h"\nint answer(void) {\n  return ANSWER;\n}\n',
    "native/calls/getpid.c": (
        '#include "answer.h"\n'
        "int getpid(void);\n"
        '__attribute__((visibility("default"))) int getpid(void) {\n  return answer();\n}\n'
        "int helper(void);\n"
        '__attribute__((visibility("default"))) int helper(void) {\n  return 1;\n}\n'
    ),
    "native/calls.list": "# what the library shows\ngetpid # the process\n",
    "bertha_socket/_version.py": '__version__ = "9.9.9"\n',
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in _FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "native" / "Makefile", tmp_path / "native" / "Makefile")
    return tmp_path


def _make(tree: Path, *arguments: str) -> str:
    # Not as a part of a make that may be running these tests.
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    command = ["make", "--no-print-directory", "-C", str(tree / "native"), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _exports(library: Path) -> set[str]:
    out = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], check=True, capture_output=True, text=True
    )
    return {line.split()[-1] for line in out.stdout.splitlines()}


def _later(path: Path) -> None:
    """Makes a file newer than everything built, whatever the file system's clock shows."""
    newest = max(p.stat().st_mtime_ns for p in path.parents[1].rglob("*") if p.is_file())
    os.utime(path, ns=(newest + 2_000_000_000, newest + 2_000_000_000))


def test_exports_only_what_is_listed_and_preloads(tree: Path) -> None:
    _make(tree)
    library = tree / "bertha_socket/lib/libbertha_shim.so"
    assert _exports(library) == {"getpid"}
    env = {**os.environ, "LD_PRELOAD": str(library)}
    out = subprocess.run(["sh", "-c", "echo $$"], env=env, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "42"


def test_does_nothing_twice(tree: Path) -> None:
    _make(tree)
    assert _make(tree).strip() in ("", "make: Nothing to be done for 'all'.")


def test_a_changed_header_rebuilds_what_includes_it(tree: Path) -> None:
    _make(tree)
    header = tree / "native/core/answer.h"
    header.write_text(_FILES["native/core/answer.h"].replace("42", "43"), encoding="utf-8")
    _later(header)
    out = _make(tree)
    assert "core/answer.c" in out
    assert "calls/getpid.c" in out


def test_a_changed_list_links_again_and_compiles_nothing(tree: Path) -> None:
    _make(tree)
    calls = tree / "native/calls.list"
    calls.write_text("getpid\nhelper\n", encoding="utf-8")
    _later(calls)
    out = _make(tree)
    assert "-c core/answer.c" not in out
    assert _exports(tree / "bertha_socket/lib/libbertha_shim.so") == {"getpid", "helper"}


def test_builds_elsewhere_and_leaves_the_tree_alone(
    tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("out")
    before = sorted(tree.rglob("*"))
    _make(tree, f"BUILD={out}/build", f"LIBDIR={out}/lib")
    assert sorted(tree.rglob("*")) == before
    assert _exports(out / "lib/libbertha_shim.so") == {"getpid"}


def test_version_reaches_the_compiler(tree: Path) -> None:
    assert "-DBERTHA_VERSION='\"9.9.9\"'" in _make(tree)


@pytest.mark.parametrize("target", ["all", "test", "fuzz", "benchtools", "clean"])
def test_an_empty_tree_is_no_error(tree: Path, target: str) -> None:
    for name in ("native/core", "native/calls"):
        shutil.rmtree(tree / name)
    (tree / "native/calls.list").unlink()
    _make(tree, target)
    assert not (tree / "bertha_socket/lib").exists()


def test_a_wrong_variant_is_refused(tree: Path) -> None:
    done = subprocess.run(
        ["make", "-C", str(tree / "native"), "VARIANT=nonsense"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "VARIANT must be" in done.stderr


def test_native_tests_that_fail_fail_make(tree: Path) -> None:
    tests = tree / "native/tests"
    tests.mkdir()
    (tests / "test_good.c").write_text("int main(void) {\n  return 0;\n}\n", encoding="utf-8")
    _make(tree, "test")
    (tests / "test_bad.c").write_text("int main(void) {\n  return 3;\n}\n", encoding="utf-8")
    done = subprocess.run(
        ["make", "-C", str(tree / "native"), "test"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "test_bad FAILED (status 3)" in done.stdout
    assert "tests/test_bad" in done.stderr


def test_fuzzers_run_a_bounded_time_and_what_they_find_fails_make(tree: Path) -> None:
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    tests = tree / "native/tests"
    tests.mkdir()
    source = (
        '#include "answer.h"\n#include <stddef.h>\n#include <stdint.h>\n#include <stdlib.h>\n'
        "int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);\n"
        "int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {\n"
        "  if (size > 0 && data[0] == LIMIT && answer() == 42) {\n    abort();\n  }\n  return 0;\n}\n"
    )
    fuzzer = tests / "fuzz_answer.c"
    fuzzer.write_text(source.replace("LIMIT", "256"), encoding="utf-8")
    assert "found nothing" in _make(tree, "fuzz", "FUZZ_RUNS=500")
    fuzzer.write_text(source.replace("LIMIT", "7"), encoding="utf-8")
    _later(fuzzer)
    done = subprocess.run(
        ["make", "-C", str(tree / "native"), "fuzz", "FUZZ_RUNS=100000"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert list((tree / "native/build/fuzz").glob("fuzz_answer-crash-*"))

"""bertha-run and programs of all kinds: scripts, interpreters, and those that no preload library reaches."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertha_socket.cli._command import follow
from bertha_socket.cli._elf import NotElf, read_elf
from tests.cli.conftest import HELLO_C, Launcher, compile_c
from tests.cli.test_run import script


def verdict(launcher: Launcher, *command: str) -> str:
    found = json.loads(launcher.run("--info", "--json", "--", *command).stdout)
    return str(found["command"]["verdict"])


# ---- scripts ----


@pytest.mark.parametrize(
    "args",
    [
        ["-c", "print('hi')"],
        ["-I", "-S", "-E", "-c", "print('hi')"],
        ["-m", "this_module"],
    ],
)
def test_python(launcher: Launcher, tmp_path: Path, args: list[str]) -> None:
    (tmp_path / "this_module.py").write_text("print('hi')\n")
    done = launcher.run(sys.executable, *args, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("hi\n", "", 0)
    assert len(launcher.loaded()) >= 1


def test_link_to_a_program_with_libraries_beside_it(launcher: Launcher, tmp_path: Path) -> None:
    """As /usr/bin/java is: --require asks the program's loader, which looks beside the program itself."""
    home = tmp_path / "home"
    home.mkdir()
    compile_c(home / "libbeside.so", "int beside(void) { return 5; }\n", "-shared", "-fPIC")
    flags = ["-L", str(home), "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed"]
    compile_c(home / "program", "int main(void) { return 5; }\n", *flags, "-lbeside")
    (tmp_path / "link").symlink_to(home / "program")
    done = launcher.run("--require", "--", str(tmp_path / "link"))
    assert (done.stderr, done.returncode) == ("", 5)


def test_console_script(launcher: Launcher, tmp_path: Path) -> None:
    program = script(tmp_path / "console", f"#!{sys.executable}\nimport sys\nprint(sys.argv)\n")
    done = launcher.run(str(program), "-x", "--")
    assert done.stdout == f"{[str(program), '-x', '--']}\n"
    assert len(launcher.loaded()) >= 1


def test_shell_script_that_starts_others(launcher: Launcher, tmp_path: Path, hello: Path) -> None:
    program = script(tmp_path / "starter", f"#!/bin/sh\n{hello}; ({hello} &); wait; exec {hello}\n")
    done = launcher.run(str(program))
    assert done.returncode == 7
    assert launcher.loaded()[0] == "sh"
    assert launcher.loaded().count("hello") >= 2


def test_script_without_shebang(launcher: Launcher, tmp_path: Path) -> None:
    program = script(tmp_path / "bare", "echo bare $1\n")
    assert launcher.run(str(program), "x").stdout == "bare x\n"


def test_env_in_shebang(launcher: Launcher, tmp_path: Path) -> None:
    program = script(tmp_path / "e", "#!/usr/bin/env -S VAR=1 sh -e\necho $VAR $1\n")
    assert launcher.run(str(program), "x").stdout == "1 x\n"
    assert verdict(launcher, str(program)) == "ok"
    missing = script(tmp_path / "m", "#!/usr/bin/env no-such-interpreter\n")
    done = launcher.run(str(missing))
    assert done.returncode == 127
    assert "no-such-interpreter" in done.stderr


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["env", "-i", "true"], "environment"),
        (["env", "-", "true"], "environment"),
        (["env", "-u", "LD_PRELOAD", "true"], "environment"),
        (["env", "-uLD_PRELOAD", "true"], "environment"),
        (["env", "--unset=LD_PRELOAD", "true"], "environment"),
        (["env", "LD_PRELOAD=x", "true"], "environment"),
        (["env", "-S", "-i true"], "environment"),
        (["env", "-u", "OTHER", "A=1", "true", "-i"], "ok"),
        (["env"], "ok"),
        (["env", "A=1"], "ok"),
        (["env", "--none-such", "true"], "ok"),
    ],
)
def test_env_wrappers(launcher: Launcher, args: list[str], expected: str) -> None:
    assert verdict(launcher, *args) == expected


def test_a_cleared_environment_is_noted(launcher: Launcher, hello: Path) -> None:
    done = launcher.run("env", "-i", str(hello))
    assert (done.returncode, done.stdout) == (7, "LD_PRELOAD=(unset)\n")
    assert "env -i clears LD_PRELOAD" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "wrapper", [["nice", "-n", "1"], ["timeout", "60"], ["env"], ["setsid", "-w"], ["nohup"]]
)
def test_nests_with_other_wrappers(launcher: Launcher, hello: Path, wrapper: list[str]) -> None:
    run = [sys.executable, str(launcher.run_script)]
    inside = launcher.run(*wrapper, str(hello))
    assert inside.returncode == 7
    assert launcher.loaded()[-1] == "hello"
    outside = subprocess.run(
        [*wrapper, *run, str(hello), "x"],
        env=launcher.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert outside.returncode == 7
    assert launcher.loaded()[-1] == "hello"


def test_interpreter_chain_of_scripts(launcher: Launcher, tmp_path: Path) -> None:
    one = script(tmp_path / "one", '#!/bin/sh\necho one "$@"\n')
    two = script(tmp_path / "two", f"#!{one} arg of two\n")
    three = script(tmp_path / "three", f"#!{two}\n")
    done = launcher.run(str(three), "x")
    assert done.stdout == f"one arg of two {two} {three} x\n"
    chain = follow(str(three), [str(three), "x"], os.environ)
    assert [step.path for step in chain.steps] == [str(three), str(two), str(one), "/bin/sh"]
    assert list(chain.argv) == ["/bin/sh", str(one), "arg of two", str(two), str(three), "x"]


def test_a_loop_of_interpreters_ends(launcher: Launcher, tmp_path: Path) -> None:
    program = script(tmp_path / "loop", f"#!{tmp_path}/loop\n")
    done = launcher.run(str(program))
    assert done.returncode == 126
    assert done.stderr.count("\n") == 1


# ---- programs that cannot be hooked ----


def runs_plain(launcher: Launcher, program: Path, text: str, preload: str = "") -> None:
    """One line of warning, and the program runs; with --require it does not."""
    done = launcher.run(str(program), "x")
    assert done.stderr.count("\n") == 1, done.stderr
    assert text in done.stderr
    assert "the program runs plain" in done.stderr
    assert (done.returncode, done.stdout) == (7, f"<x>LD_PRELOAD={preload or '(unset)'}\n")
    assert launcher.loaded() == []
    refused = launcher.run("--require", str(program))
    assert (refused.returncode, refused.stdout) == (125, "")
    assert text in refused.stderr


def test_static_program(launcher: Launcher, tmp_path: Path, stand_in: Path) -> None:
    program = compile_c(tmp_path / "static", HELLO_C, "-static")
    runs_plain(launcher, program, "statically linked", str(stand_in))
    through_script = script(tmp_path / "s", f"#!{program}\n")
    assert verdict(launcher, str(through_script)) == "static"


def test_static_pie_program(launcher: Launcher, tmp_path: Path, stand_in: Path) -> None:
    program = compile_c(tmp_path / "staticpie", HELLO_C, "-static-pie", "-fPIE")
    runs_plain(launcher, program, "statically linked", str(stand_in))


def test_setuid_program(launcher: Launcher, tmp_path: Path, hello: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a program of another user")
    if os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        pytest.skip("the temporary directory is mounted nosuid")
    copy = tmp_path / "setuid"
    shutil.copy(hello, copy)
    os.chown(copy, 65534, 65534)
    copy.chmod(0o4755)
    runs_plain(launcher, copy, "is setuid")
    copy.chmod(0o2755)
    runs_plain(launcher, copy, "is setgid")
    os.chown(copy, 0, 0)
    copy.chmod(0o4755)  # root's own: nothing changes by running it, so the loader is not in secure mode
    assert verdict(launcher, str(copy)) == "ok"
    assert launcher.run(str(copy)).stderr == ""
    assert launcher.loaded() == ["setuid"]


@pytest.mark.parametrize("section", [".note.go.buildid", ".go.buildinfo"])
def test_go_program(launcher: Launcher, tmp_path: Path, section: str, hello: Path, stand_in: Path) -> None:
    objcopy = shutil.which("objcopy")
    if objcopy is None:
        pytest.skip("no objcopy")
    note = tmp_path / "note"
    note.write_bytes(b"\x04\x00\x00\x00\x04\x00\x00\x00\x04\x00\x00\x00Go\x00\x00abcd")
    program = tmp_path / "gopher"
    subprocess.run([objcopy, "--add-section", f"{section}={note}", hello, program], check=True, timeout=60)
    done = launcher.run(str(program))
    assert done.returncode == 7
    assert "is a Go program" in done.stderr
    assert done.stderr.count("\n") == 1
    assert launcher.run("--require", str(program)).returncode == 125


_TINY_32 = """
static long call(long n, long a, long b, long c) {
  long r;
  __asm__ volatile("int $0x80" : "=a"(r) : "a"(n), "b"(a), "c"(b), "d"(c) : "memory");
  return r;
}
void _start(void) { call(4, 1, (long)"<x>LD_PRELOAD=(unset)\\n", 22); call(1, 7, 0, 0); }
"""


def test_program_of_another_class(launcher: Launcher, tmp_path: Path) -> None:
    program = compile_c(tmp_path / "tiny32", _TINY_32, "-m32", "-nostdlib", "-static", "-fno-pic", "-no-pie")
    if subprocess.run([program], capture_output=True).returncode != 7:
        pytest.skip("this kernel does not run 32-bit programs")
    runs_plain(launcher, program, "32-bit i386")


def test_program_of_another_machine(launcher: Launcher, tmp_path: Path, hello: Path) -> None:
    data = bytearray(hello.read_bytes())
    data[18:20] = struct.pack("<H", 0x1234)
    program = tmp_path / "alien"
    program.write_bytes(data)
    program.chmod(0o755)
    assert verdict(launcher, str(program)) == "class"
    assert launcher.run(str(program)).returncode == 126


def test_program_of_another_libc(launcher: Launcher, tmp_path: Path, hello: Path) -> None:
    loader = read_elf(str(hello)).interpreter
    assert loader is not None
    (tmp_path / "ld-musl-x86_64.so.1").symlink_to(loader)
    flag = f"-Wl,--dynamic-linker={tmp_path}/ld-musl-x86_64.so.1"
    runs_plain(launcher, compile_c(tmp_path / "muslish", HELLO_C, flag), "uses musl")


def test_missing_loader(launcher: Launcher, tmp_path: Path) -> None:
    program = compile_c(tmp_path / "noloader", HELLO_C, "-Wl,--dynamic-linker=/none/ld-linux-x86-64.so.2")
    done = launcher.run(str(program))
    assert done.returncode == 127
    assert "loader /none/ld-linux-x86-64.so.2 does not exist" in done.stderr


def test_the_loader_called_by_hand(launcher: Launcher, hello: Path) -> None:
    loader = read_elf(str(hello)).interpreter
    assert loader is not None
    done = launcher.run(loader, str(hello))
    assert (done.returncode, done.stderr) == (7, "")
    assert len(launcher.loaded()) == 1


def test_a_program_that_cannot_be_read(launcher: Launcher, tmp_path: Path, hello: Path) -> None:
    """Mode 0111: nothing can be found out about it, and it runs with the library all the same."""
    copy = tmp_path / "unreadable"
    shutil.copy(hello, copy)
    copy.chmod(0o111)
    powerless: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv, and root can read everything")
        powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = subprocess.run(
        [*powerless, *launcher.popen_args(str(copy))],
        env=launcher.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (7, "")
    assert launcher.loaded() == ["unreadable"]


# ---- the reader of ELF files ----


def test_every_truncation_of_an_elf_file_is_understood_or_refused(tmp_path: Path, hello: Path) -> None:
    data = hello.read_bytes()
    path = tmp_path / "cut"
    for size in [*range(80), *range(80, len(data), 997)]:
        path.write_bytes(data[:size])
        try:
            read_elf(str(path))
        except NotElf:
            pass


@pytest.mark.parametrize("seed", range(20))
def test_damaged_headers_are_understood_or_refused(tmp_path: Path, hello: Path, seed: int) -> None:
    import random

    pick = random.Random(seed)
    for _ in range(50):
        data = bytearray(hello.read_bytes()[:4096])
        for _ in range(pick.randint(1, 8)):
            data[pick.randrange(4, 64 if pick.random() < 0.7 else 1024)] = pick.choice((0, 1, 0x7F, 0xFF))
        path = tmp_path / "damaged"
        path.write_bytes(data)
        try:
            found = read_elf(str(path))
        except NotElf:
            continue
        assert found.bits in (32, 64)


_OUR_OWN = Path(sys.executable).resolve().read_bytes()[:4096]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=4),
    st.just(4096) | st.integers(0, 4096),
    st.binary(max_size=80),
)
def test_any_elf_file(changes: list[tuple[int, int]], size: int, other: bytes) -> None:
    """A program's file may be anything, and so may what is left of it: NotElf at worst."""
    data = bytearray(_OUR_OWN)
    for at, value in changes:
        data[at % 128 if at % 2 else at] = value  # the headers more often
    for text in (bytes(data[:size]), other, b"\x7fELF\x02\x01" + other, b"\x7fELF\x01\x02" + other):
        fd = os.memfd_create("program")
        try:
            os.write(fd, text)
            with contextlib.suppress(NotElf):
                assert read_elf(f"/proc/self/fd/{fd}").bits in (32, 64)
        finally:
            os.close(fd)

"""bertha-run as a command: what reaches the program, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bertha_socket._version import __version__
from tests.cli.conftest import PATIENCE, ROOT, Launcher, make_stand_in


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


# ---- the program gets what it was meant to get ----


def test_arguments_arrive_to_the_letter(launcher: Launcher, hello: Path) -> None:
    words = ["--", "--policy", "x", "-h", "", "a b", "$HOME", "*", "\udcff", "--require", "--"]
    done = launcher.run(str(hello), *words)
    assert done.returncode == 7
    assert done.stderr == ""
    assert done.stdout.startswith("".join(f"<{word}>" for word in words) + "LD_PRELOAD=")


def test_double_dash_ends_our_options(launcher: Launcher, hello: Path) -> None:
    done = launcher.run("--", str(hello), "--", "x")
    assert done.stdout.startswith("<--><x>LD")


def test_a_command_that_looks_like_an_option(launcher: Launcher, tmp_path: Path) -> None:
    script(tmp_path / "-odd", "#!/bin/sh\necho odd\n")
    done = launcher.run("--", "-odd", env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert (done.stdout, done.returncode) == ("odd\n", 0)


def test_argv0_is_the_word_given(launcher: Launcher, tmp_path: Path) -> None:
    done = launcher.run("sh", "-c", "echo $0")
    assert done.stdout == "sh\n"


def test_it_execs_so_the_pid_stays(launcher: Launcher) -> None:
    args = launcher.popen_args("sh", "-c", "echo $$")
    with subprocess.Popen(args, env=launcher.environment(), stdout=subprocess.PIPE, text=True) as child:
        out, _ = child.communicate(timeout=PATIENCE)
    assert int(out) == child.pid


def test_signals_reach_the_program(launcher: Launcher) -> None:
    code = "trap 'echo caught; exit 42' TERM; echo ready; while :; do sleep 0.05; done"
    args = launcher.popen_args("sh", "-c", code)
    with subprocess.Popen(args, env=launcher.environment(), stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=PATIENCE)
    assert (out, child.returncode) == ("caught\n", 42)


def test_death_by_signal_is_the_programs_own(launcher: Launcher) -> None:
    assert launcher.run("sh", "-c", "kill -KILL $$").returncode == -signal.SIGKILL


def _ignored(status: str) -> int:
    return int(next(line for line in status.splitlines() if line.startswith("SigIgn")).split()[1], 16)


def test_no_signal_is_left_ignored(launcher: Launcher) -> None:
    done = launcher.run("cat", "/proc/self/status")
    assert _ignored(done.stdout) & (1 << (signal.SIGPIPE - 1)) == 0
    assert _ignored(done.stdout) & (1 << (signal.SIGXFSZ - 1)) == 0


def test_an_ignored_signal_stays_ignored(launcher: Launcher) -> None:
    """nohup bertha-run CMD"""
    command = f"trap '' HUP INT; exec '{sys.executable}' '{launcher.run_script}' cat /proc/self/status"
    done = subprocess.run(
        ["sh", "-c", command], env=launcher.environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert _ignored(done.stdout) & (1 << (signal.SIGHUP - 1))
    assert _ignored(done.stdout) & (1 << (signal.SIGINT - 1))


def test_the_environment_is_the_callers(launcher: Launcher, stand_in: Path) -> None:
    given: dict[str, str | None] = {"LC_ALL": None, "ODD": "a=b\udcfe\n", "PYTHONHASHSEED": "1"}
    done = launcher.run("env", "-0", env=given)
    seen = dict(item.split("=", 1) for item in done.stdout.split("\0") if item)
    assert seen == {**launcher.environment(given), "LD_PRELOAD": str(stand_in)}


def test_descriptors_are_the_callers(launcher: Launcher, tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+") as file:
        done = subprocess.run(
            launcher.popen_args("ls", "-l", "/proc/self/fd"),
            env=launcher.environment(),
            pass_fds=[file.fileno()],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    lines = done.stdout.splitlines()[1:]
    assert len(lines) == 5, done.stdout  # 0, 1, 2, the file, and ls's own
    assert sum(f"-> {tmp_path}/file" in line for line in lines) == 1


@pytest.mark.parametrize("closed", ["0", "1", "2", "0 1 2"])
def test_closed_standard_descriptors_stay_closed(launcher: Launcher, tmp_path: Path, closed: str) -> None:
    out = tmp_path / "out"
    close = " ".join(f"{fd}>&-" for fd in closed.split())
    inner = f"for fd in 0 1 2; do test -e /proc/$$/fd/$fd && echo $fd; done >{out}"
    command = f"exec '{sys.executable}' '{launcher.run_script}' sh -c '{inner}' {close}"
    # A warning must not go astray either: the library of another architecture is a warning.
    subprocess.run(
        ["sh", "-c", command], env=launcher.environment(), timeout=PATIENCE, stdin=subprocess.DEVNULL
    )
    # The inner shell opens its redirection while 1 may be closed, so 1 is always there in it.
    assert set(out.read_text().split()) == {"0", "1", "2"} - set(closed.split()) | {"1"}


def test_standard_input_is_untouched(launcher: Launcher) -> None:
    assert launcher.run("cat", text="to the program\n").stdout == "to the program\n"


def test_working_directory_and_relative_command(launcher: Launcher, tmp_path: Path) -> None:
    script(tmp_path / "here", "#!/bin/sh\npwd\n")
    done = launcher.run("./here", cwd=tmp_path)
    assert done.stdout == f"{tmp_path.resolve()}\n"


# ---- the preload library ----


def test_the_library_is_loaded(launcher: Launcher, hello: Path, stand_in: Path) -> None:
    done = launcher.run(str(hello))
    assert done.stdout == f"LD_PRELOAD={stand_in}\n"
    assert launcher.loaded() == ["hello"]


@pytest.mark.parametrize("separator", [":", " ", ": "])
def test_others_stay_in_ld_preload(
    launcher: Launcher, tmp_path: Path, stand_in: Path, separator: str
) -> None:
    one, two = (make_stand_in(tmp_path / f"lib{name}.so", "other") for name in ("one", "two"))
    done = launcher.run(
        "sh", "-c", "echo $LD_PRELOAD", env={"LD_PRELOAD": separator.join(map(str, (one, two)))}
    )
    assert done.stdout == f"{stand_in}:{one}:{two}\n"


def test_nested_runs_add_it_once(launcher: Launcher, stand_in: Path) -> None:
    run = [sys.executable, str(launcher.run_script)]
    done = launcher.run(*run, "--", *run, "sh", "-c", "echo $LD_PRELOAD $BERTHA_NAME")
    assert done.stdout == f"{stand_in}\n"
    assert done.stderr == ""


def test_the_inner_name_wins(launcher: Launcher) -> None:
    run = [sys.executable, str(launcher.run_script)]
    assert launcher.run("--name", "outer", *run, "sh", "-c", "echo $BERTHA_NAME").stdout == "outer\n"
    named = launcher.run("--name=outer", *run, "--name", "inner", "sh", "-c", "echo $BERTHA_NAME")
    assert named.stdout == "inner\n"


def test_another_installations_library_is_replaced(
    launcher: Launcher, tmp_path: Path, stand_in: Path
) -> None:
    other = make_stand_in(tmp_path / "libbertha_shim.so", "0.0.0.older")
    done = launcher.run("sh", "-c", "echo $LD_PRELOAD", env={"LD_PRELOAD": f"{other}"})
    assert done.stdout == f"{stand_in}\n"


@pytest.mark.parametrize("folder", ["with space", "with:colon", "with$LIB"])
def test_a_library_whose_path_ld_preload_cannot_hold(launcher: Launcher, tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    library = make_stand_in(tmp_path / folder / "libx.so")
    done = launcher.run("cat", "/dev/null", env={"BERTHA_SHIM": str(library)})
    assert done.stderr == ""
    assert launcher.loaded() == ["cat"]


def test_a_missing_library_is_a_warning(launcher: Launcher, hello: Path, tmp_path: Path) -> None:
    done = launcher.run(str(hello), env={"BERTHA_SHIM": str(tmp_path / "none.so")})
    assert done.returncode == 7
    assert done.stdout == "LD_PRELOAD=(unset)\n"
    assert done.stderr.count("\n") == 1
    assert "none.so is missing" in done.stderr


def test_a_library_of_another_version_is_not_used(launcher: Launcher, hello: Path, tmp_path: Path) -> None:
    library = make_stand_in(tmp_path / "old.so", "0.0.0")
    done = launcher.run(str(hello), env={"BERTHA_SHIM": str(library)})
    assert (done.returncode, done.stdout) == (7, "LD_PRELOAD=(unset)\n")
    assert f"of version 0.0.0, the package is {__version__}" in done.stderr


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + b"\xff" * 100, b"text"])
def test_a_damaged_library_is_not_used(
    launcher: Launcher, hello: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "bad.so").write_bytes(content)
    done = launcher.run(str(hello), env={"BERTHA_SHIM": str(tmp_path / "bad.so")})
    assert (done.returncode, done.stdout) == (7, "LD_PRELOAD=(unset)\n")
    assert done.stderr.count("\n") == 1


# ---- BERTHA_DISABLE ----


def test_disabled_is_a_bare_exec(launcher: Launcher, hello: Path) -> None:
    done = launcher.run("--name", "x", str(hello), "a", env={"BERTHA_DISABLE": "1", "BERTHA_AGENT": "/none"})
    assert (done.stdout, done.stderr, done.returncode) == ("<a>LD_PRELOAD=(unset)\n", "", 7)


def test_disabled_and_required_contradict(launcher: Launcher, hello: Path) -> None:
    done = launcher.run("--require", str(hello), env={"BERTHA_DISABLE": "1"})
    assert done.returncode == 125
    assert "BERTHA_DISABLE" in done.stderr


# ---- agent ----


def test_no_agent_is_a_warning(launcher: Launcher, hello: Path, tmp_path: Path) -> None:
    done = launcher.run("--no-agent", str(hello), env={"BERTHA_AGENT": str(tmp_path / "none.sock")})
    assert done.returncode == 7
    assert launcher.loaded() == ["hello"]
    assert done.stderr.count("\n") == 1
    assert "no agent answers" in done.stderr


def test_an_agent_that_cannot_start_is_a_warning(launcher: Launcher, hello: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = launcher.run(str(hello), env={"BERTHA_AGENT": str(tmp_path / "file" / "agent.sock")})
    assert done.returncode == 7
    assert done.stderr.count("\n") == 1
    assert "no agent could be started" in done.stderr


# ---- --require ----


def test_require_passes_when_all_is_well(launcher: Launcher, hello: Path) -> None:
    done = launcher.run("--require", str(hello))
    assert (done.returncode, done.stderr) == (7, "")
    assert launcher.loaded()[-1] == "hello"
    assert launcher.run("--require", "sh", "-c", "echo $BERTHA_REQUIRE").stdout == "1\n"


def test_require_without_agent(launcher: Launcher, hello: Path, tmp_path: Path) -> None:
    env = {"BERTHA_AGENT": str(tmp_path / "none.sock")}
    done = launcher.run("--require", "--no-agent", str(hello), env=env)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.count("\n") == 1


def test_require_with_a_library_that_does_not_answer(launcher: Launcher, hello: Path, tmp_path: Path) -> None:
    library = make_stand_in(tmp_path / "liar.so", __version__, "9.9.9")
    done = launcher.run("--require", str(hello), env={"BERTHA_SHIM": str(library)})
    assert (done.returncode, done.stdout) == (125, "")
    assert "answers as version 9.9.9" in done.stderr


def test_require_with_a_library_that_cannot_be_loaded(
    launcher: Launcher, hello: Path, tmp_path: Path
) -> None:
    library = make_stand_in(tmp_path / "broken.so")
    data = bytearray(library.read_bytes())
    data[16:18] = b"\x02\x00"  # e_type: ET_EXEC, which no loader takes for a library
    library.write_bytes(data)
    done = launcher.run("--require", str(hello), env={"BERTHA_SHIM": str(library)})
    assert (done.returncode, done.stdout) == (125, "")
    assert "does not load" in done.stderr


def test_require_with_an_unhookable_program(launcher: Launcher, hello: Path) -> None:
    done = launcher.run("--require", "env", "-i", str(hello))
    assert (done.returncode, done.stdout) == (125, "")
    assert "env -i clears LD_PRELOAD" in done.stderr


# ---- exit codes and bad input ----


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--bogus", "true"], "--bogus"),
        (["-x", "true"], "-x"),
        (["--policy"], "--policy"),
        (["--name"], "--name"),
        (["--name", "", "true"], "--name"),
        (["--name", "n" * 64, "true"], "--name"),
        (["--name", "a\nb", "true"], "--name"),
        (["--require=yes", "true"], "--require"),
        (["--json", "true"], "--info"),
        ([], "no command"),
        (["--"], "no command"),
    ],
)
def test_wrong_usage(launcher: Launcher, args: list[str], text: str) -> None:
    done = launcher.run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr
    assert launcher.loaded() == []


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "cannot be read"), ("rule = ", "not TOML"), ("[[rule]]\nsied = 1\n", "sied"), ("[x]\n", "x")],
)
def test_wrong_policy(launcher: Launcher, tmp_path: Path, content: str | None, text: str) -> None:
    file = tmp_path / "p.toml"
    if content is not None:
        file.write_text(content)
    for args, env in ((["--policy", str(file)], {}), ([], {"BERTHA_POLICY": str(file)})):
        done = launcher.run(*args, "true", env=env)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert text in done.stderr
        assert str(file) in done.stderr


def test_policy_path_is_made_absolute(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("")
    done = launcher.run("--policy", "p.toml", "sh", "-c", "echo $BERTHA_POLICY", cwd=tmp_path)
    assert done.stdout == f"{tmp_path.resolve()}/p.toml\n"


def test_default_policy_is_handed_on(launcher: Launcher, tmp_path: Path) -> None:
    """An agent of another user has other defaults."""
    config = tmp_path / "home" / ".config" / "bertha"
    config.mkdir(parents=True)
    (config / "bertha.toml").write_text("")
    env = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": ""}
    done = launcher.run("sh", "-c", "echo $BERTHA_POLICY", env=env)
    assert done.stdout == f"{config}/bertha.toml\n"


def test_not_found_and_not_executable(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    missing_interpreter = script(tmp_path / "lost", "#!/none/such/thing\n")
    for command, code in (
        ("no-such-command-anywhere", 127),
        ("", 127),
        ("/none/such", 127),
        (str(tmp_path / "data"), 126),
        (str(tmp_path), 126),
        (str(missing_interpreter), 127),
    ):
        done = launcher.run("--", command)
        assert done.returncode == code, command
        assert done.stderr.startswith("bertha-run: ")
        assert done.stderr.count("\n") == 1


def test_version_and_help(launcher: Launcher) -> None:
    assert launcher.run("--version").stdout == f"bertha-run {__version__}\n"
    assert "--require" in launcher.run("--help").stdout


# ---- --info ----


def test_info_runs_nothing(launcher: Launcher, tmp_path: Path, stand_in: Path) -> None:
    out = tmp_path / "out"
    program = script(tmp_path / "prog", f"#!/usr/bin/env sh\ntouch {out}\n")
    found = json.loads(launcher.run("--info", "--json", "--name", "n", str(program), "x").stdout)
    assert not out.exists()
    assert found["hooked"] is True
    assert found["ld_preload"] == str(stand_in)
    assert found["agent"] == {"socket": launcher.environ["BERTHA_AGENT"], "serving": True}
    assert found["name"] == "n"
    assert [step["how"] for step in found["command"]["chain"]] == [
        "command",
        "#! of the one before",
        "started by env",
    ]
    assert found["command"]["argv"] == ["sh", str(program), "x"]
    text = launcher.run("--info", str(program)).stdout
    assert "hooked     yes" in text


def test_info_without_a_command(launcher: Launcher) -> None:
    found = json.loads(launcher.run("--info", "--json").stdout)
    assert found["command"] is None
    assert found["library"]["version"] == __version__


def test_setgid_bit_without_execution_is_no_setgid(launcher: Launcher, tmp_path: Path, hello: Path) -> None:
    copy = tmp_path / "locked"
    copy.write_bytes(hello.read_bytes())
    copy.chmod(0o705 | stat.S_ISGID)  # mandatory locking, once; not a setgid program
    assert json.loads(launcher.run("--info", "--json", str(copy)).stdout)["command"]["verdict"] == "ok"


def test_info_of_a_path_that_is_no_text(launcher: Launcher, tmp_path: Path) -> None:
    program = script(tmp_path / "odd\udcff", "#!/bin/sh\n")
    assert "odd\\udcff" in launcher.run("--info", str(program)).stdout
    assert json.loads(launcher.run("--info", "--json", str(program)).stdout)["command"]["path"] == str(
        program
    )


# ---- what every program start pays for ----


def test_few_modules_are_imported(launcher: Launcher, hello: Path) -> None:
    """No argument parser, no TOML, no subprocess, no package metadata unless an option asks for them."""
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
before = set(sys.modules)
from bertha_socket.cli import run
os.execve = lambda *args: os._exit(print(*sorted(set(sys.modules) - before), flush=True) or 0)
run.main([{str(hello)!r}])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        env=launcher.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stderr == ""
    imported = set(done.stdout.split())
    assert "bertha_socket.agent.client" in imported
    heavy = {
        "argparse",
        "tomllib",
        "subprocess",
        "dataclasses",
        "inspect",
        "psutil",
        "cffi",
        "asyncio",
        "pathlib",
    }
    assert not imported & (heavy | {"importlib.metadata", "bertha_socket.policy", "bertha_socket._native"})

"""bertha: subcommands are found, and only those that are there."""

from __future__ import annotations

from importlib import import_module

import pytest

from bertha_socket._version import __version__
from bertha_socket.cli import main as bertha
from tests.cli.conftest import Launcher


def test_help_lists_what_is_there(launcher: Launcher) -> None:
    done = launcher.bertha("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name, (text, _module) in bertha.subcommands().items():
        assert f"  {name}" in done.stdout
        assert text in done.stdout
    assert launcher.bertha().returncode == 2


def test_version(launcher: Launcher) -> None:
    assert launcher.bertha("--version").stdout == f"bertha {__version__}\n"


@pytest.mark.parametrize("word", ["nonsense", "--nonsense", "ps2", ""])
def test_unknown(launcher: Launcher, word: str) -> None:
    done = launcher.bertha(word)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_every_listed_subcommand_has_a_main_and_a_help(launcher: Launcher) -> None:
    found = bertha.subcommands()
    assert {"ps", "top", "doctor", "explain"} <= set(found)
    for name, (_text, module) in found.items():
        assert callable(import_module(module).main)
        done = launcher.bertha(name, "--help")
        assert done.returncode == 0, name
        assert "usage" in done.stdout
        assert launcher.bertha(name, "--no-such-option-anywhere").returncode == 2, name


def test_what_is_not_there_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bertha, "_SUBCOMMANDS", (("absent", "text", ("bertha_socket.cli.absent", "none.such")),)
    )
    assert bertha.subcommands() == {}
    assert bertha.main(["absent"]) == 2

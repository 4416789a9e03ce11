"""Which files will be executed for a command line: PATH, `#!` lines, and `env`.

The rules are execvp(3)'s and execve(2)'s, followed without running anything, so that `bertha-run` can tell
beforehand which program will have to load the preload library.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["NO_EXEC", "NO_COMMAND", "Chain", "CommandError", "Step", "find_command", "follow", "is_text"]

NO_EXEC = 126  # found, cannot be executed; as env(1) and every shell
NO_COMMAND = 127  # not found

_SHEBANG_BYTES = 256  # BINPRM_BUF_SIZE: the kernel reads no further
_SHEBANG_DEPTH = 5  # the kernel gives ELOOP beyond
_STEPS = 16  # of all kinds; a chain of env's has no limit of its own
_SHELL = "/bin/sh"


class CommandError(Exception):
    """The command cannot be executed; `code` is the exit code that says so (126 or 127)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Step(NamedTuple):
    """One file on the way to the process's final image."""

    path: str
    how: str  # "command", "#! of the one before", "started by env", "shell for a file without #!"


class Chain(NamedTuple):
    """All files from the command to the program that ends up running."""

    steps: tuple[Step, ...]
    argv: tuple[str, ...]  # of the last step
    environment: str | None  # why LD_PRELOAD does not reach the last step; None: it does

    @property
    def last(self) -> str:
        return self.steps[-1].path


def _usable(path: str) -> int:
    """0, NO_COMMAND or NO_EXEC."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return NO_EXEC if isinstance(error, PermissionError) else NO_COMMAND
    if stat.S_ISDIR(mode) or not os.access(path, os.X_OK):
        return NO_EXEC
    return 0


def find_command(command: str, environ: Mapping[str, str]) -> str:
    """The path that execvp(3) would execute.  Raises CommandError."""
    if "/" in command:
        code = _usable(command)
        if code == NO_COMMAND:
            raise CommandError(code, f"{command}: no such file")
        if code:
            what = "is a directory" if os.path.isdir(command) else "cannot be executed: permission denied"
            raise CommandError(code, f"{command}: {what}")
        return command
    denied = None
    if command:
        for folder in environ.get("PATH", os.defpath).split(os.pathsep):
            path = os.path.join(folder, command)
            code = _usable(path)
            if code == 0:
                return path
            if code == NO_EXEC:
                denied = denied or path
    if denied:
        raise CommandError(NO_EXEC, f"{denied}: cannot be executed: permission denied")
    raise CommandError(NO_COMMAND, f"{command or repr(command)}: command not found in PATH")


def _shebang(path: str) -> tuple[str, str | None] | None:
    """Interpreter and its one argument; None when the file does not begin with #!."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None  # may be executed all the same (mode 0711)
    try:
        head = os.read(fd, _SHEBANG_BYTES)
    except OSError:
        return None
    finally:
        os.close(fd)
    if not head.startswith(b"#!"):
        return None
    line = head[2:].split(b"\n", 1)[0].strip(b" \t")
    if not line:
        return None
    words = line.replace(b"\t", b" ").split(b" ", 1)
    argument = os.fsdecode(words[1].strip(b" \t")) if len(words) > 1 else None
    return os.fsdecode(words[0]), argument or None


def is_text(path: str) -> bool:
    """Whether execvp(3) would hand the file to the shell (ENOEXEC): neither ELF nor anything binary."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            head = os.read(fd, 128)
        finally:
            os.close(fd)
    except OSError:
        return False
    return not head.startswith(b"\x7fELF") and b"\0" not in head


class _Env(NamedTuple):
    """What env(1) would do with its arguments."""

    command: tuple[str, ...]
    environment: str | None
    path: str | None  # PATH for the search of the command; None: unchanged


_ENV_LONG_WITH_VALUE = {"--unset", "--chdir", "--split-string"}


def _read_env(args: Sequence[str]) -> _Env | None:
    """Reads env(1)'s arguments (GNU coreutils; busybox has a part of them).  None: not understood."""
    words = list(args)
    lost: str | None = None
    path: str | None = None
    options = True
    while words:
        word = words.pop(0)
        if options and word == "--":
            options = False
        elif options and word in ("-", "-i", "--ignore-environment"):
            lost, path = "env -i clears LD_PRELOAD", os.defpath
        elif options and word.startswith("--"):
            name, has_value, value = word.partition("=")
            if name in _ENV_LONG_WITH_VALUE and not has_value:
                if not words:
                    return None
                value = words.pop(0)
            if name == "--unset" and value == "LD_PRELOAD":
                lost = "env -u removes LD_PRELOAD"
            elif name == "--chdir":
                return None
            elif name == "--split-string":
                words = _split(value) + words
        elif options and word.startswith("-"):
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter == "i":
                    lost, path = "env -i clears LD_PRELOAD", os.defpath
                elif letter in "uSC":
                    if not letters and not words:
                        return None
                    value, letters = letters or words.pop(0), ""
                    if letter == "C":
                        return None
                    if letter == "S":
                        words = _split(value) + words
                    elif value == "LD_PRELOAD":
                        lost = "env -u removes LD_PRELOAD"
                elif letter not in "v0":
                    return None
        elif "=" in word:
            options = False
            name, _, value = word.partition("=")
            if name == "LD_PRELOAD":
                lost = "env sets LD_PRELOAD to something else"
            elif name == "PATH":
                path = value
        else:
            return _Env((word, *words), lost, path)
    return None


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def follow(path: str, argv: Sequence[str], environ: Mapping[str, str]) -> Chain:
    """All files that executing `path` with `argv` leads to.  Raises CommandError when one is missing."""
    steps = [Step(path, "command")]
    words = list(argv)
    lost: str | None = None
    depth = 0
    while len(steps) < _STEPS:
        interpreter = _shebang(path)
        if interpreter is not None:
            depth += 1
            program, argument = interpreter
            if depth > _SHEBANG_DEPTH:
                raise CommandError(NO_EXEC, f"{steps[0].path}: too many levels of #! interpreters")
            code = _usable(program)
            if code:
                problem = "does not exist" if code == NO_COMMAND else "cannot be executed"
                raise CommandError(code, f"{path}: its interpreter {program} {problem}")
            words = [program, *([argument] if argument else []), path, *words[1:]]
            path = program
            steps.append(Step(path, "#! of the one before"))
            continue
        if os.path.basename(path) == "env":
            env = _read_env(words[1:])
            if env is None:
                break
            lost = lost or env.environment
            search = dict(environ)
            if env.path is not None:
                search["PATH"] = env.path
            try:
                path = find_command(env.command[0], search)
            except CommandError as error:
                if len(steps) > 1:  # a script's own #! line: say so now rather than let env do it
                    raise CommandError(error.code, f"{steps[0].path}: {error}") from None
                break
            words = list(env.command)
            depth = 0
            steps.append(Step(path, "started by env"))
            continue
        if is_text(path) and os.path.exists(_SHELL):
            words = [_SHELL, path, *words[1:]]
            path = _SHELL
            steps.append(Step(path, "shell for a file without #!"))
        break
    return Chain(tuple(steps), tuple(words), lost)

"""`bertha-run`: executes a command with the preload library in front, in this very process.

It execs and never spawns: same pid, same descriptors, the command's own exit code.  Everything from the
first word that is not an option belongs to the command and is passed on to the letter.  Whatever keeps the
library out (a static program, no agent, ...) is one line on stderr and the program runs plain; with
--require it is an error.  The imports are few because every program start pays for them.
"""

from __future__ import annotations

import fnmatch
import getopt
import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from bertha_socket._policy_file import find_file
from bertha_socket.cli._command import NO_COMMAND, NO_EXEC, CommandError, is_text
from bertha_socket.cli._judgement import Judgement, disabled, judge
from bertha_socket.cli._preload import Library, compose, find_library
from bertha_socket.cli._target import Target, inspect

__all__ = ["main"]

_EXIT_USAGE = 2
_EXIT_REFUSED = 125  # bertha-run itself will not; as env(1), nohup(1) and timeout(1)
_NAME_MAX = 63  # bytes; bertha_hello.name of native/core/protocol.h

_USAGE = "usage: bertha-run [--policy FILE] [--name NAME] [--require] [--no-agent] [--] CMD..."
_HELP = f"""{_USAGE}
       bertha-run --info [--json] [OPTIONS] [--] [CMD...]
       bertha-run --version | --help

Runs CMD with its sockets' transport negotiated beneath them.  CMD replaces bertha-run (exec).

  --policy FILE   rules for this program's connections; else $BERTHA_POLICY, else the default files
  --name NAME     what rules and the connection log call this program
  --require       fail (exit code {_EXIT_REFUSED}) unless the library loads and an agent runs
  --no-agent      use an agent that is there, but do not start one
  --info          say what would be done and why, and run nothing; with --json as JSON
  --version       print the version

Exit codes of bertha-run itself: 2 wrong usage or policy, {_EXIT_REFUSED} refused (--require),
{NO_EXEC} CMD cannot be executed, {NO_COMMAND} CMD not found.  Environment: BERTHA_DISABLE=1, BERTHA_AGENT,
BERTHA_POLICY, BERTHA_CONNLOG, BERTHA_LOG, BERTHA_SPIN_US."""


class _Options(NamedTuple):
    policy: str | None
    name: str | None
    require: bool
    agent: bool
    info: bool
    json: bool


def _say(text: str) -> None:
    if sys.stderr is not None:  # may be closed
        print(f"bertha-run: {text}", file=sys.stderr, flush=True)


def _fail(code: int, text: str) -> NoReturn:
    _say(text)
    sys.exit(code)


def _parse(argv: Sequence[str]) -> tuple[_Options, list[str]]:
    names = ["policy=", "name=", "require", "no-agent", "info", "json", "version", "help"]
    try:
        given, command = getopt.getopt(list(argv), "h", names)  # ends at the first non-option, or after --
    except getopt.GetoptError as error:
        _fail(_EXIT_USAGE, f"{error.msg} (bertha-run --help lists the options)")
    values = dict(given)
    if "--help" in values or "-h" in values:
        print(_HELP)
        sys.exit(0)
    if "--version" in values:
        from bertha_socket._version import __version__

        print(f"bertha-run {__version__}")
        sys.exit(0)
    name = values.get("--name")
    if name is not None and (not name.isprintable() or not 0 < len(os.fsencode(name)) <= _NAME_MAX):
        _fail(_EXIT_USAGE, f"--name: must be 1 to {_NAME_MAX} bytes of printable text")
    info = "--info" in values
    if "--json" in values and not info:
        _fail(_EXIT_USAGE, "--json goes with --info only")
    if not command and not info:
        _fail(_EXIT_USAGE, f"no command given\n{_USAGE}")
    options = _Options(
        policy=values.get("--policy"),
        name=name,
        require="--require" in values,
        agent="--no-agent" not in values,
        info=info,
        json="--json" in values,
    )
    return options, command


def _environment() -> dict[str, str]:
    """The environment that the caller gave us, to hand on: without what starting Python added to it."""
    env = dict(os.environ)
    if "LC_CTYPE" in env:
        # PEP 538: in the C locale Python sets LC_CTYPE in its own environment.
        try:
            with open("/proc/self/environ", "rb") as file:
                given = file.read().split(b"\0")
        except OSError:
            return env
        if not any(item.startswith(b"LC_CTYPE=") for item in given):
            del env["LC_CTYPE"]
    return env


def _policy(options: _Options, env: dict[str, str]) -> None:
    """Checks the policy file, so that a mistake in it is told before the program runs."""
    path = options.policy if options.policy is not None else find_file(env)
    env.pop("BERTHA_MUST", None)
    if path is None:
        return
    from bertha_socket import policy

    # The agent reads it, from another working directory.
    absolute = os.path.abspath(path) if path else path
    try:
        loaded = policy.load(absolute)
    except policy.PolicyError as error:
        _fail(_EXIT_USAGE, str(error))
    env["BERTHA_POLICY"] = absolute  # a default, too: the agent may be another user's, with other defaults
    if musts := policy.musts(loaded):
        env["BERTHA_MUST"] = musts


def _agent(options: _Options, env: dict[str, str]) -> str | None:
    """Makes sure that an agent runs.  Returns what is wrong, in one line, or None."""
    from bertha_socket.agent import client, paths

    path = paths.default_path(env)
    if client.is_serving(path):
        return None
    if not options.agent:
        return f"no agent answers at {path}, and --no-agent forbids to start one"
    from bertha_socket.agent.start import ensure_agent

    return ensure_agent(path, policy=options.policy).error


def _demand(library: Library, target: Target, preload: str, env: dict[str, str]) -> None:
    """--require: the library's constructor runs, and the target's own loader takes it."""
    from bertha_socket.cli import _loadcheck

    version, problem = _loadcheck.probe(preload, env)
    if version is None:
        _fail(_EXIT_REFUSED, f"--require: {library.path} does not load: {problem}")
    if version != library.version:
        _fail(_EXIT_REFUSED, f"--require: {library.path} answers as version {version}, not {library.version}")
    if target.interpreter is not None:
        said = _loadcheck.loader_takes(target.interpreter, target.chain.last, preload, env)
        if said is not None:
            _fail(_EXIT_REFUSED, f"--require: {target.chain.last} does not load the library: {said}")


def _restore_signals() -> None:
    """Python ignores these two for itself, and an ignored signal stays ignored across exec."""
    if os.environ.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        # systemd ignores SIGPIPE for its services on purpose (IgnoreSIGPIPE=), and execs us directly.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def _exec(path: str, argv: list[str], env: dict[str, str]) -> NoReturn:
    _restore_signals()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    try:
        try:
            os.execve(path, argv, env)
        except OSError as error:
            import errno

            if error.errno != errno.ENOEXEC or not is_text(path):
                raise
            # A script without #!: execvp(3) and every shell run it with the shell.
            os.execve("/bin/sh", ["/bin/sh", path, *argv[1:]], env)
    except OSError as error:
        code = NO_COMMAND if isinstance(error, FileNotFoundError) else NO_EXEC
        _fail(code, f"{path}: {error.strerror}")
    except ValueError as error:  # NUL in an argument cannot come from a command line
        _fail(_EXIT_USAGE, str(error))


def _must(target: Target, env: dict[str, str]) -> bool:
    """Whether a rule with required chunnels may mean this program (policy.musts)."""
    names = (os.path.basename(target.path), target.path)
    globs = [entry.partition("=")[2] for entry in env.get("BERTHA_MUST", "").split(";") if entry]
    return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in globs)


def _hook(options: _Options, library: Library, target: Target, env: dict[str, str]) -> None:
    """Puts the library into `env`, and sees to an agent; warns about, or refuses, what does not work."""

    def problem(text: str, consequence: str) -> None:
        if options.require:
            _fail(_EXIT_REFUSED, f"--require: {text}")
        _say(f"warning: {text}; {consequence}")

    found = judge(library, target, env)
    existing = env.get("LD_PRELOAD", "")
    try:
        preload = compose(existing, library.path, wanted=found.preload)
    except OSError as error:
        found = Judgement(str(error), False, True)
        preload = compose(existing, library.path, wanted=False)
    if found.obstacle is not None and found.certain and _must(target, env):
        _fail(
            _EXIT_REFUSED, f"{found.obstacle}; the policy requires chunnels for it, so it must not run plain"
        )
    if found.obstacle is not None and (options.require or found.certain):
        problem(found.obstacle, "the program runs plain")
    if preload:
        env["LD_PRELOAD"] = preload
    elif existing:
        del env["LD_PRELOAD"]
    if not found.preload:
        return
    missing = _agent(options, env)
    if missing is not None and (found.obstacle is None or not found.certain):  # one warning is enough
        problem(missing, "connections stay plain until there is one")
    if options.require:
        _demand(library, target, preload, env)


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point of `bertha-run`.  Returns only for --info; else execs or exits."""
    options, command = _parse(sys.argv[1:] if argv is None else argv)
    env = _environment()
    library = find_library()
    try:
        target = inspect(command, env, library.elf) if command else None
    except CommandError as error:
        _fail(error.code, str(error))
    if options.info or target is None:
        from bertha_socket.cli._info import show

        found = judge(library, target, env)
        return show(options.policy, options.name, env, library, target, found, as_json=options.json)
    if options.require or not disabled(env):
        _policy(options, env)
        if options.name is not None:
            env["BERTHA_NAME"] = options.name
        if options.require:
            env["BERTHA_REQUIRE"] = "1"
        _hook(options, library, target, env)
    _exec(target.path, command, env)


if __name__ == "__main__":
    sys.exit(main())

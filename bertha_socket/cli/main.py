"""`bertha SUBCOMMAND`: finds the subcommand's module, imports nothing else, and calls its main().

A subcommand that this installation does not have (yet) is neither listed nor accepted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

__all__ = ["main", "subcommands"]

# Name, what it does, where its main(argv) may be (the first module that exists).
_SUBCOMMANDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("agent", "run this host's agent", ("bertha_socket.cli.agent",)),
    ("ps", "live connections: what carries each, and why", ("bertha_socket.cli.ps",)),
    ("top", "the same, refreshed, with rates", ("bertha_socket.cli.top",)),
    ("doctor", "what this host and user can and cannot do, and the remedy", ("bertha_socket.cli.doctor",)),
    ("explain", "which rule matches a connection and what would be picked", ("bertha_socket.cli.explain",)),
    ("chunnels", "chunnel types and their implementations here", ("bertha_socket.cli.chunnels",)),
    ("policy", "check a policy file before it is put in force", ("bertha_socket.cli.policy",)),
    ("key", "the cluster key, by which hosts know one another", ("bertha_socket.cli.key",)),
    ("bench", "measurements and their plots", ("bertha_socket.cli.bench",)),
    ("demo", "a real program, first plain and then under bertha-run", ("bertha_socket.cli.demo",)),
)

_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
_EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its package is not there either
        return False


def subcommands() -> dict[str, tuple[str, str]]:
    """The subcommands that this installation has: name -> (what it does, module)."""
    found: dict[str, tuple[str, str]] = {}
    for name, text, modules in _SUBCOMMANDS:
        for module in modules:
            if _exists(module):
                found[name] = (text, module)
                break
    return found


def _usage() -> str:
    lines = [
        "usage: bertha [-h | --version] SUBCOMMAND ...",
        "",
        "Negotiated communication beneath ordinary sockets.  Programs are started with bertha-run.",
        "",
        "subcommands ('bertha SUBCOMMAND --help' says more):",
    ]
    lines += [f"  {name:<10} {text}" for name, (text, _module) in subcommands().items()]
    return "\n".join(lines)


def _module_of(name: str) -> str | None:
    for known, _text, modules in _SUBCOMMANDS:
        if known == name:
            return next((module for module in modules if _exists(module)), None)
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point of `bertha`; returns the exit code (2: wrong usage)."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args:
        print(_usage(), file=sys.stderr)
        return _EXIT_USAGE
    name, rest = args[0], args[1:]
    if name in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if name in ("-V", "--version"):
        from bertha_socket._version import __version__

        print(f"bertha {__version__}")
        return 0
    module = None if name.startswith("-") else _module_of(name)
    if module is None:
        what = "option" if name.startswith("-") else "subcommand"
        print(f"bertha: no such {what}: {name} (bertha --help lists them)", file=sys.stderr)
        return _EXIT_USAGE
    run: Callable[[Sequence[str]], int | None] = import_module(module).main
    try:
        code = run(rest) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # `bertha ps | head`: the reader has what it wanted.  Nothing more can be written at exit either.
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_BROKEN_PIPE


if __name__ == "__main__":
    sys.exit(main())

"""`bertha bench NAME`: run one measurement, print its table, write its JSON and its plot.

Without a name it lists what there is.  The exit code is 1 when something that was to be measured could not
be, or was not what its name says (the connection log decides), 3 with --check when a figure falls short of
what is wanted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bertha_socket._bench import interleave, plot, registry, runner, text, tools

__all__ = ["main"]

_EXIT_FAILED = 1
_EXIT_USAGE = 2
_EXIT_SHORT = 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bertha bench",
        description="Ratios between plain sockets and what bertha negotiates, in one interleaved run.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="which one; without it, they are listed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a plot there (.png, .svg, .pdf)")
    parser.add_argument("--quick", action="store_true", help="less work and fewer rounds: rough numbers")
    parser.add_argument(
        "--rounds", type=int, default=0, metavar="N", help="rounds, instead of the bench's own number"
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="S",
        help="stop measuring after S seconds (default 600; of the bench `speed`: 60 for each row)",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="multiply the work of a round by X"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ROW",
        help="only these rows of a bench that has some, e.g. of `speed` redis or redis/c50 (may be repeated)",
    )
    parser.add_argument(
        "--check", action="store_true", help="exit with 3 when a figure falls short of what is wanted"
    )
    return parser


def _list() -> None:
    width = max(map(len, registry.BENCHES))
    for name, (_module, about) in registry.BENCHES.items():
        print(f"{name:<{width}}  {about}")


def _progress(line: str) -> None:
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def _problem(args: argparse.Namespace) -> str | None:
    if args.name not in registry.BENCHES:
        return f"no such bench: {args.name} (bertha bench lists them)"
    if args.rounds < 0 or args.scale <= 0 or (args.budget is not None and args.budget <= 0):
        return "--rounds, --scale and --budget take positive numbers"
    rows = registry.rows(args.name)
    for only in args.only:
        if not any(row == only or row.startswith(f"{only}/") for row in rows):
            have = f"it has {', '.join(rows)}" if rows else "it has none"
            return f"{args.name} has no row {only}: {have}"
    for path in (args.json, args.plot):
        if path is not None and not path.absolute().parent.is_dir():
            return f"{path}: its directory does not exist"
    return None


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    args = _parser().parse_args(list(argv))
    if args.name is None:
        _list()
        return 0
    problem = _problem(args)
    if problem is not None:
        print(f"bertha bench: {problem}", file=sys.stderr)
        return _EXIT_USAGE
    options = interleave.Options(
        rounds=args.rounds, quick=args.quick, budget_s=args.budget, scale=args.scale, only=tuple(args.only)
    )
    if sys.stderr.isatty():
        options.progress = _progress
    try:
        if args.plot is not None:
            plot.check()
        report = runner.run(args.name, options)
        if sys.stderr.isatty():
            _progress("")
        for line in text.lines(report):
            print(line)
        if args.json is not None:
            args.json.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
        if args.plot is not None:
            plot.draw(report, args.plot)
    except (OSError, tools.Unavailable) as problem_found:
        print(f"bertha bench {args.name}: {problem_found}", file=sys.stderr)
        return _EXIT_FAILED
    if report.failures:
        return _EXIT_FAILED
    return _EXIT_SHORT if args.check and any(f.holds is False for f in report.figures) else 0

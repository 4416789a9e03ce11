"""`bertha key new | show-id`: the cluster key, by which the hosts of a cluster know one another."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bertha_socket import keys

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bertha key",
        description="The cluster key: one secret file, the same on every host, by which agents know one "
        "another and from which 'encrypt' makes its certificate.",
        epilog="Default file: $BERTHA_CLUSTER_KEY, else the policy file's [cluster] key, "
        "else /etc/bertha/cluster.key (root), else "
        "~/.config/bertha/cluster.key.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    new = commands.add_parser("new", help="write a new key, to be copied to each host")
    show = commands.add_parser("show-id", help="sixteen digits by which to compare keys without showing them")
    for command in (new, show):
        command.add_argument("--file", metavar="PATH", help="the key's file, instead of the default")
    return parser


def main(argv: Sequence[str]) -> int:
    """Returns 0, 1 when the key's file cannot be used, 2: usage."""
    options = _parser().parse_args(argv)
    try:
        path = options.file or keys.default_path()
        if options.command == "new":
            key = keys.make(path)
            print(f"new cluster key {keys.key_id(key)} in {path}")
            print("copy this file to each host of the cluster (readable by its owner alone)")
        else:
            print(keys.key_id(keys.load(path)))
    except keys.KeyFileError as error:
        print(f"bertha key: {error.strerror}", file=sys.stderr)
        return 1
    return 0

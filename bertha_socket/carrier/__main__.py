"""`python -m bertha_socket.carrier --control 3`: started by the agent (native/carrier/carrier.h)."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys


def main() -> int:
    """Runs until there is nothing left to carry."""
    parser = argparse.ArgumentParser(prog="bertha-carrier", description="Runs connections with chunnels.")
    parser.add_argument("--control", type=int, required=True, help="descriptor of the agent's socket")
    options = parser.parse_args()
    level = os.environ.get("BERTHA_LOG", "")
    if level:
        names = {"error": logging.ERROR, "warn": logging.WARNING, "warning": logging.WARNING}
        names |= {"info": logging.INFO, "debug": logging.DEBUG}
        logging.basicConfig(
            level=names.get(level.lower(), logging.INFO), format="bertha-carrier[%(process)d]: %(message)s"
        )
    else:
        logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from bertha_socket.carrier.carrier import Carrier

    try:
        control = socket.socket(fileno=options.control)
    except OSError as error:
        parser.error(f"descriptor {options.control} is no socket: {error.strerror}")
    Carrier(control).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

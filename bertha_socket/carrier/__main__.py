"""`python -m bertha_socket.carrier --control 3`: started by the agent (native/carrier/carrier.h)."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys

from bertha_socket.carrier import log


def main() -> int:
    """Runs until there is nothing left to carry."""
    parser = argparse.ArgumentParser(prog="bertha-carrier", description="Runs connections with chunnels.")
    parser.add_argument("--control", type=int, required=True, help="descriptor of the agent's socket")
    parser.add_argument(
        "--log-max", type=int, default=0, help="bytes of standard error, if it is a file of ours"
    )
    options = parser.parse_args()
    log.begin(os.environ.get("BERTHA_LOG", ""), options.log_max)
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

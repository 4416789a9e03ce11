"""python drop_in.py SCRIPT ARGS: runs a program whose `import socket` is `import bertha_socket as socket`."""

from __future__ import annotations

import runpy
import sys

import bertha_socket

bertha_socket.socket  # noqa: B018  stdlib's is loaded, and stays its own
sys.modules["socket"] = bertha_socket
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")

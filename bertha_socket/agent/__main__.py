"""`python -m bertha_socket.agent`: the same as `bertha agent`."""

from __future__ import annotations

import sys

from bertha_socket.agent import main

sys.exit(main())

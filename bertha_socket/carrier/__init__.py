"""The carrier in Python: the process beside the agent that runs connections whose chunnels are in Python."""

from __future__ import annotations

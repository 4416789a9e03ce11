"""What a chunnel's author checks a chunnel with: `check_chunnel(make_pair)`."""

from __future__ import annotations

from bertha_socket.testing._checks import CHECKS, ChunnelFault, check_chunnel, pair_of
from bertha_socket.testing._duplex import Duplex

__all__ = ["CHECKS", "ChunnelFault", "Duplex", "check_chunnel", "pair_of"]

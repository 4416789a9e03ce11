"""`udp()`: the kernel's UDP carries the datagrams.

Arguments: none.
Endpoints: none: the shim and the kernel do it, no chunnel's implementation.  Wire: "none": nothing is added
to what the chunnel above puts there.
At the right end of a DAG, as the carrier of datagrams (left out: `local_or_remote`).
"""

from __future__ import annotations

from bertha_socket.chunnels._types import ChunnelType, Interface

TYPE = ChunnelType(
    name="udp",
    summary="the kernel's UDP carries the datagrams",
    upper=Interface.DATAGRAMS,
    lower=Interface.DATAGRAMS,
    endpoints="none",
    layer=100,
)

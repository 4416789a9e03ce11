"""`tcp()`: the kernel's TCP carries the bytes, also on one host.

Arguments: none.
Endpoints: none: the shim and the kernel do it, no chunnel's implementation.  Wire: "none": nothing is added
to what the chunnel above puts there.
At the right end of a DAG, as the carrier of bytes (left out: `local_or_remote`).
"""

from __future__ import annotations

from bertha_socket.chunnels._types import ChunnelType, Interface

TYPE = ChunnelType(
    name="tcp",
    summary="the kernel's TCP carries the bytes",
    upper=Interface.STREAM,
    lower=Interface.STREAM,
    endpoints="none",
    layer=100,
)

"""Chunnel types: one file each, found by name; `_types` says what one is made of."""

from __future__ import annotations

from bertha_socket.chunnels._author import load_chunnel, register_chunnel
from bertha_socket.chunnels._registry import all_types, get, register, type_of, unregister
from bertha_socket.chunnels._types import (
    NO_WIRE,
    ChunnelArgumentError,
    ChunnelError,
    ChunnelType,
    Context,
    Implementation,
    Interface,
    Parameter,
    Pipe,
    UnknownChunnel,
    between,
    octets,
    one_of,
    wires,
)

__all__ = [
    "NO_WIRE",
    "ChunnelArgumentError",
    "ChunnelError",
    "ChunnelType",
    "Context",
    "Implementation",
    "Interface",
    "Parameter",
    "Pipe",
    "UnknownChunnel",
    "all_types",
    "between",
    "get",
    "load_chunnel",
    "octets",
    "one_of",
    "register",
    "register_chunnel",
    "type_of",
    "unregister",
    "wires",
]

"""Ordinary sockets whose transport is negotiated beneath them when a connection is made."""

from __future__ import annotations

from bertha_socket._version import __version__

__all__ = ["__version__"]

"""What both ends of a carried connection say first: which plan it is, and that both mean it.

`b"\\xbeBRT"`, u32 big-endian length, a msgpack map.  The client's: `v`, `plan`, `nonce`, and with a cluster
key `mac`, HMAC-SHA256 over nonce and plan; the server's: `v`, `ok`, `mac` or `why`.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from typing import Any, Final, NamedTuple

import msgpack

from bertha_socket.chunnels import ChunnelError

MAGIC: Final = b"\xbeBRT"
#: Bytes: more than these of a client may be half of a ClientHello.
OPENING_SURE: Final = 6
_TLS_RECORD_MAX: Final = 16384
BODY_MAX: Final = 16384
NONCE_SIZE: Final = 16
WHY_MAX: Final = 400
_HEAD: Final = struct.Struct(">4sI")
_CLIENT: Final = b"bertha preamble v1 client"
#: In a ClientHello: the extension's list of one name (RFC 7301).
_ALPN: Final = b"\x00\x09\x08bertha/1"
_SERVER: Final = b"bertha preamble v1 server"


def may_be_ours(opening: bytes | bytearray) -> bool:
    """Whether a client that begins so may have a carrier."""
    return opening.startswith(MAGIC[: len(opening)]) or _like_tls(opening)


def is_our_tls(opening: bytes | bytearray) -> bool | None:
    """Whether a connection that begins with a TLS record is a carrier's, by the ALPN that it offers.

    A server's program may speak TLS of its own, to clients that know of no chunnels.  None: too little came.
    """
    if not _like_tls(opening):
        return False
    if _ALPN in opening:
        return True
    if len(opening) < 5:
        return None
    return None if len(opening) < 5 + int.from_bytes(opening[3:5], "big") else False


def _like_tls(opening: bytes | bytearray) -> bool:
    """A record of a handshake, which is a ClientHello, as far as it has come."""
    wanted = (opening[:1] == b"\x16", opening[1:2] in (b"", b"\x03"), opening[5:6] in (b"", b"\x01"))
    return all(wanted) and (len(opening) < 5 or int.from_bytes(opening[3:5], "big") <= _TLS_RECORD_MAX)


class Hello(NamedTuple):
    """The client's preamble."""

    plan: bytes
    nonce: bytes
    mac: bytes | None


def new_nonce() -> bytes:
    """So that no two connections have the same MACs."""
    return secrets.token_bytes(NONCE_SIZE)


def client_mac(key: bytes, nonce: bytes, plan: bytes) -> bytes:
    """The client's proof that it has the cluster's key, and means this plan."""
    return hmac.digest(key, _CLIENT + nonce + plan, hashlib.sha256)


def server_mac(key: bytes, nonce: bytes, plan: bytes) -> bytes:
    """The server's."""
    return hmac.digest(key, _SERVER + nonce + plan, hashlib.sha256)


def _packed(fields: dict[str, object]) -> bytes:
    body: bytes = msgpack.packb(fields)
    return _HEAD.pack(MAGIC, len(body)) + body


def client_preamble(plan: bytes, nonce: bytes, key: bytes | None) -> bytes:
    """What the client sends."""
    fields: dict[str, object] = {"v": 1, "plan": plan, "nonce": nonce}
    if key is not None:
        fields["mac"] = client_mac(key, nonce, plan)
    return _packed(fields)


def server_preamble(hello: Hello, key: bytes | None, why: str | None) -> bytes:
    """What the server answers: yes, or (with `why`) no."""
    if why is not None:
        return _packed({"v": 1, "ok": False, "why": why.encode("utf-8")[:WHY_MAX].decode("utf-8", "ignore")})
    fields: dict[str, object] = {"v": 1, "ok": True}
    if key is not None:
        fields["mac"] = server_mac(key, hello.nonce, hello.plan)
    return _packed(fields)


class Reader:
    """Takes bytes until one preamble is whole; `rest` is what came behind it."""

    def __init__(self) -> None:
        self._got = bytearray()
        self.rest = b""

    def feed(self, data: bytes) -> dict[str, Any] | None:
        """The map, once it is whole.  Raises ChunnelError: this is no preamble."""
        self._got += data
        start = bytes(self._got[: len(MAGIC)])
        if not MAGIC.startswith(start):
            raise ChunnelError("the other end does not speak of chunnels")
        if len(self._got) < _HEAD.size:
            return None
        _, length = _HEAD.unpack_from(self._got)
        if length > BODY_MAX:
            raise ChunnelError(f"a preamble of {length} bytes came, more than {BODY_MAX}")
        end = _HEAD.size + length
        if len(self._got) < end:
            return None
        body = bytes(self._got[_HEAD.size : end])
        self.rest = bytes(self._got[end:])
        try:
            found = msgpack.unpackb(body, max_map_len=64, max_array_len=64, max_ext_len=0)
        except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException):
            found = None
        if not isinstance(found, dict) or found.get("v") != 1:
            raise ChunnelError(
                "a preamble came that is not one of version 1; run the same release at both ends"
            )
        return found


def read_hello(fields: dict[str, Any]) -> Hello:
    """The client's.  Raises ChunnelError."""
    plan, nonce, mac = fields.get("plan"), fields.get("nonce"), fields.get("mac")
    if not isinstance(plan, bytes) or not isinstance(nonce, bytes) or len(nonce) != NONCE_SIZE:
        raise ChunnelError("a client's preamble came without its plan or nonce")
    return Hello(plan, nonce, mac if isinstance(mac, bytes) else None)


def wrong_hello(hello: Hello, key: bytes | None) -> str | None:
    """Why the client is not to be believed; None: it is."""
    if key is None:
        return None if hello.mac is None else "the client has a cluster key, and the server has none"
    if hello.mac is None:
        return "the client has no cluster key, and the server has one"
    if not hmac.compare_digest(hello.mac, client_mac(key, hello.nonce, hello.plan)):
        return "the client has another cluster key than the server"
    return None


def wrong_answer(fields: dict[str, Any], key: bytes | None, nonce: bytes, plan: bytes) -> str | None:
    """Why the server's answer is no; None: it is yes."""
    if fields.get("ok") is not True:
        why = fields.get("why")
        text = why if isinstance(why, str) and why else "no reason given"
        return f"the server refused: {''.join(c if c.isprintable() else '?' for c in text[:WHY_MAX])}"
    if key is None:
        return None
    mac = fields.get("mac")
    if not isinstance(mac, bytes):
        return "the server has no cluster key, and the client has one"
    if not hmac.compare_digest(mac, server_mac(key, nonce, plan)):
        return "the server has another cluster key than the client"
    return None

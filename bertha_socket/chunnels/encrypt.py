"""`encrypt(cert=None, key=None, ca=None)`: TLS 1.3, each end authenticated by its certificate.

Arguments: paths of PEM files of this host, read by the agent, which never go to the other end.  Not given:
both ends use the certificate that they derive from the cluster's key, and trust that one only.  Without `ca`
an end takes its own certificate, the first of `cert`, and no other: not what the rest of a chain has signed.
Endpoints: both.  Wire: "tls1.3" (RFC 8446; mutual certificates; ALPN "bertha/1").  As the last chunnel on the
wire it comes first on the connection, so that all that a stranger sees is TLS.  Each end's close_notify is
the end of its direction; an end without it is an error.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from bertha_socket.chunnels._native import native_probe
from bertha_socket.chunnels._types import (
    NATIVE_PRIORITY,
    ChunnelError,
    ChunnelType,
    Context,
    Implementation,
    Parameter,
    Pipe,
    octets,
    wires,
)

WIRE: Final = "tls1.3"
ALPN: Final = "bertha/1"
_READ: Final = 256 * 1024
_CERTIFICATE: Final = re.compile(
    r"^-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----.*?^-----END \1-----", re.MULTILINE | re.DOTALL
)


def _memfd(text: str) -> int:
    fd = os.memfd_create("bertha-tls", os.MFD_CLOEXEC)
    os.write(fd, text.encode("ascii"))
    return fd


def first_certificate(pem: str) -> str:
    """The end's own of a chain; who is signed by the others is a stranger.  Raises ValueError: none."""
    found = _CERTIFICATE.search(pem)
    if found is None:
        raise ValueError("there is no certificate in it")
    return found[0] + "\n"


@lru_cache(maxsize=64)
def _tls_context(server: bool, certificate: str, key: str, ca: str) -> ssl.SSLContext:
    """Raises ChunnelError: the material makes no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # who has a certificate of that authority is of the cluster
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # what is trusted need not be a root
    context.set_alpn_protocols([ALPN])
    if server:
        context.num_tickets = 0  # a session is never resumed: plans are cached, not keys
    # The module reads a chain and a key from files alone; these are files that nobody else can open.
    chain, secret = _memfd(certificate), _memfd(key)
    try:
        context.load_cert_chain(f"/proc/self/fd/{chain}", f"/proc/self/fd/{secret}")
        context.load_verify_locations(cadata=ca or first_certificate(certificate))
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ChunnelError(f"encrypt: the certificate, key or CA cannot be used ({error})") from None
    finally:
        os.close(chain)
        os.close(secret)
    return context


def checked(material: dict[str, str]) -> dict[str, str]:
    """The same.  Raises ChunnelError: it makes no certificate, or the key is another's."""
    _tls_context(True, material["certificate"], material["key"], material["ca"])
    return material


def _reason(error: ssl.SSLError) -> str:
    return str(error.reason or error.strerror or error).replace("_", " ").lower()


class EncryptPipe(Pipe):
    """One TLS connection over memory."""

    def __init__(
        self, args: Mapping[str, Any], wire: str = WIRE, side: str = "client", context: Context | None = None
    ) -> None:
        super().__init__(args, wire, side, context)
        material = self.context.material
        if not material:
            raise ChunnelError("encrypt: there is no certificate and no cluster key; run 'bertha key new'")
        tls = _tls_context(
            side == "server",
            material.get("certificate", ""),
            material.get("key", ""),
            material.get("ca", ""),
        )
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = tls.wrap_bio(self._in, self._out, server_side=side == "server")
        self.ready = False
        self._held: list[bytes] = []
        self._ended = False  # the program's end
        self._notified = False  # the other end's close_notify

    def _sent(self) -> Iterable[bytes]:
        data = self._out.read()
        return (data,) if data else ()

    def start(self) -> Iterable[bytes]:
        """The client's hello."""
        self._shake()
        return self._sent()

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        if self._tls.selected_alpn_protocol() != ALPN:
            raise ChunnelError(f"encrypt: the other end does not speak {ALPN}")
        self.ready = True
        held, self._held = self._held, []
        for item in held:
            self._tls.write(item)
        if self._ended:
            self._notify()
        return True

    def _notify(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # wants the other end's; ours is written
        self.lingers_down = False

    def down(self, item: Any) -> Iterable[bytes]:
        """As TLS records."""
        if not item:
            return ()
        if not self.ready:
            self._held.append(octets(item, "encrypt"))
            self.full_down = True
            return ()
        self._tls.write(item)
        return self._sent()

    def down_end(self) -> Iterable[bytes]:
        """close_notify."""
        self._ended = True
        if not self.ready:
            self.lingers_down = True
            return ()
        self._notify()
        return self._sent()

    def up(self, item: Any) -> tuple[Iterable[bytes], Iterable[bytes]]:
        """Records, which may be the handshake's."""
        self._in.write(item)
        plain: list[bytes] = []
        try:
            if not self.ready:
                self.full_down = not self._shake() and bool(self._held)
            while self.ready:
                data = self._tls.read(_READ)
                if not data:
                    self._notified = True
                    break
                plain.append(data)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._notified = True
        except ssl.SSLError as error:
            raise ChunnelError(f"encrypt: {_reason(error)}", self._out.read()) from None
        return plain, self._sent()

    def up_end(self) -> Iterable[bytes]:
        """After close_notify only."""
        if not self._notified:
            what = "the connection was cut off" if self.ready else "the connection ended in the TLS handshake"
            raise ChunnelError(f"encrypt: {what}")
        return ()


def _usable() -> str | None:
    return None if ssl.HAS_TLSv1_3 else "this Python's ssl module has no TLS 1.3"


def _file(name: str, what: str) -> Parameter:
    return Parameter(name, "str", f"path of a PEM file of this host: {what}", None, agree="own")


def _together(args: Mapping[str, Any]) -> str | None:
    given = [n for n in ("cert", "key") if args.get(n) is not None]
    if len(given) == 1:
        return f"{given[0]} is given alone; cert and key go together"
    if args.get("ca") is not None and not given:
        return "ca is given alone; give cert and key too"
    return None


TYPE = ChunnelType(
    name="encrypt",
    summary="TLS 1.3, each end authenticated by its certificate or by the cluster's key",
    parameters=(
        _file("cert", "this end's certificate and its chain"),
        _file("key", "the certificate's private key"),
        _file("ca", "the authorities whose certificates are taken; not given: cert's first"),
    ),
    layer=80,
    wire="tls1.3",
    check=_together,
    implementations=(
        Implementation(
            "native",
            "encrypt",
            wires(WIRE),
            priority=NATIVE_PRIORITY,
            carrier="native",
            native_datagrams=True,
            probe=native_probe("encrypt"),
            builtin=True,
        ),
        Implementation("python", "encrypt", wires(WIRE), make=EncryptPipe, probe=_usable, builtin=True),
    ),
)

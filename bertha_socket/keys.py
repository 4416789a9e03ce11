"""The cluster key: one secret that all hosts of a cluster share, and what is derived from it.

With it the agents authenticate one another, carriers authenticate the plan of each connection, and `encrypt`
needs no certificate of its own: both ends derive the same Ed25519 key and the same self-signed certificate
(RFC 5869, RFC 8032), and each trusts exactly that one.  Whoever has the key is of the cluster.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Final

from bertha_socket import _settings

__all__ = ["KEY_SIZE", "NO_KEY", "KeyFileError", "default_path", "find", "key_id", "load", "make", "material"]

KEY_SIZE: Final = 32  # bytes
SYSTEM_PATH: Final = "/etc/bertha/cluster.key"
NO_KEY: Final = "no cluster key: make one with 'bertha key new' and copy it to each host"
_FILE_MAX: Final = 256
_HEX: Final = re.compile(rb"\s*([0-9A-Fa-f]{64})\s*")
_NAME: Final = "bertha cluster"


class KeyFileError(OSError):
    """The file of the cluster key cannot be used; one line with the place and the remedy."""


def default_path(environ: Mapping[str, str] | None = None) -> str:
    """The key's file: $BERTHA_CLUSTER_KEY, else what [cluster] of the policy file in force names, else root's
    /etc/bertha/cluster.key, else the user's own.

    Raises KeyFileError: the policy file cannot be used, so nobody knows.
    """
    env = os.environ if environ is None else environ
    given = env.get("BERTHA_CLUSTER_KEY")
    if given:
        return os.path.abspath(given)
    try:
        named = _settings.key_path(env)
    except OSError as error:
        raise KeyFileError(errno.EINVAL, f"the cluster key: {error}") from None
    if named is not None:
        return named
    if os.geteuid() == 0:
        return SYSTEM_PATH
    config = env.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(config):
        config = os.path.join(env.get("HOME") or os.path.expanduser("~"), ".config")
    return os.path.join(config, "bertha", "cluster.key")


def load(path: str) -> bytes:
    """The key in a file: 64 hexadecimal digits, or 32 bytes as they are.  Raises KeyFileError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            found = os.fstat(fd)
            data = os.read(fd, _FILE_MAX + 1) if stat.S_ISREG(found.st_mode) else b""
        finally:
            os.close(fd)
    except OSError as error:
        raise KeyFileError(
            error.errno or errno.EIO, f"{path}: the cluster key cannot be read ({error.strerror})"
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise KeyFileError(errno.EINVAL, f"{path}: the cluster key must be a regular file")
    if found.st_uid not in (0, os.geteuid()):
        problem = f"{path}: the cluster key belongs to another user (uid {found.st_uid}); make it your own"
        raise KeyFileError(errno.EACCES, problem)
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        problem = f"{path}: others may read the cluster key (mode {mode:04o}); run 'chmod 600 {path}'"
        raise KeyFileError(errno.EACCES, problem)
    text = _HEX.fullmatch(data)
    if text is not None:
        return bytes.fromhex(text[1].decode("ascii"))
    if len(data) == KEY_SIZE:
        return data
    raise KeyFileError(
        errno.EINVAL, f"{path}: not a cluster key (64 hexadecimal digits); run 'bertha key new'"
    )


def find(environ: Mapping[str, str] | None = None) -> bytes | None:
    """The cluster key of this user; None when there is none.

    Raises KeyFileError: there is a file that cannot be used, or $BERTHA_CLUSTER_KEY or the policy file's
    [cluster] names one that is not there.
    """
    env = os.environ if environ is None else environ
    path = default_path(env)
    try:
        return load(path)
    except KeyFileError as error:
        if error.errno == errno.ENOENT and not env.get("BERTHA_CLUSTER_KEY"):
            with contextlib.suppress(OSError):
                if _settings.key_path(env) is None:
                    return None
        raise


def make(path: str) -> bytes:
    """Writes a new key to a file that is not there yet (its folder is made); returns it.

    Raises KeyFileError, also when the file is there: a key that is replaced cuts this host off the others.
    """
    key = secrets.token_bytes(KEY_SIZE)
    try:
        os.makedirs(os.path.dirname(path) or ".", 0o755, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise KeyFileError(errno.EEXIST, f"{path}: there is a key already; remove it first") from None
    except OSError as error:
        raise KeyFileError(
            error.errno or errno.EIO, f"{path}: the key cannot be written ({error.strerror})"
        ) from None
    with open(fd, "wb") as file:
        file.write(key.hex().encode("ascii") + b"\n")
    return key


def key_id(key: bytes) -> str:
    """Sixteen digits by which people compare keys; they tell nothing about the key."""
    return hashlib.sha256(b"bertha key id v1" + key).hexdigest()[:16]


@lru_cache(maxsize=4)
def _material(key: bytes) -> tuple[tuple[str, str], ...]:
    # A large library, loaded where a key is in use only.
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    from cryptography.x509.oid import NameOID

    seed = HKDF(SHA256(), KEY_SIZE, salt=None, info=b"bertha encrypt v1").derive(key)
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public = private.public_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    # Nothing here may differ between two hosts: both trust these very bytes.  The extensions are those
    # without which OpenSSL's strict check (Python 3.13's default) takes no certificate for an authority's.
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1))
        .not_valid_after(datetime(2120, 1, 1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(private, None)
    )
    pem = serialization.Encoding.PEM
    text = certificate.public_bytes(pem).decode("ascii")
    secret = private.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode("ascii")
    return (("certificate", text), ("key", secret), ("ca", text))


def material(key: bytes) -> dict[str, str]:
    """What `encrypt` uses without certificates of its own: `certificate`, `key` and `ca`, as PEM texts.

    The same on every host that has the key.  Raises ImportError without the library `cryptography`.
    """
    return dict(_material(key))

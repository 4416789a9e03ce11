"""The secrets that carriers need: the cluster's, and certificates that a rule names for itself.

`encrypt(cert="...", key="...", ca="...")` names files of this host.  The agent reads them, because a carrier
may serve many; it reads them with its own rights, so only for policies of its own user.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable
from typing import Final

from bertha_socket import keys
from bertha_socket.agent.carriers import MESSAGE_MAX, Context
from bertha_socket.chunnels.encrypt import first_certificate
from bertha_socket.dag import Dag, Value

_FILE_MAX: Final = 1 << 16
#: Bytes of all that a carrier is told at once: the texts, and some for the rest.
_TEXTS_MAX: Final = MESSAGE_MAX - 1024
#: Certificates that clients' rules name, kept for carriers that are started later.
_CONTEXTS_MAX: Final = 1024
_NAMES: Final = ("cert", "key", "ca")


class SecretError(OSError):
    """A rule's certificates cannot be used; one line with the file and the remedy."""


def named_files(dag: Dag | None) -> dict[str, str]:
    """The files that the DAG's `encrypt` names, by argument; empty: none, the cluster key is meant."""
    for chunnel in dag.chunnels if dag is not None else ():
        if chunnel.type == "encrypt":
            given: dict[str, Value] = dict(zip(_NAMES, chunnel.args, strict=False)) | dict(chunnel.kwargs)
            return {n: v for n, v in given.items() if n in _NAMES and isinstance(v, str) and v}
    return {}


def read(files: dict[str, str]) -> dict[str, str]:
    """Their PEM texts, as a context has them.  Without `ca`, the other end must have this very certificate,
    and not one that has the same authority.

    Raises SecretError.
    """
    for name in ("cert", "key"):
        if name not in files:
            raise SecretError(errno.EINVAL, f"encrypt: {name} is missing; give cert and key, and perhaps ca")
    found = {name: _read(path) for name, path in files.items()}
    if "ca" not in found:
        try:
            found["ca"] = first_certificate(found["cert"])
        except ValueError as error:
            raise SecretError(errno.EINVAL, f"encrypt: {files['cert']}: {error}") from None
    if sum(map(len, found.values())) > _TEXTS_MAX:
        names = ", ".join(dict.fromkeys(files.values()))
        problem = f"together more than {_TEXTS_MAX >> 10} KiB; give only the certificates that are needed"
        raise SecretError(errno.E2BIG, f"encrypt: {names}: {problem}")
    return {"certificate": found["cert"], "key": found["key"], "ca": found["ca"]}


def _read(path: str) -> str:
    try:
        if not os.path.isabs(path):
            raise OSError(errno.EINVAL, "not an absolute path")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            data = file.read(_FILE_MAX + 1)
        text = data.decode("ascii")
        if len(data) > _FILE_MAX or "-----BEGIN " not in text:
            raise ValueError
        return text
    except OSError as error:
        raise SecretError(error.errno or errno.EIO, f"encrypt: {path}: {error.strerror}") from None
    except ValueError:
        raise SecretError(errno.EINVAL, f"encrypt: {path}: not a PEM file") from None


def _cluster_context(key: bytes | None) -> Context:
    material = None
    if key is not None:
        with contextlib.suppress(ImportError):
            material = keys.material(key)
    return Context(0, material, key)


class Secrets:
    """All contexts of one agent."""

    def __init__(self) -> None:
        #: Tells the carriers.
        self.changed: Callable[[Context], None] = lambda context: None
        self._key: bytes | None = None
        self._cluster: Context | None = None
        #: Those of listeners: of one without, all carriers would think that it has everybody's.
        self._own: dict[int, Context] = {}
        #: Those of clients' rules.
        self._clients: dict[int, Context] = {}

    def cluster_key(self) -> bytes | None:
        """The key that is configured now.  Raises keys.KeyFileError."""
        key = keys.find()
        if self._key != key:
            self._key = key
            if self._cluster is not None:
                self._cluster = _cluster_context(key)
                self.changed(self._cluster)
            for own in (self._own, self._clients):
                for context in list(own.values()):
                    self._tell(own, context._replace(key=key))
        return key

    def contexts(self) -> list[Context]:
        """What a carrier is told when it starts.  From then on it is told of changes too."""
        self._now()
        if self._cluster is None:  # a certificate takes a while to make, and is for carriers alone
            self._cluster = _cluster_context(self._key)
        return [self._cluster, *self._own.values(), *self._clients.values()]

    def for_listener(self, number: int, dag: Dag | None, uid: int, users: tuple[int, ...] = ()) -> None:
        """Gives a listener the certificates that its rule names, if it names any.  `users`: others than `uid`
        who serve there.

        Raises SecretError (and then it has none to show, and everybody's are not its either).
        """
        files = named_files(dag)
        if not files:
            self.drop(number)
            return
        try:
            self._tell(self._own, self._context(number, files, uid, users))
        except SecretError:
            self.refuse(number, (uid, *users))
            raise

    def refuse(self, number: int, users: tuple[int, ...]) -> None:
        """A listener has certificates that cannot be used: nobody is served with any."""
        self._tell(self._own, Context(number, {}, self._now(), users))

    def for_client(self, dag: Dag | None, uid: int) -> int:
        """The number of the context with the certificates that a client's rule names; 0: the cluster's.

        Raises SecretError.
        """
        files = named_files(dag)
        if not files:
            return 0
        number = int.from_bytes(hashlib.sha256(repr(sorted(files.items())).encode()).digest()[:8], "big") or 1
        context = self._context(number, files, uid)
        if self._clients.get(number) != context:
            self._tell(self._clients, context)
        return number

    def check(self, dag: Dag | None, uid: int) -> None:
        """Whether the certificates that a rule names can be used, if it names any.  Raises SecretError."""
        files = named_files(dag)
        if files:
            self._context(0, files, uid)

    def drop(self, number: int) -> None:
        """A listener has none of its own (any more)."""
        if self._own.pop(number, None) is not None:
            self.changed(Context(number, None, None))

    def _context(self, number: int, files: dict[str, str], uid: int, users: tuple[int, ...] = ()) -> Context:
        if uid != os.geteuid():
            problem = "a system agent does not read the certificates of another user's policy"
            raise SecretError(errno.EPERM, f"encrypt: {problem}; run an agent as that user")
        return Context(number, read(files), self._now(), (uid, *users))

    def _now(self) -> bytes | None:
        """The cluster key that goes along with certificates."""
        try:
            return self.cluster_key()
        except keys.KeyFileError:
            if self._key is None:  # nobody has this one, so nobody is served who should have had the other
                self._key = os.urandom(32)
            return self._key

    def _tell(self, own: dict[int, Context], context: Context) -> None:
        own.pop(context.listener, None)
        own[context.listener] = context
        while len(self._clients) > _CONTEXTS_MAX:
            del self._clients[next(iter(self._clients))]
        self.changed(context)

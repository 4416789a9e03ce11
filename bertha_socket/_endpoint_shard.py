"""The application's own fallback for `shard`: a listener whose messages go on to other endpoints
(paper, section 5: "Server Fallback")."""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import threading
import time
import weakref
from typing import Any, Final

from bertha_socket.chunnels import ChunnelArgumentError, Interface
from bertha_socket.chunnels.shard import place_of
from bertha_socket.dag import Dag
from bertha_socket.negotiation.plan import Plan

__all__ = ["serve"]

log = logging.getLogger(__name__)

#: Clients at once; the next ones wait.
_CLIENTS_MAX: Final = 1024
#: Seconds for which a connection of the application's own may take for an answer.
_ANSWER_SECONDS: Final = 30.0


def serve(listener: Any, name: str, dag: Dag) -> None:
    """Moves messages between the listener's clients and the choices of its `shard`, until it is closed.

    Raises ChunnelArgumentError: its DAG does not begin with one."""
    if not dag.chunnels or dag.chunnels[0].type != "shard":
        raise ChunnelArgumentError("serve() is for listeners whose uppermost chunnel is shard")
    room = threading.Semaphore(_CLIENTS_MAX)

    def one(connection: Any) -> None:
        try:
            _Forwarding(connection, name).run()
        except OSError as error:  # of this client, or of the choice that it was for
            log.info("%s: %s", name, error.strerror or error)
        finally:
            room.release()

    while True:
        room.acquire()
        try:
            connection = next(iter(listener))
        except (StopIteration, ValueError):  # closed; ValueError: a socket without a number
            return
        except OSError as error:
            room.release()
            if error.errno == errno.EBADF:
                return
            log.warning("%s: %s", name, error.strerror or error)
            time.sleep(0.1)  # no descriptors left, or the like
            continue
        threading.Thread(target=one, args=(connection,), daemon=True).start()


def _choices(plan: Plan | None) -> list[str]:
    first = plan.chunnels[0] if plan is not None and plan.chunnels else None
    found = first.kwargs.get("choices") if first is not None and first.type == "shard" else None
    if not isinstance(found, (list, tuple)):  # it was only preferred
        raise ChunnelArgumentError("this connection has no shard")
    return [str(choice) for choice in found]


class _Forwarding:
    """One client's messages."""

    def __init__(self, connection: Any, name: str) -> None:
        self._connection = connection
        self._name = name
        self._poll = select.poll()
        self._opened: dict[int, Any] = {}  # by the choice's number
        self._numbers: dict[int, int] = {}  # the choice's by its descriptor's

    def run(self) -> None:
        """Until the client sends no more.  Raises OSError."""
        with self._connection as client, contextlib.ExitStack() as own:
            choices = [place_of(c) for c in _choices(client.plan)]
            here = client.fileno()
            self._poll.register(here, select.POLLIN)
            while self._from_client(choices, own):
                for fd, _ in self._poll.poll():
                    if fd != here:
                        self._from_choice(self._numbers[fd])
            for number in list(self._opened):  # half-closed: the last answers are still to come
                self._opened[number].end()
                with contextlib.suppress(EOFError, TimeoutError):
                    while True:
                        client.send((number, self._opened[number].recv(_ANSWER_SECONDS)))

    def _from_client(self, choices: list[Any], own: contextlib.ExitStack) -> bool:
        """All that has come; False: nothing more will."""
        while True:
            try:
                number, message = self._connection.recv(0)
            except TimeoutError:
                return True
            except EOFError:
                return False
            if isinstance(choices[number], tuple):
                if number not in self._opened:
                    self._open(number, choices[number], own)
                self._opened[number].send(message)
            else:
                self._connection.send((number, _asked(choices[number], message)))

    def _open(self, number: int, address: tuple[str, int], own: contextlib.ExitStack) -> None:
        from bertha_socket._endpoint import new

        opened: Any = own.enter_context(new(f"{self._name}/{number}").connect(address))
        if opened.interface is Interface.STREAM:
            raise ChunnelArgumentError(
                f"shard: {address[0]} port {address[1]} takes a stream; let it have frame() or reliable()"
            )
        self._opened[number] = opened
        self._numbers[opened.fileno()] = number
        self._poll.register(opened.fileno(), select.POLLIN)

    def _from_choice(self, number: int) -> None:
        """All that has come.  Raises OSError: it is gone."""
        with contextlib.suppress(TimeoutError):
            while True:
                try:
                    answer = self._opened[number].recv(0)
                except EOFError:
                    raise ConnectionResetError(errno.ECONNRESET, f"choice {number} is gone") from None
                self._connection.send((number, answer))


_locks: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def _asked(connection: Any, message: bytes) -> Any:
    """By a connection that all clients share: each message is a request, and has one answer.

    Raises OSError."""
    with _making:
        lock = _locks.setdefault(connection, threading.Lock())
    with lock:
        try:
            connection.send(message)
            return connection.recv(_ANSWER_SECONDS)
        except EOFError:
            raise ConnectionResetError(errno.ECONNRESET, "a choice sends no more") from None
        except OSError:
            connection.close()  # or a late answer would be taken for the next one's
            raise

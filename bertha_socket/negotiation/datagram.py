"""A conversation of two agents in two datagrams: the question's frames in one, the answer's in the other.

What the frames say and how they are authenticated is as on a connection (machine.py).  They are compressed,
and a question is padded: no answer is longer than its question, so that whoever asks in somebody else's name
brings nothing on him that he could not have sent there himself.  What does not fit goes by a connection.
"""

from __future__ import annotations

import zlib
from typing import Final

#: Bytes of a question: a packet of IPv6's least size, without what is before it.
QUESTION_SIZE: Final = 1200
#: Bytes of what is in a datagram, once it is unpacked.
_QUESTION_MAX: Final = 4096
_ANSWER_MAX: Final = 16384
_MAGIC: Final = b"\xbeBRA"
_QUESTION: Final = _MAGIC + b"?"
_ANSWER: Final = _MAGIC + b"!"


def question(frames: bytes) -> bytes | None:
    """The datagram; None: too long for one."""
    data = _QUESTION + zlib.compress(frames) if len(frames) <= _QUESTION_MAX else b""
    return data.ljust(QUESTION_SIZE, b"\0") if 0 < len(data) <= QUESTION_SIZE else None


def answer(frames: bytes) -> bytes | None:
    """The same for an answer."""
    data = _ANSWER + zlib.compress(frames) if len(frames) <= _ANSWER_MAX else b""
    return data if 0 < len(data) <= QUESTION_SIZE else None


def asked(data: bytes) -> bytes | None:
    """The frames in a stranger's question; None: it is none."""
    if len(data) != QUESTION_SIZE or not data.startswith(_QUESTION):
        return None
    return unpacked(data[len(_QUESTION) :], _QUESTION_MAX)


def answered(data: bytes) -> bytes | None:
    """The frames in a stranger's answer; None: it is none."""
    if len(data) > QUESTION_SIZE or not data.startswith(_ANSWER):
        return None
    return unpacked(data[len(_ANSWER) :], _ANSWER_MAX)


def unpacked(data: bytes, limit: int) -> bytes | None:
    """What zlib made `data` of, of at most so many bytes; None: there are more, or it makes no sense."""
    machine = zlib.decompressobj()
    try:
        found = machine.decompress(data, limit)
    except zlib.error:
        return None
    return found if machine.eof else None

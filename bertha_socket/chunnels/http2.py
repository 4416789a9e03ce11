"""`http2(authority="bertha")`: each message is an HTTP/2 stream of its own (RFC 9113).

Arguments: `authority`, what the requests are addressed to.
Endpoints: both.  Wire: "h2".  The client opens stream 1 (`GET /bertha`), which stays open as long as either
end may send; its end is the end of that direction.  A message of the client is a request (`POST /message`)
whose body it is, answered by 204; a message of the server is pushed (`/message`) on stream 1.  One stream is
sent after the other, so that messages stay in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from bertha_socket.chunnels._types import (
    ChunnelError,
    ChunnelType,
    Context,
    Implementation,
    Interface,
    Parameter,
    Pipe,
    octets,
    wires,
)

WIRE: Final = "h2"
MESSAGE_MAX: Final = 16 * 1024 * 1024
_QUEUE_MAX: Final = 256 * 1024
_CONTROL: Final = 1
_WINDOW: Final = 1 << 20
#: That are open at once, as h2 has it by itself.  Those of a sender of ours are over but for the answer.
_STREAMS: Final = 100


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


class Http2Pipe(Pipe):
    """One HTTP/2 connection."""

    def __init__(self, args: Mapping[str, Any], wire: str, side: str, context: Context) -> None:
        super().__init__(args, wire, side, context)
        client = side == "client"
        config = h2.config.H2Configuration(client_side=client, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)
        codes = h2.settings.SettingCodes
        values = {
            codes.INITIAL_WINDOW_SIZE: _WINDOW,
            codes.MAX_CONCURRENT_STREAMS: _STREAMS,
            codes.MAX_HEADER_LIST_SIZE: self._h2.DEFAULT_MAX_HEADER_LIST_SIZE,
        }
        self._h2.local_settings = h2.settings.Settings(client=client, initial_values=values)
        self._authority = str(args.get("authority") or "bertha")
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._sending: int | None = None  # the stream of the message at the head of the queue
        self._offset = 0
        self._bodies: dict[int, bytearray] = {}
        self._held = 0  # bytes in them
        self._open = client  # whether stream 1 is there
        self._over = self._over_sent = False

    def start(self) -> Iterable[bytes]:
        """Settings, and the client's stream 1."""
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW)
        if self.side == "client":
            self._h2.send_headers(_CONTROL, self._headers("GET", "/bertha"))
        return (self._h2.data_to_send(),)

    def _headers(self, method: str, path: str) -> list[tuple[str, str]]:
        return [
            (":method", method),
            (":scheme", "https"),
            (":authority", self._authority),
            (":path", path),
        ]

    def down(self, item: Any) -> Iterable[bytes]:
        """A stream for the message, as far as the other end's windows allow."""
        if len(item) > MESSAGE_MAX:
            raise ChunnelError(f"http2: a message of {len(item)} bytes, more than {MESSAGE_MAX}")
        self._queue.append(octets(item, "http2"))
        self._queued += len(item)
        return self._flush()

    def down_end(self) -> Iterable[bytes]:
        """The end of stream 1, after the last message."""
        self._over = True
        self.lingers_down = True
        return self._flush()

    def up(self, item: Any) -> tuple[Iterable[bytes], Iterable[bytes]]:
        """Whole messages."""
        messages: list[bytes] = []
        try:
            for event in self._h2.receive_data(bytes(item)):
                self._on(event, messages)
        except h2.exceptions.ProtocolError as error:
            raise ChunnelError(f"http2: {_words(error)}", self._h2.data_to_send()) from None
        return messages, self._flush()

    def up_end(self) -> Iterable[bytes]:
        """After stream 1's end only."""
        if not self.ended_up:
            raise ChunnelError("http2: the connection was cut off")
        return ()

    def _on(self, event: h2.events.Event, messages: list[bytes]) -> None:
        if isinstance(event, h2.events.RequestReceived):
            if event.stream_id == _CONTROL:
                self._open = True
                self._h2.send_headers(_CONTROL, [(":status", "200")])
            else:
                self._begun(event.stream_id)
        elif isinstance(event, h2.events.PushedStreamReceived):
            self._begun(event.pushed_stream_id)
        elif isinstance(event, h2.events.DataReceived):
            if event.flow_controlled_length:
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            body = self._bodies.get(event.stream_id or 0)
            if body is not None:
                body += event.data
                self._held += len(event.data)
                if self._held > MESSAGE_MAX:  # they come one after the other
                    raise ChunnelError(f"http2: a message of more than {MESSAGE_MAX} bytes came")
        elif isinstance(event, h2.events.StreamEnded):
            self._ended(event.stream_id, messages)
        elif isinstance(event, h2.events.StreamReset):
            raise ChunnelError(f"http2: stream {event.stream_id} was reset")
        elif isinstance(event, h2.events.ConnectionTerminated):
            raise ChunnelError("http2: the other end closed the connection")

    def _begun(self, stream: int | None) -> None:
        if len(self._bodies) >= _STREAMS:  # of promises h2 takes as many as come
            raise ChunnelError(f"http2: more than {_STREAMS} messages were begun at once")
        if stream is not None:
            self._bodies[stream] = bytearray()

    def _ended(self, stream: int | None, messages: list[bytes]) -> None:
        if stream == _CONTROL:
            self.ended_up = True
            return
        body = self._bodies.pop(stream, None) if stream is not None else None
        if stream is None or body is None:
            return  # the answer to one of ours
        self._held -= len(body)
        messages.append(bytes(body))
        if self.side == "server":
            self._h2.send_headers(stream, [(":status", "204")], end_stream=True)

    def _flush(self) -> Iterable[bytes]:
        while self._queue and self._open and self._send_some():
            pass
        if self._over and not self._queue and self._open and not self._over_sent:
            self._over_sent = True
            self._h2.end_stream(_CONTROL)
        self.full_down = self._queued > _QUEUE_MAX
        # The network's end would keep window updates and answers away from the other end, which still sends.
        self.lingers_down = self._over and not (self._over_sent and self.ended_up)
        data = self._h2.data_to_send()
        return (data,) if data else ()

    def _send_some(self) -> bool:
        """Sends a part of the first message; False: the other end has to make room first."""
        message = self._queue[0]
        if self._sending is None:
            # The other end's settings may not be here yet.
            if self._h2.open_outbound_streams >= min(
                self._h2.remote_settings.max_concurrent_streams, _STREAMS
            ):
                return False
            self._sending = self._h2.get_next_available_stream_id()
            self._offset = 0
            if self.side == "client":
                self._h2.send_headers(self._sending, self._headers("POST", "/message"))
            else:
                self._h2.push_stream(_CONTROL, self._sending, self._headers("GET", "/message"))
                self._h2.send_headers(self._sending, [(":status", "200")])
        left = len(message) - self._offset
        room = min(self._h2.local_flow_control_window(self._sending), self._h2.max_outbound_frame_size, left)
        if left and room <= 0:
            return False
        part = message[self._offset : self._offset + room]
        self._offset += len(part)
        whole = self._offset == len(message)
        self._h2.send_data(self._sending, part, end_stream=whole)
        if whole:
            self._queue.popleft()
            self._queued -= len(message)
            self._sending = None
        return True


TYPE = ChunnelType(
    name="http2",
    summary="messages as streams of HTTP/2",
    parameters=(Parameter("authority", "str", "what requests are addressed to", "bertha"),),
    upper=Interface.MESSAGES,
    layer=30,
    wire="h2: RFC 9113; a message is a stream",
    implementations=(Implementation("python", "http2", wires(WIRE), make=Http2Pipe, builtin=True),),
)

"""GET /socket.io/: a Socket.IO connection over which a site posts its events.

Each message `event` is passed to POST /events in this process, and acknowledged with its answer and
HTTP status. So events have one way in, with one set of rules and limits.

The protocols are Socket.IO 5 over Engine.IO 4 (https://socket.io/docs/v4/socket-io-protocol/). Of
Engine.IO's transports only WebSocket is served, because the web processes share no sessions, and
the requests of a client that polls would reach any of them.

The packets are python-socketio's. Its server, which Flask-SocketIO runs too, is not used. It needs
four threads for each client. While a message waits for its turn, it goes on reading into memory,
and it queues answers that a client does not read, both without a bound. And its threads that wait
to send a ping stay for 25 s after their client has left, so they pile up as clients come and go.
"""

import logging
import secrets
import threading
import time
from io import BytesIO
from typing import Any

import engineio.packet
import msgspec
import socketio.packet
from engineio.packet import Packet as Frame
from flask import Blueprint, Flask, Response, abort, current_app, request
from marshmallow import EXCLUDE, Schema, fields, validate
from msgspec import Raw, Struct
from werkzeug.exceptions import HTTPException, ServiceUnavailable
from werkzeug.wrappers import Response as AnyResponse
from wsproto.utilities import ProtocolError

from app.domain.addresses import client_network
from app.domain.bodies import events_in
from app.domain.reader import NOT_JSON
from app.web.context import (
    RETRY_AFTER_SECONDS,
    Context,
    answer,
    context,
    query,
    require_allowed_origin,
    require_write_key,
)
from app.web.sockets.places import Places, Room, Turns
from app.web.sockets.viewers import taken_over
from app.web.sockets.websocket import Text, WebSocket

MAX_SOCKETS = 500
MAX_SOCKETS_OF_CLIENT = 100
MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""How many bytes all messages may have together, from their first pieces to their answers."""
POSTS_AT_ONCE = 8
POSTS_OF_CLIENT_AT_ONCE = 2
"""Each connection has a thread. If all of them worked at once, other requests would get no time."""
PING_SECONDS = 20.0
"""How often a client is pinged, and how long it may take to answer."""
CONNECT_SECONDS = 10.0
_AROUND_BODY_BYTES = 256
"""More than a packet holds around its event: type, namespace, id and name."""

_OF_THE_HANDSHAKE = {
    "HTTP_UPGRADE",
    "HTTP_CONNECTION",
    "HTTP_TRANSFER_ENCODING",
    "HTTP_CONTENT_ENCODING",
    "HTTP_X_REQUEST_ID",
}
"""Headers of the handshake that don't apply to its messages. Each message gets an id of its own."""

blueprint = Blueprint("socket_io", __name__)
logger = logging.getLogger(__name__)

_places = Places(MAX_SOCKETS, MAX_SOCKETS_OF_CLIENT)
_room = Room(MAX_MESSAGE_BYTES)
_turns = Turns(POSTS_AT_ONCE, POSTS_OF_CLIENT_AT_ONCE)


class HandshakeQuery(Schema):
    """Which version and transport of Engine.IO a client wants."""

    class Meta:
        """Other parameters are ignored."""

        unknown = EXCLUDE

    EIO = fields.String(required=True, validate=validate.OneOf(["4"], error="Must be 4."))
    transport = fields.String(
        required=True,
        validate=validate.OneOf(
            ["websocket"],
            error='Must be websocket. Set transports: ["websocket"] in the client.',
        ),
    )


# Werkzeug has one kind of route for WebSocket handshakes and another for all other requests. The
# latter come here too, so that they are told what is wrong.
@blueprint.get("/socket.io/", strict_slashes=False, websocket=True)
@blueprint.get("/socket.io/", strict_slashes=False)
def connect() -> Response:
    """A Socket.IO connection, only over WebSocket: see docs/sending.md."""
    query(HandshakeQuery())
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    try:
        # A little more than a body may have, so that a larger one gets the same answer as a post.
        websocket = WebSocket(
            request.headers, app.config["MAX_CONTENT_LENGTH"] + _AROUND_BODY_BYTES
        )
    except ValueError:
        abort(400, "This is not a WebSocket handshake.")
    connection = request.environ.get("gunicorn.socket")
    if connection is None or request.method != "GET":
        abort(501, "Socket.IO needs the collector's own web server.")
    address = request.remote_addr or ""
    client = _Client(app, context(), websocket, request.environ, address)
    if not _take_place(client):
        raise ServiceUnavailable(
            "There are too many connections already.", retry_after=RETRY_AFTER_SECONDS
        )
    try:
        threading.Thread(
            target=client.serve, args=[taken_over(connection)], name="socket", daemon=True
        ).start()
    except BaseException:
        _leave_place(client)
        raise
    response = Response()
    # Nobody gets this response: the connection no longer belongs to gunicorn.
    response.headers["Connection"] = "close"
    return response


class _Json:
    """Leaves the content of a packet unchanged, for the decoder of events."""

    @staticmethod
    def loads(text: str) -> str:
        return text

    @staticmethod
    def dumps(value: Any, **_: Any) -> str:
        return msgspec.json.encode(value).decode()


class _Packet(socketio.packet.Packet):
    json = _Json
    uses_binary_events = False


class _Auth(Struct):
    key: str = ""


_decode_auth = msgspec.json.Decoder(_Auth | None).decode


class _End(Exception):
    """The connection ends: the client left, was refused, or broke the protocol."""


class _Client:
    """A client with a thread of its own, which serves one message at a time, in order."""

    def __init__(
        self,
        app: Flask,
        current: Context,
        websocket: WebSocket,
        environ: dict[str, Any],
        address: str,
    ) -> None:
        self._app = app
        self._current = current
        self._websocket = websocket
        self.address = address
        self._sender = {
            name: value
            for name, value in environ.items()
            if isinstance(value, str) and name not in _OF_THE_HANDSHAKE
        }
        self._connected = False
        self.network = client_network(address)

    def drop(self) -> None:
        """Make the client's thread end (from another thread)."""
        self._websocket.drop()

    def serve(self, connection: Any) -> None:
        """Serve the client until it leaves or is dropped."""
        try:
            with _room.share(self.address) as share:
                self._websocket.open(connection, share)
                self._serve()
        except (_End, OSError, ProtocolError):
            pass
        except Exception:
            logger.exception("a Socket.IO connection broke")
        finally:
            self._websocket.close()
            _leave_place(self)

    def _serve(self) -> None:
        hello = {
            "sid": secrets.token_urlsafe(15),
            "upgrades": [],
            "pingInterval": round(PING_SECONDS * 1_000),
            "pingTimeout": round(PING_SECONDS * 1_000),
            "maxPayload": self._app.config["MAX_CONTENT_LENGTH"],
        }
        self._websocket.send(Frame(engineio.packet.OPEN, hello).encode())
        self._receive_until(time.monotonic() + CONNECT_SECONDS)
        while self._connected and self._websocket.heard:
            self._websocket.heard = False
            self._websocket.send(Frame(engineio.packet.PING).encode())
            self._receive_until(time.monotonic() + PING_SECONDS)

    def _receive_until(self, moment: float) -> None:
        while time.monotonic() < moment:
            message = self._websocket.receive(moment)
            if message is not None:
                self._take(message)

    def _take(self, message: Text) -> None:
        self._websocket.spend()
        kind, rest = message.text[:1], message.text[1:]
        if kind == str(engineio.packet.PONG):
            return
        if kind != str(engineio.packet.MESSAGE) or not rest:
            raise _End
        try:
            packet = _Packet(encoded_packet=rest)
        except ValueError as error:
            raise _End from error
        current = packet.namespace in (None, "/")
        if packet.packet_type == socketio.packet.CONNECT:
            self._connect(packet)
        elif packet.packet_type == socketio.packet.EVENT and current and self._connected:
            self._acknowledge(packet, message.size)
        else:
            raise _End

    def _connect(self, packet: _Packet) -> None:
        try:
            if packet.namespace not in (None, "/"):
                abort(404, "There is no such namespace.")
            try:
                auth = _decode_auth(packet.data or "null")
            except NOT_JSON:
                abort(400, "auth must be an object, and its key must be a string.")
            if auth and auth.key:
                self._sender["HTTP_X_WRITE_KEY"] = auth.key
            asked = self._app.request_class(self._sender)
            require_write_key(self._current, asked)
            require_allowed_origin(self._current, asked)
        except HTTPException as error:
            refusal = {"message": error.description, "data": {"status": error.code}}
            self._send(_Packet(socketio.packet.CONNECT_ERROR, refusal, packet.namespace))
            raise _End from error
        self._connected = True
        self._send(_Packet(socketio.packet.CONNECT, {"sid": secrets.token_urlsafe(15)}))

    def _acknowledge(self, packet: _Packet, size: int) -> None:
        with _turns.turn(self.address):
            answered = self._answer(packet.data or "", size)
        if packet.id is not None:
            data = [Raw(answered.get_data()), answered.status_code]
            self._send(_Packet(socketio.packet.ACK, data, id=packet.id))

    def _answer(self, data: str, size: int) -> AnyResponse:
        """The answer of POST /events to a message, given the content of its packet."""
        if size > self._app.config["MAX_CONTENT_LENGTH"] + _AROUND_BODY_BYTES:
            return self._post(b"", size)
        try:
            name, *events = events_in(data.encode())
        except ValueError:
            return self._post(b"{")  # refused like any body that is not JSON
        if name != b'"event"':
            return answer({"error": "There is no such message."}, 404)
        if len(events) != 1:
            return answer({"error": "Send one argument: an event or an array of them."}, 400)
        return self._post(events[0])

    def _post(self, body: bytes, size: int | None = None) -> AnyResponse:
        # RATE_LIMIT limits posts, so give back the frames, of which there may have been two.
        self._websocket.give_back(2)
        posted: dict[str, Any] = self._sender | {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/events",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body) if size is None else size),
            "wsgi.input": BytesIO(body),
        }
        return AnyResponse.from_app(self._app.wsgi_app, posted)

    def _send(self, packet: _Packet) -> None:
        self._websocket.send(Frame(engineio.packet.MESSAGE, packet.encode()).encode())


_change = threading.Lock()
_placed: dict[_Client, None] = {}
"""The clients that have a place, the oldest first."""


def _take_place(client: _Client) -> bool:
    with _change:
        if not _places.take(client.address):
            loser = _places.take_over(client.address)
            if loser is None:
                return False
            oldest = next(other for other in _placed if other.network == loser)
            del _placed[oldest]
            oldest.drop()
        _placed[client] = None
        return True


def _leave_place(client: _Client) -> None:
    with _change:
        if client in _placed:
            del _placed[client]
            _places.leave(client.address)

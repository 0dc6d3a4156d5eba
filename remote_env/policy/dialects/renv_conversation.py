"""What a policy server says to a client that has proved itself (docs/protocol.md, "Policies")."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from typing import Any

from remote_env.errors import InputError, ProtocolError, RemoteEnvError
from remote_env.policy.dialects.renv_features import infer_codec
from remote_env.policy.dialects.renv_places import Place, Places
from remote_env.policy.policy import Chunk
from remote_env.policy.server.runner import Room
from remote_env.policy.server.service import ServeContext
from remote_env.protocol import codec, frames
from remote_env.protocol.coding import available_coders
from remote_env.protocol.frames import Buffer, FrameStream, Header
from remote_env.protocol.handshake import pack_link
from remote_env.protocol.inference import Request, decode_coded
from remote_env.protocol.repeated_inference import RepeatedRequest, RepeatedResult

WELCOME_TIMEOUT_S = 10.0
TRANSFER_TIMEOUT_S = 60.0  # for the rest of a message that has begun, in either direction
MAX_TRACEBACK_LENGTH = 100_000


# A request: its frame's type and number, what it holds, and when it had come [monotonic s]. An INFER holds the
# observation, the episodes, and whether it is plain: known to be what the policy takes.
_Received = tuple[int, int, Any, float]


class Conversation:
    """One connection's requests and replies."""

    def __init__(self, stream: FrameStream, place: Place, places: Places, context: ServeContext) -> None:
        self._stream, self._place, self._places, self._context = stream, place, places, context
        self._served = place.served
        self._max_bytes = min(context.max_message_bytes, frames.MAX_PAYLOAD_SIZE)
        self._limits = codec.Limits(max_payload_bytes=self._max_bytes, max_array_bytes=self._max_bytes)
        self._codec = infer_codec(self._served.metadata, self._max_bytes)
        self._repeated: RepeatedRequest | None = None  # the last INFER, when it was small
        self._like: RepeatedResult | None = None  # likewise the last reply to one
        self._room: Room | None = None  # in that reply

    def run(self, *, resumed: bool) -> None:
        """Say WELCOME, then answer until the client says CLOSE.

        Raises:
            RemoteEnvError: the link ended, or what came is no frame of this protocol.
        """
        self._welcome(resumed=resumed)
        stream, place, stopping = self._stream, self._place, self._context.stopping
        idle_timeout_s, monotonic = self._context.idle_timeout_s, time.monotonic
        while True:
            repeated = self._repeated
            if repeated is not None and (number := stream.recv_shaped(repeated.shape, monotonic() + idle_timeout_s)):
                kind, began = frames.INFER, monotonic()
                observation = repeated.read(stream.body)
                content = self._read_again(repeated) if observation is None else (observation, repeated.episodes, True)
            elif (received := self._receive()) is not None:
                kind, number, content, began = received
            else:
                return
            reply = place.claim(number, stopping)
            if reply is None:
                reply = ()
                try:
                    reply = self._reply(kind, number, content, began)
                finally:
                    place.answer(reply)
            stream.send(reply[0], monotonic() + TRANSFER_TIMEOUT_S, reply[1:])

    def _welcome(self, *, resumed: bool) -> None:
        fields = {
            "metadata": self._served.metadata.to_plain(),
            "instance": self._places.instance,
            "resumed": resumed,
            "coders": available_coders(),
            "max_message_bytes": self._max_bytes,
            "clients": self._places.connected - 1,
        }
        self._stream.send(pack_link(frames.WELCOME, fields), time.monotonic() + WELCOME_TIMEOUT_S)

    def _read_again(self, repeated: RepeatedRequest) -> Any:
        """What an INFER holds that is as long as the last one, and not just like it."""
        shape, body = repeated.shape, self._stream.body
        observation, episodes, _ = self._codec.read_request(shape.header, body, frames.HEADER_SIZE, shape.size)
        return observation, episodes, False

    def _receive(self) -> _Received | None:
        """The next request; None when the client leaves."""
        header = self._stream.recv(time.monotonic() + self._context.idle_timeout_s)
        began = time.monotonic()
        if header.type == frames.CLOSE:
            return None
        return header.type, header.sequence, self._read(header, began + TRANSFER_TIMEOUT_S), began

    def _read(self, header: Header, deadline: float) -> Any:
        """A request's content; all of its bytes are consumed."""
        if header.type == frames.INFER:
            return self._read_infer(header, deadline)
        if header.type not in (frames.POLICY_RESET, frames.POLICY_INFO):
            raise ProtocolError(f"a policy server takes no {frames.NAMES.get(header.type, header.type)}")
        value, views = codec.decode(self._stream.body_bytes(), header.payload_size, self._limits)
        self._stream.fill(views, deadline)
        if header.type == frames.POLICY_RESET and not _are_episodes(value):
            raise ProtocolError("a POLICY_RESET takes a list of names, or None")
        return value

    def _read_infer(self, header: Header, deadline: float) -> Any:
        stream = self._stream
        start, end = stream.body_start, stream.body_end
        observation, episodes, views = self._codec.read_request(header, stream.body, start, end)
        if views:
            stream.fill(views, deadline)
        elif len(observation) == self._codec.arrays:
            frame = stream.body[start - frames.HEADER_SIZE : end]
            self._repeated = self._codec.repeat(frame, header.flags, header.payload_size, episodes)
        return observation, episodes, False

    def _reply(self, kind: int, number: int, content: Any, began: float) -> Sequence[Buffer]:
        """Run a request that was claimed; its reply."""
        try:
            if kind == frames.INFER:
                observation, episodes, is_plain = content
                like, room, answer = self._like, self._room, None
                if is_plain and like is not None and room is not None and len(episodes) == 1:
                    answer = self._served.infer_at_once(observation, episodes, room, began)
                    if answer is not None and answer[0] is room.actions:
                        like.seal(answer[1], number)
                        return like.reply
                return self._infer(number, content, began, answer)
            return _value_reply(frames.RESULT, self._answer(kind, content), number)
        except Exception as error:  # noqa: BLE001  whatever it is, the client is told
            return _value_reply(frames.ERROR, _describe(error), number)

    def _infer(self, number: int, content: Any, began: float, answer: tuple[Chunk, float] | None) -> Sequence[Buffer]:
        """The reply to an INFER whose actions and seconds may be there already."""
        observation, episodes, is_plain = content
        like = self._like
        if answer is None:
            if not is_plain:
                observation = decode_coded(observation, max_bytes=self._max_bytes)
            chunk = self._served.infer(observation, episodes)
            seconds = time.monotonic() - began
        else:
            chunk, seconds = answer
        if like is not None and like.fill(chunk, seconds, number) is not None:
            return like.reply
        result = self._codec.pack_result(chunk, seconds)
        result.seal(frames.RESULT, number, number)
        # The frame is filled anew by the next request, when nobody needs this reply any more.
        self._like = like = self._codec.repeat_result(result.frame, result.flags, result.payload_size)
        self._room = Room.of(like.actions) if like is not None else None
        return (result.frame, *result.payload)

    def _answer(self, kind: int, content: Any) -> Any:
        if kind == frames.POLICY_RESET:
            self._served.reset(content)
            return None
        return {
            "requests": self._served.count,
            "clients": self._places.connected - 1,
            "metadata": self._served.metadata.to_plain(),
        }


def _value_reply(kind: int, value: Any, number: int) -> Sequence[Buffer]:
    body, payload = codec.encode(value, where="reply")
    reply = Request(bytearray(frames.HEADER_SIZE) + body, frames.TAIL, payload)
    reply.seal(kind, number, number)
    return (reply.frame, *payload)


def _describe(error: Exception) -> dict[str, str]:
    """An ERROR's dict."""
    text = getattr(error, "remote_traceback", "") or "".join(traceback.format_exception(error))
    is_input = isinstance(error, (InputError, ProtocolError))  # the latter: of coded arrays
    message = str(error) if isinstance(error, RemoteEnvError) else f"{type(error).__name__}: {error}"
    kind = "InputError" if is_input else "PolicyError"
    return {"kind": kind, "message": message, "traceback": text[-MAX_TRACEBACK_LENGTH:]}


def _are_episodes(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))

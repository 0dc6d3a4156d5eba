"""A client's half of a session, raw: it does what it is told, in order or not."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

from remote_env.protocol import codec
from remote_env.spaces import space_from_plain
from remote_env.testing import raw_link
from remote_env.testing.checks import CheckFailed, expect
from remote_env.testing.raw_link import Frame, RawLink, prove

START_TIMEOUT_S = 180.0  # of a simulator that is still being built


class RawServer:
    """Where the task server is, and how one proves to be its client.

    Args:
        address: host and port, or the path of a Unix socket.
        token: the shared secret.
    """

    def __init__(self, address: tuple[str, int] | str, token: str) -> None:
        self.address, self.token = address, token

    def connect(self) -> RawLink:
        """A bare connection.

        Raises:
            CheckFailed: it was accepted, and reset before anything was said.
            OSError: nothing answers there.
        """
        try:
            return RawLink(self._dial())
        except ConnectionResetError as error:
            raise CheckFailed("the connection was closed where CHALLENGE was due") from error

    def _dial(self) -> socket.socket:
        if isinstance(self.address, str):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(raw_link.PATIENCE_S)
            sock.connect(self.address)
        else:
            sock = socket.create_connection(self.address, timeout=raw_link.PATIENCE_S)
        return sock

    def shake_hands(self, role: str, *, key: str | None = None, **fields: Any) -> tuple[RawLink, dict[str, str]]:
        """A connection on which both have proved themselves, up to the answer; and the nonces of both.

        Args:
            role: "control" or "data".
            key: the session's secret, when the connection is of a session that has one.
            fields: what else HELLO says.
        """
        link = self.connect()
        try:
            nonces = {"client": raw_link.new_nonce()}
            link.send(raw_link.pack_link(raw_link.HELLO, {"role": role, "nonce": nonces["client"], **fields}))
            challenge = link.expect_type(raw_link.CHALLENGE).fields
            nonces["server"] = str(challenge.get("nonce"))
            expected = prove(self.token, "server", role, nonces["client"], nonces["server"])
            expect(challenge.get("proof") == expected, "the proof in CHALLENGE is not the server's of this token")
            proofs = {"proof": prove(self.token, "client", role, nonces["client"], nonces["server"])}
            if key is not None:
                parts = (role, nonces["client"], nonces["server"], str(fields["session"]))
                proofs["session_proof"] = prove(key, "client", *parts)
            link.send(raw_link.pack_link(raw_link.PROOF, proofs))
        except BaseException:
            link.close()
            raise
        return link, nonces


class RawSession:
    """One client's hold on one simulator.

    Args:
        server: which one.
        fields: what else its first HELLO says, such as `resume_s`.

    Attributes:
        control: its control connection.
        data: its data connection, once joined.
        id: which the server gave it.
        key: its secret, as both ends derive it.
        epoch: of its frames; known with READY.
        ready: what READY says.
        sequence: of the last request.
        received: of the last reply that was received.
    """

    def __init__(self, server: RawServer, **fields: Any) -> None:
        self._server = server
        self.control, nonces = server.shake_hands("control", session="new", client="check_task_server", **fields)
        self.data: RawLink | None = None
        self.ready: dict[str, Any] = {}
        self.epoch = self.sequence = self.received = 0
        try:
            self.welcome = self.control.expect_type(raw_link.WELCOME).fields
            self.id = str(self.welcome.get("session"))
            self.key = prove(server.token, "session", self.id, nonces["client"], nonces["server"])
        except BaseException:
            self.control.close()
            raise

    def __enter__(self) -> RawSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """End it at once, so that the next one finds the simulator free."""
        self.control.send_quietly(raw_link.pack_link(raw_link.LEAVE, {"session": self.id}, sequence=999))
        with contextlib.suppress(CheckFailed):  # what went wrong before tells more
            while (frame := self.control.recv_or_end("the answer to LEAVE")) and frame.type != raw_link.REPLY:
                pass
        self.control.close()
        if self.data is not None:
            self.data.close()

    def wait_ready(self) -> None:
        """Return once its simulator is ready."""
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until:
            event = self.control.expect_type(raw_link.EVENT).fields
            if event.get("state") == "ready":
                return
            if event.get("state") in ("failed", "dead"):
                raise CheckFailed(f"the simulator is {event.get('state')}: {event.get('message') or event.get('why')}")
        raise CheckFailed(f"no EVENT said `ready` within {START_TIMEOUT_S:g} s")

    def open_data(self, resume: int | None) -> RawLink:
        """A new data connection, up to the answer to its PROOF."""
        link, _ = self._server.shake_hands("data", key=self.key, session=self.id, resume=resume)
        return link

    def begin(self) -> RawSession:
        """Wait for the simulator and join it, as the session's first data connection."""
        self.wait_ready()
        self.data = self.open_data(None)
        self.data.expect_type(raw_link.WELCOME)
        ready = self.data.expect_type(raw_link.READY)
        expect(ready.epoch > 0, "the epoch of READY is 0")
        self.epoch, self.ready = ready.epoch, self.read_tail(ready)
        return self

    def resume(self, received: int | None = None) -> Frame:
        """Join again as a client that has received so much; RESUMED, behind which missed replies come."""
        received = self.received if received is None else received
        if self.data is not None:
            self.data.close()
        self.data = self.open_data(received)
        self.data.expect_type(raw_link.WELCOME)
        resumed = self.data.expect_type(raw_link.RESUMED)
        expect(resumed.epoch == self.epoch, f"RESUMED is of epoch {resumed.epoch}, the session of {self.epoch}")
        said = (resumed.acknowledged, resumed.body, resumed.payload)
        expect(said == (received, b"", b""), f"RESUMED says {said}; acknowledged {received} and nothing else was due")
        return resumed

    def pack(self, kind: int, value: Any, *, flags: int = 0, acknowledged: int | None = None) -> bytes:
        """The next request."""
        self.sequence += 1
        return self.pack_as(self.sequence, kind, value, flags=flags, acknowledged=acknowledged)

    def pack_as(
        self, sequence: int, kind: int, value: Any, *, flags: int = 0, acknowledged: int | None = None, epoch: int = 0
    ) -> bytes:
        """A request of any number."""
        body, arrays = codec.encode(value, where="request")
        acknowledged = self.received if acknowledged is None else acknowledged
        numbers = {"epoch": epoch or self.epoch, "sequence": sequence, "acknowledged": acknowledged}
        return raw_link.pack(kind, bytes(body), b"".join(map(bytes, arrays)), flags=flags, **numbers)

    def ask(self, kind: int, value: Any, *, flags: int = 0) -> Frame:
        """The reply to the next request."""
        self.link.send(self.pack(kind, value, flags=flags))
        return self.receive()

    def receive(self) -> Frame:
        """The next reply, which must be to the request after the last reply."""
        reply = self.link.recv("a reply")
        due = self.received + 1
        expect(reply.type in (raw_link.RESULT, raw_link.ERROR), f"{reply.name} came where a reply was due")
        expect(reply.sequence == due, f"a reply to request {reply.sequence} came where {due} was due")
        expect(reply.acknowledged == due, f"the reply to request {due} repeats {reply.acknowledged} as acknowledged")
        expect(reply.epoch == self.epoch, f"a reply of epoch {reply.epoch} came in epoch {self.epoch}")
        self.received = due
        return reply

    @property
    def link(self) -> RawLink:
        """The data connection."""
        if self.data is None:
            raise CheckFailed("there is no data connection")
        return self.data

    def reset(self, seed: int = 0) -> Frame:
        """The RESULT of a reset."""
        return self.expect_result(self.ask(raw_link.RESET, (seed, None)), "RESET")

    def step(self) -> Frame:
        """The RESULT of a step with the next action."""
        return self.expect_result(self.ask(raw_link.STEP, self.action()), "STEP")

    def expect_result(self, reply: Frame, what: str) -> Frame:
        """This reply, which must be a RESULT."""
        told = self.error(reply) if reply.type == raw_link.ERROR else {}
        expect(reply.type == raw_link.RESULT, f"{what} was answered {told.get('kind')}: {told.get('message')}")
        return reply

    def action(self) -> Any:
        """An action of the task's space, the same each time."""
        space = space_from_plain(self.ready["action_space"])
        space.seed(0)
        return space.sample()

    def read_tail(self, frame: Frame) -> Any:
        """The value of a frame that is nothing but a value."""
        expect(frame.flags == raw_link.TAIL, f"{frame.name} has the flags {frame.flags}, not TAIL alone")
        value, views = codec.decode(frame.body, len(frame.payload))
        at = 0
        for view in views:
            view[:] = frame.payload[at : at + len(view)]
            at += len(view)
        return value

    def error(self, frame: Frame) -> dict[str, Any]:
        """What an ERROR says."""
        expect(frame.type == raw_link.ERROR, f"{frame.name} came where an ERROR was due")
        fields = self.read_tail(frame)
        missing = {"kind", "type", "message", "traceback", "during"} - set(fields)
        expect(not missing, f"ERROR lacks {', '.join(sorted(missing))}")
        return dict(fields)

"""A task server that keeps the protocol and fails by plan, to see what a client does. It serves a small counting task.

The task observes how many steps the episode has had: (1,) float64. Its actions are (2,) float64 within ±1.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from remote_env.protocol import codec
from remote_env.spaces import space_to_plain
from remote_env.testing import raw_link
from remote_env.testing.checks import CheckFailed
from remote_env.testing.raw_link import Frame, RawLink, new_nonce, pack, pack_link, prove

EPOCH = 7
_TRANSITION = struct.Struct("<dBBd")  # reward, its type, flags, the observation
_OBSERVATION = struct.Struct("<d")
_OBSERVATION_SPACE, _ACTION_SPACE = spaces.Box(0, np.inf, (1,), np.float64), spaces.Box(-1, 1, (2,), np.float64)


class Trouble(NamedTuple):
    """What happens to one request, once.

    Attributes:
        what: "lose request" (it arrived and was not taken), "lose reply", "part of reply", "flip" (a bit of the reply),
            "old reply" (an earlier one instead), "foreign reply" (of another epoch), "silence" (nothing is said on the
            connections of this moment any more).
        at: the byte that a part ends before, or whose bit is turned; negative ones count from the end.
        control_too: the control connection is cut as well.
    """

    what: str
    at: int = 0
    control_too: bool = False


class ScriptedServer:
    """Listens on a port of loopback, for one session.

    Args:
        token: the shared secret.
        troubles: what happens to which request.

    Attributes:
        address: host and port.
        turns_away: how many of the next connections are closed at once.
        knows_token: whether it can prove that it has the token; a client must notice.
        version: that its frames are of.
        is_silent: connections are accepted and nothing is answered.
        why_ended: when set, sessions have ended, and who comes back is told why.
        claims: what RESUMED says instead of the truth.
        requests: all that came on data connections: the connection's number, and the frame.
        resumes: of each RESUMED: what the client said, and what it was told.
        joined: how many data connections were welcomed; taken_back: how often the control connection was.
        faults: what the client did that it must not.
        left: it has ended its session.
        steps: run in this episode.
        taken: the last request.
    """

    def __init__(self, token: str, troubles: dict[int, Trouble] | None = None) -> None:
        self._token, self._troubles = token, troubles or {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.turns_away, self.knows_token, self.is_silent, self.left = 0, True, False, False
        self.version = raw_link.VERSION
        self.why_ended = ""
        self.claims: int | None = None
        self.requests: list[tuple[int, Frame]] = []
        self.resumes: list[tuple[int, int]] = []
        self.joined = self.taken_back = self.steps = self.taken = 0
        self.faults: list[str] = []
        self._replies: dict[int, bytes] = {}
        self._id, self._key, self._nonces = "", "", set[str]()
        self._links: dict[str, RawLink] = {}
        self._open: list[RawLink] = []
        self._mute: list[RawLink] = []
        self._mutex = threading.RLock()
        self._threads = [threading.Thread(target=self._accept_all, name="scripted server", daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        self.vanish()
        for thread in self._threads:
            thread.join(raw_link.PATIENCE_S)

    def vanish(self) -> None:
        """Close the port and every connection, as a machine that stops the program does."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Close every connection."""
        with self._mutex:
            for link in self._open:
                link.close()
            self._open.clear()

    def _accept_all(self) -> None:
        while True:
            try:
                sock = self._listener.accept()[0]
            except OSError:
                return
            if self.turns_away > 0:
                self.turns_away -= 1
                sock.close()
                continue
            link = RawLink(sock)
            with self._mutex:
                self._open.append(link)
            self._threads.append(threading.Thread(target=self._serve, args=(link,), daemon=True))
            self._threads[-1].start()

    def _serve(self, link: RawLink) -> None:
        try:
            if not self.is_silent:
                self._greet(link)
            else:
                link.recv_or_end("anything, or the end")
        except CheckFailed as error:
            self.faults.append(str(error))
        finally:
            if not self.is_silent:
                link.close()

    # The handshake

    def _greet(self, link: RawLink) -> None:
        hello = link.recv_or_end("HELLO")
        if hello is None:
            return
        fields, role = hello.fields, str(hello.fields.get("role"))
        theirs, ours = str(fields.get("nonce")), new_nonce()
        self._expect(hello.type == raw_link.HELLO, f"a connection began with {hello.name}")
        self._expect(len(theirs) == 64 and theirs not in self._nonces, f"the nonce {theirs[:80]!r} is no fresh one")
        self._nonces.add(theirs)
        proof = prove(self._token if self.knows_token else "x" * 64, "server", role, theirs, ours)
        link.send_quietly(pack_link(raw_link.CHALLENGE, {"nonce": ours, "proof": proof}, version=self.version))
        answer = link.recv_or_end("PROOF")
        if answer is None:
            return
        honest = self.knows_token and self.version == raw_link.VERSION
        self._expect(honest, f"{answer.name} was sent to a server that proved nothing")
        due = prove(self._token, "client", role, theirs, ours)
        self._expect(answer.fields.get("proof") == due, "the proof in PROOF is not that of the token")
        if role == "data":
            self._expect_owner(fields, answer.fields, theirs, ours)
            self._serve_data(link, fields)
        else:
            self._serve_control(link, fields, answer.fields, theirs, ours)

    def _expect(self, is_so: object, otherwise: str) -> None:
        if not is_so:
            raise CheckFailed(otherwise)

    def _expect_owner(self, fields: dict[str, Any], proofs: dict[str, Any], theirs: str, ours: str) -> None:
        self._expect(fields.get("session") == self._id, f"it names the session {fields.get('session')}")
        due = prove(self._key, "client", str(fields["role"]), theirs, ours, self._id)
        self._expect(proofs.get("session_proof") == due, "the session_proof in PROOF is not that of the session")

    # Control connections

    def _serve_control(
        self, link: RawLink, fields: dict[str, Any], proofs: dict[str, Any], theirs: str, ours: str
    ) -> None:
        named = fields.get("session")
        facts = {
            "task": "counting",
            "digest": "",
            "setup": "",
            "id": "scripted",
            "pid": 1,
            "log_size": 0,
            "problems": 0,
        }
        if named == "new":
            self._id = new_nonce()[:16]
            self._key = prove(self._token, "session", self._id, theirs, ours)
            facts |= {"session": self._id, "resume_s": fields.get("resume_s", 0)}
        elif named is not None:
            self._expect_owner(fields, proofs, theirs, ours)
            if self._refuse_ended(link):
                return
            self.taken_back += 1
            facts["session"] = self._id
        link.send_quietly(pack_link(raw_link.WELCOME, facts))
        if named is not None:
            self._links["control"] = link
            link.send_quietly(pack_link(raw_link.EVENT, self._status()))
        while (asked := link.recv_or_end("a question")) is not None:
            if asked.type == raw_link.LEAVE:
                self.left = True
            # Of a PING the problems themselves, of a STATUS their number.
            answer = {**self._status(), "problems": [] if asked.type == raw_link.PING else 0}
            if link not in self._mute:
                link.send_quietly(pack_link(raw_link.REPLY, answer, sequence=asked.sequence))

    def _status(self) -> dict[str, Any]:
        server = {"sessions": 1, "max_sessions": 1, "holders": [], "idle_s": 0, "idle_timeout_s": 60, "kept": False}
        task = {"state": "ready", "call": "nothing", "since_s": 0.0, "pid": 1, "age_s": 1.0, "steps": 0, "resets": 0}
        return {
            **server,
            **task,
            "uptime_s": 1.0,
            "last_line": "",
            "log_size": 0,
            "log_tail": "",
            "text": "",
            "next": 0,
        }

    def _refuse_ended(self, link: RawLink) -> bool:
        if self.why_ended:
            link.send_quietly(pack_link(raw_link.REFUSED, {"kind": "ended", "message": self.why_ended}))
        return bool(self.why_ended)

    # Data connections

    def _serve_data(self, link: RawLink, fields: dict[str, Any]) -> None:
        if self._refuse_ended(link):
            return
        with self._mutex:
            self.joined += 1
            number, before = self.joined, self._links.get("data")
            self._links["data"] = link
        if before is not None:
            before.close()
        link.send_quietly(pack_link(raw_link.WELCOME, {"session": self._id}))
        self._join(link, fields.get("resume"))
        while (request := link.recv_or_end("a request")) is not None and request.type != raw_link.CLOSE:
            self.requests.append((number, request))
            if not self._answer(link, request):
                return

    def _join(self, link: RawLink, resume: Any) -> None:
        if resume is None:
            self._expect(not self.taken, "it began its session anew")
            body, _ = codec.encode(_describe(), where="READY")
            link.send_quietly(pack(raw_link.READY, bytes(body), flags=raw_link.TAIL, epoch=EPOCH))
            return
        told = self.taken if self.claims is None else self.claims
        self._expect(isinstance(resume, int) and resume <= self.taken, f"it resumes from {resume} of {self.taken}")
        self.resumes.append((resume, told))
        resumed = pack(raw_link.RESUMED, epoch=EPOCH, sequence=told, acknowledged=resume)
        link.send_quietly(resumed + b"".join(self._replies[each] for each in range(resume + 1, self.taken + 1)))

    def _answer(self, link: RawLink, request: Frame) -> bool:
        """Run a request and reply; whether the connection goes on."""
        due, trouble = self.taken + 1, self._troubles.pop(request.sequence, None)
        self._expect(request.sequence == due, f"request {request.sequence} came where {due} was due")
        self._expect(request.epoch == EPOCH, f"a request of epoch {request.epoch} came in epoch {EPOCH}")
        self._expect(request.acknowledged <= self.taken, f"reply {request.acknowledged} was never sent")
        if trouble is None or trouble.what != "lose request":
            self._replies[due] = self._run(request)
            self.taken = due
        if trouble is None:
            link.send_quietly(self._replies[due])
            return True
        if trouble.control_too:
            self._links["control"].close()
        self._send_in_trouble(link, due, trouble)
        return False

    def _send_in_trouble(self, link: RawLink, number: int, trouble: Trouble) -> None:
        reply = bytearray(self._replies.get(number, b""))
        if trouble.what == "part of reply":
            link.send_quietly(bytes(reply[: trouble.at]))
        elif trouble.what == "flip":
            reply[trouble.at] ^= 4
            self._send_and_wait(link, bytes(reply))
        elif trouble.what == "silence":
            with self._mutex:
                self._mute = list(self._open)
            self._send_and_wait(link, b"")
        elif trouble.what == "old reply":
            self._send_and_wait(link, self._replies[number - 1])
        elif trouble.what == "foreign reply":
            foreign = _reply(raw_link.RESULT, bytes(reply[raw_link.HEADER.size :]), raw_link.FIXED, number, EPOCH + 1)
            self._send_and_wait(link, foreign)

    def _send_and_wait(self, link: RawLink, data: bytes) -> None:
        """Send what the client must not accept; it is to end the connection."""
        link.send_quietly(data)
        frame = link.recv_or_end("the end of the connection")
        if frame is not None and frame.type != raw_link.CLOSE:
            self.faults.append(f"{frame.name} {frame.sequence} came behind a reply that had to end the connection")

    def _run(self, request: Frame) -> bytes:
        if request.type == raw_link.RESET:
            self.steps = 0
            return _reply(raw_link.RESULT, _OBSERVATION.pack(0.0), raw_link.FIXED, request.sequence)
        if request.type == raw_link.STEP:
            self.steps += 1
            body = _TRANSITION.pack(float(self.steps), 0, 0, float(self.steps))
            return _reply(raw_link.RESULT, body, raw_link.FIXED, request.sequence)
        error = {"kind": "Unsupported", "type": "Unsupported", "message": "a scripted server has no such thing"}
        body, _ = codec.encode({**error, "traceback": "", "during": ""}, where="ERROR")
        return _reply(raw_link.ERROR, bytes(body), raw_link.TAIL, request.sequence)


def _reply(kind: int, body: bytes, flags: int, number: int, epoch: int = EPOCH) -> bytes:
    return pack(kind, body, flags=flags, epoch=epoch, sequence=number, acknowledged=number)


def _describe() -> dict[str, Any]:
    return {
        "observation_space": space_to_plain(_OBSERVATION_SPACE),
        "action_space": space_to_plain(_ACTION_SPACE),
        "metadata": {"render_modes": []},
        "render_mode": None,
        "spec": {"id": "counting"},
        "callable_names": [],
        "facts": {},
        "ledger_bytes": 64 << 20,
    }

"""What a task server promises to connections that prove themselves, and does with those that do not."""

from __future__ import annotations

import json
import re
from typing import Any

from remote_env.testing import raw_link
from remote_env.testing.checks import expect
from remote_env.testing.raw_link import HELLO, PROOF, WELCOME, RawLink, new_nonce, pack, pack_link, prove
from remote_env.testing.raw_session import RawServer

STRANGER_LIMIT, CLIENT_LIMIT = 16 << 10, 64 << 10  # of a body, before and after its sender has proved itself


def _greet(link: RawLink, role: str = "control", **fields: Any) -> dict[str, str]:
    """Send a good HELLO; the nonces, and the server's proof."""
    nonce = new_nonce()
    link.send(pack_link(HELLO, {"role": role, "nonce": nonce, "session": None, "client": "checker", **fields}))
    challenge = link.expect_type(raw_link.CHALLENGE).fields
    return {"client": nonce, "server": str(challenge.get("nonce")), "proof": str(challenge.get("proof"))}


def _must_still_serve(server: RawServer) -> None:
    link, _ = server.shake_hands("control", session=None, client="checker")
    with link:
        link.expect_type(WELCOME)


def _proves_itself(server: RawServer) -> None:
    """The server proves that it has the token, under a nonce of 64 hexadecimal digits that is new each time."""
    seen = []
    for role in ("control", "control", "data"):
        with server.connect() as link:
            nonces = _greet(link, role)
            expect(re.fullmatch("[0-9a-f]{64}", nonces["server"]), f"its nonce is {nonces['server'][:80]!r}")
            due = prove(server.token, "server", role, nonces["client"], nonces["server"])
            expect(nonces["proof"] == due, f"its proof for the role {role} is not the HMAC of this token")
            seen.append(nonces["server"])
    expect(len(set(seen)) == 3, "the same nonce came twice")


def _welcomes(server: RawServer) -> None:
    """WELCOME of a control connection says which task and server this is, and no secret."""
    link, _ = server.shake_hands("control", session=None, client="checker")
    with link:
        fields = link.expect_type(WELCOME).fields
    missing = {"task", "digest", "setup", "id", "pid", "log_size", "problems"} - set(fields)
    expect(not missing, f"WELCOME lacks {', '.join(sorted(missing))}")
    expect("session" not in fields, "WELCOME names a session, and none was asked for")
    expect(server.token not in json.dumps(fields), "WELCOME holds the token")


def _refuses_wrong_proofs(server: RawServer) -> None:
    """A client that does not prove that it has the token is REFUSED, kind auth, whatever it sends for a proof."""
    for kind in ("another token's", "the server's own", "of another role", "none", "no text", "empty"):
        with server.connect() as link:
            nonces = _greet(link)
            both = (nonces["client"], nonces["server"])
            proofs: dict[str, Any] = {
                "another token's": prove("x" * 64, "client", "control", *both),
                "the server's own": nonces["proof"],
                "of another role": prove(server.token, "client", "data", *both),
                "none": None,
                "no text": 7,
                "empty": "",
            }
            link.send(pack_link(PROOF, {} if kind == "none" else {"proof": proofs[kind]}))
            link.expect_refusal("auth")
    _must_still_serve(server)


def _refuses_replayed_proofs(server: RawServer) -> None:
    """A handshake that was recorded is worth nothing on another connection."""
    with server.connect() as link:
        nonces = _greet(link)
        proof = pack_link(
            PROOF, {"proof": prove(server.token, "client", "control", nonces["client"], nonces["server"])}
        )
        link.send(proof)
        link.expect_type(WELCOME)
    with server.connect() as link:
        _greet(link, nonce=nonces["client"])
        link.send(proof)
        link.expect_refusal("auth")


def _tells_versions(server: RawServer) -> None:
    """A HELLO of another version is REFUSED, kind version, in a frame of the server's own that names both versions."""
    for version in (raw_link.VERSION - 1, raw_link.VERSION + 1, 255):
        with server.connect() as link:
            link.send(pack_link(HELLO, {"role": "control", "nonce": new_nonce(), "session": None}, version=version))
            message = link.expect_refusal("version")["message"]
        named = {int(number) for number in re.findall(r"\d+", message)}
        expect({version, raw_link.VERSION} <= named, f"its message names not both versions: {message!r}")


def _refuses_malformed(server: RawServer) -> None:
    """A first message that is no proper HELLO is REFUSED, kind protocol, and others are served all the same."""
    good = {"role": "control", "nonce": new_nonce(), "session": None, "client": "checker"}
    damaged = bytearray(pack_link(HELLO, good))
    damaged[-1] ^= 1
    for what in (
        bytes(damaged),
        pack_link(PROOF, {"proof": "0" * 64}),
        pack_link(99, good),
        pack(HELLO, b"not JSON"),
        pack(HELLO, b"\xff\xfe"),
        pack(HELLO, b"[1, 2]"),
        pack(HELLO, b'{"a":' * 5000),
        *(pack_link(HELLO, {**good, **wrong}) for wrong in ({"role": "policy"}, {"role": None}, {"role": ["control"]})),
        *(pack_link(HELLO, {**good, "nonce": wrong}) for wrong in ("", "0" * 63, "x" * 64, 7, None)),
    ):
        with server.connect() as link:
            link.send(what)
            link.expect_refusal("protocol")
    _must_still_serve(server)


def _survives_garbage(server: RawServer) -> None:
    """Bytes that are no frame end their connection, and no other."""
    bystander, _ = server.shake_hands("control", session=None, client="bystander")
    with bystander:
        bystander.expect_type(WELCOME)
        for what in (b"\xff" * 4096, bytes(4096), b"\x16\x03\x01" + bytes(500), b"RENV" + b"\xff" * 400, b"RENW" * 50):
            with server.connect() as link:
                link.send_quietly(what)
                link.expect_end_without(WELCOME, when="after garbage")
        bystander.send(pack_link(raw_link.PING, {}, sequence=5))
        expect(bystander.expect_type(raw_link.REPLY).sequence == 5, "the answer to a PING has another number")


def _bounds_strangers(server: RawServer) -> None:
    """Of who has proved nothing a body above 16 KiB, or a payload, is REFUSED, and nothing of it is waited for."""
    for body_size, payload_size in ((STRANGER_LIMIT + 1, 0), (0, 1), (0xFFFFFFFF, 0xFFFFFFFF)):
        with server.connect() as link:
            link.send(raw_link.announce(HELLO, body_size, payload_size))
            link.expect_refusal("protocol")
    _must_still_serve(server)


def _bounds_clients(server: RawServer) -> None:
    """A link message above 64 KiB, or with a payload, ends its connection also once its sender has proved itself."""
    for body_size, payload_size in ((CLIENT_LIMIT + 1, 0), (2, 1)):
        link, _ = server.shake_hands("control", session=None, client="checker")
        with link:
            link.expect_type(WELCOME)
            link.send(raw_link.announce(raw_link.PING, body_size, payload_size))
            link.expect_refusal("protocol")


def _answers_questions(server: RawServer) -> None:
    """STATUS, LOGS and PING are answered in order, each by a REPLY of its number; fields nobody knows are ignored."""
    link, _ = server.shake_hands("control", session=None, client="checker", colour="blue")
    with link:
        link.expect_type(WELCOME)
        for number, kind in enumerate((raw_link.STATUS, raw_link.PING, raw_link.LOGS, raw_link.STATUS), 41):
            link.send(pack_link(kind, {"colour": "blue"}, sequence=number))
        replies = [link.expect_type(raw_link.REPLY) for _ in range(4)]
    expect([reply.sequence for reply in replies] == [41, 42, 43, 44], "the replies are not of the questions' numbers")
    expect(all(reply.epoch == reply.flags == 0 for reply in replies), "a REPLY has flags, or an epoch")
    status = replies[0].fields
    expect(
        status.get("state") in ("starting", "ready", "busy", "failed", "dead"), f"its state is {status.get('state')}"
    )
    expect({"sessions", "max_sessions", "holders", "idle_s"} <= set(status), "the status says too little of the server")


def _refuses_unknown_questions(server: RawServer) -> None:
    """A message that has no place on a control connection is REFUSED, kind protocol."""
    for kind in (99, raw_link.STEP, HELLO, raw_link.REPLY):
        link, _ = server.shake_hands("control", session=None, client="checker")
        with link:
            link.expect_type(WELCOME)
            link.send(pack_link(kind, {}, sequence=1))
            link.expect_refusal("protocol")


def _refuses_unknown_sessions(server: RawServer) -> None:
    """Who names a session that is not there, or proves nothing of it, is REFUSED, kind auth."""
    for role in ("data", "control"):
        for key in (None, "0" * 64):
            link, _ = server.shake_hands(role, key=key, session="0" * 16, resume=None)
            with link:
                link.expect_refusal("auth")


def _is_healthy(server: RawServer) -> None:
    """GET /healthz is answered by HTTP on the same port, without authentication."""
    for method, status in (("GET", b"HTTP/1.1 "), ("HEAD", b"HTTP/1.1 ")):
        link = server.connect()
        with link:
            response = link.exchange_text(f"{method} /healthz HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        expect(response.startswith(status), f"{method} /healthz was answered {response[:60]!r}")
        expect(response[9:12] in (b"200", b"503"), f"{method} /healthz has the status {response[9:12]!r}")


def _drops_the_silent(server: RawServer) -> None:
    """A connection whose handshake takes longer than 10 s is closed, wherever in it the client falls silent."""
    links = [server.connect() for _ in range(4)]
    try:
        hello = pack_link(HELLO, {"role": "control", "nonce": new_nonce(), "session": None})
        links[1].send(hello[:1])
        links[2].send(hello[:-1])
        links[3].send(hello)
        links[3].expect_type(raw_link.CHALLENGE)
        for link in links:
            link.expect_end_without(WELCOME, when="after 10 s of silence")
    finally:
        for link in links:
            link.close()


HANDSHAKE_RULES = (
    *(_proves_itself, _welcomes, _refuses_wrong_proofs, _refuses_replayed_proofs, _tells_versions, _refuses_malformed),
    *(_survives_garbage, _bounds_strangers, _bounds_clients, _answers_questions, _refuses_unknown_questions),
    *(_refuses_unknown_sessions, _is_healthy),
)
PATIENT_RULES = (_drops_the_silent,)

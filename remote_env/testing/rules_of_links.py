"""What a task server promises when links break: nothing is lost, and nothing runs twice."""

from __future__ import annotations

import os

from remote_env.testing import raw_link
from remote_env.testing.checks import expect
from remote_env.testing.raw_link import CALL, ERROR, READY, RESET, RESULT, RESUMED, STEP, WELCOME, Frame
from remote_env.testing.raw_session import RawServer, RawSession

MOST_UNACKNOWLEDGED = 200  # replies that are sent to find the bound on them


def _open(server: RawServer) -> RawSession:
    """A session with an episode, kept when its links break."""
    session = RawSession(server, resume_s=60).begin()
    session.reset()
    return session


def _expect_settled(session: RawSession) -> None:
    """The session must go on, with no call too many and none too few, where its task counts them."""
    session.step()
    if "calls" not in session.ready["callable_names"]:
        return
    first = _count(session)
    session.step()
    expect(_count(session) == first + 1, "a step did not count once")


def _count(session: RawSession) -> int:
    return int(session.read_tail(session.expect_result(session.ask(CALL, ("calls", (), {})), "CALL")))


def _resumes(server: RawServer) -> None:
    """RESUMED says which request was taken last, and repeats what the client says it has received."""
    with _open(server) as session:
        for _ in range(3):
            session.step()
            taken = session.resume().sequence
            expect(taken == session.sequence, f"RESUMED says {taken}; {session.sequence} requests were answered")
        _expect_settled(session)


def _sends_replies_again(server: RawServer) -> None:
    """Replies that the client did not receive come again, byte for byte and in order, as often as it asks."""
    with _open(server) as session:
        known = session.received
        sent = b"".join(session.pack(STEP, session.action()) for _ in range(3))
        session.link.send(sent)
        replies = [session.receive().raw for _ in range(3)]
        for again in range(3):
            session.received = known
            expect(session.resume().sequence == session.sequence, "RESUMED forgot a request")
            for number, reply in enumerate(replies, known + 1):
                same = session.receive().raw == reply
                expect(same, f"the reply to request {number} came back changed, the {again + 1}. time")
        known += 2
        session.received = known
        session.resume()
        expect(session.receive().raw == replies[2], "what was not acknowledged did not come back")
        _expect_settled(session)


def _runs_once(server: RawServer) -> None:
    """A request whose connection ends before its reply comes is run once: at once, or when it is sent again."""
    with _open(server) as session:
        counts = "calls" in session.ready["callable_names"]
        before = _count(session) if counts else 0
        for _ in range(5):
            request = session.pack(STEP, session.action())
            session.link.send(request)
            taken = session.resume().sequence
            expect(taken in (session.sequence - 1, session.sequence), f"RESUMED says {taken} of {session.sequence}")
            if taken < session.sequence:
                session.link.send(request)
            session.expect_result(session.receive(), "STEP")
        expect(not counts or _count(session) == before + 5, "5 steps were not run once each")
        _expect_settled(session)


def _waits_for_whole_requests(server: RawServer) -> None:
    """A request of which only a part arrived is not taken, wherever it was cut, and runs when it is sent again."""
    with _open(server) as session:
        size = len(session.pack_as(1, STEP, session.action()))
        for count in (1, 39, 40, size - 1):
            request = session.pack(STEP, session.action())
            session.link.send(request[:count])
            taken = session.resume().sequence
            expect(taken == session.sequence - 1, f"after {count} of {size} bytes RESUMED says {taken}")
            session.link.send(request)
            session.expect_result(session.receive(), "STEP")
        _expect_settled(session)


def _expect_not_taken(session: RawSession, data: bytes, what: str) -> None:
    """These bytes must end the connection, unanswered; the session must be as it was."""
    session.link.send_quietly(data)
    session.link.expect_end_without(RESULT, ERROR, when=f"after {what}")
    taken = session.resume().sequence
    expect(taken == session.sequence, f"after {what} RESUMED says {taken}, {session.sequence} was due")


def _refuses_damage(server: RawServer) -> None:
    """A frame whose header or body is damaged ends the connection unanswered; the session goes on on another."""
    with _open(server) as session:
        request = session.pack_as(session.sequence + 1, STEP, session.action())
        for offset in (0, 5, 16, len(request) - 1):
            damaged = bytearray(request)
            damaged[offset] ^= 1
            _expect_not_taken(session, bytes(damaged), f"a bit of byte {offset} was turned")
        _expect_settled(session)


def _refuses_other_numbers(server: RawServer) -> None:
    """A request that is not the next one ends the connection unanswered: repeated, left out, or numbered 0."""
    with _open(server) as session:
        session.step()
        for number in (session.sequence, session.sequence + 2, 0, 1, 2**63):
            frame = session.pack_as(number, STEP, session.action())
            _expect_not_taken(session, frame, f"request {number} where {session.sequence + 1} was due")
        _expect_settled(session)


def _refuses_other_epochs(server: RawServer) -> None:
    """A frame of another session ends the connection unanswered."""
    with _open(server) as session:
        for epoch in (session.epoch + 1, 2**32 - 1):
            frame = session.pack_as(session.sequence + 1, STEP, session.action(), epoch=epoch)
            _expect_not_taken(session, frame, f"a frame of epoch {epoch}")
        _expect_settled(session)


def _refuses_wrong_acknowledgements(server: RawServer) -> None:
    """A request that acknowledges what was never sent, or less than an earlier one, ends the connection unanswered."""
    with _open(server) as session:
        session.step()
        session.step()
        for wrong in (session.sequence + 1, session.sequence - 2):
            frame = session.pack_as(session.sequence + 1, STEP, session.action(), acknowledged=wrong)
            _expect_not_taken(session, frame, f"an acknowledgement of {wrong} by request {session.sequence + 1}")
        _expect_settled(session)


def _takes_older_acknowledgements(server: RawServer) -> None:
    """A request that is sent again acknowledges what it did at first, which may be less than the resume said."""
    with _open(server) as session:
        first, second = (session.pack(STEP, session.action()) for _ in range(2))
        session.link.send(first + second[:-1])
        session.expect_result(session.receive(), "STEP")
        expect(session.resume().sequence == session.sequence - 1, "RESUMED says that half a request was taken")
        session.link.send(second)
        session.expect_result(session.receive(), "a STEP that was sent again")
        _expect_settled(session)


def _survives_garbage(server: RawServer) -> None:
    """Garbage, unknown messages and sizes above the limits end the data connection, and nothing else."""
    with _open(server) as session:
        number, epoch = session.sequence + 1, session.epoch
        for what, data in (
            ("random bytes", b"\xff" + os.urandom(4095)),
            ("an unknown message", session.pack_as(number, 63, None)),
            ("a link message", session.pack_as(number, raw_link.PING, None)),
            ("a body of 4 GiB", raw_link.announce(STEP, 2**32 - 1, epoch=epoch, sequence=number)),
            ("a payload of 4 GiB", raw_link.announce(STEP, 0, 2**32 - 1, epoch=epoch, sequence=number)),
            ("a body that is no value", raw_link.pack(RESET, b"\xc1", epoch=epoch, sequence=number)),
            ("an empty body", raw_link.pack(RESET, b"", epoch=epoch, sequence=number)),
            ("another version", raw_link.pack(RESET, b"\xc0", epoch=epoch, sequence=number, version=1)),
        ):
            _expect_not_taken(session, data, what)
        _expect_settled(session)


def _refuses_wrong_resumes(server: RawServer) -> None:
    """Who claims replies that were never sent, or forgets those it acknowledged, is not resumed, nor begun again."""
    with _open(server) as session:
        session.step()
        for claimed in (session.received + 1, session.received - 2, None, -1, True, "1"):
            with session.open_data(claimed) as link:  # type: ignore[arg-type]  # what an honest client never says
                link.expect_end_without(READY, RESUMED, when=f"after resume {claimed!r}")
        session.resume()
        _expect_settled(session)


def _begins_again(server: RawServer) -> None:
    """As long as no request of it was taken a session may begin again, or be resumed from 0."""
    with RawSession(server, resume_s=60).begin() as session:
        session.link.send(session.pack_as(1, RESET, (0, None))[:-1])
        session.link.close()
        session.data = session.open_data(None)
        session.data.expect_type(WELCOME)
        expect(session.data.expect_type(READY).epoch == session.epoch, "the session has another epoch now")
        expect(session.resume(0).sequence == 0, "RESUMED says that something was taken")
        session.reset()


def _bounds_its_ledger(server: RawServer) -> None:
    """Beyond `ledger_bytes` of unacknowledged replies no request is taken, until a resume acknowledges them."""
    with _open(server) as session:
        limit, size = int(session.ready["ledger_bytes"]), len(session.reset().raw)
        if limit / size > MOST_UNACKNOWLEDGED:
            return  # this task's replies are too small to fill it
        known, taken = session.received, 0
        while (reply := _ask_without_acknowledging(session, known)) is not None:
            taken += 1
            expect(taken * size <= limit + 2 * size, f"{taken} replies of {len(reply.raw)} bytes were kept")
        expect(taken * size > limit - 2 * size, f"it stopped at {taken} replies of {size} bytes")
        session.sequence -= 1
        expect(session.resume().sequence == session.sequence, "the request above the limit was taken")
        _expect_settled(session)


def _ask_without_acknowledging(session: RawSession, known: int) -> Frame | None:
    """The reply to a RESET; None when the connection ends instead."""
    session.link.send_quietly(session.pack(RESET, (0, None), acknowledged=known))
    reply = session.link.recv_or_end("a reply or the end")
    session.received += reply is not None
    return reply


def _replaces(server: RawServer) -> None:
    """A second data connection of a session replaces the first, which is shut down."""
    with _open(server) as session:
        first = session.link
        session.data = None
        session.resume()
        first.expect_end("after another data connection came")
        first.close()
        _expect_settled(session)


def _hides_its_secret(server: RawServer) -> None:
    """Only who has a session's secret may join it: not with another's, not with a recorded proof, not with none."""
    with _open(server) as session:
        for role in ("data", "control"):
            for key in (None, "0" * 64, server.token):
                link, _ = server.shake_hands(role, key=key, session=session.id, resume=session.received)
                with link:
                    link.expect_refusal("auth")
        session.step()  # its own connection has not noticed
        session.resume()
        _expect_settled(session)


def _is_taken_back(server: RawServer) -> None:
    """A session with `resume_s` survives both its connections: the control one is taken back, then the data one."""
    with _open(server) as session:
        session.step()
        for still_there in (False, True):
            if not still_there:
                session.control.close()
                session.link.close()
            old = session.control
            session.control, _ = server.shake_hands("control", key=session.key, session=session.id)
            welcome = session.control.expect_type(WELCOME).fields
            expect(welcome.get("session") == session.id, "WELCOME names another session")
            expect(session.resume().sequence == session.sequence, "RESUMED forgot a request")
            old.close()
            _expect_settled(session)


LINK_RULES = (
    *(_resumes, _sends_replies_again, _runs_once, _waits_for_whole_requests, _refuses_damage, _refuses_other_numbers),
    *(
        _refuses_other_epochs,
        _refuses_wrong_acknowledgements,
        _takes_older_acknowledgements,
        _survives_garbage,
        _refuses_wrong_resumes,
        _begins_again,
    ),
    *(_bounds_its_ledger, _replaces, _hides_its_secret, _is_taken_back),
)

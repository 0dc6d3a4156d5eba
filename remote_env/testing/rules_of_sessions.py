"""What a task server promises to a session: its requests and replies, its beginning and its end."""

from __future__ import annotations

import time

from remote_env.testing import raw_link
from remote_env.testing.checks import expect
from remote_env.testing.raw_link import CALL, CLOSE, ERROR, GET_STATE, RESET, STEP, WELCOME, Frame, pack_link
from remote_env.testing.raw_session import RawServer, RawSession

WINDOW = 8
MOST_STEPS = 400  # until an episode must have ended for that to be looked at
SHORT_S = 0.15


def _begins(server: RawServer) -> None:
    """A session begins: EVENTs until the simulator is ready, then a data connection with READY and its epoch."""
    with RawSession(server) as session:
        expect(session.id not in ("", "None"), "WELCOME names no session")
        hidden = {"secret", "key"} & set(session.welcome)
        expect(not hidden, f"WELCOME holds {hidden}: a session's secret never crosses the wire")
        session.begin()
        missing = {"observation_space", "action_space", "metadata", "render_mode", "spec", "callable_names", "facts"}
        missing -= set(session.ready)
        expect(not missing, f"READY lacks {', '.join(sorted(missing))}")


def _starts_fresh(server: RawServer) -> None:
    """A STEP in a session that has no episode yet is an ERROR of the kind InputError; the session stays open."""
    for _ in range(2):  # the second time the simulator may be one that another session has used
        with RawSession(server).begin() as session:
            error = session.error(session.ask(STEP, session.action()))
            expect(error["kind"] == "InputError", f"the kind was {error['kind']}: {error['message']}")
            session.reset()
            session.step()


def _counts_epochs(server: RawServer) -> None:
    """Each session has an epoch of its own, and a request recorded in an earlier one is not run in a later one."""
    with RawSession(server).begin() as first:
        recorded = first.pack(RESET, (0, None))
        first.link.send(recorded)
        first.receive()
    with RawSession(server).begin() as second:
        if first.epoch == second.epoch:  # one simulator is known by one connection's number only if there are several
            expect(_has_many_simulators(server), f"both sessions have the epoch {second.epoch}")
            return
        second.link.send(recorded)
        second.link.expect_end_without(raw_link.RESULT, when="after a request of another session")
        expect(second.resume().sequence == 0, "RESUMED says that it was taken")


def _has_many_simulators(server: RawServer) -> bool:
    link, _ = server.shake_hands("control", session=None, client="checker")
    with link:
        link.expect_type(WELCOME)
        link.send(pack_link(raw_link.STATUS, {}, sequence=1))
        return int(link.expect_type(raw_link.REPLY).fields.get("max_sessions", 1)) > 1


def _answers(server: RawServer) -> None:
    """Every request is answered by one RESULT or ERROR of its number and epoch; an ERROR leaves the session open."""
    with RawSession(server).begin() as session:
        session.reset()
        session.step()
        session.ask(GET_STATE, True)
        session.ask(raw_link.RENDER, None)
        error = session.error(session.ask(CALL, ("no such name", (), {})))
        expect(error["kind"] in ("InputError", "Unsupported"), f"a CALL of no open name is a {error['kind']}")
        session.reset(seed=1)
        session.step()


def _is_reproducible(server: RawServer) -> None:
    """RESET with a seed says FIXED, TAIL or both, and STEP with WANT_STATE carries a state or says why not."""
    with RawSession(server).begin() as session:
        reply = session.reset()
        expect(reply.flags & ~(raw_link.FIXED | raw_link.TAIL) == 0, f"RESULT of RESET has the flags {reply.flags}")
        reply = session.ask(STEP, session.action(), flags=raw_link.WANT_STATE)
        if reply.type == ERROR:
            expect(session.error(reply)["kind"] == "Unsupported", f"WANT_STATE gave {session.error(reply)}")
        else:
            expect(reply.flags & raw_link.STATE, f"RESULT of a STEP with WANT_STATE has the flags {reply.flags}")


def _pipelines(server: RawServer) -> None:
    """Requests may be sent before earlier ones are answered: each runs, in order, and is answered in order."""
    with RawSession(server).begin() as session:
        session.reset()
        names = [(CALL, ("metadata", (), {}))] * 3 + [(GET_STATE, False)] + [(STEP, session.action())]
        session.link.send(b"".join(session.pack(kind, value) for kind, value in names))
        for _ in names:
            session.receive()  # which looks at the numbers


def _runs_nothing_after_the_end(server: RawServer) -> None:
    """A STEP sent before its client could know that an earlier one ended the episode is not run: ERROR, kind NotRun."""
    with RawSession(server).begin() as session:
        if "num_envs" in session.welcome:
            return  # a batch goes on by itself
        session.reset()
        for _ in range(MOST_STEPS // WINDOW):
            session.link.send(b"".join(session.pack(STEP, session.action()) for _ in range(WINDOW)))
            replies = [session.receive() for _ in range(WINDOW)]
            ends = [_ends(session, reply) for reply in replies]
            if True not in ends:
                continue
            for reply in replies[ends.index(True) + 1 :]:
                kind = session.error(reply)["kind"] if reply.type == ERROR else "RESULT"
                expect(kind == "NotRun", f"a step behind the episode's end was answered {kind}")
            session.reset()
            session.step()
            return


def _ends(session: RawSession, reply: Frame) -> bool:
    """Whether this reply to a STEP shows the episode's end."""
    if reply.type == ERROR:
        return bool(session.error(reply)["kind"] != "NotRun")
    if reply.flags & raw_link.FIXED:
        return bool(reply.body[9] & 3)
    value = session.read_tail(reply)
    return bool(value["terminated"] or value["truncated"])


def _runs_nothing_after_an_error(server: RawServer) -> None:
    """A STEP sent before its client could know that an earlier request was answered ERROR is not run either."""
    with RawSession(server).begin() as session:
        session.reset()
        requests = (session.pack(CALL, ("no such name", (), {})), session.pack(STEP, session.action()))
        session.link.send(b"".join(requests))
        session.error(session.receive())
        kind = session.error(session.receive())["kind"]
        expect(kind == "NotRun", f"the step behind the ERROR was answered by one of the kind {kind}")
        session.step()


def _closes(server: RawServer) -> None:
    """CLOSE is not answered: the simulator closes the data connection."""
    with RawSession(server).begin() as session:
        session.reset()
        session.link.send(raw_link.pack(CLOSE, epoch=session.epoch, acknowledged=session.received))
        session.link.expect_end_without(raw_link.RESULT, ERROR, when="after CLOSE")


def _is_left(server: RawServer) -> None:
    """LEAVE ends a session at once: its data connection, and whoever comes back is REFUSED, kind ended, with why."""
    session = RawSession(server, resume_s=60).begin()
    session.reset()
    session.control.send(pack_link(raw_link.LEAVE, {}, sequence=3))
    session.link.expect_end("after LEAVE")
    _expect_ended(session, server)
    session.control.close()
    session.link.close()


def _ends_with_its_control(server: RawServer) -> None:
    """A session without `resume_s` ends with its control connection."""
    session = RawSession(server).begin()
    session.reset()
    session.control.close()
    session.link.expect_end("after the end of the control connection")
    _expect_ended(session, server)
    session.link.close()


def _expect_ended(session: RawSession, server: RawServer) -> None:
    for role in ("control", "data"):
        link, _ = server.shake_hands(role, key=session.key, session=session.id, resume=session.received)
        with link:
            link.expect_refusal("ended")


def _expires(server: RawServer) -> None:
    """A session is kept for `resume_s` without a control connection, and no longer."""
    session = RawSession(server, resume_s=SHORT_S).begin()
    session.reset()
    session.control.close()
    session.link.close()
    _wait_until_free(server)
    _expect_ended(session, server)


def _wait_until_free(server: RawServer) -> None:
    link, _ = server.shake_hands("control", session=None, client="checker")
    with link:
        link.expect_type(WELCOME)
        until = time.monotonic() + raw_link.PATIENCE_S
        while time.monotonic() < until:
            link.send(pack_link(raw_link.STATUS, {}, sequence=1))
            if not link.expect_type(raw_link.REPLY).fields["sessions"]:
                return
            time.sleep(SHORT_S / 10)
    expect(False, "the server still holds the session")


def _leases(server: RawServer) -> None:
    """With `lease_s` a session without a sign of life ends, after an EVENT of the kind lease."""
    session = RawSession(server, lease_s=SHORT_S)
    expect(session.welcome.get("lease_s") == SHORT_S, f"WELCOME says lease_s {session.welcome.get('lease_s')}")
    while (event := session.control.recv_or_end("an EVENT or the end")) is not None:
        last = event.fields
    expect((last.get("state"), last.get("kind")) == ("dead", "lease"), f"the last EVENT said {last}")
    session.control.close()


def _is_busy(server: RawServer) -> None:
    """When all sessions are taken a further one is REFUSED, kind busy, and told who holds them."""
    with RawSession(server):
        if _has_many_simulators(server):
            return
        link, _ = server.shake_hands("control", session="new", client="another")
        with link:
            message = link.expect_refusal("busy")["message"]
        expect("check_task_server" in message, f"it says not who holds the session: {message!r}")


SESSION_RULES = (
    *(_begins, _starts_fresh, _counts_epochs, _answers, _is_reproducible, _pipelines, _runs_nothing_after_the_end),
    *(_runs_nothing_after_an_error, _closes, _is_left, _ends_with_its_control, _expires, _leases, _is_busy),
)

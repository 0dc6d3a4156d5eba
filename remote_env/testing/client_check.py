"""Whether a client keeps docs/protocol.md, seen from a server that fails by plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from remote_env.testing.checks import CheckFailed, expect, run_rules
from remote_env.testing.raw_link import new_nonce
from remote_env.testing.scripted_server import ScriptedServer, Trouble

SLACK_S = 10.0  # a slow machine's
STEPS = 6
REPLY_SIZE = 58  # of a step


class Client(Protocol):
    """What is checked: as much of a `gymnasium.Env` as this."""

    def reset(self, *, seed: int | None = None) -> Any:
        """Observation and info."""

    def step(self, action: Any) -> Any:
        """Observation, reward, terminated, truncated, info."""

    def close(self) -> object:
        """End the session."""


Factory = Callable[[tuple[str, int], str], Client]


def check_client(factory: Factory, *, reconnect_timeout_s: float = 5.0, silence_s: float | None = None) -> None:
    """Check that a client keeps the protocol when links break and servers lie.

    Args:
        factory: connects a new client to host and port with a token. It resets and steps one environment, whose
            observations are (1,) and whose actions (2,) float64; a call returns when it has succeeded, however often
            the link broke meanwhile.
        reconnect_timeout_s: after how long without a server the clients of this factory give up [s].
        silence_s: after how long without a word they take a link for cut [s]; None: that is not checked.

    Raises:
        CheckFailed: it breaks a rule; `rule` says which.
    """
    rules = (*SURVIVING_RULES, *FAILING_RULES)
    run_rules(rules, factory, reconnect_timeout_s, timeout_s=4 * reconnect_timeout_s + 60.0)
    if silence_s is not None:
        run_rules((_notices_silence,), factory, silence_s, timeout_s=silence_s + 60.0)


@contextmanager
def _playing(factory: Factory, troubles: dict[int, Trouble] | None = None) -> Iterator[tuple[ScriptedServer, Client]]:
    """A server with these troubles, and a client that has reset its environment, as request 1."""
    token = new_nonce()
    with ScriptedServer(token, troubles) as server:
        client = factory(server.address, token)
        try:
            client.reset(seed=0)
            yield server, client
        finally:
            client.close()
    expect(not server.faults, "; ".join(server.faults))


def _step(client: Client, count: int) -> None:
    """A step that must be the `count`th of its episode, as the task sees it and as the caller does."""
    observation, reward, *_ = client.step([0.5, -0.5])
    seen = (float(observation[0]), float(reward))
    expect(seen == (count, count), f"step {count} returned observation and reward {seen}: a step was doubled or lost")


def _expect_no_other_bytes(server: ScriptedServer) -> None:
    """Whatever was sent twice must have been the same bytes."""
    first: dict[int, bytes] = {}
    for _, frame in server.requests:
        same = first.setdefault(frame.sequence, frame.raw) == frame.raw
        expect(same, f"request {frame.sequence} was sent again with other bytes")


def _survive(factory: Factory, *troubles: Trouble) -> ScriptedServer:
    """Step through these troubles, one at each step from the second on; the server, for what else is to be seen."""
    planned = dict(enumerate(troubles, 3))
    with _playing(factory, planned) as (server, client):
        for count in range(1, len(troubles) + 3):
            _step(client, count)
    expect(server.steps == len(troubles) + 2, f"the task was stepped {server.steps} times")
    _expect_no_other_bytes(server)
    return server


def _plays(factory: Factory, _: float) -> None:
    """Requests are numbered from 1 without gaps, each acknowledges the last reply, and closing ends the session."""
    with _playing(factory) as (server, client):
        for count in range(1, STEPS + 1):
            _step(client, count)
        client.reset(seed=1)
        _step(client, 1)
    sent = [frame for _, frame in server.requests]
    expect([frame.sequence for frame in sent] == list(range(1, STEPS + 4)), "the numbers are not 1, 2, 3, …")
    late = [frame.sequence for frame in sent if frame.acknowledged != frame.sequence - 1]
    expect(not late, f"requests {late} do not acknowledge the reply before them")
    expect(server.joined == 1, f"{server.joined} data connections were made where none had broken")
    expect(server.left, "no LEAVE came when the client was closed")


def _sends_again(factory: Factory, _: float) -> None:
    """A request that was not taken is sent again, byte for byte, on the next data connection."""
    server = _survive(factory, *[Trouble("lose request")] * 3)
    expect(server.resumes == [(2, 2), (3, 3), (4, 4)], f"it resumed as {server.resumes}")
    expect([frame.sequence for _, frame in server.requests].count(3) == 2, "request 3 was not sent twice")


def _sends_nothing_twice(factory: Factory, _: float) -> None:
    """A request that was taken is not sent again; its reply is received when it comes again."""
    server = _survive(factory, *[Trouble("lose reply")] * 3)
    expect(server.resumes == [(2, 3), (3, 4), (4, 5)], f"it resumed as {server.resumes}")
    sent = [frame.sequence for _, frame in server.requests]
    expect(sent == sorted(set(sent)), f"it sent {sent}")


def _takes_whole_replies(factory: Factory, _: float) -> None:
    """A reply of which only a part came was not received, wherever it was cut."""
    parts = [Trouble("part of reply", at) for at in (1, 39, 40, 41, REPLY_SIZE - 1)]
    server = _survive(factory, *parts)
    expect(server.resumes == [(number, number + 1) for number in range(2, 7)], f"it resumed as {server.resumes}")


def _notices_damage(factory: Factory, _: float) -> None:
    """A reply with a damaged header or body ends the connection, and is taken when it comes again undamaged."""
    for at in (0, 13, 17, REPLY_SIZE - 1):
        _survive(factory, Trouble("flip", at))


def _believes_no_old_reply(factory: Factory, _: float) -> None:
    """A reply that was there before is no answer: the connection is made anew."""
    _survive(factory, Trouble("old reply"), Trouble("old reply"))


def _believes_no_foreign_reply(factory: Factory, _: float) -> None:
    """A reply of another session is no answer: the connection is made anew, or the call fails."""
    with _playing(factory, {3: Trouble("foreign reply")}) as (_server, client):
        _step(client, 1)
        try:
            _step(client, 2)
        except CheckFailed:
            raise
        except Exception:  # noqa: BLE001  # which class a client's errors have is its own affair
            return


def _takes_its_session_back(factory: Factory, _: float) -> None:
    """When both connections break the session is taken back first, with its proof, and then resumed."""
    server = _survive(factory, Trouble("lose reply", control_too=True), Trouble("lose request", control_too=True))
    expect(server.taken_back >= 2, f"the control connection was taken back {server.taken_back} times of 2")


def _tries_again(factory: Factory, _: float) -> None:
    """A server that cannot be reached for a moment is tried again."""
    with _playing(factory) as (server, client):
        _step(client, 1)
        for count in range(2, 4):
            server.turns_away = 2
            server.cut()
            _step(client, count)
    expect(server.steps == 3, f"the task was stepped {server.steps} times")


def _notices_silence(factory: Factory, silence_s: float) -> None:
    """A link on which nothing is said any more, and that nobody ends, is taken for cut in time."""
    start = time.monotonic()
    server = _survive(factory, Trouble("silence"))
    elapsed = time.monotonic() - start
    expect(elapsed < silence_s + SLACK_S, f"that took {elapsed:.1f} s; {silence_s:g} s were due")
    expect(server.resumes == [(2, 3)], f"it resumed as {server.resumes}")


def _fails(call: Callable[[], object], within_s: float, what: str) -> None:
    start = time.monotonic()
    try:
        result = call()
    except Exception:  # noqa: BLE001  # which class a client's errors have is its own affair
        elapsed = time.monotonic() - start
        expect(elapsed < within_s + SLACK_S, f"{what} took {elapsed:.1f} s; {within_s:g} s were due")
        return
    raise CheckFailed(f"{what} did not fail; it returned {str(result)[:200]}")


def _gives_up_at_once(factory: Factory, reconnect_timeout_s: float) -> None:
    """When the server says that the session has ended the call fails at once, and nothing is begun in its place."""
    with _playing(factory) as (server, client):
        _step(client, 1)
        server.why_ended = "the checker ended it"
        server.cut()
        _fails(lambda: client.step([0.5, -0.5]), min(reconnect_timeout_s, 2.0), "a step of an ended session")
        expect(server.steps == 1, "the task was stepped all the same")


def _gives_up_in_time(factory: Factory, reconnect_timeout_s: float) -> None:
    """When the server is gone, or takes connections and is silent, the call fails in time."""
    with _playing(factory) as (server, client):
        _step(client, 1)
        server.vanish()
        _fails(lambda: client.step([0.5, -0.5]), reconnect_timeout_s, "a step without a server")
    with _playing(factory) as (server, client):
        server.is_silent = True
        server.cut()
        _fails(lambda: client.step([0.5, -0.5]), reconnect_timeout_s, "a step with a silent server")


def _believes_no_wrong_resume(factory: Factory, _: float) -> None:
    """A RESUMED that claims what was never sent, or forgets what was answered, ends the session with an error."""
    for claims in (99, 0):
        with _playing(factory, {3: Trouble("lose reply")}) as (server, client):
            _step(client, 1)
            server.claims = claims
            _fails(lambda: client.step([0.5, -0.5]), 0.0, f"a step whose RESUMED says {claims}")


def _wants_proof(factory: Factory, _: float) -> None:
    """A server that does not prove that it has the token, or speaks another version, is sent no proof."""
    for what in ("token", "version"):
        token = new_nonce()
        with ScriptedServer(token) as server:
            server.knows_token = what != "token"
            server.version += what == "version"
            _fails(lambda: factory(server.address, token).reset(seed=0), 0.0, f"connecting to a wrong {what}")  # noqa: B023
        expect(not server.faults, "; ".join(server.faults))


SURVIVING_RULES = (
    *(_plays, _sends_again, _sends_nothing_twice, _takes_whole_replies, _notices_damage, _believes_no_old_reply),
    *(_believes_no_foreign_reply, _takes_its_session_back, _tries_again),
)
FAILING_RULES = (_gives_up_at_once, _gives_up_in_time, _believes_no_wrong_resume, _wants_proof)

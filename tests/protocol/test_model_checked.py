"""Every order in which a session of some requests can go when links break: none doubles, loses or mixes up a request.

`link_model` says what may happen; here all of it is walked through, breadth first, and each state is held to what is
promised. The tables are held to the model too: it meets every entry, and nothing that is not in them.
"""

from __future__ import annotations

import os
from collections import deque
from functools import cache
from itertools import chain
from typing import NamedTuple

import link_model
import pytest
from link_model import Model, Scope, World

from remote_env.errors import ProtocolError
from remote_env.protocol import machine
from remote_env.protocol.ledger import Message, ReplyLedger, RequestLedger

Entry = tuple[str, str, str]


class Walk(NamedTuple):
    """What a walk through a model has found."""

    states: int
    finals: int
    met: set[Entry]


class Broken(AssertionError):
    """A promise that does not hold, and the way there."""


@cache
def walk(scope: Scope) -> Walk:
    """Reach every state there is, and check each.

    Raises:
        Broken: something does not hold; it tells the events that led there.
    """
    model = Model(scope)
    start = model.start()
    came_from: dict[World, tuple[str, World] | None] = {start: None}
    leads_to: dict[World, set[World]] = {}
    ahead, finals = deque([start]), 0
    while ahead:
        world = ahead.popleft()
        try:
            check(scope, world)
            found = {after: event for event, after in model.following(world) if after != world}
            if not found:
                finals += 1
                check_final(scope, world)
        except (AssertionError, ProtocolError) as error:
            raise Broken(f"{error!r} after:\n{tell_way(came_from, world)}\nat {world}") from error
        leads_to[world] = set(found)
        for after, event in found.items():
            if after not in came_from:
                came_from[after] = (event, world)
                ahead.append(after)
    check_ends(leads_to)
    return Walk(len(came_from), finals, model.met)


def check_ends(leads_to: dict[World, set[World]]) -> None:
    """No sequence of events goes round in a circle: as long as no more is cut, all comes to an end."""
    into: dict[World, int] = dict.fromkeys(leads_to, 0)
    for after in chain.from_iterable(leads_to.values()):
        into[after] += 1
    free = [world for world, count in into.items() if not count]
    done = 0
    while free:
        done += 1
        for after in leads_to[free.pop()]:
            into[after] -= 1
            if not into[after]:
                free.append(after)
    if done != len(leads_to):
        raise Broken(f"{len(leads_to) - done} states lie on circles")


def tell_way(came_from: dict[World, tuple[str, World] | None], world: World) -> str:
    events = []
    while (step := came_from[world]) is not None:
        events.append(step[0])
        world = step[1]
    return "\n".join(reversed(events))


def check(scope: Scope, world: World) -> None:
    """What must hold at every moment."""
    numbers = [int(body.split(b":")[0]) for body in world.ran]
    assert numbers == [*range(1, len(numbers) + 1)], "each request runs once, in order, without gaps"
    assert world.taken == len(world.ran)
    assert world.received <= world.taken
    assert [*world.results] == sorted(set(world.results)), "each result comes once, in order"
    sent = world.pending[-1].sequence if world.pending else world.received  # type: ignore[attr-defined]
    assert world.taken <= sent <= scope.requests
    assert sum(connection.mine for connection in world.connections) <= 1
    assert sum(connection.at == "served" for connection in world.connections) <= 1


def check_final(scope: Scope, world: World) -> None:
    """What must hold when nothing more can happen."""
    assert not world.connections or world.link == machine.JOINED
    if world.link == machine.JOINED:
        assert not world.pending
        assert world.received == world.taken == scope.requests
        assert set(range(world.abandoned + 1, scope.requests + 1)) <= set(world.results)
        return
    may_end = scope.closes or scope.dies or scope.expires or scope.breaks or scope.evicts or not scope.keeps
    assert may_end, "a session ended that had no reason to"
    assert world.link in (machine.LOST, machine.CLOSED)


# What may happen, and how many states there are at least: a model that has become empty proves nothing.
SCOPES = {
    "one at a time": (Scope(requests=5, window=1, cuts=3, halves=True), 4_000),
    "two at a time": (Scope(requests=4, window=2, cuts=2, halves=True), 7_000),
    "three at a time": (Scope(requests=4, window=3, cuts=2, halves=True), 14_000),
    "abandoned": (Scope(requests=3, window=2, cuts=2, resets=1), 5_000),
    "an episode that ends": (Scope(requests=4, window=3, cuts=2, ends=2), 10_000),
    "replies above the bound": (Scope(requests=4, window=3, cuts=1, limit=30), 2_000),
    "connections that overtake each other": (Scope(requests=2, window=1, cuts=2, late=True), 1_500),
    "old connections after the end": (Scope(1, 1, 2, control_cuts=1, late=True, closes=True), 10_000),
    "not kept": (
        Scope(2, 2, 1, control_cuts=1, keeps=False, dies=True, closes=True, breaks=True, evicts=True),
        6_000,
    ),
    "everything": (
        Scope(2, 2, 1, resets=1, control_cuts=1, expires=True, dies=True, closes=True, breaks=True, evicts=True),
        14_000,
    ),
}
LARGE_SCOPES = {
    "many requests": (Scope(requests=5, window=3, cuts=3, halves=True), 125_000),
    "many resets": (Scope(requests=5, window=3, cuts=2, resets=2, ends=2), 240_000),
    "many connections": (Scope(requests=2, window=2, cuts=2, control_cuts=2, late=True), 90_000),
}


def check_scope(scope: Scope, least: int) -> None:
    found = walk(scope)
    print(f"{found.states} states, {found.finals} of them final")
    assert found.states >= least
    assert found.finals >= 1


@pytest.mark.parametrize("name", SCOPES)
def test_no_order_of_events_doubles_loses_or_mixes_up_a_request(name: str) -> None:
    check_scope(*SCOPES[name])


@pytest.mark.fault
@pytest.mark.timeout(900)
@pytest.mark.skipif("REMOTE_ENV_TEST_EXHAUSTIVE" not in os.environ, reason="takes a minute: make test-faults")
@pytest.mark.parametrize("name", LARGE_SCOPES)
def test_nor_does_any_of_longer_ones(name: str) -> None:
    check_scope(*LARGE_SCOPES[name])


def test_the_model_meets_every_entry_of_the_tables_and_no_other() -> None:
    met = set().union(*(walk(scope).met for scope, _ in SCOPES.values()))
    tables = {"CLIENT": machine.CLIENT, "SESSION": machine.SESSION, "SIMULATOR": machine.SIMULATOR}
    assert met == {(name, *entry) for name, table in tables.items() for entry in table}


def test_what_no_table_lists_is_refused() -> None:
    with pytest.raises(ProtocolError, match="'taken back' cannot happen to a link that is ended"):
        machine.advance(machine.SESSION, machine.ENDED, "taken back")


# The checker itself: each of these mistakes is one that an engine could make.


class SendsEverythingAgain(RequestLedger):
    def missed(self, taken: int) -> list[Message]:
        return list(self.pending)


class SendsNothingAgain(RequestLedger):
    def missed(self, taken: int) -> list[Message]:
        return []


class AnswersOnce(ReplyLedger):
    def resume(self, received: int) -> list[Message]:
        super().resume(received)
        return []


class ForgetsTheLast(ReplyLedger):
    def keep(self, kind: int, buffers: object) -> None:
        self.replies.clear()
        super().keep(kind, buffers)  # type: ignore[arg-type]


class AsksForMoreThanCanBeKnown(ReplyLedger):
    def take(self, sequence: int, acknowledged: int) -> None:
        if acknowledged < self.acknowledged:
            raise ProtocolError("less than an earlier one")
        super().take(sequence, acknowledged)


@pytest.mark.parametrize(
    "mistake", [SendsEverythingAgain, SendsNothingAgain, AnswersOnce, ForgetsTheLast, AsksForMoreThanCanBeKnown]
)
def test_the_walk_finds_an_engine_s_mistakes(mistake: type, monkeypatch: pytest.MonkeyPatch) -> None:
    which = "RequestLedger" if issubclass(mistake, RequestLedger) else "ReplyLedger"
    monkeypatch.setattr(link_model, which, mistake)
    with pytest.raises(Broken):
        walk.__wrapped__(Scope(requests=3, window=3, cuts=2))

"""The tables of states: every transition that there is, and that there is no other."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from remote_env.errors import ProtocolError
from remote_env.protocol import machine
from remote_env.protocol.machine import CLIENT, SESSION, SIMULATOR, Table, advance

TABLES = {"client": CLIENT, "session": SESSION, "simulator": SIMULATOR}
STARTS = {"client": machine.APART, "session": machine.HELD, "simulator": machine.IDLE}
ENDS = {"client": machine.CLOSED, "session": machine.ENDED}  # a simulator serves one session after another
LISTED = [(name, *at, after) for name, table in TABLES.items() for at, after in table.items()]


def states(table: Table) -> set[str]:
    return {state for state, _ in table} | set(table.values())


def events(table: Table) -> set[str]:
    return {event for _, event in table}


@pytest.mark.parametrize(("name", "state", "event", "after"), LISTED)
def test_what_is_listed_happens(name: str, state: str, event: str, after: str) -> None:
    assert advance(TABLES[name], state, event) == after


@pytest.mark.parametrize("name", TABLES)
def test_nothing_else_can_happen(name: str) -> None:
    table = TABLES[name]
    unlisted = set(itertools.product(states(table), events(table))) - set(table)
    assert unlisted
    for state, event in unlisted:
        with pytest.raises(ProtocolError, match=re.escape(f"{event!r} cannot happen to a link that is {state}")):
            advance(table, state, event)


@pytest.mark.parametrize("name", TABLES)
def test_every_state_can_be_reached_and_has_a_name_of_its_own(name: str) -> None:
    table, reached = TABLES[name], {STARTS[name]}
    while more := {after for (state, _), after in table.items() if state in reached} - reached:
        reached |= more
    assert reached == states(table)


@pytest.mark.parametrize("name", ENDS)
def test_what_has_ended_stays_so(name: str) -> None:
    afters = {after for (state, _), after in TABLES[name].items() if state == ENDS[name]}
    assert afters <= {ENDS[name]}


@pytest.mark.parametrize("name", ["client", "simulator"])
def test_a_link_may_be_cut_at_any_time(name: str) -> None:
    table = TABLES[name]
    assert {state for state, event in table if event == "cut"} == states(table)


def test_a_lost_session_is_never_joined_again() -> None:
    afters = {after for (state, _), after in CLIENT.items() if state == machine.LOST}
    assert afters == {machine.LOST, machine.CLOSED}


def test_requests_run_on_a_joined_link_alone() -> None:
    assert [state for state, event in CLIENT if event == "request"] == [machine.JOINED]
    assert [state for state, event in SIMULATOR if event == "request"] == [machine.SERVING]


def test_the_document_shows_these_tables() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text()
    for name, table in TABLES.items():
        missing = [word for word in states(table) | events(table) if word not in text]
        assert not missing, f"{name}: docs/protocol.md does not tell of {missing}"

"""What a reply was the first to tell is told again when its call was abandoned: the client has skipped it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from wired import TIMEOUT_S, Wired, act

from remote_env.errors import DeadlineExceeded, InputError
from remote_env.protocol.chunks import ChunkOptions
from remote_env.protocol.delivery import DeliveryPlan
from remote_env.protocol.ledger import RequestLedger
from remote_env.session.session import Session

pytestmark = pytest.mark.fault


@pytest.fixture
def session() -> Iterator[Session]:
    wired = Wired()
    session = wired.open()
    yield session
    session.close()
    wired.close()


@contextlib.contextmanager
def late_reply(session: Session) -> Iterator[None]:
    """The next reply comes behind the deadline of its call."""

    def wait(_sequence: int) -> None:
        patch.undo()
        raise DeadlineExceeded("late")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_receive", wait)
        yield


def test_the_layout_of_a_state_that_was_skipped_by_a_reset_which_was_interrupted(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.reset(1, None, TIMEOUT_S)
    session.step_async(act(0.1), TIMEOUT_S, want_state=True)
    settle = RequestLedger.settle

    def interrupted(ledger: RequestLedger, sequence: int) -> None:
        settle(ledger, sequence)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(RequestLedger, "settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.reset(2, None, TIMEOUT_S)
    session.reset(3, None, TIMEOUT_S)
    session.step(act(0.1), TIMEOUT_S, want_state=True)
    assert session.state is not None


def test_a_state_that_was_skipped_is_not_built_on(session: Session) -> None:
    session.deliver(DeliveryPlan(state_changes=True), TIMEOUT_S)
    session.reset(1, None, TIMEOUT_S)
    session.step(act(0.1), TIMEOUT_S, want_state=True)
    session.step_async(act(0.2), TIMEOUT_S, want_state=True)
    session.reset(2, None, TIMEOUT_S)  # without a state
    session.step(act(0.3), TIMEOUT_S, want_state=True)
    assert session.state is not None
    assert session.state.values[3] == 2 * 3 + 0.3


def test_a_choice_that_was_cut_short_is_made_again_before_a_reset(session: Session) -> None:
    plan = DeliveryPlan(state_changes=True)
    with late_reply(session), pytest.raises(DeadlineExceeded):
        session.deliver(plan, TIMEOUT_S)
    with pytest.raises(InputError, match=r"the call before this one \(DELIVER\) was interrupted"):
        session.deliver(plan, TIMEOUT_S)
    session.deliver(plan, TIMEOUT_S, abandons=True)
    session.reset(1, None, TIMEOUT_S, want_state=True)
    session.step(act(0.5), TIMEOUT_S, want_state=True)
    assert session.state is not None
    assert session.state.values[3] == 3.5


@pytest.mark.parametrize("want", ["all", "last"])
def test_a_chunk_that_was_late_is_resumed_once_or_abandoned(session: Session, want: str) -> None:
    session.deliver(DeliveryPlan(state_changes=True, image_every=2), TIMEOUT_S)
    session.reset(1, None, TIMEOUT_S)
    actions, options = [act(0.1), act(0.2), act(0.3)], ChunkOptions(want=want)
    with late_reply(session), pytest.raises(DeadlineExceeded):
        session.step_many(actions, TIMEOUT_S, options, want_state=True)
    with pytest.raises(InputError, match=r"STEP_MANY\) was interrupted"):
        session.step(act(0.4), TIMEOUT_S)
    late = session.resume(TIMEOUT_S)
    assert late is not None
    assert late[1] == 0.3
    with late_reply(session), pytest.raises(DeadlineExceeded):
        session.step_many(actions, TIMEOUT_S, options, want_state=True)
    session.reset(2, None, TIMEOUT_S)
    assert session.step(act(0.5), TIMEOUT_S, want_state=True)[0][0] == 6.5
    assert session.state is not None
    assert session.state.values[3] == 6.5

"""What a reply was the first to tell is told again when its call was abandoned: the client has skipped it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from wired import TIMEOUT_S, Wired, act

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

"""A counting task that breaks the server around it on demand: what a checker must notice."""

from __future__ import annotations

from typing import Any

from remote_env.protocol.ledger import ReplyLedger
from remote_env.server.loop import SimulatorLoop
from remote_env.testing.counting import CountingEnv

_KEPT = (ReplyLedger.take, ReplyLedger.resume, SimulatorLoop._refuse_to_run)


class Breaking(CountingEnv):
    """`break_server` makes the simulator's half of the protocol wrong, "" right again."""

    remote_calls = (*CountingEnv.remote_calls, "break_server")

    def break_server(self, fault: str) -> None:
        """Do this wrong from now on."""
        ledger: Any = ReplyLedger
        loop: Any = SimulatorLoop
        ledger.take, ledger.resume, loop._refuse_to_run = _KEPT
        if fault == "takes any number":
            ledger.take = _take_any
        elif fault == "forgets replies":
            ledger.resume = _forget
        elif fault == "runs again":
            ledger.resume = _run_again
        elif fault == "runs after the end":
            loop._refuse_to_run = lambda self: None


def _take_any(self: ReplyLedger, sequence: int, acknowledged: int) -> None:
    self.acknowledge(min(acknowledged, self.taken))
    self.taken = sequence


def _forget(self: ReplyLedger, received: int) -> list[Any]:
    _KEPT[1](self, received)
    return []


def _run_again(self: ReplyLedger, received: int) -> list[Any]:
    _KEPT[1](self, received)
    self.replies.clear()
    self.taken = received
    return []


def make(**kwargs: Any) -> Breaking:
    """For servers."""
    return Breaking(**kwargs)

"""The states of a session and of its links, as tables (docs/protocol.md, "When a link breaks"). Standard library only.

A session is one client's hold on one simulator. Three parties have a state of it: the client, the supervisor and the
simulator. What a table does not list cannot happen to an end that keeps to the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping

from remote_env.errors import ProtocolError

Table = Mapping[tuple[str, str], str]

# The client's data link. Requests and replies change nothing: what of them is under way stands in its RequestLedger.
APART, JOINED, LOST, CLOSED = "apart", "joined", "lost", "closed"
CLIENT: Table = {
    (APART, "welcomed"): JOINED,  # READY or RESUMED came; requests that the simulator has not taken are sent again
    (APART, "cut"): APART,  # another attempt failed
    (APART, "ended"): LOST,  # the simulator or the session is gone, or the time to reconnect is over
    (APART, "closed"): CLOSED,
    (JOINED, "request"): JOINED,
    (JOINED, "reply"): JOINED,
    (JOINED, "cut"): APART,  # the stream ended, fell silent, or brought a damaged frame; or a call was interrupted
    (JOINED, "ended"): LOST,  # the peer broke the protocol
    (JOINED, "closed"): CLOSED,
    (LOST, "cut"): LOST,
    (LOST, "closed"): CLOSED,
    (CLOSED, "cut"): CLOSED,
    (CLOSED, "closed"): CLOSED,
}

# The session at the supervisor.
HELD, CUT_OFF, ENDED = "held", "cut off", "ended"
SESSION: Table = {
    (HELD, "cut"): CUT_OFF,  # its control connection broke, or its lease ran out, and it is to be kept
    (HELD, "taken back"): HELD,  # by another control connection, before the end of the first was noticed
    (HELD, "left"): ENDED,  # LEAVE; or its control connection broke, or its lease ran out, and it is not to be kept
    (CUT_OFF, "taken back"): HELD,
    (CUT_OFF, "left"): ENDED,
    (CUT_OFF, "expired"): ENDED,  # nothing was heard of its client for resume_s
}

# The data link at the simulator. What of the session is under way stands in its ReplyLedger.
IDLE, SERVING, SEVERED = "idle", "serving", "severed"
SIMULATOR: Table = {
    (IDLE, "cut"): IDLE,  # before anything was said
    (IDLE, "begun"): SERVING,  # a data connection of a new session: READY is sent
    (SERVING, "request"): SERVING,
    (SERVING, "cut"): SEVERED,  # the stream ended or stalled, or the client broke the protocol
    (SERVING, "left"): IDLE,  # CLOSE
    (SEVERED, "begun"): SERVING,  # of another session, or of this one before its first request
    (SEVERED, "resumed"): SERVING,  # RESUMED is sent, then every reply that the client has not received
    (SEVERED, "cut"): SEVERED,
}


def advance(table: Table, state: str, event: str) -> str:
    """The state after `event`.

    Raises:
        ProtocolError: it cannot happen in this state.
    """
    try:
        return table[state, event]
    except KeyError:
        raise ProtocolError(f"{event!r} cannot happen to a link that is {state}") from None

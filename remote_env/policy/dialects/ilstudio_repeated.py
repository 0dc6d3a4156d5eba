"""IL-Studio's replies that differ from an earlier one in their numbers alone: read without running their pickle again.

A reply of 64 actions has thousands of instructions, which `restricted_pickle` takes one by one. A server writes them
the same each time, and so it is enough to see that every other byte is what it was. Which bytes are the numbers is
proved, not guessed: others are put in their places, and the pickle is read once more.
"""

from __future__ import annotations

import os
import pickle
import struct
from dataclasses import dataclass

import numpy as np

from remote_env.errors import ProtocolError
from remote_env.policy.dialects.ilstudio_messages import Reply, read_reply
from remote_env.policy.policy import Array

# How a pickle announces bytes: the opcode and their number.
_ANNOUNCED = (
    (pickle.SHORT_BINBYTES, struct.Struct("<B"), 1 << 8),
    (pickle.BINBYTES, struct.Struct("<I"), 1 << 32),
    (pickle.BINBYTES8, struct.Struct("<Q"), 1 << 64),
    (pickle.BYTEARRAY8, struct.Struct("<Q"), 1 << 64),
)


class ReplyReader:
    """Reads one server's replies."""

    def __init__(self) -> None:
        self._template: _Template | None = None
        self._last_size = self._tried_size = 0

    def read(self, data: bytes | bytearray, rows: int) -> Reply:
        """As `read_reply`."""
        template = self._template
        if template is not None and (actions := template.read(data, rows)) is not None:
            return Reply(actions, dict(template.reply.kind))
        reply = read_reply(data, rows)
        size = len(data)
        if size == self._last_size and size != self._tried_size:  # it may be so again
            self._template, self._tried_size = _learn(data, rows, reply), size
        self._last_size = size
        return reply


@dataclass(frozen=True, eq=False)
class _Template:
    """What replies have in common.

    Attributes:
        reply: one of them, read.
        places: where its numbers lie: the index of each of their bytes, step by step.
        others: which bytes are none of these.
        fixed: those bytes.
    """

    reply: Reply
    places: Array
    others: Array
    fixed: Array

    def read(self, data: bytes | bytearray, rows: int) -> Array | None:
        """The (B, K, D) actions; None when the rest of the reply, or the number of rows, is another."""
        count, length, size = self.reply.actions.shape
        if len(data) != len(self.others) or rows != count:
            return None
        found = np.frombuffer(data, np.uint8)
        if not np.array_equal(found[self.others], self.fixed):
            return None
        steps = found[self.places].view(self.reply.actions.dtype).reshape(length, count, size)
        return np.ascontiguousarray(steps.swapaxes(0, 1))


def _learn(data: bytes | bytearray, rows: int, reply: Reply) -> _Template | None:
    """What is to be known of replies like this one; None when its numbers' bytes are not plainly there."""
    starts = _find_numbers(data, reply.actions)
    if not starts:
        return None
    size = reply.actions[0, 0].nbytes
    places = (np.array(starts)[:, None] + np.arange(size)).reshape(-1)
    whole = np.frombuffer(data, np.uint8)
    others = np.ones(len(whole), np.bool_)
    others[places] = False
    template = _Template(reply, places, others, whole[others])
    return template if _is_proved(template, whole, rows) else None


def _find_numbers(data: bytes | bytearray, actions: Array) -> list[int]:
    """Where each action's bytes begin, those of one step after the other; empty when one is not found."""
    starts, at = [], 0
    for action in actions.swapaxes(0, 1).reshape(-1, actions.shape[2]):
        number = action.tobytes()
        heads = [code + layout.pack(len(number)) for code, layout, most in _ANNOUNCED if len(number) < most]
        found = [place + len(head) for head in heads if (place := data.find(head + number, at)) >= 0]
        if not found or not number:
            return []
        starts.append(min(found))
        at = starts[-1] + len(number)
    return starts


def _is_proved(template: _Template, whole: Array, rows: int) -> bool:
    """Whether other numbers in these places are read as just these, and all else as before."""
    changed = whole.copy()
    changed[template.places] = np.frombuffer(os.urandom(len(template.places)), np.uint8)
    data = changed.tobytes()
    try:
        read = read_reply(data, rows)
    except ProtocolError:
        return False
    expected, before = template.read(data, rows), template.reply
    return (
        expected is not None
        and (read.actions.shape, read.actions.dtype) == (before.actions.shape, before.actions.dtype)
        and read.actions.tobytes() == expected.tobytes()
        and read.kind == before.kind
    )

"""States of a session of which only changes are sent (docs/protocol.md, "Fixed layouts"). Pure.

`StateSender` and `StateReceiver` are opposites. A reply may be read twice, as it is when its connection breaks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import MessageTooBig, ProtocolError
from remote_env.protocol import layout, state_delta
from remote_env.protocol.chunks import MAX_BYTES, MAX_STEPS

Floats = NDArray[np.float64]


class _Base(NamedTuple):
    """A vector that the next one may build on."""

    sequence: int
    number: int
    values: Floats


class StateSender:
    """Writes states at the simulator."""

    def __init__(self) -> None:
        self._base: _Base | None = None

    def forget(self) -> None:
        """Build on nothing that was written so far: the reply with it was not sent."""
        self._base = None

    def pack(self, number: int, values: Floats, sequence: int, *, is_key: bool) -> tuple[bytes, bool]:
        """The state's bytes, and whether they are a change.

        Args:
            number: of its layout.
            values: its vector.
            sequence: of the reply.
            is_key: it builds on nothing before it, as in the reply to a RESET.
        """
        base, self._base = self._base, _Base(sequence, number, values.copy())
        if not is_key and base is not None and (base.number, base.values.size) == (number, values.size):
            change = state_delta.encode(values, base.values)
            if change is not None:
                return layout.pack_change(number, values.size, base.sequence, change), True
        return layout.pack_state(number, values), False


class StateReceiver:
    """Reads them at the client."""

    def __init__(self) -> None:
        self._bases: tuple[_Base, ...] = ()  # of the last two replies

    def read(self, body: bytearray, at: int, end: int, sequence: int, *, is_change: bool) -> tuple[int, Floats, int]:
        """The layout's number, the vector, which is the caller's own, and the offset behind it.

        Raises:
            ProtocolError: it is not what `StateSender.pack` makes, or builds on what did not come.
        """
        if is_change:
            number, count, wanted, change, at = layout.read_change(body, at, end)
            values = state_delta.decode(change, self._find(number, count, wanted), (count,))
        else:
            number, values, at = layout.read_state(body, at, end)
        others = tuple(base for base in self._bases if base.sequence != sequence)
        self._bases = (*others[-1:], _Base(sequence, number, values.copy()))  # users write into theirs
        return number, values, at

    def _find(self, number: int, count: int, sequence: int) -> Any:
        for base in self._bases:
            if (base.sequence, base.number, base.values.size) == (sequence, number, count):
                return base.values
        raise ProtocolError(f"a state of layout {number} that changes the one of reply {sequence}, which is not kept")


def pack_rows(values: Floats) -> Any:
    """States of several steps, (K, n), as a reply holds them: a dict with what changes from row to row, if smaller."""
    change = state_delta.encode(values, None)
    return values if change is None else {"rows": len(values), "change": np.frombuffer(change, np.uint8)}


def read_rows(packed: Any, count: int) -> Floats:
    """The exact opposite of `pack_rows`, for vectors of `count` numbers.

    Raises:
        ProtocolError: it is none.
    """
    if not isinstance(packed, dict):
        return packed  # type: ignore[no-any-return]
    rows, change = packed.get("rows"), packed.get("change")
    if type(rows) is not int or not 0 < rows <= MAX_STEPS or not isinstance(change, np.ndarray):
        raise ProtocolError(f"not the changes of states: {str(packed)[:100]}")
    if rows * count * 8 > MAX_BYTES:
        raise MessageTooBig(f"{rows} states of {count} numbers are {rows * count * 8} bytes; allowed are {MAX_BYTES}")
    return state_delta.decode(change.tobytes(), None, (rows, count))

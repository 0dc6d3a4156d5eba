"""What may go into a reply, and what must be in a request."""

from __future__ import annotations

from typing import Any

from remote_env.errors import InputError, ProtocolError, TaskError
from remote_env.protocol import codec


def encode_reply(value: Any, *, where: str) -> tuple[bytes, list[memoryview]]:
    """A reply's body and arrays; TaskError when it cannot cross: that is the task's fault, not the caller's."""
    try:
        return codec.encode(value, where=where)
    except InputError as error:
        raise TaskError(f"it ran, but {error}") from error


def check_parts(request: Any, count: int) -> Any:
    """The request, a list or tuple of `count` parts; ProtocolError when it is none."""
    if not isinstance(request, (list, tuple)) or len(request) != count:
        raise ProtocolError(f"a request of {count} parts is due, got {str(request)[:100]}")
    return request


def encodable(values: dict[str, Any]) -> dict[str, Any]:
    """The entries that can cross the wire."""
    kept = {}
    for key, value in values.items():
        try:
            codec.encode(value, where=key)
        except InputError:
            continue
        kept[key] = value
    return kept

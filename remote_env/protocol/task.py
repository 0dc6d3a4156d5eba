"""TaskSpec: what a server serves, as plain JSON (docs/protocol.md, "Tasks")."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from remote_env.errors import ConfigError, ProtocolError
from remote_env.protocol import codec


@dataclass(frozen=True)
class TaskSpec:
    """A task to make on the far end.

    Attributes:
        env: an id, "module:id", "module:function" or "file.py:function"; for a pickled callable its name, to show.
        kwargs: keyword arguments for the task; anything that an info may hold.
        simulator: "gymnasium", or "module:Class" of a Backend.
        pickled: a callable by cloudpickle, or None. Only ever read from a settings file that its sender wrote.
        pickled_by: the Python version, "3.11", that pickled it.
        allow_calls: names that clients may read or call besides those that the task allows.
    """

    env: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    simulator: str = "gymnasium"
    pickled: bytes | None = None
    pickled_by: str = ""
    allow_calls: tuple[str, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """This task as a JSON object.

        Raises:
            InputError: a keyword argument cannot cross; the message names it.
        """
        # Sorted, so that the order in which arguments were written makes no other task of it.
        body, arrays = codec.encode(dict(sorted(self.kwargs.items())), where="env_kwargs")
        return {
            "env": self.env,
            "simulator": self.simulator,
            "kwargs": [_to_text(body), _to_text(b"".join(arrays))],
            "pickled": None if self.pickled is None else _to_text(self.pickled),
            "pickled_by": self.pickled_by,
            "allow_calls": list(self.allow_calls),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TaskSpec:
        """The exact opposite of `to_plain`; ConfigError when `plain` is not one."""
        try:
            body, payload = (base64.b64decode(part, validate=True) for part in plain["kwargs"])
            kwargs, views = codec.decode(body, len(payload))
            for view in views:
                view[:], payload = payload[: len(view)], payload[len(view) :]
            pickled = plain["pickled"]
            return cls(
                env=str(plain["env"]),
                kwargs=kwargs,
                simulator=str(plain["simulator"]),
                pickled=None if pickled is None else base64.b64decode(pickled, validate=True),
                pickled_by=str(plain["pickled_by"]),
                allow_calls=tuple(str(name) for name in plain["allow_calls"]),
            )
        except (KeyError, TypeError, ValueError, ProtocolError) as error:
            raise ConfigError(f"not a task specification: {error!r}") from error

    @property
    def digest(self) -> str:
        """Names this task, its arguments and its simulator; 16 hex digits."""
        return digest_of(self.to_plain())


def digest_of(plain: Mapping[str, Any]) -> str:
    """The digest of a task that is already plain."""
    text = json.dumps({key: plain[key] for key in ("env", "simulator", "kwargs", "pickled")}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode()

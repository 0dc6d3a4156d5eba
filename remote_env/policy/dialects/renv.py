"""The dialect renv, ours (docs/protocol.md, "Policies"): authenticated, exactly once, arrays as their own memory."""

from __future__ import annotations

from remote_env.policy.dialects.renv_client import RenvPolicy, connect
from remote_env.policy.dialects.renv_server import serve

__all__ = ["ADMITS_WHO_PROVED", "AUTHENTICATES", "RenvPolicy", "connect", "serve"]

AUTHENTICATES = True
ADMITS_WHO_PROVED = True  # nobody holds a client's place before that

"""The dialect `lerobot`: the asynchronous inference of LeRobot, over gRPC, without authentication.

LeRobot's own ends unpickle what they receive, which lets any peer run code on them (CVE-2026-25874). Neither end here
does.
"""

from __future__ import annotations

from remote_env.policy.dialects.lerobot_client import LerobotPolicy, connect
from remote_env.policy.dialects.lerobot_server import Listener, listen

AUTHENTICATES = False

__all__ = ["AUTHENTICATES", "LerobotPolicy", "Listener", "connect", "listen"]

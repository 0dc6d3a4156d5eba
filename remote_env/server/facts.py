"""What a simulator says of its own interpreter."""

from __future__ import annotations

import platform
import sys
from typing import Any

import numpy as np


def server_facts() -> dict[str, Any]:
    """Versions and kind of this interpreter, which the client compares with its own."""
    import gymnasium

    facts = {"python": platform.python_version(), "numpy": np.__version__, "gymnasium": gymnasium.__version__}
    if "mujoco" in sys.modules:
        facts["mujoco"] = sys.modules["mujoco"].__version__
    return {**facts, "machine": platform.machine(), "hostname": platform.node(), "executable": sys.executable}

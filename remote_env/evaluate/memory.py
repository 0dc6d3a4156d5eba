"""How much memory this process has taken at most."""

from __future__ import annotations

import sys


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far; 0 where the system does not say."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)

"""The example of a task of one's own, as its user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_it_brings_the_mass_home_in_every_episode() -> None:
    command = [sys.executable, str(ROOT / "examples" / "own_task.py"), "--episodes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    ends = re.findall(r"^episode \d: (\d+) steps, ends at ([+-][\d.]+) m$", done.stdout, re.MULTILINE)
    assert len(ends) == 2
    assert all(int(steps) < 400 and abs(float(position)) < 0.01 for steps, position in ends)

"""The Python blocks of docs/speed.md, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from leak_check import isolated_home, no_leaks

__all__ = ["isolated_home", "no_leaks"]

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "speed.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
IMPORTS = "import numpy as np\nfrom remote_env import RemoteEnv, RemoteVectorEnv\n"  # which the first blocks show


@pytest.mark.parametrize("number", range(len(BLOCKS)))
@pytest.mark.usefixtures("no_leaks")
def test_each_block_runs(number: int) -> None:
    exec(compile(IMPORTS + BLOCKS[number], f"block {number} of docs/speed.md", "exec"), {})

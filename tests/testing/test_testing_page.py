"""What docs/testing.md shows, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from server_process import serving

from remote_env.testing.fault_proxy import FaultProxy

PAGE = (Path(__file__).parents[2] / "docs/testing.md").read_text()


def run_block(after: str, **names: Any) -> None:
    """Run the first Python block behind a heading."""
    block = re.search(r"```python\n(.*?)```", PAGE.split(f"## {after}\n")[1], re.DOTALL)
    assert block is not None
    exec(block[1], {"__name__": "page", **names})


@pytest.mark.fault
def test_the_examples_run():
    run_block("A transport")
    with serving("remote_env.testing.counting:make", {"episode_length": 50}) as server:
        where = {"address": ("127.0.0.1", server.port), "token": server.token}
        run_block("A link that fails", **where)
    run_block("The counting environment")


def test_every_command_of_the_proxy_is_told():
    table = PAGE.split("## A link that fails")[1].split("## ")[0]
    told = set(re.findall(r"`(\w+)\(", table))
    assert told == {name for name in vars(FaultProxy) if not name.startswith("_") and name != "close"}

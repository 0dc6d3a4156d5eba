"""The example that plans by random shooting, as its user runs it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from leak_check import isolated_home, no_leaks

__all__ = ["isolated_home", "no_leaks"]

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import mpc


def test_the_best_of_a_few_futures_is_far_better_than_chance(capsys: pytest.CaptureFixture[str]) -> None:
    assert mpc.main(["--futures", "12"]) == 0
    by_chance, planned = map(float, re.findall(r": (-[\d.]+)$", capsys.readouterr().out, re.MULTILINE))
    assert planned > 0.6 * by_chance


def test_to_try_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mpc.main(["--futures", "-1"])
    assert "--futures -1: at least one is needed" in capsys.readouterr().err

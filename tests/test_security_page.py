"""SECURITY.md: each promise names the tests that hold it, and those exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def names_of_tests(path: Path) -> set[str]:
    """The tests that a file defines."""
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_each_named_test_exists(file: str) -> None:
    named = {name for place, name in NAMED if place == file}
    assert named <= names_of_tests(ROOT / file), f"SECURITY.md names tests that {file} does not have"


def test_each_row_of_what_somebody_cannot_do_names_its_test() -> None:
    rows = re.findall(r"^\| cannot \| held by \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for row in "".join(rows).splitlines():
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", row), f"a promise that nothing holds: {row}"
    assert len(NAMED) > 50


def test_every_test_against_abuse_and_for_secrets_is_in_a_file_that_the_page_names() -> None:
    files = {file for file, _ in NAMED}
    for path in (*ROOT.glob("tests/**/test_abuse*.py"), *ROOT.glob("tests/**/test_secrets*.py")):
        assert str(path.relative_to(ROOT)) in files

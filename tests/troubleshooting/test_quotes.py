"""Each message that the documentation quotes is produced by a test of this folder, and each such test's is quoted."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from quotes import find_quotes, is_quoted, producers, quoted_messages

for _path in Path(__file__).parent.glob("test_messages_*.py"):
    importlib.import_module(_path.stem)


def test_each_quoted_message_has_a_test() -> None:
    missing = {message: page for message, page in quoted_messages().items() if message not in producers}
    assert not missing, "write a test that @produces(...) it"


def test_each_test_is_of_a_quoted_message() -> None:
    quoted = quoted_messages()
    missing = {message: test for message, test in producers.items() if message not in quoted}
    assert not missing, "docs/troubleshooting.md has no row for it"


def test_quotes_are_found_in_tables_and_text() -> None:
    text = (
        "A `ConnectError: … is up` in text, and `ls: no such file`.\n\n| you see | do |\n|---|---|\n"
        "| `nothing to end` | wait |\n\n| option | use |\n|---|---|\n| `lines` | many |\n"
    )
    assert list(find_quotes(text)) == ["ConnectError: … is up", "nothing to end"]
    with pytest.raises(ValueError, match="quotes no message"):
        list(find_quotes("| you see | do |\n|---|---|\n| HostKeyError | wait |\n"))


def test_a_quote_is_compared_from_its_beginning() -> None:
    assert is_quoted("ConnectError: … is (not) up", "ConnectError: box\nis (not) up; wait") is False
    assert is_quoted("ConnectError: … is (not) up", "ConnectError: box\n is (not) up; wait")
    assert not is_quoted("Error: x", "ConnectError: x")

"""The messages that the documentation quotes, and the tests that produce them.

A message is quoted in backticks, with … for anything: in the first column of a table whose heading begins with
"you see", or anywhere as `ClassOfError: text`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_env import errors

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
HEADING = "| you see |"
producers: dict[str, str] = {}  # a quoted message, and the test that produces it

_CLASSES = [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)]
_SPAN = re.compile(rf"`((?:{'|'.join([*_CLASSES, 'TypeError'])}): [^`]+)`")
_FIRST_CELL = re.compile(r"\| `([^`]+)` \|")


def quoted_messages() -> dict[str, str]:
    """Each quoted message, and the page where it stands."""
    return {message: page.name for page in PAGES for message in find_quotes(page.read_text())}


def find_quotes(text: str) -> Iterator[str]:
    """The messages that a page quotes.

    Raises:
        ValueError: a row of a table of messages quotes none.
    """
    yield from _SPAN.findall(text)
    is_table = False
    for line in text.splitlines():
        is_table = line.startswith("|") and (is_table or line.startswith(HEADING))
        if not is_table or line.startswith((HEADING, "|---")):
            continue
        cell = _FIRST_CELL.match(line)
        if cell is None:
            raise ValueError(f"this row quotes no message: {line}")
        yield cell[1]


def is_quoted(message: str, text: str) -> bool:
    """Whether `text` begins as the quoted `message` does, … being anything."""
    return re.match(".*".join(map(re.escape, message.split("…"))), text, re.DOTALL) is not None


def produces(message: str) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Have a test fail unless what it raises, or the text that it returns, is the quoted `message`."""

    def decorate(test: Callable[..., Any]) -> Callable[..., None]:
        if message in producers:
            raise ValueError(f"{message!r} has two tests: {producers[message]} and {test.__name__}")
        producers[message] = test.__name__

        @functools.wraps(test)
        def check(*args: Any, **kwargs: Any) -> None:
            try:
                told = str(test(*args, **kwargs))
            except Exception as error:  # noqa: BLE001  which it is, is what is checked
                told = f"{type(error).__name__}: {error}"
            if not is_quoted(message, told):
                pytest.fail(f"quoted: {message}\nit was: {told}")

        return check

    return decorate

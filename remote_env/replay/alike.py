"""How alike two names are, for proposals and for "did you mean"."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

MINIMUM = 0.6  # below it two names have nothing to do with each other
_ALL_WORDS = 0.7  # at least, where each word of one name is in the other: pan and shoulder_pan_joint


def similarity(first: str, second: str) -> float:
    """0 to 1: how much of two names is the same, case and separators apart; numbers in them must agree.

    joint1 and joint2 differ in one letter of six, and are never the same joint.
    """
    if re.findall(r"\d+", first)[-1:] != re.findall(r"\d+", second)[-1:]:
        return 0.0
    letters = difflib.SequenceMatcher(None, _plain(first), _plain(second), autojunk=False).ratio()
    words = sorted((_words(first), _words(second)), key=len)
    return max(letters, _ALL_WORDS) if words[0] and words[0] <= words[1] else letters


def closest(name: str, known: Iterable[str]) -> tuple[str, float] | None:
    """The name most like `name` and its similarity; None when none is alike."""
    scored = sorted(((similarity(name, other), other) for other in known), reverse=True)
    if not scored or scored[0][0] < MINIMUM:
        return None
    return scored[0][1], scored[0][0]


def did_you_mean(name: str, known: Collection[str]) -> str:
    """What a message says of an unknown name: the nearest known one, and all of them where they are few."""
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if len(known) > 30:
        return hint or f"; there are {len(known)} names, such as {', '.join(sorted(known)[:5])}"
    return f"{hint} (known: {', '.join(known) or 'none'})"


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+|\d+", name.lower()))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

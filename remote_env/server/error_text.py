"""The text of a task's exception as it can cross to the client: of bounded length, whatever it holds.

Standard library only.
"""

from __future__ import annotations


def error_text(error: BaseException) -> str:
    """Its message; says so when it has none to give."""
    try:
        return str(error)
    except Exception as unprintable:  # noqa: BLE001  a foreign __str__ may raise anything
        return f"(its text cannot be had: {type(unprintable).__name__})"


def sendable(text: str, max_characters: int) -> str:
    """`text` without its middle if it is long, and with lone surrogates (of undecodable file names, say) escaped."""
    if len(text) > max_characters:
        half = max_characters // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half} characters …\n{text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode()

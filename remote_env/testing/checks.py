"""How a contract is checked: rule by rule, each a function whose docstring says what is promised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

RULE_TIMEOUT_S = 60.0  # one rule; what it checks has shorter deadlines of its own
E = TypeVar("E", bound=BaseException)
Rule = Callable[..., None]


class CheckFailed(AssertionError):
    """An implementation does not keep a promise.

    Attributes:
        rule: the promise, in words.
    """

    def __init__(self, message: str, rule: str = "") -> None:
        super().__init__(f"{rule}\n  but {message}" if rule else message)
        self.rule = rule


def run_rules(rules: Iterable[Rule], *arguments: Any, timeout_s: float = RULE_TIMEOUT_S) -> None:
    """Check each rule in turn, in a thread that is given up when it hangs.

    Raises:
        CheckFailed: of the first rule that does not hold.
    """
    for rule in rules:
        _run_rule(rule, arguments, timeout_s)


def _run_rule(rule: Rule, arguments: tuple[Any, ...], timeout_s: float) -> None:
    text = " ".join((rule.__doc__ or rule.__name__).split())
    errors: list[BaseException] = []

    def run() -> None:
        try:
            rule(*arguments)
        except BaseException as error:  # noqa: BLE001  # raised below, in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name=f"rule {rule.__name__}", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise CheckFailed(f"nothing came back within {timeout_s:g} s: some wait has no deadline", text)
    if not errors:
        return
    error = errors[0]
    if isinstance(error, CheckFailed):
        raise CheckFailed(str(error), text) from error
    raise CheckFailed(f"this came instead: {type(error).__name__}: {error}", text) from error


def expect(is_so: object, otherwise: str) -> None:
    """CheckFailed with what was found `otherwise`, unless it is so."""
    if not is_so:
        raise CheckFailed(otherwise)


def expect_error(kind: type[E], what: str, call: Callable[[], object]) -> E:
    """The error of that kind which `call` raises; `what` names the call."""
    try:
        result = call()
    except kind as error:
        return error
    except Exception as error:
        raise CheckFailed(f"{what} raised {type(error).__name__} ({error}), not {kind.__name__}") from error
    raise CheckFailed(f"{what} raised no {kind.__name__}; it returned {str(result)[:200]}")

"""Every error survives a pickle and Gymnasium's way to raise it again."""

from __future__ import annotations

import pickle
import re

import pytest

from remote_env import errors

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RemoteEnvError)]


@pytest.mark.parametrize("kind", ALL)
def test_pickle_keeps_message_and_details(kind: type[errors.RemoteEnvError]) -> None:
    error = kind("what happened", log_tail="line", remote_traceback="trace", more=3)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.message == str(again) == "what happened"
    assert (again.log_tail, again.remote_traceback, again.more) == ("line", "trace", 3)


@pytest.mark.parametrize("kind", ALL)
def test_gymnasium_can_raise_it_again(kind: type[errors.RemoteEnvError]) -> None:
    error = kind("what happened", log_tail="line")
    assert str(type(error)(str(error))) == "what happened"
    assert str(kind()) == ""


def test_builtin_families() -> None:
    assert issubclass(errors.DeadlineExceeded, TimeoutError)
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.InputError, ValueError)
    assert not issubclass(errors.ConnectError, ConnectionError)


def test_attributes_have_defaults() -> None:
    assert errors.StartError("x").log_tail == errors.SessionLost("x").log_tail == ""
    assert errors.TaskError("x").remote_traceback == errors.TaskError("x").remote_type == ""


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = re.findall(r"^([ │├└─]*)([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE)
    tree = {(name, len(indent)) for indent, name in drawn if name in {kind.__name__ for kind in ALL}}
    assert {name for name, _ in tree} == {kind.__name__ for kind in ALL}

"""A login that is made anew in the middle of the work uses what it was told before, and asks nobody."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import PASSWORD, Person, code_pam, needs_passwords
from dialling import Echo, Waiting, place_on, server_at, soon, talk
from ssh_server import SshServer

from remote_env.env.server import Server
from remote_env.errors import AuthError
from remote_env.transport import Transport

pytestmark = pytest.mark.fault


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


def cut(server: SshServer, far: Server) -> Transport:
    """A stream whose login has ended."""
    stream = far.dial(soon())
    talk(stream)
    server.signal_connections(signal.SIGKILL)
    Waiting(stream).end()
    return stream


def test_a_passphrase_is_used_again_and_not_asked_for(echo: Echo) -> None:
    with SshServer() as server:
        command = ["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSWORD, "-f", str(server.identity_file)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        person = Person(passphrase=[PASSWORD])
        with place_on(server, "channel", ask_secret=person) as place:
            far = server_at(place, echo.port)
            cut(server, far).close()
            stream = far.dial(soon())
            talk(stream)
            stream.close()
        assert person.kinds == ["passphrase"]


@needs_passwords
def test_a_password_is_used_again_and_not_asked_for(echo: Echo) -> None:
    with SshServer(password=PASSWORD, extra_config="AuthenticationMethods password") as server:
        person = Person(password=[PASSWORD])
        with place_on(server, "sshtunnel", ask_secret=person) as place:
            far = server_at(place, echo.port)
            for _ in range(2):
                cut(server, far).close()
            stream = far.dial(soon())
            talk(stream)
            stream.close()
        assert person.kinds == ["password"]


@needs_passwords
def test_a_one_time_code_is_not_asked_for_while_nobody_may_be_there(echo: Echo, tmp_path: Path) -> None:
    pam = code_pam(tmp_path, ["111", "222"])
    only = "AuthenticationMethods publickey,keyboard-interactive"
    with SshServer(password=PASSWORD, pam=pam, extra_config=only) as server:
        person = Person(keyboard_interactive=["me@here", "111", "me@here", "222"])
        with place_on(server, "channel", ask_secret=person) as place:
            far = server_at(place, echo.port)
            cut(server, far).close()
            asked = len(person.prompts)
            for _ in range(2):
                with pytest.raises(
                    AuthError, match=r"needs an answer that is not known: 'Guest login .*ssh-add"
                ) as caught:
                    far.dial(soon())
                assert caught.value.needs_answer  # type: ignore[attr-defined]
            assert len(person.prompts) == asked
            place.list(soon())  # what somebody asks for, who is there
            stream = far.dial(soon())
            talk(stream)
            stream.close()
        assert len(person.prompts) == 2 * asked

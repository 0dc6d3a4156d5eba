"""Passphrases, passwords and one-time codes: what is asked, how often, and what is never shown."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from asking import PASSWORD, Person, code_pam, needs_passwords
from ssh_server import SshServer, make_key

from remote_env.errors import AuthError, ConnectError
from remote_env.ssh import SecretPrompt, SshConnection


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def kill_logins(server: SshServer, connection: SshConnection) -> None:
    server.signal_connections(signal.SIGKILL)
    deadline = soon()
    while connection.is_open:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Passphrases of key files


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[SshServer]:
    """An sshd whose user key has the passphrase PASSWORD."""
    with SshServer() as server:
        command = ["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSWORD, "-f", str(server.identity_file)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        yield server


def test_a_passphrase_is_asked_for_once_and_remembered_for_the_next_login(locked: SshServer) -> None:
    person = Person(passphrase=["wrong", PASSWORD])
    with SshConnection(locked.target, ask_secret=person, **locked.login) as connection:
        assert connection.negotiated["authentication"] == "publickey"
        kill_logins(locked, connection)
        connection.connect(soon())
        assert connection.is_open
    text = f"Passphrase of the key {locked.identity_file}: "
    target = f"{locked.user}@127.0.0.1:{locked.port}"
    assert person.prompts == [SecretPrompt("passphrase", text, False, target)] * 2


def test_a_passphrase_that_stays_wrong_is_asked_for_three_times(locked: SshServer) -> None:
    person = Person(passphrase=["wrong"])
    with pytest.raises(AuthError, match=r"user_ed25519: the passphrase is wrong, 3 times"):
        SshConnection(locked.target, ask_secret=person, **locked.login).connect(soon())
    assert person.kinds == ["passphrase"] * 3


def test_no_answer_means_no(locked: SshServer) -> None:
    person = Person()
    with pytest.raises(AuthError, match=r"has a passphrase, and ask_secret gave none"):
        SshConnection(locked.target, ask_secret=person, **locked.login).connect(soon())
    assert person.kinds == ["passphrase"]


def test_without_a_callback_the_key_is_named(locked: SshServer) -> None:
    with pytest.raises(AuthError, match=r"has a passphrase \(run: ssh-add .*, or pass ask_secret=…\)"):
        SshConnection(locked.target, **locked.login).connect(soon())


def test_nobody_is_asked_for_the_passphrase_of_a_key_that_the_host_does_not_take(locked: SshServer) -> None:
    (locked.root / "authorized_keys").write_text("")
    person = Person(passphrase=[PASSWORD])
    with pytest.raises(AuthError, match="user_ed25519: refused"):
        SshConnection(locked.target, ask_secret=person, **locked.login).connect(soon())
    assert person.prompts == []


@pytest.mark.parametrize("options", [["-t", "rsa", "-b", "2048"], ["-t", "ecdsa", "-m", "PEM"]])
def test_other_kinds_of_keys_with_a_passphrase(locked: SshServer, tmp_path: Path, options: list[str]) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", *options, "-N", PASSWORD, "-f", str(key)], check=True, timeout=30)
    (locked.root / "authorized_keys").write_text(Path(f"{key}.pub").read_text())
    Path(f"{key}.pub").unlink()
    person = Person(passphrase=["wrong", PASSWORD])
    login = {**locked.login, "identity_file": str(key)}
    with SshConnection(locked.target, ask_secret=person, **login) as connection:
        assert connection.is_open
    assert person.kinds == ["passphrase"] * 2


def test_a_key_that_the_agent_has_needs_no_passphrase(
    locked: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL) as process:
        deadline = soon()
        while not place.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
        askpass = tmp_path / "askpass"
        askpass.write_text(f"#!/bin/sh\necho '{PASSWORD}'\n")
        askpass.chmod(0o700)
        environment = {**os.environ, "SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force"}
        command = ["ssh-add", "-q", str(locked.identity_file)]
        subprocess.run(command, check=True, env=environment, timeout=30, stdin=subprocess.DEVNULL)
        person = Person(passphrase=[PASSWORD])
        with SshConnection(locked.target, ask_secret=person, **locked.login) as connection:
            assert connection.is_open
        assert person.prompts == []
        process.terminate()


def test_an_agent_that_never_answers_does_not_hang_the_login(
    locked: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "agent")
    monkeypatch.setenv("SSH_AUTH_SOCK", place)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(place)
        silent.listen(8)
        begun = time.monotonic()
        with SshConnection(
            locked.target, ask_secret=Person(passphrase=[PASSWORD]), connect_timeout_s=2.0, **locked.login
        ) as connection:
            assert connection.is_open
        with pytest.raises(AuthError, match="SSH agent: did not answer in time"):
            SshConnection(locked.target, **locked.login).connect(soon(1.0))
        assert time.monotonic() - begun < 3.0


# Passwords and one-time codes


@pytest.fixture(scope="module")
def password_server() -> Iterator[SshServer]:
    with SshServer(password=PASSWORD, extra_config="AuthenticationMethods password") as server:
        yield server


@needs_passwords
def test_a_password_is_asked_for_and_remembered_for_the_next_login(password_server: SshServer) -> None:
    person = Person(password=["wrong", PASSWORD])
    with SshConnection(password_server.target, ask_secret=person, **password_server.login) as connection:
        assert connection.negotiated["authentication"] == "password"
        kill_logins(password_server, connection)
        connection.connect(soon())
        assert connection.run("echo in", deadline=soon()).stdout == b"in\n"
    assert person.kinds == ["password"] * 2
    assert person.prompts[0].text == f"Password of {connection.description}: "
    assert not person.prompts[0].echo


@needs_passwords
def test_a_remembered_password_that_no_longer_holds_is_asked_for_anew() -> None:
    person = Person(password=[PASSWORD, "another"])
    with (
        SshServer(password=PASSWORD, extra_config="AuthenticationMethods password") as server,
        SshServer(password="another", extra_config="AuthenticationMethods password") as other,
        SshConnection(server.target, ask_secret=person, **server.login) as connection,
    ):
        kill_logins(server, connection)
        shadow = "etc/shadow"
        with (server.root / shadow).open("r+") as file:  # in place: the file is mounted
            file.write((other.root / shadow).read_text())
            file.truncate()
        connection.connect(soon())
        assert connection.is_open
    assert person.kinds == ["password"] * 2


@needs_passwords
def test_a_wrong_password_is_asked_for_three_times(password_server: SshServer) -> None:
    person = Person(password=["wrong"])
    threads = set(threading.enumerate())
    with pytest.raises(AuthError, match=r"password: refused; password: refused; password: refused; the host takes:"):
        SshConnection(password_server.target, ask_secret=person, **password_server.login).connect(soon())
    assert person.kinds == ["password"] * 3
    assert set(threading.enumerate()) == threads


@needs_passwords
def test_without_a_callback_the_error_says_what_the_host_wants(password_server: SshServer) -> None:
    with pytest.raises(AuthError, match=r"The host would take password: pass ask_secret=… to answer"):
        SshConnection(password_server.target, **password_server.login).connect(soon())


@needs_passwords
def test_each_method_is_tried_in_the_order_of_openssh() -> None:
    with SshServer(password=PASSWORD) as server:
        (server.root / "authorized_keys").write_text("")
        person = Person(keyboard_interactive=[None], password=[PASSWORD])
        with SshConnection(server.target, ask_secret=person, **server.login) as connection:
            assert connection.negotiated["authentication"] == "password"
        assert person.kinds == ["keyboard-interactive", "password"]
        assert person.prompts[0].text == "Password: "
        with pytest.raises(AuthError, match=r"would take keyboard-interactive or password: pass ask_secret"):
            SshConnection(server.target, **server.login).connect(soon())


@needs_passwords
@pytest.mark.parametrize("methods", ["keyboard-interactive", "publickey,keyboard-interactive"])
def test_one_time_codes_are_asked_for_at_every_login(tmp_path: Path, methods: str) -> None:
    pam = code_pam(tmp_path, ["111", "222"])
    with SshServer(password=PASSWORD, pam=pam, extra_config=f"AuthenticationMethods {methods}") as server:
        person = Person(keyboard_interactive=["me@here", "999", "me@here", "111", "me@here", "222"])
        with SshConnection(server.target, ask_secret=person, **server.login) as connection:
            assert connection.negotiated["authentication"] == methods.replace(",", "+")
            kill_logins(server, connection)
            connection.connect(soon(20))
            assert connection.run("echo in", deadline=soon()).stdout == b"in\n"
    assert [prompt.text for prompt in person.prompts] == [
        "Guest login ok, send your complete e-mail address as password.",
        "Password: ",
    ] * 3
    assert (tmp_path / "codes").read_text() == ""


@needs_passwords
def test_a_second_factor_without_a_callback_is_told(tmp_path: Path) -> None:
    with SshServer(password=PASSWORD, extra_config="AuthenticationMethods publickey,keyboard-interactive") as server:
        told = r"publickey: accepted, but the host also wants keyboard-interactive; .*pass ask_secret=…"
        with pytest.raises(AuthError, match=told):
            SshConnection(server.target, **server.login).connect(soon())


@needs_passwords
def test_each_hop_asks_under_its_own_name() -> None:
    only = "AuthenticationMethods password"
    with (
        SshServer(password="first", extra_config=only) as jump,
        SshServer(password="second", extra_config=only, jump=jump) as behind,
    ):
        asked = []

        def ask(prompt: SecretPrompt) -> str:
            asked.append(prompt.target)
            return "first" if "@jumpbox:" in prompt.target else "second"

        config = {"config_file": str(behind.config), "known_hosts_file": str(behind.known_hosts)}
        with SshConnection("testbox", ask_secret=ask, **config) as connection:  # type: ignore[arg-type]
            kill_logins(jump, connection)
            connection.connect(soon())
            assert connection.run("echo in", deadline=soon()).stdout == b"in\n"
        assert asked == [f"{jump.user}@jumpbox:{jump.port}", f"{behind.user}@testbox:{behind.port}"]


@needs_passwords
def test_secrets_are_never_shown(
    password_server: SshServer, locked: SshServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = Person(password=["hidden-one"], passphrase=["hidden-two"])
    shown = []
    for server in (password_server, locked):
        connection = SshConnection(server.target, ask_secret=wrong, **server.login)
        with pytest.raises(AuthError) as caught:
            connection.connect(soon())
        shown += [str(caught.value), repr(caught.value), repr(connection), repr(connection._secrets)]
    person = Person(password=["hidden-three"])
    with pytest.raises(AuthError):
        SshConnection(password_server.target, ask_secret=person, **password_server.login).connect(soon())
    with SshConnection(password_server.target, ask_secret=lambda _: PASSWORD, **password_server.login) as connection:
        shown += [repr(connection), repr(connection._secrets), str(connection.negotiated)]
    assert caplog.text
    for secret in (PASSWORD, "hidden"):
        assert secret not in caplog.text
        assert not [text for text in shown if secret in text]


# What the callback may do wrong


def _raise(prompt: SecretPrompt) -> str:
    raise EOFError("no terminal")


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (_raise, "wanted a passphrase, and ask_secret raised EOFError"),
        (lambda prompt: b"bytes", "ask_secret returned a bytes; allowed are a str, or None"),
    ],
)
def test_a_callback_that_fails_is_told(locked: SshServer, ask: Callable[..., Any], told: str) -> None:
    threads = set(threading.enumerate())
    with pytest.raises(AuthError, match=told) as caught:
        SshConnection(locked.target, ask_secret=ask, **locked.login).connect(soon())
    assert ask is not _raise or isinstance(caught.value.__cause__, EOFError)
    assert set(threading.enumerate()) == threads


def test_ctrl_c_while_somebody_is_asked_passes_through(locked: SshServer) -> None:
    def interrupt(prompt: SecretPrompt) -> str:
        raise KeyboardInterrupt

    threads = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        SshConnection(locked.target, ask_secret=interrupt, **locked.login).connect(soon())
    assert set(threading.enumerate()) == threads


def test_an_answer_that_comes_too_late_is_told(locked: SshServer) -> None:
    def think(prompt: SecretPrompt) -> str:
        threading.Event().wait(1.3)
        return PASSWORD

    with pytest.raises(ConnectError, match=r"was not done in time: ask_secret took 1 s of it; give the login more"):
        SshConnection(locked.target, ask_secret=think, **locked.login).connect(soon(0.8))


# A host that asks several things at once, in an SSH server that is not OpenSSH


class _Questioner(paramiko.ServerInterface):
    """Asks twice: two questions at once, then none; then lets in who knew the answers."""

    def get_allowed_auths(self, username: str) -> str:
        return "keyboard-interactive"

    def check_auth_interactive(self, username: str, submethods: str) -> paramiko.InteractiveQuery:
        query = paramiko.InteractiveQuery("\x1b[31mGate\x07", "Two questions")
        query.add_prompt("Colour? ", True)
        query.add_prompt("Code\x1b? ", False)
        return query

    def check_auth_interactive_response(self, responses: list[str]) -> int | paramiko.InteractiveQuery:
        if responses == ["blue", "123"]:
            return paramiko.InteractiveQuery("", "All is well")
        return paramiko.AUTH_SUCCESSFUL if responses == [] else paramiko.AUTH_FAILED


def test_several_questions_at_once_and_none(tmp_path: Path) -> None:
    make_key(tmp_path / "host", "ecdsa")
    key = paramiko.PKey.from_path(tmp_path / "host")
    person = Person(keyboard_interactive=["blue", "123"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}\n")
        (tmp_path / "config").write_text("IdentityFile /no/such/key\n")
        config = {"config_file": str(tmp_path / "config"), "known_hosts_file": str(tmp_path / "known_hosts")}
        connection = SshConnection(f"ssh://me@127.0.0.1:{port}", ask_secret=person, **config)  # type: ignore[arg-type]
        logging_in = threading.Thread(target=connection.connect, args=(soon(),))
        logging_in.start()
        server = paramiko.Transport(listener.accept()[0])
        server.add_server_key(key)
        server.start_server(server=_Questioner())
        logging_in.join(10)
        assert connection.is_open
        connection.close()
        server.close()
    assert [(prompt.text, prompt.echo) for prompt in person.prompts] == [
        ("[31mGate\nTwo questions\nColour? ", True),
        ("[31mGate\nTwo questions\nCode? ", False),
    ]

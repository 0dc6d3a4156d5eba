from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from remote_env.errors import ConfigError, Unsupported
from remote_env.ssh import SshTarget
from remote_env.ssh.target import resolve_login


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("box", SshTarget("box")),
        ("box.example.org", SshTarget("box.example.org")),
        ("user@box", SshTarget("box", None, "user")),
        ("ssh://box", SshTarget("box")),
        ("ssh://user@box:2222", SshTarget("box", 2222, "user")),
        ("ssh://user@box:2222/", SshTarget("box", 2222, "user")),
        ("ssh://[::1]:22", SshTarget("::1", 22)),
        ("ssh://me@[fe80::1]", SshTarget("fe80::1", None, "me")),
        ("::1", SshTarget("::1")),
        ("10.0.0.7", SshTarget("10.0.0.7")),
    ],
)
def test_parses_every_documented_form(text: str, expected: SshTarget) -> None:
    assert SshTarget.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "@box", "user@", "box:2222", "a b", "-oProxyCommand=x", "u:p@box", "-u@box", "box/path", "box\n"),
        *("ssh://", "ssh://box:0", "ssh://box:99999", "ssh://box:x", "ssh://[::1", "ssh://user@box:22/path"),
    ],
)
def test_other_forms_are_config_errors(text: str) -> None:
    with pytest.raises(ConfigError):
        SshTarget.parse(text)


def test_a_port_without_scheme_is_told_how_to_write_it() -> None:
    with pytest.raises(ConfigError, match="ssh://user@box:2222"):
        SshTarget.parse("user@box:2222")


def _config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config"
    path.write_text(text)
    return str(path)


def test_the_configuration_completes_an_alias(tmp_path: Path) -> None:
    config = _config(tmp_path, "Host lab\n HostName lab7.example.org\n Port 2200\n User ada\n IdentityFile /keys/lab\n")
    login = resolve_login(SshTarget("lab"), config_file=config)
    assert (login.address, login.port, login.user) == ("lab7.example.org", 2200, "ada")
    assert login.identity_files == (Path("/keys/lab"),)
    assert login.description == "ada@lab:2200"


def test_what_the_caller_says_wins_over_the_configuration(tmp_path: Path) -> None:
    config = _config(tmp_path, "Host *\n Port 2200\n User ada\n IdentityFile /keys/lab\n IdentitiesOnly yes\n")
    login = resolve_login(SshTarget("box", 22, "bob"), identity_file="/mine", config_file=config)
    assert (login.port, login.user, login.identity_files) == (22, "bob", (Path("/mine"),))
    assert login.identities_only


def test_without_configuration_the_defaults_hold(tmp_path: Path) -> None:
    login = resolve_login(SshTarget("box"), config_file=_config(tmp_path, ""))
    assert (login.address, login.port, login.user) == ("box", 22, getpass.getuser())
    assert login.ssh_command == f"ssh {login.user}@box true"


def test_two_different_ports_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"2222 .*ssh_port=22"):
        resolve_login(SshTarget("box", 2222), ssh_port=22, config_file=_config(tmp_path, ""))


@pytest.mark.parametrize("line", ["ProxyJump gate", "ProxyCommand nc %h %p"])
def test_a_proxy_is_named_and_unsupported(tmp_path: Path, line: str) -> None:
    with pytest.raises(Unsupported, match=line.split()[0]):
        resolve_login(SshTarget("box"), config_file=_config(tmp_path, f"Host box\n  {line}\n"))


def test_a_missing_configuration_that_was_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_login(SshTarget("box"), config_file=str(tmp_path / "nothing"))

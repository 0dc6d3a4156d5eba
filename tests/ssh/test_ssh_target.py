from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from remote_env.errors import ConfigError
from remote_env.ssh import SshTarget
from remote_env.ssh.login import Login, resolve_login
from remote_env.ssh.target import parse_hops


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
        ("ssh", SshTarget("ssh")),
        ("-p 2222 root@host", SshTarget("host", 2222, "root")),
        ("root@host -p 2222", SshTarget("host", 2222, "root")),
        ("ssh -p 2222 root@host", SshTarget("host", 2222, "root")),
        ("ssh -p2222 -lroot host", SshTarget("host", 2222, "root")),
        ("-l root ssh://host:2222", SshTarget("host", 2222, "root")),
        ("-p 2222 ssh://root@host:2222", SshTarget("host", 2222, "root")),
        ("-i '~/my keys/box' host", SshTarget("host", identity_file="~/my keys/box")),
        ("ssh -J login,ada@gate:2222 host -i key", SshTarget("host", identity_file="key", via="login,ada@gate:2222")),
    ],
)
def test_parses_every_documented_form(text: str, expected: SshTarget) -> None:
    assert SshTarget.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "@box", "user@", "box:2222", "a b", "-oProxyCommand=x", "u:p@box", "-u@box", "box/path", "box\n"),
        *("ssh://", "ssh://box:0", "ssh://box:99999", "ssh://box:x", "ssh://[::1", "ssh://user@box:22/path"),
        *("-p 2222", "-p box", "-p 0 box", "-p 1 -p 2 box", "-l a b@box", "-p 1 ssh://box:2", "box true", "-v box"),
        *("-o ProxyCommand=x box", "-J box", "-J ,a box", "-J a/b box", "-l -x box", "ssh 'box", "-p", "", "-i  "),
    ],
)
def test_other_forms_are_config_errors(text: str) -> None:
    with pytest.raises(ConfigError):
        SshTarget.parse(text)


@pytest.mark.parametrize("text", ["", "box -v", "u:p@box", "-p 1"])
def test_the_error_lists_the_forms(text: str) -> None:
    with pytest.raises(ConfigError, match=r'"ssh://user@box:2222".*"-p 2222 -l user -i key_file -J jump_host box"'):
        SshTarget.parse(text)


@pytest.mark.parametrize(
    ("via", "expected"),
    [
        ("login", [SshTarget("login")]),
        ("user@login:2222", [SshTarget("login", 2222, "user")]),
        ("a, b@b:7", [SshTarget("a"), SshTarget("b", 7, "b")]),
        ("ssh://b@[::1]:7,c", [SshTarget("::1", 7, "b"), SshTarget("c")]),
        ("[::1]:7,::2", [SshTarget("::1", 7), SshTarget("::2")]),
        (["a", "b:7"], [SshTarget("a"), SshTarget("b", 7)]),
        ("none", []),
        ([], []),
    ],
)
def test_jump_hosts(via: str | list[str], expected: list[SshTarget]) -> None:
    assert parse_hops(via) == tuple(expected)


@pytest.mark.parametrize("via", ["", "a,,b", "a b", "a:0", "a:x", "-J", ["a,b"], "a@", "u:p@a"])
def test_other_forms_of_jump_hosts_are_config_errors(via: str | list[str]) -> None:
    with pytest.raises(ConfigError, match="names no jump host; allowed are"):
        parse_hops(via)


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


def test_a_missing_configuration_that_was_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_login(SshTarget("box"), config_file=str(tmp_path / "nothing"))


def test_two_different_keys_and_ways_are_refused(tmp_path: Path) -> None:
    config = _config(tmp_path, "")
    with pytest.raises(ConfigError, match=r"two identity files: a .*identity_file=b"):
        resolve_login(SshTarget.parse("-i a box"), identity_file="b", config_file=config)
    with pytest.raises(ConfigError, match=r"two ways: a .*via=b"):
        resolve_login(SshTarget.parse("-J a box"), via="b", config_file=config)


def _way(login: Login | None) -> list[str]:
    return [] if login is None else [*_way(login.via), login.description]


def test_each_hop_is_logged_in_to_as_its_own_entry_says(tmp_path: Path) -> None:
    config = _config(
        tmp_path,
        "Host node*\n ProxyJump gate,inner\n Port 2200\n"
        "Host gate\n HostName gate.example.org\n User ada\n ProxyJump front:7\n IdentityFile /keys/gate\n"
        "Host inner\n Port 2201\n ProxyJump nobody-asks\nHost *\n User bob\n",
    )
    login = resolve_login(SshTarget("node1"), identity_file="/mine", config_file=config)
    assert _way(login) == ["bob@front:7", "ada@gate:22", "bob@inner:2201", "bob@node1:2200"]
    assert login.places() == ["bob@front:7", "ada@gate.example.org:22", "bob@inner:2201", "bob@node1:2200"]
    assert login.via is not None
    assert login.via.via is not None
    assert login.via.via.identity_files == (Path("/keys/gate"),)
    assert login.via.identity_files == login.identity_files == (Path("/mine"),)


def test_via_wins_over_the_configuration(tmp_path: Path) -> None:
    config = _config(tmp_path, "Host box\n ProxyJump gate\nHost gate\n HostName 10.0.0.1\n User ada\n")
    assert resolve_login(SshTarget("box"), via="none", config_file=config).via is None
    login = resolve_login(SshTarget("box"), via="me@other:7", config_file=config)
    assert _way(login)[0] == "me@other:7"
    config = _config(tmp_path, "Host box\n ProxyCommand nc %h %p\n")
    assert resolve_login(SshTarget("box"), via="gate", config_file=config).proxy_command is None


@pytest.mark.parametrize(
    ("lines", "command", "hops"),
    [
        ("ProxyCommand a\n ProxyJump b", "a", 0),
        ("ProxyJump b\n ProxyCommand a", None, 1),
        ("ProxyJump none\n ProxyCommand a", None, 0),
        ("ProxyCommand none\n ProxyJump b", None, 0),
    ],
)
def test_the_first_of_proxy_jump_and_proxy_command_counts(
    tmp_path: Path, lines: str, command: str | None, hops: int
) -> None:
    login = resolve_login(SshTarget("box"), config_file=_config(tmp_path, f"Host box\n {lines}\n"))
    assert login.proxy_command == command
    assert len(_way(login.via)) == hops


def test_tokens_of_a_proxy_command_are_those_of_this_login(tmp_path: Path) -> None:
    config = _config(tmp_path, "Host box\n HostName box.lab\n User ada\n ProxyCommand go %h %p %r %n %%h 100%%\n")
    login = resolve_login(SshTarget("box", 7, "bob"), config_file=config)
    assert login.proxy_command == "go box.lab 7 bob box %h 100%"
    with pytest.raises(ConfigError, match=r"%x in ProxyCommand .*allowed are %h %n %p %r %%"):
        resolve_login(SshTarget("box"), config_file=_config(tmp_path, "ProxyCommand go %x\n"))


def test_jump_hosts_in_a_circle_are_refused(tmp_path: Path) -> None:
    config = _config(tmp_path, "Host *\n ProxyJump gate\n User me\n")
    with pytest.raises(ConfigError, match=r'circle.*me@box:22 via me@gate:22 via me@gate:22; .*"ProxyJump none"'):
        resolve_login(SshTarget("box"), config_file=config)


@pytest.mark.parametrize(
    ("lines", "interval_s", "count"),
    [("", 15, 3), ("ServerAliveInterval 0", 0, 3), ("ServerAliveInterval 1m30s\nServerAliveCountMax 7", 90, 7)],
)
def test_how_silence_is_watched(tmp_path: Path, lines: str, interval_s: int, count: int) -> None:
    login = resolve_login(SshTarget("box"), config_file=_config(tmp_path, lines))
    assert (login.alive_interval_s, login.alive_count) == (interval_s, count)


@pytest.mark.parametrize("line", ["ServerAliveInterval soon", "ServerAliveCountMax -1", "Port ssh", "ProxyJump a/b"])
def test_values_that_cannot_be_are_config_errors(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError):
        resolve_login(SshTarget("box"), config_file=_config(tmp_path, f"{line}\n"))


def test_included_files_count_where_they_are_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ".ssh" / "config.d"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    (folder / "1").write_text("Include ~/deeper\nHost lab\n User ada\n Port 2201\n")
    (folder / "2").write_text("Host lab\n Port 2202\n HostName lab.example.org\n")
    (tmp_path / "deeper").write_text("Host lab\n HostKeyAlias deep\n")
    config = "Include config.d/* missing\nPort 2200\nHost lab\n User bob\n"
    (tmp_path / ".ssh" / "config").write_text(config)
    lab, other = resolve_login(SshTarget("lab")), resolve_login(SshTarget("other", user="me"))
    assert (lab.user, lab.port, lab.address, lab.key_name) == ("ada", 2201, "lab.example.org", "deep")
    assert other.port == 2200


def test_an_include_that_depends_on_the_host_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "inner").write_text("Host other\n User ada\n")
    config = _config(tmp_path, f"Host lab\n Include {tmp_path}/inner\n Port 7\n")
    assert resolve_login(SshTarget("other", user=None), config_file=config).user == getpass.getuser()
    assert resolve_login(SshTarget("lab"), config_file=config).port == 7
    assert "inner is left out" in caplog.text


def test_an_endless_include_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than 16 deep"):
        resolve_login(SshTarget("lab"), config_file=_config(tmp_path, f"Include {tmp_path}/config\n"))

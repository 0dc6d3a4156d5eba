"""What is told when a login fails, provoked at real SSH servers and at what is none."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from listeners import listener_that_hangs_up, listener_that_says, port_without_answer
from quotes import produces
from ssh_client import ssh_arguments
from ssh_server import SshServer, can_have_passwords, make_key

from remote_env import RemoteEnv


def log_in(host: str, **arguments: Any) -> None:
    RemoteEnv(host, env="CartPole-v1", **arguments).start()


def log_in_to(server: SshServer, **arguments: Any) -> None:
    log_in(server.target, **{**ssh_arguments(server), **arguments})


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


# Addresses


@produces("ConfigError: 'box:2222' names no host; for an SSH port write ssh://box:2222; …")
def test_a_port_in_the_wrong_place() -> None:
    log_in("box:2222")


@produces("ConfigError: '…' in '…' is not understood; allowed are …")
def test_an_option_of_ssh_that_we_do_not_have() -> None:
    log_in("-A user@box")


@produces("ConfigError: host='…': write user@box or ssh://user@box:2222 for SSH, …")
def test_another_scheme() -> None:
    log_in("http://box")


@produces("ConfigError: '…' names no jump host; allowed are …")
def test_a_jump_host_that_cannot_be_read() -> None:
    log_in("box", via="two words")


@produces("ConfigError: the jump hosts lead in a circle …")
def test_a_circle() -> None:
    log_in("box", via="box")


@produces("ConfigError: …= means a machine reached over SSH, …")
def test_a_way_to_nowhere() -> None:
    log_in("local", via="login")


# The way there


@produces("ConnectError: host '…' is unknown (…); …")
def test_a_name_that_nobody_has() -> None:
    log_in("no-such-host.invalid")


@produces("ConnectError: … refused the connection: no SSH server listens there; …")
def test_nobody_listens() -> None:
    log_in("ssh://me@127.0.0.1:1")


@produces("ConnectError: no answer from … in time; …")
def test_no_answer_at_all() -> None:
    with port_without_answer() as port:
        log_in(f"ssh://me@127.0.0.1:{port}", connect_timeout_s=0.5)


@produces("ConnectError: … accepted the connection and said nothing in time; …")
def test_a_silent_one() -> None:
    with listener_that_says(b"") as port:
        log_in(f"ssh://me@127.0.0.1:{port}", connect_timeout_s=0.5)


@produces("ConnectError: … is no SSH server: it said …; check the port")
def test_something_else() -> None:
    with listener_that_says(b"220 mail.example.org ESMTP\r\n") as port:
        log_in(f"ssh://me@127.0.0.1:{port}", connect_timeout_s=5.0)


@produces("ConnectError: … closed the connection before greeting, … times: …")
def test_one_that_drops_us() -> None:
    with listener_that_hangs_up() as port:
        log_in(f"ssh://me@127.0.0.1:{port}", connect_timeout_s=0.6)


@produces("ConnectError: the login to … was not done in time")
def test_one_that_greets_and_no_more() -> None:
    with listener_that_says(b"SSH-2.0-OpenSSH_9.2\r\n") as port:
        log_in(f"ssh://me@127.0.0.1:{port}", connect_timeout_s=0.5)


@produces("ConnectError: via …: …")
def test_a_jump_host_that_is_not_there() -> None:
    log_in("box", via="me@127.0.0.1:1")


@produces("ConnectError: the login to … failed: the ProxyCommand … ended with status …; it said: …")
def test_a_proxy_command_that_fails(tmp_path: Path) -> None:
    command = "Host *\n  ProxyCommand sh -c 'echo there is no way >&2; exit 3'\n"
    log_in("box", ssh_config_file=write(tmp_path / "config", command))


@produces("ConnectError: nothing came through the ProxyCommand … in time")
def test_a_proxy_command_that_is_silent(tmp_path: Path) -> None:
    log_in(
        "box", ssh_config_file=write(tmp_path / "config", "Host *\n  ProxyCommand sleep 60\n"), connect_timeout_s=0.5
    )


# Keys


@produces("HostKeyError: the host key of … is not known; it showed … accept_new_host_key=True")
def test_a_host_never_seen(ssh_server: SshServer, tmp_path: Path) -> None:
    log_in_to(ssh_server, known_hosts_file=str(tmp_path / "nobody"))


def foreign_key(folder: Path, name: str = "other") -> str:
    """A new key's kind and public half, as known_hosts lists them."""
    make_key(folder / name, "ed25519")
    return " ".join((folder / f"{name}.pub").read_text().split()[:2])


@produces("HostKeyError: the host key of … HAS CHANGED: …")
def test_another_key_than_known(ssh_server: SshServer, tmp_path: Path) -> None:
    line = f"[127.0.0.1]:{ssh_server.port} {foreign_key(tmp_path)}\n"
    log_in_to(ssh_server, known_hosts_file=write(tmp_path / "known_hosts", line))


@produces("HostKeyError: … showed the key …, which known_hosts marks as revoked")
def test_a_revoked_key(ssh_server: SshServer, tmp_path: Path) -> None:
    log_in_to(ssh_server, known_hosts_file=write(tmp_path / "known_hosts", f"@revoked {ssh_server.known_hosts_line()}"))


@produces("AuthError: … refused the login. Tried: …: refused; …")
def test_a_key_that_the_host_does_not_know(ssh_server: SshServer, tmp_path: Path) -> None:
    foreign_key(tmp_path)
    log_in_to(ssh_server, identity_file=str(tmp_path / "other"))


@produces("AuthError: … refused the login. Tried: …: has a passphrase (run: ssh-add …, or pass ask_secret=…)…")
def test_a_key_with_a_passphrase(ssh_server: SshServer, tmp_path: Path) -> None:
    foreign_key(tmp_path)
    command = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "correct horse", "-f", str(tmp_path / "other")]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    log_in_to(ssh_server, identity_file=str(tmp_path / "other"))


@pytest.mark.skipif(not can_have_passwords(), reason="giving sshd a password needs root and mount namespaces")
@produces("AuthError: … refused the login. Tried: … The host would take …: pass ask_secret=… to answer. …")
def test_a_host_that_would_take_a_password(tmp_path: Path) -> None:
    with SshServer(password="correct horse", extra_config="AuthenticationMethods password") as server:
        log_in_to(server)

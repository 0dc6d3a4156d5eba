from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import paramiko
import pytest
from ssh_server import SshServer, make_key

from remote_env.errors import HostKeyError
from remote_env.ssh import SshConnection, SshTarget
from remote_env.ssh.host_keys import (
    KnownKeys,
    check_host_key,
    fingerprint,
    listed_name,
    order_key_algorithms,
    read_known_keys,
)
from remote_env.ssh.login import Login, resolve_login

BLOB = b"some key"
TEXT = base64.b64encode(BLOB).decode()


def _known(tmp_path: Path, text: str, name: str) -> KnownKeys:
    path = tmp_path / "known_hosts"
    path.write_text(text)
    return read_known_keys([path, tmp_path / "missing"], name)


@pytest.mark.parametrize(
    ("names", "name", "found"),
    [
        ("box", "box", True),
        ("BOX", "box", True),
        ("box", "box2", False),
        ("box", "[box]:2222", False),
        ("[box]:2222", "[box]:2222", True),
        ("other,10.0.0.7,box", "box", True),
        ("*.lab", "a.lab", True),
        ("*.lab,!b.lab", "b.lab", False),
        ("b?x", "box", True),
        ("[b]ox", "box", False),
    ],
)
def test_names_match_as_in_openssh(tmp_path: Path, names: str, name: str, found: bool) -> None:
    assert _known(tmp_path, f"{names} ssh-ed25519 {TEXT} comment\n", name).has(BLOB) is found


def test_hashed_names_match(tmp_path: Path) -> None:
    hashed = paramiko.HostKeys.hash_host("[box]:2222")
    assert _known(tmp_path, f"{hashed} ssh-ed25519 {TEXT}\n", "[box]:2222").has(BLOB)
    assert not _known(tmp_path, f"{hashed} ssh-ed25519 {TEXT}\n", "box").has(BLOB)


def test_hashed_names_are_those_of_ssh_keygen_whatever_their_case(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    make_key(tmp_path / "key", "ed25519")
    kind, text, _ = (tmp_path / "key.pub").read_text().split()
    path.write_text(f"box.lab {kind} {text}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], check=True, capture_output=True, timeout=30)
    assert "box" not in path.read_text()
    for name in ("box.lab", "Box.LAB"):
        assert read_known_keys([path], name).has(base64.b64decode(text))


@pytest.mark.parametrize("damaged", ["|1|abc|def", "|1|garbage", "|1||", "|1|AAAA|BBBB", "|1|", "|1|é|é", "|1|a|b|c"])
def test_a_damaged_hashed_line_makes_nothing_known_and_stops_nobody(tmp_path: Path, damaged: str) -> None:
    text = f"{damaged} ssh-ed25519 {TEXT}\nbox ssh-ed25519 {TEXT}\n"
    assert _known(tmp_path, text, "box").has(BLOB)
    assert not _known(tmp_path, text, "other").has(BLOB)


def test_comments_markers_and_damaged_lines_make_nothing_known(tmp_path: Path) -> None:
    text = f"# box ssh-ed25519 {TEXT}\n\nbox\nbox ssh-ed25519 !!!\n@cert-authority box ssh-ed25519 {TEXT}\n"
    assert _known(tmp_path, text, "box") == KnownKeys()


def test_known_key_types_come_first() -> None:
    known = KnownKeys([("ssh-rsa", b"")])
    offered = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256")
    assert order_key_algorithms(known, offered) == (*offered[2:], *offered[:2])
    assert order_key_algorithms(KnownKeys(), offered) == offered


def _key(tmp_path: Path) -> paramiko.PKey:
    make_key(tmp_path / "key", "ed25519")
    return paramiko.PKey.from_path(tmp_path / "key")


def _login(tmp_path: Path, target: SshTarget) -> Login:
    (tmp_path / "config").write_text("")
    return resolve_login(
        target, known_hosts_file=str(tmp_path / "new" / "known_hosts"), config_file=str(tmp_path / "config")
    )


def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    blob = _key(tmp_path).asbytes()
    shown = subprocess.run(["ssh-keygen", "-l", "-f", str(tmp_path / "key")], capture_output=True, check=True)
    assert fingerprint(blob) in shown.stdout.decode()


def test_a_revoked_key_is_never_accepted(tmp_path: Path) -> None:
    key = _key(tmp_path)
    login = _login(tmp_path, SshTarget("box"))
    known = KnownKeys([(key.get_name(), key.asbytes())], [key.asbytes()])
    with pytest.raises(HostKeyError, match="revoked"):
        check_host_key(login, key, known, accept_new=True)


@pytest.mark.parametrize("port", [22, 2222])
@pytest.mark.parametrize("trusted", ["", "box", "[box]:2222"])
def test_a_key_revoked_for_the_host_is_refused_on_every_port(tmp_path: Path, port: int, trusted: str) -> None:
    key = _key(tmp_path)
    login = _login(tmp_path, SshTarget("box", port))
    path = tmp_path / "new" / "known_hosts"
    path.parent.mkdir()
    line = f"{key.get_name()} {key.get_base64()}\n"
    before = f"@revoked box {line}" + (f"{trusted} {line}" if trusted else "")
    path.write_text(before)
    known = read_known_keys(login.known_hosts_files, listed_name(login))
    with pytest.raises(HostKeyError, match="revoked"):
        check_host_key(login, key, known, accept_new=True)
    assert path.read_text() == before


def test_a_new_key_is_written_to_a_private_file_and_known_afterwards(tmp_path: Path) -> None:
    key = _key(tmp_path)
    login = _login(tmp_path, SshTarget("box", 2222))
    check_host_key(login, key, KnownKeys(), accept_new=True)
    path = tmp_path / "new" / "known_hosts"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert read_known_keys([path], "[box]:2222").has(key.asbytes())


def test_a_new_key_does_not_spoil_an_unfinished_last_line(tmp_path: Path) -> None:
    key = _key(tmp_path)
    login = _login(tmp_path, SshTarget("box"))
    path = tmp_path / "new" / "known_hosts"
    path.parent.mkdir()
    path.write_text(f"old ssh-ed25519 {TEXT}")
    check_host_key(login, key, KnownKeys(), accept_new=True)
    assert read_known_keys([path], "old").has(BLOB)
    assert read_known_keys([path], "box").has(key.asbytes())


def test_a_host_known_on_port_22_is_known_on_its_other_ports(tmp_path: Path) -> None:
    key = _key(tmp_path)
    login = _login(tmp_path, SshTarget("box", 2222))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "known_hosts").write_text(f"box {key.get_name()} {key.get_base64()}\n")
    check_host_key(login, key, KnownKeys(), accept_new=False)


@pytest.mark.parametrize("listed", ["alias", "[alias]:port", "[127.0.0.1]:port"])
def test_a_host_key_alias_is_listed_without_port_as_the_ssh_program_has_it(
    ssh_server: SshServer, tmp_path: Path, listed: str
) -> None:
    _, kind, key = ssh_server.known_hosts_line().split()
    known = tmp_path / "known_hosts"
    known.write_text(f"{listed.replace('port', str(ssh_server.port))} {kind} {key}\n")
    config = tmp_path / "config"
    config.write_text(f"{ssh_server.config.read_text()}  HostKeyAlias alias\n")
    connection = SshConnection("testbox", config_file=str(config), known_hosts_file=str(known))
    strict = ["-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"]
    plain = ["-F", str(config), "-o", f"UserKnownHostsFile={known}", *strict, "testbox"]
    for arguments in (plain, connection.login.ssh_arguments()):
        command = ["ssh", *arguments, "true"]
        done = subprocess.run(command, capture_output=True, timeout=30, stdin=subprocess.DEVNULL)
        assert (done.returncode == 0) is (listed == "alias"), done.stderr
    if listed == "alias":
        with connection:
            assert connection.is_open
    else:
        with pytest.raises(HostKeyError, match=r"\(alias\) is not known"), connection:
            pass


def test_a_new_key_of_an_aliased_host_is_written_under_the_alias(ssh_server: SshServer, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(f"{ssh_server.config.read_text()}  HostKeyAlias alias\n")
    known = tmp_path / "known_hosts"
    with SshConnection("testbox", accept_new_host_key=True, config_file=str(config), known_hosts_file=str(known)):
        assert known.read_text().split()[0] == "alias"

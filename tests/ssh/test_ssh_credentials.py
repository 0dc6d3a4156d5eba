"""Which keys are tried, with a real ssh-agent."""

from __future__ import annotations

import base64
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_server import SshServer, make_key

from remote_env.errors import AuthError
from remote_env.ssh import SshConnection
from remote_env.ssh.keys import public_blob


@pytest.fixture
def server() -> Iterator[SshServer]:
    """An sshd of its own, whose keys a test may change; its configuration says IdentitiesOnly yes."""
    with SshServer() as server:
        server.config.write_text(server.config.read_text() + "  IdentitiesOnly yes\n")
        yield server


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The socket of an empty ssh-agent."""
    place = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 10.0
        while not place.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
        yield place
        process.terminate()


def add(key: Path) -> None:
    subprocess.run(["ssh-add", "-q", str(key)], check=True, timeout=30)


def set_passphrase(key: Path, *options: str) -> None:
    command = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", *options, "-f", str(key)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def log_in(server: SshServer) -> None:
    options = {"known_hosts_file": str(server.known_hosts), "config_file": str(server.config)}
    with SshConnection("testbox", **options) as connection:  # type: ignore[arg-type]
        assert connection.is_open


@pytest.mark.parametrize("left", ["both", "private", "public"])
def test_identities_only_takes_the_files_key_from_the_agent(server: SshServer, agent: Path, left: str) -> None:
    key = server.identity_file
    public = Path(f"{key}.pub")
    add(key)
    if left == "public":
        key.unlink()
    else:
        set_passphrase(key)
    if left == "private":
        public.unlink()
    log_in(server)


def test_identities_only_may_name_a_public_key(server: SshServer, agent: Path) -> None:
    add(server.identity_file)
    server.config.write_text(server.config.read_text().replace("user_ed25519", "user_ed25519.pub"))
    log_in(server)


def test_identities_only_leaves_the_agents_other_keys_alone(server: SshServer, agent: Path, tmp_path: Path) -> None:
    add(server.identity_file)
    make_key(tmp_path / "stranger", "ed25519")
    server.config.write_text(server.config.read_text().replace(str(server.identity_file), str(tmp_path / "stranger")))
    with pytest.raises(AuthError, match=r"stranger: refused.*only keys of these files \(IdentitiesOnly yes\)"):
        log_in(server)
    server.config.write_text(server.config.read_text().replace("IdentitiesOnly yes", "IdentitiesOnly no"))
    log_in(server)


def test_a_key_that_is_a_file_and_in_the_agent_is_offered_once(server: SshServer, agent: Path, tmp_path: Path) -> None:
    make_key(tmp_path / "stranger", "ed25519")
    add(tmp_path / "stranger")
    server.config.write_text(server.config.read_text().replace(str(server.identity_file), str(tmp_path / "stranger")))
    with pytest.raises(AuthError) as caught:
        log_in(server)
    assert str(caught.value).count(": refused") == 1


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_the_public_half_of_a_private_key_with_a_passphrase(tmp_path: Path, kind: str) -> None:
    key = tmp_path / "key"
    make_key(key, kind)
    public = Path(f"{key}.pub")
    blob = base64.b64decode(public.read_text().split()[1])
    assert public_blob(key) == public_blob(public) == blob
    set_passphrase(key)
    public.unlink()
    assert public_blob(key) == blob


def test_a_file_that_names_no_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    begin, end = "-----BEGIN OPENSSH PRIVATE KEY-----\n", "-----END OPENSSH PRIVATE KEY-----\n"
    half = base64.b64encode(b"openssh-key-v1\0" + bytes(3)).decode()
    texts = [b"", b"-----", b"ssh-ed25519", b"ssh-ed25519 AAAA", b"ssh-ed25519 !", os.urandom(300), b"-----BEGIN RSA\n"]
    for text in [*texts, f"{begin}{end}".encode(), f"{begin}{half}\n{end}".encode(), f"{begin}é\n{end}".encode()]:
        path.write_bytes(text)
        assert public_blob(path) is None
    assert public_blob(tmp_path) is None
    assert public_blob(tmp_path / "missing") is None

"""A real OpenSSH server on 127.0.0.1 for tests, with its own keys, known_hosts, client config and cache."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

SSHD = Path("/usr/sbin/sshd")
START_TIMEOUT_S = 20.0

# sshd's own view of who has which password, and of what PAM asks: nothing of the system changes.
_OWN_ACCOUNTS = """\
set -e
for name in passwd shadow pam.d/sshd; do mount --bind "$1/etc/$name" "/etc/$name"; done
shift
exec "$@"
"""
_PASSWORDS = """\
UsePAM yes
PasswordAuthentication yes
KbdInteractiveAuthentication yes
PermitRootLogin yes
"""
_PAM = """\
auth required pam_unix.so nodelay
account required pam_permit.so
session required pam_permit.so
"""
_CONFIG = """\
{first}
ListenAddress {address}
Port {port}
HostKey {root}/host_ed25519
{more_host_keys}
AuthorizedKeysFile {root}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
SetEnv XDG_CACHE_HOME={cache} HOME={root}/home
{extra}
"""


class SshServer:
    """An sshd with everything a client needs to log in; a context manager.

    Everything that runs inside its logins has `XDG_CACHE_HOME` set to `cache`; `processes()` finds it by that.
    `HOME` is an empty folder there, so that nobody's start-up files take part.

    Args:
        extra_config: lines added to sshd's configuration.
        ecdsa_host_key: offer an ECDSA host key beside the Ed25519 one.
        cache: the far end's cache home; default a folder of its own.
        jump: the jump host that `testbox` is reached through; its alias is `jumpbox`. It is to be started and
            closed by whoever made it.
        address: where it listens.
        prefix: a command that sshd is started by (`nsenter …`).
        password: this user's password there; passwords and keyboard-interactive are allowed then. Needs
            `can_have_passwords()`.
        pam: lines of its own /etc/pam.d/sshd, for `password`; default one that asks for the password.

    Attributes:
        port: where it listens on `address`.
        user: whom to log in as (whoever runs the tests).
        identity_file: the private key that it accepts.
        known_hosts: a known_hosts file that holds its key.
        config: an ssh_config file with the alias `testbox`.
        cache: the far end's `XDG_CACHE_HOME`.
    """

    def __init__(
        self,
        *,
        extra_config: str = "",
        ecdsa_host_key: bool = False,
        cache: Path | None = None,
        jump: SshServer | None = None,
        address: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        password: str | None = None,
        pam: str = _PAM,
    ) -> None:
        if not SSHD.exists():
            raise RuntimeError(f"{SSHD} is missing; install it: sudo apt-get install openssh-server")
        self.root = Path(tempfile.mkdtemp(prefix="remote-env-sshd-", dir="/tmp"))  # outlives a module's isolated home
        self.cache = self.root / "cache" if cache is None else cache
        self.user = getpass.getuser()
        self.port = _free_port()
        self.identity_file = self.root / "user_ed25519"
        self.known_hosts = self.root / "known_hosts"
        self.config = self.root / "ssh_config"
        self.address = address
        self._jump = jump
        self._prefix = list(prefix)
        self._first_config = ""
        if password is not None:
            self._give_password(password, pam)
        self._process: subprocess.Popen[bytes] | None = None
        self._write_files(extra_config, ecdsa_host_key=ecdsa_host_key)

    def _write_files(self, extra_config: str, *, ecdsa_host_key: bool) -> None:
        (self.root / "home").mkdir()
        make_key(self.root / "host_ed25519", "ed25519")
        more = ""
        if ecdsa_host_key:
            make_key(self.root / "host_ecdsa", "ecdsa")
            more = f"HostKey {self.root}/host_ecdsa"
        make_key(self.identity_file, "ed25519")
        shutil.copy(f"{self.identity_file}.pub", self.root / "authorized_keys")
        text = _CONFIG.format(
            first=self._first_config,
            address=self.address,
            port=self.port,
            root=self.root,
            cache=self.cache,
            more_host_keys=more,
            extra=extra_config,
        )
        (self.root / "sshd_config").write_text(text)
        self.known_hosts.write_text(self.known_hosts_line())
        self.config.write_text(self._host_block("testbox"))
        if self._jump is not None:
            with self.config.open("a") as file:
                file.write("  ProxyJump jumpbox\n" + self._jump._host_block("jumpbox"))
            with self.known_hosts.open("a") as file:
                file.write(self._jump.known_hosts_line())

    def _host_block(self, alias: str) -> str:
        return (
            f"Host {alias}\n  HostName {self.address}\n  Port {self.port}\n  User {self.user}\n"
            f"  IdentityFile {self.identity_file}\n"
        )

    def _give_password(self, password: str, pam: str) -> None:
        """Have sshd run where this user has `password`."""
        folder = self.root / "etc"
        (folder / "pam.d").mkdir(parents=True)
        (folder / "pam.d" / "sshd").write_text(pam)
        shutil.copy("/etc/passwd", folder / "passwd")
        command = ["openssl", "passwd", "-6", "-stdin"]
        done = subprocess.run(command, input=password, capture_output=True, text=True, check=True, timeout=30)
        others = [line for line in Path("/etc/shadow").read_text().splitlines() if not line.startswith(f"{self.user}:")]
        lines = [*others, f"{self.user}:{done.stdout.strip()}:19000:0:99999:7:::", ""]
        (folder / "shadow").touch(0o600)
        (folder / "shadow").write_text("\n".join(lines))
        own = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _OWN_ACCOUNTS, "sh", str(self.root)]
        self._prefix += own
        self._first_config = _PASSWORDS

    @property
    def target(self) -> str:
        """The address to log in to, as `SshTarget.parse` takes it."""
        return f"ssh://{self.user}@{self.address}:{self.port}"

    @property
    def login(self) -> dict[str, Any]:
        """Keyword arguments for `SshConnection` that make the login to `target` work."""
        return {
            "identity_file": str(self.identity_file),
            "known_hosts_file": str(self.known_hosts),
            "config_file": str(self.config),
        }

    def known_hosts_line(self, key: str = "host_ed25519") -> str:
        """The line of a known_hosts file that makes `key` known."""
        kind, base64, *_ = (self.root / f"{key}.pub").read_text().split()
        return f"[{self.address}]:{self.port} {kind} {base64}\n"

    def __enter__(self) -> SshServer:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where root's sshd separates privileges
        command = [*self._prefix, str(SSHD), "-D", "-e", "-f", str(self.root / "sshd_config")]
        with (self.root / "sshd.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._wait_until_listening()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stop(self) -> None:
        """End sshd, and every login with it; `start_again` makes another one at the same port."""
        assert self._process is not None
        doomed = _descendants(self._process.pid)
        self._process.terminate()
        self._process.wait(10.0)
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_again(self) -> None:
        """Undo `stop`."""
        self.__enter__()

    def _wait_until_listening(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            if f"Server listening on {self.address}" in self.log():
                return
            time.sleep(0.003)
        raise RuntimeError(f"sshd did not start:\n{self.log()}")

    def log(self) -> str:
        """What sshd has written so far."""
        return (self.root / "sshd.log").read_text(errors="replace")

    def processes(self) -> list[int]:
        """Process ids of everything still running that was started through this server's logins."""
        mark = f"XDG_CACHE_HOME={self.cache}".encode()
        return [pid for pid in _all_pids() if mark in _read(f"/proc/{pid}/environ").split(b"\0")]

    @property
    def pid(self) -> int:
        """The listener's process id."""
        assert self._process is not None
        return self._process.pid

    def connection_pids(self) -> list[int]:
        """The sshd processes that serve logins, the listener's descendants."""
        assert self._process is not None
        return _descendants(self._process.pid)

    def signal_connections(self, number: int) -> None:
        """Send the signal `number` to the processes that serve logins."""
        for pid in self.connection_pids():
            with contextlib.suppress(ProcessLookupError):  # it ended with its parent
                os.kill(pid, number)

    def close(self) -> None:
        """End sshd and whatever it started, and remove all files."""
        if self._process is not None:
            doomed = [*_descendants(self._process.pid), *self.processes()]
            self._process.terminate()
            for pid in doomed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait(10.0)
            self._process = None
        shutil.rmtree(self.root, ignore_errors=True)


def can_have_passwords() -> bool:
    """Whether an sshd can be given passwords of its own: we are root, and may mount."""
    probe = ["unshare", "--mount", "--propagation", "private", "mount", "--bind", "/etc/passwd", "/etc/passwd"]
    return os.geteuid() == 0 and subprocess.run(probe, capture_output=True, timeout=30).returncode == 0


def make_key(path: Path, kind: str) -> None:
    """Write a fresh key pair of `kind` ("ed25519", "ecdsa", "rsa") to `path` and `path`.pub."""
    if kind == "ed25519":  # quicker than to start a program
        _make_ed25519_key(path)
        return
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "test", "-f", str(path)], check=True, timeout=30)


def _make_ed25519_key(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    path.touch(0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    Path(f"{path}.pub").write_bytes(public + b" test\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _descendants(root: int) -> list[int]:
    parents = {pid: _parent(pid) for pid in _all_pids()}
    found, frontier = [], [root]
    while frontier:
        frontier = [pid for pid, parent in parents.items() if parent in frontier]
        found += frontier
    return found


def _parent(pid: int) -> int:
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 else -1


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # the process ended meanwhile
        return b""

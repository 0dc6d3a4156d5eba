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
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

SSHD = Path("/usr/sbin/sshd")
START_TIMEOUT_S = 20.0

_CONFIG = """\
ListenAddress 127.0.0.1
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

    Attributes:
        port: where it listens on 127.0.0.1.
        user: whom to log in as (whoever runs the tests).
        identity_file: the private key that it accepts.
        known_hosts: a known_hosts file that holds its key.
        config: an ssh_config file with the alias `testbox`.
        cache: the far end's `XDG_CACHE_HOME`.
    """

    def __init__(self, *, extra_config: str = "", ecdsa_host_key: bool = False, cache: Path | None = None) -> None:
        if not SSHD.exists():
            raise RuntimeError(f"{SSHD} is missing; install it: sudo apt-get install openssh-server")
        self.root = Path(tempfile.mkdtemp(prefix="remote-env-sshd-"))
        self.cache = self.root / "cache" if cache is None else cache
        self.user = getpass.getuser()
        self.port = _free_port()
        self.identity_file = self.root / "user_ed25519"
        self.known_hosts = self.root / "known_hosts"
        self.config = self.root / "ssh_config"
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
        text = _CONFIG.format(port=self.port, root=self.root, cache=self.cache, more_host_keys=more, extra=extra_config)
        (self.root / "sshd_config").write_text(text)
        self.known_hosts.write_text(self.known_hosts_line())
        self.config.write_text(
            f"Host testbox\n  HostName 127.0.0.1\n  Port {self.port}\n  User {self.user}\n"
            f"  IdentityFile {self.identity_file}\n"
        )

    @property
    def target(self) -> str:
        """The address to log in to, as `SshTarget.parse` takes it."""
        return f"ssh://{self.user}@127.0.0.1:{self.port}"

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
        return f"[127.0.0.1]:{self.port} {kind} {base64}\n"

    def __enter__(self) -> SshServer:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where root's sshd separates privileges
        command = [str(SSHD), "-D", "-e", "-f", str(self.root / "sshd_config")]
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

    def _wait_until_listening(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            time.sleep(0.02)
        raise RuntimeError(f"sshd did not start:\n{self.log()}")

    def log(self) -> str:
        """What sshd has written so far."""
        return (self.root / "sshd.log").read_text(errors="replace")

    def processes(self) -> list[int]:
        """Process ids of everything still running that was started through this server's logins."""
        mark = f"XDG_CACHE_HOME={self.cache}".encode()
        return [pid for pid in _all_pids() if mark in _read(f"/proc/{pid}/environ").split(b"\0")]

    def connection_pids(self) -> list[int]:
        """The sshd processes that serve logins, the listener's descendants."""
        assert self._process is not None
        return _descendants(self._process.pid)

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


def make_key(path: Path, kind: str) -> None:
    """Write a fresh key pair of `kind` ("ed25519", "ecdsa", "rsa") to `path` and `path`.pub."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "test", "-f", str(path)], check=True, timeout=30)


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

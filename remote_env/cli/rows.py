"""What the doctor finds: rows, and the commands that mend what is wrong."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

OK, WARN, FAIL, SKIP = "ok", "warn", "FAIL", "skip"


@dataclass(frozen=True)
class Row:
    """One thing that was tested.

    Attributes:
        name: what.
        status: OK, WARN (it works, with a drawback), FAIL, or SKIP (not tested; `found` says why).
        found: what was found.
        fix: the command that mends it, or what to do; never empty when it failed.
    """

    name: str
    status: str
    found: str
    fix: str = ""

    def to_plain(self) -> dict[str, str]:
        """The same as a dict, for JSON."""
        return {"name": self.name, "status": self.status.lower(), "found": self.found, "fix": self.fix}


@dataclass(frozen=True)
class Where:
    """The machine that is looked at, and how a person runs a command there.

    Attributes:
        host: as the caller named it.
        login: the command line of a login, "" for this machine.
        options: the options of our own command that lead there.
        python: the interpreter's command line there.
        launch: the prefix that leads into the container or job where the interpreter lives.
    """

    host: str
    login: str
    python: str
    launch: str = ""
    options: tuple[str, ...] = ()

    def command(self, text: str) -> str:
        """`text` as a command line to type here that runs there."""
        return f"{self.login} {quote(text)}" if self.login else text

    def inside(self, text: str) -> str:
        """As `command`, for what has to run where the interpreter lives."""
        return self.command(f"{self.launch} sh -c {quote(text)}" if self.launch else text)

    def install(self, *packages: str) -> str:
        """The command that installs Debian packages there."""
        return self.inside(f"sudo apt-get install -y {' '.join(packages)}")

    def pip_install(self, *requirements: str) -> str:
        """The command that installs Python packages for the interpreter there."""
        return self.inside(f"{self.python} -m pip install {' '.join(map(quote, requirements))}")

    def ours(self, command: str, *words: str) -> str:
        """The command line of one of our own commands for this machine."""
        return " ".join(["remote-env", command, *map(quote, (self.host, *self.options, *words))])


def quote(text: str) -> str:
    """One word for a shell, by double quotes where it may stand within single ones."""
    plain = shlex.quote(text)
    if plain == text or "'" in text or any(mark in text for mark in '"$`\\!'):
        return plain
    return f'"{text}"' if " " not in text or len(text) < 40 else plain


def ssh_command(login: Any, options: Any) -> str:
    """How a person logs in to where `login` leads: `ssh -p 2222 user@box`.

    Args:
        login: a `remote_env.ssh` login: its user, address and port.
        options: the command line's, for what it says about the way there.
    """
    words = ["ssh"]
    if login.port != 22:
        words += ["-p", str(login.port)]
    for flag, value in (("-F", options.config), ("-i", options.identity_file), ("-J", options.via)):
        if value:
            words += [flag, str(value)]
    if options.known_hosts:
        words += ["-o", f"UserKnownHostsFile={options.known_hosts}"]
    return shlex.join([*words, f"{login.user}@{login.host}"])

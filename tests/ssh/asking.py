"""Somebody who is asked for passphrases, passwords and one-time codes, and an sshd's PAM that asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from ssh_server import can_have_passwords

from remote_env.ssh import SecretPrompt

PASSWORD = "correct horse é"
needs_passwords = pytest.mark.skipif(
    not can_have_passwords(), reason="giving sshd a password of its own needs root and mount namespaces"
)


class Person:
    """Answers prompts: by kind, one answer after the other, the last one again and again; remembers what was asked."""

    def __init__(self, **answers: list[str | None]) -> None:
        self._answers = {kind.replace("_", "-"): list(given) for kind, given in answers.items()}
        self.prompts: list[SecretPrompt] = []

    def __call__(self, prompt: SecretPrompt) -> str | None:
        self.prompts.append(prompt)
        given = self._answers.get(prompt.kind, [None])
        return given.pop(0) if len(given) > 1 else given[0]

    @property
    def kinds(self) -> list[str]:
        return [prompt.kind for prompt in self.prompts]


def code_pam(folder: Path, codes: list[str]) -> str:
    """A PAM stack that asks for something harmless, then for a one-time code out of `codes`; each is good once."""
    (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    check = folder / "check"
    check.write_text(
        "#!/bin/sh\n"
        f'given=$(tr -d \'\\0\'); read -r wanted < {folder}/codes; [ "$given" = "$wanted" ] || exit 1\n'
        f"sed -i 1d {folder}/codes\n"
    )
    check.chmod(0o700)
    return (
        "auth required pam_ftp.so users=root ignore\n"
        f"auth required pam_exec.so quiet expose_authtok {check}\n"
        "auth optional pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n"
    )

"""The file in which a policy server leaves its token for clients of the same account on the same machine."""

from __future__ import annotations

import contextlib
import hmac
import os
from collections.abc import Iterator
from pathlib import Path

from remote_env.errors import ConfigError
from remote_env.private_files import make_private_folder, read_private_text, write_private_text

MIN_TOKEN_LENGTH = 32


def token_path(port: int) -> Path:
    """Where the policy server that listens on `port` of this machine leaves its token.

    Raises:
        ConfigError: this account has no home folder.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError as error:
        raise ConfigError(
            "this account has no home folder: set HOME, or XDG_CACHE_HOME to a folder of yours"
        ) from error
    return base / "remote-env" / "policies" / f"{port}.token"


def read_token(port: int) -> str | None:
    """The token of the policy server on `port` of this machine; None when there is no such file.

    Raises:
        ConfigError: the file is there and cannot be read, or others than this user could read or write it.
    """
    path = token_path(port)
    try:
        return read_private_text(path).strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"cannot read the policy server's token in {path}: {why}") from None


def write_token(port: int, token: str) -> Path:
    """Write the token where only this user can read it; returns the path.

    Raises:
        ConfigError: it cannot be written, or it would not be private.
    """
    path = token_path(port)
    with _explained(path):
        make_private_folder(path.parent)
        write_private_text(path, token + "\n")
    return path


def check_token_place(port: int) -> None:
    """Find out, before a model is loaded for minutes, whether `write_token` will work; raises as that."""
    path = token_path(port)
    with _explained(path):
        make_private_folder(path.parent)
        trial = path.with_name(f"{path.name}.trial")
        write_private_text(trial, "0" * 64)
        trial.unlink()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write the token file {path}: {error.strerror}; make the folder writable, or set XDG_CACHE_HOME"
        ) from error


def remove_token(port: int, token: str) -> None:
    """Remove the file if it still is of this token: another server may have written its own since."""
    with contextlib.suppress(OSError, ConfigError, UnicodeDecodeError):
        path = token_path(port)
        if hmac.compare_digest(read_private_text(path).strip().encode(), token.encode()):
            path.unlink()

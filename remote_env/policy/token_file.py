"""The file in which a policy server leaves its token for clients of the same account on the same machine."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from remote_env.errors import ConfigError

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
        ConfigError: the file is there and cannot be read.
    """
    path = token_path(port)
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read the policy server's token in {path}: {error.strerror}") from error


def write_token(port: int, token: str) -> Path:
    """Write the token where only this user can read it; returns the path.

    Raises:
        ConfigError: it cannot be written, or it would not be private.
    """
    path = token_path(port)
    with _explained(path):
        partial = _write_aside(path, token)
        try:
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return path


def check_token_place(port: int) -> None:
    """Find out, before a model is loaded for minutes, whether `write_token` will work; raises as that."""
    path = token_path(port)
    with _explained(path):
        _write_aside(path, "0" * 64).unlink()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write the token file {path}: {error.strerror}; make the folder writable, or set XDG_CACHE_HOME"
        ) from error


def _write_aside(path: Path, token: str) -> Path:
    """The file beside `path` that holds the token, private and whole."""
    for folder in (path.parents[1], path.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(path.parent)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
        _check_private(partial)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def _check_private(path: Path) -> None:
    """ConfigError when others than this user could reach it; where there are no such bits there is nothing to check."""
    if not hasattr(os, "getuid"):
        return
    status = path.stat()
    if status.st_uid != os.getuid():
        raise ConfigError(
            f"{path} belongs to another user (id {status.st_uid}); set XDG_CACHE_HOME to a folder of yours"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(
            f"{path} can be read by others and is to hold the token; make it private: chmod go-rwx {path}"
        )


def remove_token(port: int, token: str) -> None:
    """Remove the file if it still is of this token: another server may have written its own since."""
    with contextlib.suppress(OSError, ConfigError):
        path = token_path(port)
        if path.read_text().strip() == token:
            path.unlink()

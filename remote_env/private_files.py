"""Files that hold secrets: made so that nobody else gets at them, and refused where somebody does.

A folder of such files is this user's own with the mode 0700, a file 0600. Where the system knows no owners and modes
(Windows), there is nothing to check. Standard library only: the supervisor uses it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from remote_env.errors import ConfigError

_OTHERS = 0o077
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


def make_private_folder(path: Path) -> None:
    """Make a folder for this user alone, with those above it that are missing; one that is there is checked.

    Raises:
        ConfigError: it is another user's, open to others, or no folder.
        OSError: it cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    check_private_folder(path)


def check_private_folder(path: Path) -> None:
    """Have it that nobody else can read or replace what lies in a folder.

    Raises:
        ConfigError: it is another user's, open to others, a link, or no folder; the message says what mends it.
        OSError: there is none.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise ConfigError(
            f"{path} is a symbolic link to {path.readlink()}, and what holds tokens must be a folder: remove the link"
        )
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{path} is no folder, and one that holds tokens is to be there: move it away")
    _check(path, status)


def read_private_text(path: Path, *, follow: bool = False) -> str:
    """The text of a file that holds a secret.

    Args:
        path: of the file.
        follow: it may be a symbolic link, or a pipe: for files that the user named, and not for those that we find.

    Raises:
        ConfigError: others can read or write it, or it is another user's; the message says what mends it.
        OSError: there is none, or it cannot be read.
        UnicodeDecodeError: it is no text.
    """
    if not follow and path.is_symlink():
        raise ConfigError(
            f"{path} is a symbolic link to {path.readlink()}, and holds a token: put the file itself there"
        )
    descriptor = os.open(path, os.O_RDONLY | (0 if follow else _NO_FOLLOW | getattr(os, "O_NONBLOCK", 0)))
    with os.fdopen(descriptor, encoding="utf-8") as file:
        status = os.fstat(descriptor)  # of what is read, whatever has the name by now
        if not follow and not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is no file, and is to hold a token: remove it")
        _check(path, status)
        return file.read()


def write_private_text(path: Path, text: str) -> None:
    """Write a file for this user alone, whole or not at all; what had the name, a symbolic link too, is replaced.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    # O_EXCL: neither a link nor a file that somebody else has put there is ever written to.
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _check(path: Path, status: os.stat_result) -> None:
    if not hasattr(os, "getuid"):
        return
    if status.st_uid != os.getuid():
        raise ConfigError(
            f"{path} belongs to another user (id {status.st_uid}; this is {os.getuid()}), who could read the token in "
            "it: remove it, or set XDG_CACHE_HOME to a folder of yours"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & _OTHERS:
        raise ConfigError(
            f"{path} can be reached by others (its mode is {mode:04o}) and holds a token; make it private: "
            f"chmod go-rwx {path}"
        )

"""Files that are whole or not there, and that say what they were made from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from remote_env.errors import CaptureError, RemoteEnvError


@contextlib.contextmanager
def whole_file(path: Path, *, partial: Path | None = None) -> Iterator[Path]:
    """A name beside `path` to write under; renamed to `path` when all went well, removed otherwise.

    Args:
        path: what is to be written.
        partial: what to rename it to on Ctrl-C, if the block left a file then; None removes it then too. The block
            itself must see to it that such a file can be used.

    Raises:
        CaptureError: the disk does not take it.
    """
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = _claim(temporary, path)
    except OSError as error:
        raise _refused(path, error) from error
    try:
        yield temporary
        temporary.replace(path)
    except KeyboardInterrupt:
        if partial is not None and temporary.is_file() and temporary.stat().st_size:
            temporary.replace(partial)
        raise
    except RemoteEnvError:
        raise
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(mine)


def _refused(path: Path, error: OSError) -> CaptureError:
    where = f" ({error.filename})" if error.filename else ""
    return CaptureError(f"{path} cannot be written: {error.strerror or error}{where}")


def _claim(temporary: Path, path: Path) -> int:
    """An open descriptor of the file; CaptureError where another program is writing it. A killed one claims nothing."""
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise CaptureError(f"{path} is being written by another replay; give another folder, or wait for it") from error
    except (ImportError, OSError):  # Windows, or a file system without locks
        pass
    return descriptor

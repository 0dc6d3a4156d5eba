"""Files that are whole or not there, and that say what they were made from."""

from __future__ import annotations

import contextlib
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
        yield temporary
        temporary.replace(path)
    except KeyboardInterrupt:
        if partial is not None and temporary.is_file():
            temporary.replace(partial)
        raise
    except RemoteEnvError:
        raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise CaptureError(f"{path} cannot be written: {error.strerror or error}{where}") from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be made, nothing is to be removed
            temporary.unlink(missing_ok=True)

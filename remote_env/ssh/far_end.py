"""Putting files on the far end: the server's package and asset folders, each once per content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from remote_env.ssh.connection import SshConnection
from remote_env.ssh.pack import Pack, pack_bundle, pack_far_end, pack_folder
from remote_env.ssh.programs import UPLOAD
from remote_env.ssh.scripts import run_script
from remote_env.ssh.shell import Progress, Sent, Shell


def ship_far_end(
    where: SshConnection | Shell, deadline: float, *, source: Path | None = None, on_progress: Progress | None = None
) -> str:
    """The remote folder that holds the server's package; uploaded when that content is not there yet.

    Args:
        where: logged in.
        deadline: absolute `time.monotonic()` [s].
        source: the package folder to ship; default this package.
        on_progress: called with "uploading" and how much of how much has been sent.

    Raises:
        StartError: the host cannot take the files (disk full, read-only, no tar).
        DeadlineExceeded, ConnectionLost: as `SshConnection.run`; a partial upload is removed.
    """
    return _upload_once(where, "farend", pack_far_end(source), deadline, on_progress)


def upload_folder(
    where: SshConnection | Shell, local_path: str | Path, deadline: float, *, on_progress: Progress | None = None
) -> str:
    """The remote copy of a folder or file, under its own name, uploaded when that content is not there yet.

    Raises:
        ConfigError: `local_path` does not exist, or is an empty folder.
        StartError, DeadlineExceeded, ConnectionLost: as `ship_far_end`.
    """
    path = Path(local_path).expanduser().absolute()
    return f"{_upload_once(where, 'assets', pack_folder(path), deadline, on_progress)}/{path.name}"


def upload_bundle(
    where: SshConnection | Shell,
    local_paths: Sequence[str | Path],
    deadline: float,
    *,
    on_progress: Progress | None = None,
) -> str:
    """The remote folder that holds several files and folders side by side, each under its own name.

    Raises:
        ConfigError: one does not exist or is empty, or two have the same name.
        StartError, DeadlineExceeded, ConnectionLost: as `ship_far_end`.
    """
    paths = [Path(path).expanduser().absolute() for path in local_paths]
    return _upload_once(where, "assets", pack_bundle(paths), deadline, on_progress)


def _upload_once(
    where: SshConnection | Shell, kind: str, pack: Pack, deadline: float, on_progress: Progress | None
) -> str:
    variables = {"kind": kind, "digest": pack.digest}
    answer = run_script(where, UPLOAD, {**variables, "size": 0}, deadline=deadline)
    if answer.word == "absent":
        archive = pack.archive()
        variables["size"] = str(len(archive))
        sent = None if on_progress is None else _counter(on_progress, len(archive))
        answer = run_script(where, UPLOAD, variables, data=archive, deadline=deadline, sent=sent)
    return answer.rest


def _counter(on_progress: Progress, total: int) -> Sent:
    return lambda sent: on_progress("uploading", f"{sent / 1e6:.1f} of {total / 1e6:.1f} MB")

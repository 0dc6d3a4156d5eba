"""Putting files on the far end: the server's package and asset folders, each once per content."""

from __future__ import annotations

from pathlib import Path

from remote_env.ssh.connection import SshConnection
from remote_env.ssh.pack import Pack, pack_far_end, pack_folder
from remote_env.ssh.scripts import UPLOAD, run_script


def ship_far_end(connection: SshConnection, deadline: float, *, source: Path | None = None) -> str:
    """The remote folder that holds the server's package; uploaded when that content is not there yet.

    Args:
        connection: logged in.
        deadline: absolute `time.monotonic()` [s].
        source: the package folder to ship; default this package.

    Raises:
        StartError: the host cannot take the files (disk full, read-only, no tar).
        DeadlineExceeded, ConnectionLost: as `SshConnection.run`; a partial upload is removed.
    """
    return _upload_once(connection, "farend", pack_far_end(source), deadline)


def upload_folder(connection: SshConnection, local_path: str | Path, deadline: float) -> str:
    """The remote copy of a folder or file, under its own name, uploaded when that content is not there yet.

    Raises:
        ConfigError: `local_path` does not exist, or is an empty folder.
        StartError, DeadlineExceeded, ConnectionLost: as `ship_far_end`.
    """
    path = Path(local_path).expanduser().absolute()
    return f"{_upload_once(connection, 'assets', pack_folder(path), deadline)}/{path.name}"


def _upload_once(connection: SshConnection, kind: str, pack: Pack, deadline: float) -> str:
    variables = {"kind": kind, "digest": pack.digest}
    answer = run_script(connection, UPLOAD, {**variables, "upload": "no"}, deadline=deadline)
    if answer.word == "absent":
        variables["upload"] = "yes"
        answer = run_script(connection, UPLOAD, variables, data=pack.archive(), deadline=deadline)
    return answer.rest

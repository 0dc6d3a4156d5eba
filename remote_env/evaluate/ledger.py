"""The ledger of an evaluation: each episode is on disk once it is done, so that a killed evaluation continues.

`episodes.jsonl` begins with a line that says what is evaluated; each further line is an episode. A line that was torn
by a kill or a full disk is dropped when the ledger is opened again: its episode is run again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from remote_env.errors import CaptureError, ConfigError
from remote_env.evaluate.episodes import EpisodeResult

NAME = "episodes.jsonl"
FORMAT = 1
ADVICE = "Give another -o, or --fresh to remove what is there and begin anew"


@contextlib.contextmanager
def claim_folder(folder: Path, begin: str) -> Iterator[None]:
    """Have an evaluation's folder for itself; made when missing, but to resume.

    Where the file system or the platform knows no locks, nothing keeps two from one folder.

    Raises:
        ConfigError: another evaluation writes there.
        CaptureError: the folder cannot be made.
    """
    try:
        if begin != "resume":
            folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY) if os.name == "posix" and folder.is_dir() else None
    except OSError as error:
        raise CaptureError(f"{folder / NAME} cannot be written: {error.strerror}; give another -o") from error
    if lock is None:
        yield
        return
    try:
        _lock(lock, folder)
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int, folder: Path) -> None:
    import fcntl  # of POSIX alone

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"another evaluation writes into {folder} now; wait for its end, or give another -o"
        ) from error
    except OSError:
        return


class Ledger:
    """An open ledger; each `append` is with the kernel when it returns.

    Args:
        folder: where `episodes.jsonl` lies or is to lie; made when missing.
        identity: what is evaluated: plain JSON. Only a ledger of the same is continued.
        begin: "continue", "resume" or "fresh", see `EvaluationConfig`.

    Attributes:
        path: of the file.
        results: the episodes that it held when it was opened, by key.

    Raises:
        ConfigError: the folder holds the ledger of another evaluation (the message says what differs), or there is
            nothing to resume.
        CaptureError: the folder takes no file, or the ledger is damaged.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], begin: str = "continue") -> None:
        self.path = folder / NAME
        self.results: dict[tuple[str, int], EpisodeResult] = {}
        self._identity = json.loads(json.dumps(identity))  # as it will be read again
        if begin == "resume" and not self.path.exists():
            raise ConfigError(f"--resume: {folder} holds no {NAME} to go on with; leave the flag out to begin there")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._open(begin)
        except OSError as error:
            raise CaptureError(f"{self.path} cannot be written: {error.strerror}; give another -o") from error

    def _open(self, begin: str) -> IO[bytes]:
        if begin == "fresh" or not self.path.exists() or self._is_bare():
            file = self.path.open("wb", buffering=0)
            self._file = file
            self._write({"format": FORMAT, "evaluation": self._identity})
            return file
        end = self._read()
        file = self.path.open("r+b", buffering=0)
        file.truncate(end)  # a torn last line is run again
        file.seek(end)
        return file

    def _is_bare(self) -> bool:
        """Whether there is nothing to lose: what an evaluation left that never got going."""
        with self.path.open("rb") as file:
            first, rest = file.readline(), file.read(1)
        if rest or not first.endswith(b"\n"):
            return not first
        with contextlib.suppress(CaptureError):
            return _parse(self.path, 1, first).get("format") == FORMAT
        return False

    def _read(self) -> int:
        """Take in what the file holds; where its last whole line ends."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = [_parse(self.path, number, line) for number, line in enumerate(whole.splitlines(), 1)]
        if not lines:
            raise CaptureError(f"{self.path} holds no whole line, so what it belongs to is unknown. {ADVICE}")
        self._check_header(lines[0])
        for line in lines[1:]:
            result = EpisodeResult.from_plain(line)
            self.results[result.key] = result
        return len(whole)

    def _check_header(self, header: Mapping[str, Any]) -> None:
        if header.get("format") != FORMAT or "evaluation" not in header:
            raise CaptureError(f"{self.path} is no ledger that this version reads (format {header.get('format')!r})")
        there = differences(header["evaluation"], self._identity)
        if there:
            raise ConfigError(f"{self.path.parent} holds another evaluation: {'; '.join(there)}. {ADVICE}")

    def append(self, result: EpisodeResult) -> None:
        """Write one episode.

        Raises:
            CaptureError: the disk is full; the episodes before are kept.
        """
        self._write(result.to_plain())

    def _write(self, line: Mapping[str, Any]) -> None:
        data = memoryview(json.dumps(line).encode() + b"\n")
        try:
            while data:
                data = data[self._file.write(data) or 0 :]
        except OSError as error:
            raise CaptureError(
                f"{self.path} cannot be written: {error.strerror}. The episodes before are kept: make room and run the "
                f"same again with -o {self.path.parent}"
            ) from error

    def close(self) -> None:
        """Write the file through to the disk and close it; may be called again."""
        if self._file.closed:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise CaptureError(f"{self.path} cannot be written: {error.strerror}") from error
        finally:
            self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise CaptureError(f"{path}, line {number} is damaged ({error}). {ADVICE}") from error
    if not isinstance(content, dict):
        raise CaptureError(f"{path}, line {number} is damaged: it holds {content!r:.60}. {ADVICE}")
    return content


def differences(there: Any, wanted: Any, where: str = "") -> list[str]:
    """In what two plain values differ, in words, one for each place."""
    if isinstance(there, dict) and wanted is None:
        return [f"{where} is missing"]
    if there is None and isinstance(wanted, dict):
        return [f"{where} is new"]
    if isinstance(there, dict) and isinstance(wanted, dict):
        names = sorted({*there, *wanted})
        inside = [
            differences(there.get(name), wanted.get(name), f"{where}.{name}" if where else name) for name in names
        ]
        return [word for words in inside for word in words]
    return [] if there == wanted else [f"{where} was {there!r} and is {wanted!r}"]

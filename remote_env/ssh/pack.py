"""What travels: the far end's files and asset folders as deterministic archives, named by their content."""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from remote_env.errors import ConfigError

# The client's half: nothing on the far end imports it.
CLIENT_ONLY = frozenset(
    ("ssh", "env", "vector", "session", "record", "replay", "evaluate", "testing", "cli", "__main__")
)
# Of the room for testing, the task that a server can serve.
SERVED_TESTING = frozenset(("testing/__init__.py", "testing/counting.py"))
DIGEST_CHARACTERS = 32


@dataclass(frozen=True)
class Pack:
    """Files to upload.

    Attributes:
        files: names inside the archive, sorted, with the local files.
        digest: of names and bytes; equal digests mean equal folders.
    """

    files: tuple[tuple[str, Path], ...]
    digest: str

    def archive(self) -> bytes:
        """A gzipped tar, with fixed times and owners.

        Raises:
            ConfigError: a file has changed since the digest was taken.
        """
        buffer, digest = io.BytesIO(), hashlib.sha256()
        with (
            gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name, path in self.files:
                content = path.read_bytes()
                _digest_file(digest, name, content)
                _add_file(tar, name, content, executable=bool(path.stat().st_mode & 0o100))
        if digest.hexdigest()[:DIGEST_CHARACTERS] != self.digest:
            raise ConfigError("files have changed since this process first read them; start it again")
        return buffer.getvalue()


def _digest_file(digest: hashlib._Hash, name: str, content: bytes) -> None:
    digest.update(f"{len(name.encode())} {len(content)} {name}\n".encode())
    digest.update(content)


def _add_file(tar: tarfile.TarFile, name: str, content: bytes, *, executable: bool) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = 0o755 if executable else 0o644
    tar.addfile(entry, io.BytesIO(content))


def pack_far_end(source: Path | None = None) -> Pack:
    """The package's far-end half, a pure-Python msgpack, and `packaging`, which checks requirements.

    Args:
        source: the package folder; default the one that this module belongs to.
    """
    return _pack_package(source or Path(__file__).parents[1])


@functools.lru_cache(maxsize=4)
def _pack_package(package: Path) -> Pack:
    return _make_pack([*_package_files(package), *_vendored("msgpack"), *_vendored("packaging")])


def _package_files(package: Path) -> Iterator[tuple[str, Path]]:
    for path in package.rglob("*"):
        place = path.relative_to(package)
        is_far = place.parts[0].removesuffix(".py") not in CLIENT_ONLY or place.as_posix() in SERVED_TESTING
        if is_far and "__pycache__" not in place.parts and path.is_file():
            yield f"remote_env/{place.as_posix()}", path


def _vendored(name: str) -> Iterator[tuple[str, Path]]:
    spec = importlib.util.find_spec(name)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(folder).rglob("*.py"):  # without compiled halves, which fit one Python only
            yield f"vendor/{name}/{path.relative_to(folder).as_posix()}", path


def pack_folder(root: Path) -> Pack:
    """The file `root`, or all files of the folder `root` (links followed, caches of Python left out), under its name.

    Raises:
        ConfigError: nothing is there, or the folder holds no file.
    """
    return _make_pack(_files_of(root))


def pack_bundle(roots: Sequence[Path]) -> Pack:
    """Several files and folders, each as `pack_folder` packs it.

    Raises:
        ConfigError: nothing is there, a folder holds no file, or two have the same name.
    """
    names = [root.name for root in roots]
    for name in names:
        if names.count(name) > 1:
            same = " and ".join(str(root) for root in roots if root.name == name)
            raise ConfigError(f"{same} have the same name and would lie in one folder there; rename one")
    return _make_pack([file for root in roots for file in _files_of(root)])


def _files_of(root: Path) -> list[tuple[str, Path]]:
    if not root.exists():
        raise ConfigError(f"there is no {root} here to upload; name a local file or folder")
    if root.is_file():
        return [(root.name, root)]
    files = [
        (path.relative_to(root.parent).as_posix(), path)
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    if not files:
        raise ConfigError(f"{root} holds no files; there is nothing to upload")
    return files


def _make_pack(files: list[tuple[str, Path]]) -> Pack:
    files = sorted(files)
    digest = hashlib.sha256()
    for name, path in files:
        _digest_file(digest, name, path.read_bytes())
    return Pack(tuple(files), digest.hexdigest()[:DIGEST_CHARACTERS])

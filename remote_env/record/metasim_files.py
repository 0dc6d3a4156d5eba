"""The files that MetaSim and RoboVerse write, read as plain values; never by unpickling.

Formats as of September 2026 (RoboVerse `packages/metasim`, 1.0.0b0): `metasim.utils.trajectory` writes `.npz` with a
JSON header (`roboverse.episode`); `metasim.utils.demo_util.loader` writes trajectories (v2) as `.json`, `.yaml`,
`.pkl` and `.pkl.gz`. Beside these: `.json.gz`, and `.hdf5` or `.npz` with one array per leaf of the nested dictionary,
named by its path, such as `robots/franka/dof_pos/panda_joint1`.
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from remote_env.errors import CaptureError
from remote_env.record.reading import check_links, claimed_dataset

MAX_TEXT_BYTES = 2 << 30  # of a JSON or YAML file, unpacked
HEADER = "header"  # of a roboverse.episode: JSON in an array of its own
PICKLES = (".pkl", ".pickle", ".pkl.gz", ".pickle.gz", ".pt", ".pth")
READABLE = (".npz", ".json", ".json.gz", ".yaml", ".yml", ".hdf5", ".h5")


def read_file(path: Path) -> Any:
    """What the file holds: dictionaries, lists and numbers; arrays by path become nested dictionaries.

    Raises:
        CaptureError: it is a pickle, of no known format, damaged, or not there; the message says what to do.
    """
    name = path.name.lower()
    if name.endswith(PICKLES):
        raise CaptureError(_about_pickles(path))
    try:
        if name.endswith((".json", ".json.gz")):
            return json.loads(_read_text(path))
        if name.endswith((".yaml", ".yml")):
            return _read_yaml(path)
        if name.endswith(".npz"):
            return _read_npz(path)
        if name.endswith((".hdf5", ".h5")):
            with h5py.File(path, "r") as file:
                check_links(file)
                return _nested_group(file)
    except FileNotFoundError as error:
        raise CaptureError(f"there is no {path}") from error
    except (OSError, EOFError, ValueError, LookupError, RecursionError, zipfile.BadZipFile, zlib.error) as error:
        raise CaptureError(f"{path} cannot be read as {path.suffix}: {error}") from error
    raise CaptureError(f"{path} is of no format that is read here; these are: {', '.join(READABLE)}")


def _about_pickles(path: Path) -> str:
    source, stem = f"pathlib.Path({str(path)!r}).read_bytes()", str(path).removesuffix(".gz").rpartition(".")[0]
    load = f"pickle.loads(gzip.decompress({source}))" if path.name.endswith(".gz") else f"pickle.loads({source})"
    if path.suffix in (".pt", ".pth"):
        load = f"__import__('torch').load({str(path)!r}, weights_only=True)"
    return (
        f"{path} is a pickle, and reading one runs whatever its author put into it. If you trust it, convert it once "
        "where numpy (and torch, if it holds tensors) is installed, then import the JSON:\n"
        f"  import gzip, json, pathlib, pickle; data = {load}\n"
        f"  pathlib.Path('{stem}.json').write_text(json.dumps(data, default=lambda value: value.tolist()))"
    )


def _read_text(path: Path) -> str:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise CaptureError(f"{path} holds more than {MAX_TEXT_BYTES} bytes of text; save it as .npz or .hdf5")
    return data.decode()


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        raise CaptureError(f"{path} is no plain YAML: {error}") from error


def _read_npz(path: Path) -> Any:
    """Arrays by path as nested dictionaries, with the header, if there is one, as a dictionary."""
    nested: dict[str, Any] = {}
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        for name in file.files:
            _put(nested, name.split("/"), json.loads(str(file[name])) if name == HEADER else file[name])
    return nested


def _put(nested: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        nested = nested.setdefault(part, {})
    nested[path[-1]] = value


def _nested_group(group: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _nested_group(value) if isinstance(value, h5py.Group) else np.asarray(claimed_dataset(value)[()])
        for name, value in group.items()
    }

"""`remote-env inspect`, `repair` and `import`: captures on disk."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from remote_env.cli.replay import find_captures
from remote_env.cli.show import examples, positive_number, print_json, show_bytes
from remote_env.errors import CaptureError, ConfigError
from remote_env.protocol.log_text import clean

_INSPECT = """
examples:
  remote-env inspect captures/episode_000.hdf5
  remote-env inspect captures --json | jq '.[] | [.path, .steps, .success]'

The exit status is 1 where a capture is damaged.
"""
_REPAIR = """
examples:
  remote-env repair captures/episode_007.part      leaves episode_007.hdf5 and removes the .part
  remote-env repair captures                       every .part of a folder
"""
_IMPORT = """
examples:
  remote-env import demo.npz -o captures/demo.hdf5
  remote-env import trajectories.json --rate-hz 50 --episode 3 --robot franka -o demo_3.hdf5

Reads nested dictionaries of states, {"objects" | "robots": {NAME: {pos, rot, vel, ang_vel, dof_pos, dof_vel}}}, as
MetaSim and RoboVerse write them. Pickles are never opened.
"""
_INDENT = 14
_WIDTH = 100


def add_parsers(subparsers: Any) -> None:
    """Add the commands."""
    inspect = _add(subparsers, "inspect", "say what is in a capture", _INSPECT, run_inspect)
    inspect.add_argument("captures", nargs="+", type=Path, metavar="CAPTURE", help=".hdf5, .part, or a folder of .hdf5")
    inspect.add_argument("--json", action="store_true", help="print everything as a JSON list")
    repair = _add(subparsers, "repair", "recover the whole steps of recordings that broke off", _REPAIR, run_repair)
    repair.add_argument("parts", nargs="+", type=Path, metavar="FILE.part", help="or a folder of them")
    importing = _add(subparsers, "import", "make a capture of another system's states", _IMPORT, run_import)
    _add_import_flags(importing)


def _add(subparsers: Any, name: str, summary: str, text: str, run: Any) -> argparse.ArgumentParser:
    description = f"{summary[0].upper()}{summary[1:]}."
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=summary, description=description, allow_abbrev=False, **examples(text)
    )
    parser.set_defaults(run=run)
    return parser


def _add_import_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help=".npz, .json, .json.gz, .yaml or .hdf5")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="CAPTURE", help="the .hdf5 to write")
    parser.add_argument("--rate-hz", type=positive_number, metavar="HZ", help="steps per simulated second")
    parser.add_argument("--episode", type=int, default=0, metavar="N", help="which, where there are several")
    parser.add_argument("--env-id", type=int, default=0, metavar="N", help="which environment of a batch")
    parser.add_argument("--robot", metavar="NAME", help="which entity is the robot, where there are several")
    parser.add_argument("--quaternions", choices=("wxyz", "xyzw"), help="their order, where it is known")
    parser.add_argument("--task", default="", help="what to call the task")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")


def run_inspect(options: argparse.Namespace) -> int:
    """Print what is in each capture; 1 where one is damaged."""
    _need_h5py()
    from remote_env.record.inspection import inspect_capture

    found, failed = [], False
    for path in find_captures(options.captures):
        try:
            facts = inspect_capture(path)
        except CaptureError as error:
            facts = {"path": str(path), "problem": str(error)}
        failed |= bool(facts["problem"])
        found.append(facts)
    if options.json:
        print_json(found)
    else:
        print("\n\n".join(clean("\n".join(_lines(facts))) for facts in found))
    return int(failed)


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    yield facts["path"]
    for name, text in _rows(facts) if "steps" in facts else [("problem", facts["problem"])]:
        if text:
            yield f"  {name:<{_INDENT}}{text}"


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "schema", f"{facts['schema']} version {facts['schema_version']}"
    yield "task", f"{facts['task'] or 'unknown'}{_listed(facts['env_kwargs'])}"
    duration = f", {facts['duration_s']:.2f} s" if facts["duration_s"] else ""
    yield "steps", f"{facts['steps']} at {facts['rate_hz']:g} Hz{duration}; {_ending(facts)}"
    per_step = f", {facts['bytes_per_step']} bytes a step" if facts["bytes_per_step"] else ""
    yield "size", f"{show_bytes(facts['size_bytes'])}{per_step}"
    yield "seed", "" if facts["seed"] is None else str(facts["seed"])
    yield "recorded", " on ".join(filter(None, [facts["created"], facts["host"]]))
    yield "versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield "actions", _shape(facts["action"])
    yield "observations", ", ".join(f"{key} {_shape(value)}" for key, value in facts["observations"].items())
    yield "images", ", ".join(f"{key} {_shape(value)}" for key, value in facts["images"].items()) or "none"
    yield from _scene_rows(facts)
    yield "dropped", f"{facts['dropped_bytes']} bytes of a torn last record" if facts["dropped_bytes"] else ""
    yield "problem", facts["problem"]


def _scene_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    scene, description = facts["scene"], facts["description"]
    if scene is None:
        yield "scene", "no states: this capture cannot be replayed"
        return
    yield "scene", f"{scene['values_per_state']} numbers a state, from {scene['source'] or 'an unnamed simulator'}"
    for name, parts in scene["entities"].items():
        yield f"  {name} ", _entity(parts)
    native = facts["native_bytes"]
    yield "native", f"{show_bytes(native)} a state that restore the simulator exactly" if native else "none"
    yield "description", _description(description)


def _entity(parts: Mapping[str, Any]) -> str:
    kinds = ((kind, parts[kind]) for kind in ("joints", "links"))
    said = "; ".join(f"{len(names)} {kind}: {', '.join(names)}" for kind, names in kinds if names)
    return (said[: _WIDTH - 1] + "…" if len(said) > _WIDTH else said) or "root only"


def _description(description: Mapping[str, Any] | None) -> str:
    if description is None:
        return "none: a replay needs a model of the scene"
    shapes = ", ".join(f"{name} {count}" for name, count in description["shapes"].items())
    said = [f"primitives of {shapes}" if shapes else "", *description["notes"]]
    said.insert(1, f"an MJCF of {show_bytes(description['mjcf_bytes'])}" if description["mjcf_bytes"] else "")
    return "; ".join(filter(None, said))


def _ending(facts: Mapping[str, Any]) -> str:
    ends = [name for name in ("terminated", "truncated") if facts[name]]
    ending = " and ".join(ends) or "not ended by the environment"
    success = {True: ", success", False: ", no success", None: ""}[facts["success"]]
    return f"{ending}, reward {facts['reward_sum']:g}{success}"


def _listed(values: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{name}={value!r}' for name, value in values.items())})" if values else ""


def _shape(entry: Mapping[str, Any]) -> str:
    return f"({', '.join(map(str, entry['shape']))}) {entry['dtype']}"


def run_repair(options: argparse.Namespace) -> int:
    """Turn each `.part` into a `.hdf5`; 1 where one could not be."""
    _need_h5py()
    from remote_env.record import read_episode, recover_part, repair_part

    failed = False
    for path in _find_parts(options.parts):
        try:
            dropped = recover_part(path, check=False).dropped_bytes
            final = repair_part(path)
            torn = f"; {dropped} bytes of a torn last record were dropped" if dropped else ""
            print(clean(f"{path} -> {final.name}: {len(read_episode(final, images=False))} steps{torn}"))
        except CaptureError as error:
            failed = True
            print(clean(f"error: {error}"), file=sys.stderr)
    return int(failed)


def _find_parts(given: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in given:
        found += sorted(path.glob("*.part")) if path.is_dir() else [path]
    if not found:
        raise ConfigError(f"there is no .part in {', '.join(map(str, given))}; nothing is to be repaired")
    return found


def run_import(options: argparse.Namespace) -> int:
    """Write the capture and say what is in it."""
    _need_h5py()
    from remote_env.record.hdf5 import write_episode
    from remote_env.record.metasim import read_metasim

    if options.out.suffix != ".hdf5":
        raise ConfigError(f"--out {options.out}: a capture's name ends with .hdf5")
    if options.out.exists() and not options.force:
        raise ConfigError(f"--out {options.out} is there already; give another name, or --force")
    episode = read_metasim(
        options.file,
        rate_hz=options.rate_hz,
        episode=options.episode,
        env_id=options.env_id,
        robot=options.robot,
        quaternions=options.quaternions,
        task=options.task,
    )
    _make_folder(options.out.parent)
    write_episode(episode, options.out)
    options.captures, options.json = [options.out], False
    return run_inspect(options)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}") from error


def _need_h5py() -> None:
    try:
        import h5py  # noqa: F401  # only whether it is there
    except ModuleNotFoundError as error:
        raise ConfigError(
            "captures need h5py, which is not installed here: pip install 'remote-env[replay]'"
        ) from error

"""`remote-env map`: which captured name is which of a local model: propose a mapping.yaml, or check one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from remote_env.cli.show import examples, one_line, print_table
from remote_env.errors import ConfigError, ReplayError

_EXAMPLES = """
examples:
  remote-env map captures/episode_000.hdf5 arm.xml                       show what matches, and how surely
  remote-env map captures/episode_000.hdf5 arm.xml -o mapping.yaml       write it down, to be completed by hand
  remote-env map captures/episode_000.hdf5 arm.xml --check mapping.yaml  does it fit, and what is left out

MODEL is an MJCF, URDF or .mjb file, module:function, robot_descriptions:NAME, or capture.
Certain matches (equal names, but for case or a prefix) are taken; guesses stand behind a # until you take it away.
"""

_FAR_M, _FAR_RAD = 0.01, 0.05  # beyond what two models of one robot differ by
_POSES_DIFFER = (
    "the names fit, the poses do not: a joint has another sign, scale or zero, or a link's frame lies elsewhere in its "
    "body. `remote-env replay` leaves a fidelity.json with the errors of each link: begin with the one nearest to the "
    "root. Where every link behind it is wrong, too, it is the joint; where they are right, it is the frame"
)


def add_parsers(subparsers: Any) -> None:
    """Add `remote-env map`."""
    parser = subparsers.add_parser(
        "map",
        help="which captured name is which of a local model",
        description="Propose a mapping.yaml from the names of a capture to those of a local model, or check one.",
        allow_abbrev=False,
        **examples(_EXAMPLES),
    )
    parser.add_argument("capture", metavar="CAPTURE", help="an .hdf5 or .part that holds scene states")
    parser.add_argument("model", metavar="MODEL", help="the local model")
    parser.add_argument("-o", "--output", metavar="YAML", help="write the proposal there")
    parser.add_argument("--force", action="store_true", help="write over an existing file")
    parser.add_argument("--check", metavar="YAML", help="check this mapping instead of proposing one")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Propose or check; 0 when every name that a replay needs is settled."""
    from remote_env.record import read_episode

    episode = read_episode(options.capture, images=False)
    if episode.layout is None:
        raise ReplayError(f"{options.capture} holds no scene states; capture them: record(..., state=env.get_state())")
    if options.check is not None:
        if options.output is not None:
            raise ConfigError("--check reads a mapping and --output writes one; give one of them")
        return _check(options, episode)
    return _propose(options, episode)


def _check(options: argparse.Namespace, episode: Any) -> int:
    from remote_env.replay.fitting import fitting
    from remote_env.replay.mapping import Mapping
    from remote_env.replay.measuring import reasons
    from remote_env.replay.replayer import Replayer

    mapping = Mapping.load(options.check)
    with Replayer(options.model, mapping=mapping, description=episode.description) as replayer:
        missing = replayer.check_names(episode.layout)
        shown = replayer.set_states(episode.layout, episode.scene_values)
        used = fitting(mapping, episode.layout, replayer.scene)
        fidelity = replayer.fidelity
    _say(f"{options.check} fits: {len(shown.local)} states of {options.capture} in {options.model}")
    _say(f"largest position error {fidelity.max_position_error_m:.3g} m{_at(fidelity.worst_position)}")
    _say(f"largest rotation error {fidelity.max_rotation_error_rad:.3g} rad{_at(fidelity.worst_rotation)}")
    if fidelity.max_position_error_m > _FAR_M or fidelity.max_rotation_error_rad > _FAR_RAD:
        print(_POSES_DIFFER)
    for name, reason in reasons(used).items():
        _say(f"left out: {name}: {reason}")
    for name in missing:
        _say(f"not compared: {name} has no body in the model")
    return 0


def _say(line: str) -> None:
    """Names come from files that others may have made."""
    print(one_line(line))


def _at(worst: str) -> str:
    return f" ({worst})" if worst else ""


def _propose(options: argparse.Namespace, episode: Any) -> int:
    from remote_env.replay.models import load_model
    from remote_env.replay.proposal_text import proposal_yaml
    from remote_env.replay.propose import propose

    proposal = propose(episode.layout, load_model(options.model, description=episode.description))
    print_table(("CAPTURE", "MODEL", "HOW"), _rows(proposal))
    for where, names in (
        ("only in the capture", proposal.only_captured),
        ("only in the model", proposal.only_local),
        ("links only in the capture", proposal.missing_links),
    ):
        if names:
            _say(f"{where}: {', '.join(names)}")
    if options.output is not None:
        title = f"From the names of {Path(options.capture).name} to those of {Path(options.model).name}."
        _write(Path(options.output), proposal_yaml(proposal, title=title), force=options.force)
    _say(_verdict(proposal, options))
    return 0 if proposal.is_complete else 1


def _rows(proposal: Any) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for entity in proposal.entities:
        if entity.entity is not None:
            rows.append((entity.name, entity.entity.local, _how(entity.entity)))
        for match in (*entity.joints, *entity.links):
            rows.append((f"{entity.name}/{match.captured}", match.local, _how(match)))
        rows += [(f"{entity.name}/{joint}", "?", "a joint that nothing is like") for joint in entity.unlike_joints]
    return rows


def _how(match: Any) -> str:
    from remote_env.replay.alike import MINIMUM

    words = {"exact": "same name", "case": "same but for case", "suffix": "same behind a prefix"}
    if match.is_certain:
        return words.get(match.kind, "known by its joints and links")
    return f"guess, {match.score:.2f} alike" if match.score >= MINIMUM else "guess, the only one left"


def _write(path: Path, text: str, *, force: bool) -> None:
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; --force writes over it")
    from remote_env.replay.files import whole_file

    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _verdict(proposal: Any, options: argparse.Namespace) -> str:
    file = options.output or "mapping.yaml"
    check = f"remote-env map {options.capture} {options.model} --check {file}"
    if proposal.is_complete:
        return (
            f"every name is settled; {f'check it: {check}' if options.output else 'write it down with -o mapping.yaml'}"
        )
    if options.output:
        return f"not every name is settled: complete {file}, then check it: {check}"
    return "not every name is settled: write it down with -o mapping.yaml, and complete it there"

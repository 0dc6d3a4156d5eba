"""`remote-env replay`: captures in a local MuJoCo model; video, images and a fidelity report out, or a window."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from remote_env.cli.replay_flags import add_video_flags, video_arguments, video_suffix
from remote_env.cli.show import examples, print_table
from remote_env.errors import CaptureError, ConfigError, InputError, ReplayError
from remote_env.protocol.log_text import clean

if TYPE_CHECKING:
    from remote_env.record import Episode
    from remote_env.replay import ReplayReport

COLUMNS = ("CAPTURE", "STATES", "POSITION", "ROTATION", "LEFT IN")
OWN_MODEL = "capture"
_EXAMPLES = """
examples:
  remote-env replay captures/episode_000.hdf5                        of an ALOHA task: its model is known
  remote-env replay captures --model arm.xml --mapping mapping.yaml  a folder; `remote-env map` writes the mapping
  remote-env replay a.hdf5 --model capture                           the scene that the capture itself describes
  remote-env replay a.hdf5 --view                                    in a window: Space, arrows, Page Up and Down
  remote-env replay captures --no-video --max-error-m 0.001          only compare; status 1 beyond a millimetre
  remote-env replay a.hdf5 --camera top --camera angle --overlay --speed 0.5

Each capture leaves OUT/NAME/: video, stills and contact sheet, fidelity.json and fidelity.png.
"""


def add_parsers(subparsers: Any) -> None:
    """Add `remote-env replay`."""
    parser = subparsers.add_parser(
        "replay",
        help="show captures in a local MuJoCo model: video, images, fidelity",
        description="Show captured states in a local MuJoCo model and say how far it is from what was captured.",
        allow_abbrev=False,
        **examples(_EXAMPLES),
    )
    parser.add_argument(
        "captures", nargs="+", type=Path, metavar="CAPTURE", help=".hdf5 or .part, or a folder of .hdf5"
    )
    parser.add_argument(
        "-m",
        "--model",
        help=f"MJCF, URDF or .mjb, module:function, robot_descriptions:NAME, or {OWN_MODEL}: as the capture itself "
        f"describes its scene; default: the task's own where it is known here, else {OWN_MODEL}",
    )
    parser.add_argument("--mapping", metavar="FILE", help="mapping.yaml: which captured name is which of the model")
    _add_output_flags(parser.add_argument_group("what it leaves"))
    _add_check_flags(parser.add_argument_group("what it checks"))
    add_video_flags(parser)
    parser.set_defaults(run=run)


def _add_output_flags(group: Any) -> None:
    group.add_argument("-o", "--out", type=Path, default=Path("replays"), metavar="DIR", help="default: ./%(default)s")
    group.add_argument("--no-video", action="store_true", help="no video")
    group.add_argument("--no-images", action="store_true", help="no stills and no contact sheet")
    group.add_argument("--frames", action="store_true", help="also each frame of the video as a PNG")
    group.add_argument("--view", action="store_true", help="open MuJoCo's viewer instead; nothing is written")


def _add_check_flags(group: Any) -> None:
    for unit, words in (("m", "link, root or slide joint"), ("rad", "link, root or hinge joint")):
        group.add_argument(
            f"--max-error-{unit}",
            type=_error_bound,
            metavar=unit.upper(),
            help=f"status 1 where any {words} is further from what was captured [{unit}]",
        )


def _error_bound(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value


def run(options: argparse.Namespace) -> int:
    """Replay every capture; 1 when one could not be, or is further off than allowed."""
    filming = video_arguments(options)  # before anything is read: what makes no sense together is told at once
    captures = find_captures(options.captures)
    if options.view:
        return _view(options, captures)
    done = Done()
    with ended_as_by_ctrl_c() as received:
        try:
            _replay_each(captures, done, options, filming)
        except KeyboardInterrupt:
            print(f"interrupted; what was finished is whole in {options.out}; go on with --resume", file=sys.stderr)
            done.show(options.out)
            return 128 + (received[0] if received else signal.SIGINT)
    done.show(options.out)
    return 1 if done.errors else 0


def _replay_each(captures: Sequence[Path], done: Done, options: argparse.Namespace, filming: dict[str, Any]) -> None:
    for path, name in zip(captures, unique_names(captures), strict=True):
        try:
            report = replay_one(path, name, options, filming)
            done.reports[name] = report
            report.report.check(options.max_error_m, options.max_error_rad)
        except (CaptureError, ReplayError, InputError) as error:  # of this capture; the next may be well
            done.errors.append(f"{path}: {error}")


@contextlib.contextmanager
def ended_as_by_ctrl_c() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that it leaves no half files; gives what came."""
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        known = signal.getsignal(signal.SIGINT)  # which waits while a process is being started
        if not callable(known):
            raise KeyboardInterrupt
        known(signal.SIGINT, frame)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] == signal.SIG_DFL:  # one that is ignored, as under nohup, stays so
            signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Done:
    """What came of the captures so far: a report by name, or an error."""

    reports: dict[str, ReplayReport] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def show(self, out: Path) -> None:
        """A table, what is worth knowing beside it, and the errors."""
        if self.reports:
            print_table(COLUMNS, [_row(name, report, out / name) for name, report in self.reports.items()])
        for name, report in self.reports.items():
            for note in report.report.lines()[1:]:
                print(clean(f"note: {name}: {note}"))
        for error in self.errors:
            print(clean(f"error: {error}"), file=sys.stderr)


def _row(name: str, report: ReplayReport, folder: Path) -> list[str]:
    fidelity = report.fidelity
    position, rotation = f"{fidelity.max_position_error_m:.3g} m", f"{fidelity.max_rotation_error_rad:.3g} rad"
    return [name, str(report.report.states), position, rotation, str(folder)]


def find_captures(given: Sequence[Path]) -> list[Path]:
    """The files themselves, and the `.hdf5` in each folder, in the order of their names.

    Raises:
        ConfigError: a folder has none.
    """
    found: list[Path] = []
    for path in given:
        inside = sorted(path.glob("*.hdf5")) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"there is no .hdf5 in the folder {path}; parts are recovered with: remote-env repair")
        found += inside
    return found


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file's outputs: its own, with its folder's and a number where several share it."""
    stems = [path.stem for path in paths]
    names = [
        stem if stems.count(stem) == 1 else f"{path.resolve().parent.name}_{stem}"
        for path, stem in zip(paths, stems, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name}_{names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]


def replay_one(path: Path, name: str, options: argparse.Namespace, filming: dict[str, Any]) -> ReplayReport:
    """Replay one capture into `options.out / name`; its fidelity report is written last.

    Raises:
        ReplayError, CaptureError, ConfigError, InputError: as `replay_episode`.
    """
    replay_episode, read_episode = _replaying()
    episode = read_episode(path, images=str(filming["beside"] or "").startswith("images/"))
    folder = options.out / name
    report: ReplayReport = replay_episode(
        episode,
        model_for(episode, options.model),
        mapping=options.mapping,
        name=name,
        video=None if options.no_video else folder / f"{name}{video_suffix(options)}",
        images_dir=None if options.no_images else folder,
        frames_dir=folder / "frames" if options.frames else None,
        progress=sys.stdout.isatty(),
        **filming,
    )
    report.report.save(folder)
    return report


def _replaying() -> Any:
    """What replaying needs, which is not there where only servers are looked after."""
    try:
        from remote_env.record import read_episode
        from remote_env.replay import replay_episode
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"replaying needs {error.name}, which is not installed here: pip install 'remote-env[replay]'"
        ) from error
    return replay_episode, read_episode


def model_for(episode: Episode, model: str | None) -> Any:
    """The model that was asked for, else that of the capture's task where we know it, else the capture's own."""
    if model is not None:
        return model
    from remote_env.cli.local_models import known_model

    return known_model(episode.info.task, episode.info.env_kwargs) or OWN_MODEL


def _view(options: argparse.Namespace, captures: Sequence[Path]) -> int:
    _, read_episode = _replaying()
    from remote_env.replay import view

    episode = read_episode(captures[0], images=False)
    model = model_for(episode, options.model)
    view(captures, model, mapping=options.mapping, description=episode.description, speed=options.speed)
    return 0

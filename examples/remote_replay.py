"""Run a task on another machine, capture its states, replay them in MuJoCo here.

Each step brings the scene's state along with the observation, so capturing costs no round trip. The captures
(`captures/episode_000.hdf5`, the layout that ACT and ALOHA tools read) are then replayed by name in the local
model: `videos/episode_000.mp4` at the task's true rate, stills and a contact sheet in `images/`, how far the replay is
from the capture, link by link, in `fidelity/episode_000/` (`fidelity.json`, `fidelity.png`), and `report.json` with how
fast it all was, how often the task succeeded, and the fidelity of all.

On this machine, without any server:

    python examples/remote_replay.py --episodes 1

On a machine that you can log in to with `ssh user@box` (its Python needs numpy, gymnasium and mujoco):

    python examples/remote_replay.py --host user@box --python /opt/sim/bin/python

An arm of Isaac Lab 3 that picks a cube, where Isaac Lab is installed (here it is not needed). The task's files are sent
along; `isaac/pick.xml` is the local model, and `isaac/mapping.yaml` says which of its names are which:

    python examples/remote_replay.py --task isaac-pick --host user@box --python "~/IsaacLab/isaaclab.sh -p"

A task of Isaac Lab that you have no model of, shown in what the far end itself tells of its scene:

    python examples/remote_replay.py --task Isaac-Reach-Franka --simulator isaaclab --model capture --host user@box …

With `--max-error-m 0.001` the run fails when any link of the replay is farther from where the far end had it, and with
`--view` MuJoCo's own viewer shows the captures at the end. The video is rendered with quality "fast" (no multisampling,
no shadows) unless you say `--quality full`: in software OpenGL that is some ten times faster.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended
_interrupts: list[int] = []


def _leave(*_: object) -> None:
    print("interrupted; nothing was started", file=sys.stderr)
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _leave)  # while the imports run

# A checkout that was not installed works too, and so does --policy module:function from the current folder.
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path.cwd())]

from login_flags import add_login_flags, in_flags, login_arguments  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: E402

from remote_env import RemoteEnv  # noqa: E402
from remote_env.cli.replay_flags import add_video_flags, video_arguments, video_suffix  # noqa: E402
from remote_env.errors import ConfigError, RemoteEnvError, Unsupported  # noqa: E402

try:
    from replay_tasks import TASKS, EpisodePolicy, Task, make_policy

    from remote_env.record import Episode, Recorder, read_episode
    from remote_env.replay import Fidelity, ReplayReport, load_model, replay_episode, view
    from remote_env.replay.cameras import aims
    from remote_env.replay.mapping import as_mapping
except ModuleNotFoundError as error:
    sys.exit(f"this example needs {error.name}: pip install -e '.[all]' (or enter the environment of `make demo`)")
from remote_env.state import SceneDescription  # noqa: E402

DEFAULT_MAX_STEPS = 1000
DEFAULT_RATE_HZ = 30.0
FOLDERS = ("captures", "videos", "images")  # of the output folder
HELD_STEPS = 5  # shorter contacts are flicker
OF_THE_CAPTURE = "capture"  # --model: what the far end told of its scene

console = Console(stderr=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_login_flags(parser)
    what = parser.add_argument_group("what it does")
    what.add_argument(
        "--task",
        default="aloha-transfer-cube",
        help=f"{', '.join(TASKS)}, or the id of any MuJoCo environment, or with --simulator of any other; "
        "default: %(default)s",
    )
    what.add_argument("--simulator", help='"isaaclab" or "module:Class", for a --task by its id; default: gymnasium')
    what.add_argument(
        "--upload", type=Path, action="append", default=[], metavar="PATH", help="sent along for --task to be imported"
    )
    what.add_argument(
        "--policy",
        help="scripted, random, or module:function of yours: function(observation) -> action; "
        "default: scripted where the task has an expert, else random",
    )
    what.add_argument("--episodes", type=_positive, default=5, help="default: %(default)s")
    what.add_argument("--max-steps", type=_positive, default=DEFAULT_MAX_STEPS, help="of each; default: %(default)s")
    what.add_argument("--seed", type=int, default=0, help="of the first episode; each next is one more")
    out = parser.add_argument_group("what it leaves")
    out.add_argument("--output-dir", type=Path, default=Path("outputs/remote_replay"), help="default: %(default)s")
    out.add_argument(
        "--model",
        help="to replay in: FILE.xml, .mjb or .urdf, module:function, robot_descriptions:NAME, or capture (made from "
        "what the far end tells of its scene); default: the task's own",
    )
    out.add_argument("--mapping", type=Path, metavar="FILE.yaml", help="from the task's names to those of --model")
    out.add_argument(
        "--max-error-m", type=_distance, metavar="M", help="fail when a link of the replay is off by more than this"
    )
    out.add_argument("--view", action="store_true", help="show the captures in MuJoCo's viewer at the end")
    add_video_flags(parser)
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(text)


def _distance(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (number := float(text)) >= 0:
            return number
    raise argparse.ArgumentTypeError(f"{text} is no distance in metres")


def choose_task(options: argparse.Namespace) -> Task:
    """The task with what the flags change of it.

    Raises:
        ConfigError: --simulator for a task that has its own, or a name that is nearly one of ours.
    """
    nearly = difflib.get_close_matches(options.task, TASKS, n=1, cutoff=0.8)
    if nearly and options.task not in TASKS and not options.simulator:
        raise ConfigError(f"there is no task {options.task}; did you mean --task {nearly[0]}?")
    task = TASKS.get(options.task, Task(options.task))
    if options.simulator and options.task in TASKS:
        raise ConfigError(f"--simulator is for a task by its id; {options.task} runs on {task.simulator}")
    task = replace(task, simulator=options.simulator or task.simulator, upload=(*task.upload, *options.upload))
    if options.model is not None:  # the task's own mapping is to the task's own model
        return replace(task, model=options.model, mapping=options.mapping, camera=None)
    return replace(task, mapping=options.mapping or task.mapping)


def make_folders(output_dir: Path) -> None:
    """The folders to write into; made before anything is started.

    Raises:
        ConfigError: one cannot be made or written to.
    """
    for name in FOLDERS:
        folder = output_dir / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output-dir {output_dir}: {folder} cannot be made: {error.strerror}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"--output-dir {output_dir}: {folder} takes no files; give a folder of your own")


# Recording, there


@dataclass
class Recording:
    """What the remote half gave.

    Attributes:
        captures: one file per episode.
        steps: over all episodes.
        seconds: spent in them, resets left out [s].
        successes: one per episode; None where the task does not say.
    """

    captures: list[Path] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    successes: list[bool | None] = field(default_factory=list)

    @property
    def success_rate(self) -> float | None:
        """Successful episodes / episodes, or None where the task does not say."""
        known = [success for success in self.successes if success is not None]
        return sum(known) / len(known) if known else None


def record_episodes(options: argparse.Namespace, task: Task) -> Recording:
    """Run the episodes on the host and write their captures."""
    recording = Recording()
    with RemoteEnv(
        options.host,
        env=task.env_id,
        env_kwargs=task.env_kwargs,
        simulator=task.simulator,
        upload=task.upload,
        capture_state=True,
        **login_arguments(options),
    ) as env:
        if task.simulator == "isaaclab":
            console.print("the first step compiles kernels where Isaac Lab has never run: some minutes, once")
        policy = make_policy(options.policy, task, env)
        longest = min(options.max_steps, env.remote_spec["max_episode_steps"] or options.max_steps)
        with make_recorder(options, task, env) as recorder, _progress() as bars:
            for number in range(options.episodes):
                bar = bars.add_task(f"episode {number + 1} of {options.episodes}", total=longest)
                seed = options.seed + number
                run = Run(seed, options.max_steps, partial(bars.advance, bar))
                record_episode(env, policy, recorder, recording, run)
                bars.update(bar, total=recorder.steps)
    return recording


def make_recorder(options: argparse.Namespace, task: Task, env: RemoteEnv) -> Recorder:
    """A recorder in the output folder, at the task's own rate."""
    return Recorder(
        options.output_dir / "captures",
        rate_hz=float(env.metadata.get("render_fps") or DEFAULT_RATE_HZ),
        task=task.label,
        env_kwargs=task.env_kwargs,
        host=options.host or "local",
        observe=task.observe,
    )


def describe(env: RemoteEnv) -> SceneDescription | None:
    """What the scene looks like; None where the task does not tell."""
    try:
        return env.get_scene_description()
    except Unsupported:
        return None


@dataclass(frozen=True)
class Run:
    """One episode to run: its seed, its most steps, and what to call after each."""

    seed: int
    max_steps: int
    advance: Callable[[], None]


def record_episode(env: RemoteEnv, policy: EpisodePolicy, recorder: Recorder, recording: Recording, run: Run) -> None:
    """Run one episode; its capture is whole on disk when this returns."""
    observation, info = env.reset(seed=run.seed)
    state = env.get_state()
    recorder.start(observation, info, state=state, seed=run.seed, description=describe(env))
    act = policy(state, run.seed)
    success: bool | None = None
    started = time.perf_counter()
    for step in range(run.max_steps):
        action = act(observation, step)
        observation, reward, terminated, truncated, info = env.step(action)
        recorder.record(action, observation, reward, terminated, truncated, info, state=env.get_state())
        if "is_success" in info:
            success = bool(success or info["is_success"])
        run.advance()
        stop_if_interrupted()
        if terminated or truncated:
            break
    recording.seconds += time.perf_counter() - started
    recording.steps += recorder.steps
    recording.captures.append(recorder.finish())
    recording.successes.append(success)


# Replaying, here


def check_local_side(options: argparse.Namespace, task: Task) -> None:
    """Look for the model, the mapping and the cameras, before the episodes are run that they are to show.

    Raises:
        ConfigError: one is not there; the message lists the cameras that there are.
        ReplayError: the model does not load.
        Unsupported: there is no local model.
    """
    as_mapping(task.mapping)
    given = options.model is not None or options.camera is not None or task.mapping is not None
    if not given or task.model == OF_THE_CAPTURE:
        return
    model = load_model(task.local_model())
    if options.camera:
        aims(model, options.camera)


def replay_captures(options: argparse.Namespace, task: Task, captures: Sequence[Path]) -> list[ReplayReport]:
    """A video, stills and a contact sheet for each capture."""
    model = task.local_model()
    reports = []
    filmed = video_arguments(options)
    filmed["camera"] = filmed["camera"] or task.camera
    for capture in captures:
        stop_if_interrupted()
        episode = read_episode(capture, images=False)
        reports.append(
            replay_episode(
                episode,
                model,
                mapping=task.mapping,
                name=capture.stem,
                video=options.output_dir / "videos" / f"{capture.stem}{video_suffix(options)}",
                images_dir=options.output_dir / "images",
                stills=choose_stills(episode),
                progress=True,
                **filmed,
            )
        )
        reports[-1].report.save(options.output_dir / "fidelity" / capture.stem)
    return reports


def contact_phases(episode: Episode) -> list[tuple[int, str]]:
    """When which grippers began to hold the object: (step, "right" | "both" | "left"), flicker left out."""
    steps = enumerate(str(info.get("touching", "none")) for info in episode.infos)
    runs = [(name, list(run)) for name, run in itertools.groupby(steps, key=lambda step: step[1])]
    held = [(run[0][0], name) for name, run in runs if name != "none" and len(run) >= HELD_STEPS]
    return [phase for index, phase in enumerate(held) if index == 0 or held[index - 1][1] != phase[1]]


def choose_stills(episode: Episode) -> dict[int, str] | None:
    """The first step of each contact phase, the start and the end; None (evenly spread) where nothing is held."""
    phases = contact_phases(episode)
    if not phases:
        return None
    return {0: "start", len(episode): "end"} | dict(phases)


# Reporting


def write_report(
    options: argparse.Namespace, task: Task, recording: Recording, replays: Sequence[ReplayReport]
) -> dict[str, Any]:
    """Write `report.json`, whole or not at all, and return what it says."""
    fidelity = Fidelity.merge(replay.fidelity for replay in replays)
    sequences = [[name for _, name in contact_phases(read_episode(path, images=False))] for path in recording.captures]
    report = {
        "episodes": len(recording.captures),
        "steps": recording.steps,
        "success_rate": recording.success_rate,
        "successes": recording.successes,
        "steps_per_s": recording.steps / recording.seconds,
        "replay_frames_per_s": sum(replay.frames for replay in replays) / sum(replay.seconds for replay in replays),
        "max_position_error_m": fidelity.max_position_error_m,
        "max_rotation_error_rad": fidelity.max_rotation_error_rad,
        "max_joint_error_rad": fidelity.max_joint_error_rad,
        "missing_links": list(fidelity.missing_links),
        "fidelity": [replay.report.to_plain() for replay in replays],
        "host": options.host or "local",
        "task": task.label,
        "quality": options.quality,
        "contact_sequences": sequences,
        "captures": [str(path) for path in recording.captures],
        "videos": [str(replay.video) for replay in replays],
        "images": [str(path) for replay in replays for path in replay.images],
    }
    path = options.output_dir / "report.json"
    temporary = path.with_name(".report.tmp.json")
    try:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return report


def show(report: Mapping[str, Any], output_dir: Path) -> None:
    """Say in a few lines what came out."""
    rate = report["success_rate"]
    console.print(
        f"{report['episodes']} episodes, {report['steps']} steps on {report['host']} at "
        f"{report['steps_per_s']:.0f} steps/s; success rate {'unknown' if rate is None else f'{rate:.0%}'}"
    )
    console.print(
        f"replayed at {report['replay_frames_per_s']:.0f} frames/s; largest error "
        f"{report['max_position_error_m']:.3g} m, {report['max_rotation_error_rad']:.3g} rad"
    )
    console.print(f"videos, images, captures, fidelity and report.json are in {output_dir}")


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def _interrupt(number: int, frame: Any) -> None:
    _interrupts.append(number)
    signal.default_int_handler(number, frame)


def stop_if_interrupted() -> None:
    """Raise the Ctrl-C that Python lost: one that lands in a weak reference's callback is only printed."""
    if _interrupts:
        raise KeyboardInterrupt


def check_fidelity(options: argparse.Namespace, replays: Sequence[ReplayReport]) -> None:
    """Raise ReplayError when a link is farther off than --max-error-m; it names the links."""
    for replay in replays:
        replay.report.check(options.max_error_m)


def main(arguments: Sequence[str] | None = None) -> int:
    """Record, replay, report; returns the program's exit status."""
    options = parse(arguments)
    try:
        signal.signal(signal.SIGINT, _interrupt)
        task = choose_task(options)
        make_folders(options.output_dir)
        check_local_side(options, task)
        recording = record_episodes(options, task)
        replays = replay_captures(options, task, recording.captures)
        show(write_report(options, task, recording, replays), options.output_dir)
        check_fidelity(options, replays)
        if options.view:
            view(recording.captures, task.local_model(), mapping=task.mapping)
    except (KeyboardInterrupt, RemoteEnvError) as error:
        if _interrupts:  # Ctrl-C inside a call into C can come out as that library's own error
            console.print(f"interrupted; what was finished is whole in {options.output_dir}")
            return INTERRUPTED
        console.print(f"[bold red]error:[/] {escape(in_flags(error))}", highlight=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

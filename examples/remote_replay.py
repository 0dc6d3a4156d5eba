"""Run a task on another machine, capture its states, replay them in MuJoCo here.

Each step brings the scene's state along with the observation, so capturing costs no round trip. The captures
(`captures/episode_000.hdf5`, the layout that ACT and ALOHA tools read) are then replayed by name in the local
model: `videos/episode_000.mp4` at the task's true rate, stills and a contact sheet in `images/`, and `report.json`
with how fast it all was and how far the replay is from the capture (0 for the same model).

On this machine, without any server:

    python examples/remote_replay.py --episodes 1

On a machine that you can log in to with `ssh user@box` (its Python needs numpy, gymnasium and mujoco):

    python examples/remote_replay.py --host user@box --python /opt/sim/bin/python

The video is rendered with quality "fast" (no multisampling, no shadows) unless you say `--quality full`: in
software OpenGL that is some ten times faster.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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

import gymnasium  # noqa: E402
from login_flags import add_login_flags, in_flags, login_arguments  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: E402

from remote_env import RemoteEnv  # noqa: E402
from remote_env.errors import ConfigError, RemoteEnvError, Unsupported  # noqa: E402

try:
    from remote_env.record import Episode, Recorder, observe, observe_aloha, read_episode
    from remote_env.render import camera_index
    from remote_env.replay import Fidelity, ReplayReport, load_model, replay_episode
except ModuleNotFoundError as error:
    sys.exit(f"this example needs {error.name}: pip install -e '.[all]' (or enter the environment of `make demo`)")
from remote_env.state import SceneState  # noqa: E402

DEFAULT_MAX_STEPS = 1000
DEFAULT_RATE_HZ = 30.0
FOLDERS = ("captures", "videos", "images")  # of the output folder
HELD_STEPS = 5  # shorter contacts are flicker

console = Console(stderr=True)
Policy = Callable[[Any, int], Any]  # observation, step -> action


@dataclass(frozen=True)
class Task:
    """A task by its short name.

    Attributes:
        env_id: Gymnasium's id.
        expert: the scripted expert's name, or None where the task has none.
        env_kwargs: what the environment is made with.
        camera: the view of the video; None takes the model's first.
    """

    env_id: str
    expert: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    camera: str | None = None


TASKS = {
    # The task itself ends at the left gripper's first touch; the hand-over is complete when the right one let go.
    "aloha-transfer-cube": Task("remote_env/AlohaTransferCube-v0", "transfer_cube", {"end_on_success": False}, "angle"),
    "aloha-insertion": Task("remote_env/AlohaInsertion-v0", "insertion", {"end_on_success": False}, "angle"),
}


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
        help=f"{', '.join(TASKS)} or the id of any MuJoCo environment; default: %(default)s",
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
    out.add_argument("--camera", help="of the local model; default: a good one for ALOHA, else the model's first")
    out.add_argument("--fps", type=float, help="of the video; default: the task's true rate")
    out.add_argument("--quality", choices=("fast", "full"), default="fast", help="default: %(default)s")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a whole number from 1 on")
    return number


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
    login = login_arguments(options)
    with RemoteEnv(options.host, env=task.env_id, env_kwargs=task.env_kwargs, capture_state=True, **login) as env:
        policy = make_policy(options, task, env)
        longest = min(options.max_steps, env.remote_spec["max_episode_steps"] or options.max_steps)
        with make_recorder(options, task, env) as recorder, _progress() as bars:
            for number in range(options.episodes):
                bar = bars.add_task(f"episode {number + 1} of {options.episodes}", total=longest)
                seed = options.seed + number
                record_episode(env, policy, recorder, recording, seed, options.max_steps, partial(bars.advance, bar))
                bars.update(bar, total=recorder.steps)
    return recording


def make_recorder(options: argparse.Namespace, task: Task, env: gymnasium.Env[Any, Any]) -> Recorder:
    """A recorder in the output folder, at the task's own rate."""
    return Recorder(
        options.output_dir / "captures",
        rate_hz=float(env.metadata.get("render_fps") or DEFAULT_RATE_HZ),
        task=task.env_id,
        env_kwargs=task.env_kwargs,
        host=options.host or "local",
        observe=observe_aloha if task.expert else observe,
    )


def record_episode(
    env: Any,
    policy: EpisodePolicy,
    recorder: Recorder,
    recording: Recording,
    seed: int,
    max_steps: int,
    advance: Callable[[], None],
) -> None:
    """Run one episode; its capture is whole on disk when this returns."""
    observation, info = env.reset(seed=seed)
    state = env.get_state()
    recorder.start(observation, info, state=state, seed=seed)
    act = policy(state, seed)
    success: bool | None = None
    started = time.perf_counter()
    for step in range(max_steps):
        action = act(observation, step)
        observation, reward, terminated, truncated, info = env.step(action)
        recorder.record(action, observation, reward, terminated, truncated, info, state=env.get_state())
        if "is_success" in info:
            success = bool(success or info["is_success"])
        advance()
        stop_if_interrupted()
        if terminated or truncated:
            break
    recording.seconds += time.perf_counter() - started
    recording.steps += recorder.steps
    recording.captures.append(recorder.finish())
    recording.successes.append(success)


EpisodePolicy = Callable[[SceneState, int], Policy]  # the start state and the seed -> the episode's policy


def make_policy(options: argparse.Namespace, task: Task, env: gymnasium.Env[Any, Any]) -> EpisodePolicy:
    """The policy that the options name.

    Raises:
        ConfigError: the task has no scripted expert, or there is no such function.
    """
    name = options.policy or ("scripted" if task.expert else "random")
    if name == "random":
        return lambda _state, seed: _random_policy(env, seed)
    if name == "scripted":
        return _scripted_policy(task)
    function = _import(name)
    return lambda _state, _seed: lambda observation, _step: function(observation)


def _random_policy(env: gymnasium.Env[Any, Any], seed: int) -> Policy:
    env.action_space.seed(seed)
    return lambda _observation, _step: env.action_space.sample()


def _scripted_policy(task: Task) -> EpisodePolicy:
    if task.expert is None:
        raise ConfigError(f"{task.env_id} has no scripted expert; use --policy random or --policy module:function")
    from remote_env.tasks.aloha_expert import make_expert

    expert = make_expert(task.expert)

    def start(state: SceneState, _seed: int) -> Policy:
        expert.reset(state)
        return lambda _observation, step: expert.action(step)

    return start


def _import(name: str) -> Callable[[Any], Any]:
    module, _, function = name.partition(":")
    try:
        found: Callable[[Any], Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--policy {name}: {error}; give random, scripted or module:function") from error
    return found


# Replaying, here


def local_model(task: Task) -> Any:
    """The MuJoCo model of the task on this machine."""
    if task.expert:
        from remote_env.tasks.aloha_model import aloha_model_path

        return load_model(aloha_model_path(task.expert))
    try:
        model = getattr(gymnasium.make(task.env_id, **task.env_kwargs).unwrapped, "model", None)
    except gymnasium.error.Error as error:
        raise ConfigError(f"replaying needs the model of {task.env_id} on this machine too: {error}") from error
    if model is None:
        raise Unsupported(f"{task.env_id} has no MuJoCo model to replay in; its captures are whole all the same")
    return model


def check_camera(options: argparse.Namespace, task: Task) -> None:
    """Look for the camera that was asked for, before the episodes are run that it is to show.

    Raises:
        ConfigError: the local model has no such camera; the message lists those that it has.
        Unsupported: there is no local model.
    """
    if options.camera is not None:
        camera_index(local_model(task), options.camera)


def replay_captures(options: argparse.Namespace, task: Task, captures: Sequence[Path]) -> list[ReplayReport]:
    """A video, stills and a contact sheet for each capture."""
    model = local_model(task)
    reports = []
    for capture in captures:
        stop_if_interrupted()
        episode = read_episode(capture, images=False)
        reports.append(
            replay_episode(
                episode,
                model,
                name=capture.stem,
                video=options.output_dir / "videos" / f"{capture.stem}.mp4",
                images_dir=options.output_dir / "images",
                stills=choose_stills(episode),
                rate_hz=options.fps,
                camera=options.camera or task.camera,
                quality=options.quality,
                progress=True,
            )
        )
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
        "steps_per_s": recording.steps / recording.seconds,
        "replay_frames_per_s": sum(replay.frames for replay in replays) / sum(replay.seconds for replay in replays),
        "max_position_error_m": fidelity.max_position_error_m,
        "max_rotation_error_rad": fidelity.max_rotation_error_rad,
        "max_joint_error_rad": fidelity.max_joint_error_rad,
        "missing_links": list(fidelity.missing_links),
        "host": options.host or "local",
        "task": task.env_id,
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
        f"{report['max_position_error_m']:.3g} m, {report['max_joint_error_rad']:.3g} rad"
    )
    console.print(f"videos, images, captures and report.json are in {output_dir}")


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Record, replay, report; returns the program's exit status."""
    options = parse(arguments)
    task = TASKS.get(options.task, Task(options.task))
    try:
        signal.signal(signal.SIGINT, _interrupt)
        make_folders(options.output_dir)
        check_camera(options, task)
        recording = record_episodes(options, task)
        replays = replay_captures(options, task, recording.captures)
        show(write_report(options, task, recording, replays), options.output_dir)
    except (KeyboardInterrupt, RemoteEnvError) as error:
        if _interrupts:  # Ctrl-C inside a call into C can come out as that library's own error
            console.print(f"interrupted; what was finished is whole in {options.output_dir}")
            return INTERRUPTED
        console.print(f"[bold red]error:[/] {escape(in_flags(error))}", highlight=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

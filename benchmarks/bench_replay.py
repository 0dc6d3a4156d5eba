"""How fast captured states are shown, drawn, filmed and recorded, beside plain MuJoCo, interleaved.

    python -m benchmarks.bench_replay [--json OUT] [--seconds 20]

The task is ALOHA's transfer on its expert's trajectory. All rivals of a table are open at once and take turns; the
figures are over all turns. `mujoco.Renderer` draws a model as shipped: what is called "full" here. "fast" (no
multisampling, no shadows) is compared with a `mujoco.Renderer` whose model and scene are told the same.
"""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")  # before mujoco is imported: its own Renderer knows no other way

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import gymnasium
import mujoco
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.aloha_rivals import expert_actions
from benchmarks.rivals import machine
from remote_env.record import Recorder, observe_aloha, read_episode
from remote_env.replay import Replayer, View, load_model, save_video
from remote_env.replay.codecs import CODECS, usual_suffix
from remote_env.replay.frames import LocalScene, render_here, render_in_processes
from remote_env.state import SceneState
from remote_env.tasks import TRANSFER_CUBE_ID, register_tasks
from remote_env.tasks.aloha_model import aloha_model_path

CAMERA = "angle"
WIDTH, HEIGHT = 640, 480
Quality = Literal["fast", "full"]
Rows = dict[str, dict[str, Any]]
Turn = Callable[[], list[float]]  # seconds of each item of one turn


def take_turns(rivals: dict[str, Turn], seconds: float) -> Rows:
    """Items per second and how long each took, all rivals in turn for about `seconds` together.

    Returns:
        Rival -> per_s (median over the turns), p50_ms and p99_ms over all its items, and rates: per second,
            turn by turn.
    """
    timed: dict[str, list[list[float]]] = {name: [] for name in rivals}
    started = time.perf_counter()
    for turn in rivals.values():
        turn()
    turns = max(3, int(seconds / (time.perf_counter() - started)))
    for _ in track(range(turns), description="turns", console=Console(stderr=True)):
        for name, turn in rivals.items():
            timed[name].append(turn())
    return {name: _summary(rows) for name, rows in timed.items()}


def _summary(turns: list[list[float]]) -> dict[str, Any]:
    every = np.concatenate(turns) * 1e3
    rates = [len(turn) / sum(turn) for turn in turns]
    return {
        "per_s": float(np.median(rates)),
        "p50_ms": float(np.percentile(every, 50)),
        "p99_ms": float(np.percentile(every, 99)),
        "rates": rates,
    }


def timed(items: Iterator[Any]) -> list[float]:
    """How long each of `items` took to come."""
    stamps = [time.perf_counter()]
    stamps.extend(time.perf_counter() for _ in items)
    return np.diff(stamps).tolist()


def show(title: str, unit: str, rows: Rows, baselines: dict[str, str]) -> None:
    """Print one table; `baselines` says beside whom each rival stands.

    A ratio is the median over the turns of the rates within one: what slows a whole turn is in neither.
    """
    table = Table(title=title)
    for column in ("", f"{unit}/s", "p50 ms", "p99 ms", "ratio", "to"):
        table.add_column(column, justify="left" if column in ("", "to") else "right")
    for name, row in rows.items():
        baseline = baselines.get(name, "")
        ratio = f"{np.median(np.divide(row['rates'], rows[baseline]['rates'])):.2f}" if baseline else ""
        table.add_row(name, f"{row['per_s']:,.1f}", f"{row['p50_ms']:,.4f}", f"{row['p99_ms']:,.4f}", ratio, baseline)
    Console().print(table)


class BareRenderer:
    """The loop that people write: qpos, `mj_forward`, `mujoco.Renderer`."""

    def __init__(self, model: mujoco.MjModel, quality: Quality) -> None:
        self.model, self.data = model, mujoco.MjData(model)
        saved = (model.vis.quality.offsamples, model.vis.quality.shadowsize)
        if quality == "fast":
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        self.renderer = mujoco.Renderer(model, HEIGHT, WIDTH)
        model.vis.quality.offsamples, model.vis.quality.shadowsize = saved
        if quality == "fast":
            self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0

    def frames(self, positions: np.ndarray[Any, Any]) -> Iterator[Any]:
        """A frame for each qpos."""
        for qpos in positions:
            self.data.qpos[:] = qpos
            mujoco.mj_forward(self.model, self.data)
            self.renderer.update_scene(self.data, camera=CAMERA)
            yield self.renderer.render()


def bench_states(states: list[SceneState], model: mujoco.MjModel, seconds: float) -> Rows:
    """States put into the local model and compared with the capture, without drawing."""
    layout, values = states[0].layout, np.stack([state.values for state in states])
    positions = positions_of(states, model)
    data = mujoco.MjData(model)
    with Replayer(model) as many, Replayer(model) as single:

        def all_at_once() -> list[float]:
            started = time.perf_counter()
            many.set_states(layout, values, first=0)
            return [(time.perf_counter() - started) / len(values)] * len(values)

        def each() -> Iterator[None]:
            for index, state in enumerate(states):
                single.set_state(state, index=index)
                yield

        def plain(compute: Any) -> Iterator[None]:
            for qpos in positions:
                data.qpos[:] = qpos
                compute(model, data)
                yield

        return take_turns(
            {
                "qpos, mj_forward": lambda: timed(plain(mujoco.mj_forward)),
                "qpos, mj_kinematics": lambda: timed(plain(mujoco.mj_kinematics)),
                "Replayer.set_state": lambda: timed(each()),
                "Replayer.set_states": all_at_once,
            },
            seconds,
        )


def positions_of(states: list[SceneState], model: mujoco.MjModel) -> np.ndarray[Any, Any]:
    """(T, nq): what the states are in the model."""
    with Replayer(model) as replayer:
        found = []
        for state in states:
            replayer.set_state(state)
            found.append(replayer.data.qpos.copy())
    return np.stack(found)


def bench_frames(states: list[SceneState], model: mujoco.MjModel, seconds: float) -> Rows:
    """Frames in this process: ours beside a bare loop, each quality with its own kind."""
    chosen, scene = states[::50], LocalScene(model)  # few at a time: each of many turns is short
    positions = positions_of(chosen, model)
    rivals: dict[str, Turn] = {}
    with contextlib.ExitStack() as stack:
        for quality in QUALITIES:
            bare = BareRenderer(model, quality)
            stack.callback(bare.renderer.close)
            rivals[f"mujoco.Renderer, {quality}"] = lambda bare=bare: timed(bare.frames(positions))
            ours = Drawn(scene, View(WIDTH, HEIGHT, CAMERA, quality))
            stack.callback(ours.close)
            rivals[f"Replayer, {quality}"] = lambda ours=ours: timed(ours.frames(chosen))
        return take_turns(rivals, seconds)


QUALITIES: tuple[Quality, ...] = ("full", "fast")


class Drawn:
    """Our own loop with a replayer that stays open, as `render_here` has it within one replay."""

    def __init__(self, scene: LocalScene, view: View) -> None:
        self.replayer = scene.open(view)

    def frames(self, states: list[SceneState]) -> Iterator[Any]:
        """A frame for each state."""
        for state in states:
            self.replayer.set_state(state)
            yield self.replayer.render()

    def close(self) -> None:
        """Free OpenGL."""
        self.replayer.close()


def bench_processes(states: list[SceneState], model: mujoco.MjModel, seconds: float) -> Rows:
    """Whole replays in one process and in several, their start left out; fast."""
    scene, view = LocalScene(model), View(WIDTH, HEIGHT, CAMERA, "fast")

    def without_start(frames: Iterator[Any]) -> list[float]:
        for _ in range(2):
            next(frames)
        return timed(frames)

    rivals: dict[str, Turn] = {"in this process": lambda: without_start(render_here(states, scene, view))}
    for processes in (1, 2):
        rivals[f"{processes} rendering process{'es' * (processes > 1)}"] = lambda processes=processes: without_start(
            render_in_processes(states, scene, view, processes)
        )
    return take_turns(rivals, seconds)


def bench_encoding(states: list[SceneState], model: mujoco.MjModel, seconds: float) -> Rows:
    """Rendered frames into each codec, rendering left out."""
    frames = list(render_here(states[::2], LocalScene(model), View(WIDTH, HEIGHT, CAMERA, "fast")))

    with tempfile.TemporaryDirectory() as folder:

        def encode(codec: str) -> list[float]:
            started = time.perf_counter()
            save_video(Path(folder) / f"a{usual_suffix(codec)}", frames, 50.0, codec=codec)
            return [(time.perf_counter() - started) / len(frames)] * len(frames)

        return take_turns({codec: lambda codec=codec: encode(codec) for codec in CODECS}, seconds)


def bench_recording(seconds: float) -> tuple[Rows, float]:
    """Steps of the task alone, with states read, and recorded; and how many bytes a recorded step takes on disk."""
    actions = expert_actions(seed=0)
    env: Any = gymnasium.make(TRANSFER_CUBE_ID, obs_type="agent_pos", end_on_success=False, disable_env_checker=True)
    with tempfile.TemporaryDirectory() as folder, Recorder(folder, rate_hz=50.0, observe=observe_aloha) as recorder:
        alone: list[float] = []

        def run(*, read: bool, recorded: bool) -> list[float]:
            first, info = env.reset(seed=0)
            if recorded:
                recorder.start(first, info, state=env.unwrapped.get_scene_state(), seed=0)
            seconds_of = []
            for action in actions:
                started = time.perf_counter()
                step = env.step(action)
                state = env.unwrapped.get_scene_state() if read else None
                if recorded:
                    stepped = time.perf_counter()
                    recorder.record(action, *step, state=state)
                    alone.append(time.perf_counter() - stepped)
                seconds_of.append(time.perf_counter() - started)
            if recorded:
                recorder.finish()
            return seconds_of

        rows = take_turns(
            {
                "step": lambda: run(read=False, recorded=False),
                "step, state read": lambda: run(read=True, recorded=False),
                "step, state read and recorded": lambda: run(read=True, recorded=True),
            },
            seconds,
        )
        env.close()
        rows["Recorder.record alone"] = _summary([alone])
        (size,) = {path.stat().st_size for path in Path(folder).glob("*_000.hdf5")}
    return rows, size / len(actions)


def capture_states() -> list[SceneState]:
    """The states of one episode of the expert."""
    register_tasks()
    env: Any = gymnasium.make(TRANSFER_CUBE_ID, obs_type="agent_pos", end_on_success=False, disable_env_checker=True)
    with tempfile.TemporaryDirectory() as folder, Recorder(folder, rate_hz=50.0, observe=observe_aloha) as recorder:
        first, info = env.reset(seed=0)
        recorder.start(first, info, state=env.unwrapped.get_scene_state(), seed=0)
        for action in expert_actions(seed=0):
            recorder.record(action, *env.step(action), state=env.unwrapped.get_scene_state())
        env.close()
        return read_episode(recorder.finish()).states


BASELINES = {
    "states": dict.fromkeys(("Replayer.set_state", "Replayer.set_states"), "qpos, mj_forward"),
    "frames": {f"Replayer, {quality}": f"mujoco.Renderer, {quality}" for quality in QUALITIES},
    "processes": {"2 rendering processes": "1 rendering process", "in this process": "1 rendering process"},
    "encoding": {},
    "recording": dict.fromkeys(("step, state read", "step, state read and recorded"), "step"),
}


def main() -> int:
    """Run every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures there")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each table runs (default 20)")
    options = parser.parse_args()
    states, model = capture_states(), load_model(aloha_model_path("transfer_cube"))
    print(machine())
    tables: dict[str, tuple[str, str, Callable[[], Rows]]] = {
        "states": ("ALOHA: states shown in the model", "states", lambda: bench_states(states, model, options.seconds)),
        "frames": (f"frames of {HEIGHT}×{WIDTH}", "frames", lambda: bench_frames(states, model, options.seconds)),
        "processes": ("the same, fast", "frames", lambda: bench_processes(states, model, options.seconds)),
        "encoding": ("encoding alone", "frames", lambda: bench_encoding(states, model, options.seconds)),
    }
    results: dict[str, Any] = {"machine": machine()}
    for name, (title, unit, run) in tables.items():
        results[name] = run()
        show(title, unit, results[name], BASELINES[name])
    results["recording"], results["bytes_per_step"] = bench_recording(options.seconds)
    show("recording ALOHA", "steps", results["recording"], BASELINES["recording"])
    recording = results["recording"]
    share = recording["Recorder.record alone"]["p50_ms"] / recording["step"]["p50_ms"]
    print(f"Recorder.record takes {share:.1%} of a step (medians)")
    print(f"{results['bytes_per_step']:,.0f} bytes per step of a capture without images")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

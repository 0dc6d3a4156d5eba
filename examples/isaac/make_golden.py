"""Make the captures that the default tests replay, which have no Isaac Lab: over a real server, one episode each.

    python examples/isaac/make_golden.py --python /opt/isaac/bin/python

writes `isaac_pick.hdf5` and `isaac_cartpole.hdf5` into tests/data.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout that was not installed works too
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from login_flags import add_login_flags, in_flags, login_arguments
from replay_tasks import TASKS, Task, make_policy

from remote_env import RemoteEnv
from remote_env.errors import RemoteEnvError
from remote_env.record import Recorder

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
EPISODES = {"isaac-pick": (7, 300), "isaac-cartpole": (3, 150)}  # seed and most steps


def record(env: RemoteEnv, task: Task, folder: Path, seed: int, max_steps: int) -> Path:
    """Run one episode of the expert's; the path of its capture."""
    policy = make_policy("scripted", task, env)
    with Recorder(folder, rate_hz=env.metadata["render_fps"], task=task.label) as recorder:
        observation, info = env.reset(seed=seed)
        state = env.get_state()
        recorder.start(observation, info, state=state, seed=seed, description=env.get_scene_description())
        act, is_over, step = policy(state, seed), False, 0
        while not is_over and step < max_steps:
            action = act(observation, step)
            observation, reward, terminated, truncated, info = env.step(action)
            recorder.record(action, observation, reward, terminated, truncated, info, state=env.get_state())
            is_over, step = terminated or truncated, step + 1
        return recorder.finish()


def main() -> int:
    """Make both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_login_flags(parser)
    parser.add_argument("--output-dir", type=Path, default=DATA, help="default: %(default)s")
    options = parser.parse_args()
    login = {"host": options.host, "simulator": "isaaclab", "capture_state": True, **login_arguments(options)}
    try:
        for name, (seed, max_steps) in EPISODES.items():
            task = TASKS[name]
            with (
                RemoteEnv(env=task.env_id, upload=task.upload, **login) as env,
                tempfile.TemporaryDirectory() as folder,
            ):
                made = record(env, task, Path(folder), seed, max_steps)
                path = options.output_dir / f"{name.replace('-', '_')}.hdf5"
                path.write_bytes(made.read_bytes())
                print(f"{path}: {path.stat().st_size} bytes")
    except RemoteEnvError as error:
        print(f"error: {in_flags(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

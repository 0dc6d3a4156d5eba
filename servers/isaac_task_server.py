"""Serve an Isaac Lab task by hand, on this machine, for clients that attach. Run it with Isaac Lab's interpreter.

    ./isaaclab.sh -p servers/isaac_task_server.py --task Isaac-Cartpole-Direct --physics newton_mjwarp
    python servers/isaac_task_server.py --task my_tasks:MyEnv --device cuda:0 --num-envs 1024
    python servers/isaac_task_server.py --task my_task.py:MyEnv --set sim.dt=0.005 --enable-cameras

Then, on this machine or over SSH from another:

    RemoteEnv(port=8888)                          one environment, without --num-envs
    RemoteEnv("user@this-machine", 8888)
    RemoteVectorEnv("user@this-machine", 8888)    a batch, with --num-envs

Isaac Lab 3.x starts what the task's configuration needs: nothing for Newton, Isaac Sim for PhysX. With 2.x, Isaac Sim
is started before anything else of Isaac is imported (written from its documentation, never run). What comes after `--`
goes to Isaac Lab's own launcher. Its output and that of the task appear here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing

from remote_env.protocol.task import TaskSpec
from remote_env.server.by_hand import add_listening_flags, json_object, positive, serve
from remote_env.server.isaac.options import Options


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", required=True, help="a registered id, module:id, module:Class or file.py:Class")
    add("--num-envs", type=positive, metavar="N", help="a batch of N, for RemoteVectorEnv (default: one environment)")
    add("--device", help="where physics and tensors live: cpu or cuda:0 (default: the first GPU, else cpu)")
    add("--physics", metavar="PRESET", help="a preset of the task: newton_mjwarp, isaacsim_physx, … (3.x only)")
    add("--headless", action=argparse.BooleanOptionalAction, default=True, help="no window (default: none)")
    add("--enable-cameras", action="store_true", help="start what Isaac Sim's cameras need; Newton's need nothing")
    add("--observation", default="policy", metavar="GROUP", help="a group of observations, or all (default policy)")
    add("--seed", type=int, help="of the configuration: what is drawn while the scene is built")
    add("--set", action="append", default=[], type=_override, metavar="PATH=VALUE", help="sim.dt=0.005, JSON values")
    add("--task-kwargs", type=json_object, default={}, metavar="JSON", help="for the environment's class itself")
    add_listening_flags(parser)
    add("launcher", nargs="*", metavar="-- …", help="arguments of Isaac Lab's own launcher")
    return parser.parse_args(arguments)


def _override(text: str) -> tuple[str, Any]:
    path, is_given, value = text.partition("=")
    if not is_given or not path:
        raise argparse.ArgumentTypeError("give a path in the configuration and its value: sim.dt=0.005")
    try:
        return path, json.loads(value)
    except ValueError:
        return path, value  # a plain word


def make_task(options: argparse.Namespace) -> TaskSpec:
    """What to serve; ConfigError when it cannot be had so."""
    kwargs = {
        **({"device": options.device} if options.device else {}),
        "headless": options.headless,
        "enable_cameras": options.enable_cameras,
        "observation": options.observation,
        "physics": options.physics,
        "seed": options.seed,
        "cfg": dict(options.set),
        "task_kwargs": options.task_kwargs,
        "arguments": options.launcher,
    }
    Options.parse(kwargs)  # now, and not when a simulator has been started for it
    return TaskSpec(
        options.task,
        kwargs,
        simulator="isaaclab",
        allow_calls=tuple(options.allow_call),
        num_envs=options.num_envs,
    )


def main() -> int:
    """Serve until Ctrl-C."""
    options = parse_arguments()
    return serve(lambda: make_task(options), options, max_sessions=1)  # one Isaac per GPU; --num-envs has more of them


if __name__ == "__main__":
    sys.exit(main())

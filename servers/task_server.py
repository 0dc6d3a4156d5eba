"""Serve a Gymnasium task by hand, on this machine, for clients that attach.

    python servers/task_server.py --env CartPole-v1 --port 8888
    python servers/task_server.py --env my_tasks:make_env --kwargs '{"size": 3}' --port 8888
    python servers/task_server.py --env CartPole-v1 --num-envs 16 --port 8888
    python servers/task_server.py --env CartPole-v1 --policy my_policies:make_policy --port 8888

Then, on this machine or over SSH from another:

    RemoteEnv(port=8888)          RemoteEnv("user@this-machine", 8888)

and with --num-envs, which serves a batch of environments that are stepped together:

    RemoteVectorEnv(port=8888)    RemoteVectorEnv("user@this-machine", 8888)

With --policy, `env.rollout(…)` and `env.step_policy()` have that act beside the simulator. The token of a policy server
that does not leave it where it is found goes into the environment: REMOTE_ENV_POLICY_TOKEN.

To serve a task of your own, copy this file, write `make_env`, and leave out --env.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing

from remote_env.errors import ConfigError
from remote_env.protocol.task import PolicySpec, TaskSpec
from remote_env.server.by_hand import add_listening_flags, json_object, positive, serve


def make_env(**_kwargs: Any) -> Any:
    """Make the task that is served when --env is not given: replace the body with your own."""
    raise SystemExit("nothing to serve: name a task with --env, or write make_env() in a copy of this file")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--env", help="a registered id, module:id, module:function or file.py:function")
    add("--kwargs", type=json_object, default={}, metavar="JSON", help="keyword arguments for the task")
    add("--simulator", default="gymnasium", help="the backend: gymnasium, or module:Class (default gymnasium)")
    add(
        "--max-sessions",
        type=positive,
        default=1,
        help="clients at once, each with a simulator of its own (default 1)",
    )
    add("--num-envs", type=positive, metavar="N", help="a batch of N environments, for RemoteVectorEnv")
    add(
        "--policy",
        metavar="POLICY",
        help="a policy to open beside the simulator: a checkpoint's path, scripted:NAME, module:function, or the "
        "address of a policy server in any dialect (localhost:5000, openpi://box:8000)",
    )
    add("--policy-mapping", metavar="FILE", help="JSON or YAML that says where the policy's features come from")
    add("--policy-dataset-id", default="", metavar="ID", help="whose normalisation to use (default: the first)")
    add("--policy-device", default="", metavar="DEVICE", help="where it computes (default cpu)")
    add("--policy-chunk-size", type=positive, metavar="K", help="the most actions of one inference (default: all)")
    add("--policy-instruction", default="", metavar="TEXT", help="for policies that take a text")
    add_listening_flags(parser)
    return parser.parse_args(arguments)


def _make_policy(options: argparse.Namespace) -> PolicySpec | None:
    """The policy that the command line names, None when it names none; ConfigError when it cannot be had so."""
    if options.policy is not None and options.num_envs is not None:
        raise ConfigError("--policy acts in one environment and --num-envs makes a batch of them: leave one out")
    if options.policy is None:
        given = [name for name in vars(options) if name.startswith("policy_") and getattr(options, name)]
        if given:
            raise ConfigError(f"--{given[0].replace('_', '-')} is for a policy, so name one with --policy")
        return None
    path = Path(options.policy).expanduser()
    return PolicySpec(
        str(path.absolute()) if path.exists() else options.policy,
        dataset_id=options.policy_dataset_id,
        device=options.policy_device or "cpu",
        chunk_size=options.policy_chunk_size,
        instruction=options.policy_instruction,
        mapping=read_mapping(options.policy_mapping) if options.policy_mapping else {},
    )


def read_mapping(path: str) -> dict[str, Any]:
    """What a file says of a policy's features: {"observation": {feature: {…}}, "action": {…}}.

    Raises:
        ConfigError: it cannot be read, or is neither JSON nor YAML.
    """
    try:
        text = Path(path).expanduser().read_text()
        return dict(json.loads(text) if path.endswith(".json") else _parse_yaml(text, path))
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"--policy-mapping {path}: {error}") from error


def _parse_yaml(text: str, path: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path} is YAML, and PyYAML is not installed here; write JSON into a .json file") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML: {error}") from error


def make_task(options: argparse.Namespace) -> TaskSpec:
    """What to serve; ConfigError when it cannot be had so."""
    return TaskSpec(
        env=options.env or f"{Path(__file__).resolve()}:make_env",
        kwargs=options.kwargs,
        simulator=options.simulator,
        allow_calls=tuple(options.allow_call),
        policy=_make_policy(options),
        num_envs=options.num_envs,
    )


def main() -> int:
    """Serve until Ctrl-C."""
    options = parse_arguments()
    return serve(lambda: make_task(options), options, max_sessions=options.max_sessions)


if __name__ == "__main__":
    sys.exit(main())

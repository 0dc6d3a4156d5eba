"""The flags of evaluations, on simulators and on robots: each may be written with dashes or underscores.

A flag that is not given stays out of the namespace, so that a file's settings hold.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError
from remote_env.evaluate.config import AGGREGATES, DEFAULT_MODEL, ROLLOUTS, EvaluationConfig, read_config
from remote_env.evaluate.environments import BUNDLED
from remote_env.private_files import read_private_text

_DEFAULTS = EvaluationConfig()


class FlagAdder:
    """Adds flags to a group, each for a setting of `EvaluationConfig` unless told otherwise."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def __call__(self, *flags: str, to: str | None = None, **arguments: Any) -> None:
        """Add a flag under these names, its value to be found as `to` or under the last of them."""
        dashed = [flag.replace("_", "-") for flag in flags if "_" in flag]
        action = self._group.add_argument(*flags, *dashed, **{"default": argparse.SUPPRESS, **arguments})
        action.dest = to or flags[-1].lstrip("-")


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that the flags, and the files named by --config and --token_file, give.

    Raises:
        ConfigError: a file cannot be read, or holds what is not known.
    """
    flags = vars(options)
    given = {name: value for name, value in flags.items() if name in EvaluationConfig.names()}
    if "token_file" in flags:
        given["token"] = read_token(flags["token_file"])
    return {**(read_config(flags["config"]) if "config" in flags else {}), **given}


def read_token(path: str) -> str:
    """The token in a file: a word on the command line would be seen by everybody who lists processes.

    Raises:
        ConfigError: there is no such file, nothing in it, or others than this user could read or write it.
    """
    try:
        token = read_private_text(Path(path).expanduser(), follow=True).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token_file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not token:
        raise ConfigError(f"--token_file {path} is empty")
    return token


def add_what_flags(parser: argparse.ArgumentParser) -> None:
    """The policy, and the environments."""
    add = FlagAdder(parser.add_argument_group("what is evaluated"))
    add_model_flags(add)
    known = ", ".join(BUNDLED)
    text = f"repeatable, or with commas: {known}; a YAML file; a Gymnasium id; module:function; a task server's HOST"
    add("-e", "--env", to="envs", action="append", metavar="ENV", help=f"{text}[:PORT] (default aloha)")
    add("--task", metavar="TEXT", help="the instruction, for policies that take one")
    add("--mapping", metavar="FILE", help="YAML: how observations and actions map, where it does not go by itself")


def add_model_flags(add: FlagAdder) -> None:
    """The policy, how many episodes, and a file with settings."""
    add("-m", "--model_name_or_path", to="model", metavar="MODEL", help=f"see below (default {DEFAULT_MODEL})")
    add("--num_rollout", type=int, metavar="N", help=f"episodes of each (default {_DEFAULTS.num_rollout})")
    add("--seed", type=int, metavar="N", help="of episode 0; episode i has seed N + i (default 0)")
    add("--max_steps", type=int, metavar="N", help="of an episode, below what it would have")
    add("--config", metavar="FILE", help="YAML with the sections 'evaluation:' and 'server:'; flags win over it")


def add_how_flags(parser: argparse.ArgumentParser) -> None:
    """Rates, chunks, and where the policy comes from."""
    add = FlagAdder(parser.add_argument_group("how"))
    add("--chunk_size", type=int, metavar="K", help=f"actions applied per inference (default {_DEFAULTS.chunk_size})")
    add("--fps", type=float, metavar="HZ", help=f"rate of actions and videos (default {_DEFAULTS.fps:g})")
    add("--dataset_id", metavar="ID", help="whose normalisation a checkpoint uses (default: its first)")
    add("--device", metavar="DEVICE", help="of a checkpoint: cpu, cuda, cuda:1, mps (default cpu)")
    text = "holds the policy server's token (default: REMOTE_ENV_TOKEN, else the file of a server on this machine)"
    add("--token_file", metavar="FILE", help=text)
    add("--timeout_s", type=float, metavar="S", help=f"for one inference (default {_DEFAULTS.timeout_s:g})")
    text = f"how long a policy server that is gone is looked for (default {_DEFAULTS.reconnect_timeout_s:g})"
    add("--reconnect_timeout_s", type=float, metavar="S", help=text)


def add_simulation_flags(parser: argparse.ArgumentParser) -> None:
    """What only simulators have: several side by side, and elsewhere."""
    add = FlagAdder(parser.add_argument_group("simulators"))
    add("--num_envs", type=int, metavar="N", help=f"side by side (default {_DEFAULTS.num_envs})")
    add("--max_batch", type=int, metavar="N", help="of a checkpoint: environments inferred together (default 1)")
    text = f"for one episode (default {_DEFAULTS.episode_timeout_s:g})"
    add("--episode_timeout_s", type=float, metavar="S", help=text)
    add("--rollout", choices=ROLLOUTS, help="where the loop runs: here, or inside the task server beside its policy")
    add("--use_spawn", action="store_true", help="start processes with spawn instead of forkserver")
    text = "of which episodes: none, all, or of first and failed one or both"
    add("--video", metavar="WHICH", help=f"{text} (default {','.join(_DEFAULTS.video)})")


def add_asynchronous_flags(parser: argparse.ArgumentParser) -> None:
    """Asking ahead."""
    add = FlagAdder(parser.add_argument_group("asynchronous chunks, for slow links (results depend on the clock)"))
    add("--asynchronous", action="store_true", help="ask for the next chunk while the present one is applied")
    text = f"ask when this part of a chunk is left (default {_DEFAULTS.chunk_size_threshold:g})"
    add("--chunk_size_threshold", type=float, metavar="PART", help=text)
    add("--aggregate", choices=AGGREGATES, help=f"how overlapping chunks merge (default {_DEFAULTS.aggregate})")


def add_result_flags(parser: argparse.ArgumentParser) -> None:
    """Where results go, and what is there already."""
    group = parser.add_argument_group("results")
    add = FlagAdder(group)
    add("-o", "--output_dir", metavar="FOLDER", help="where results go (default: a new folder in ./outputs)")
    add("--no_plots", to="plots", action="store_false", help="draw none")
    add("-v", "--verbose", action="store_true", help="a line for each episode")
    begin = FlagAdder(group.add_mutually_exclusive_group())
    begin("--resume", to="begin", action="store_const", const="resume", help="there must be something to go on with")
    begin("--fresh", to="begin", action="store_const", const="fresh", help="remove the episodes that are there")

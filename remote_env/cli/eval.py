"""`remote-env eval`: a policy, local or remote, on environments, over episodes with known seeds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from remote_env.cli.show import examples, print_table
from remote_env.errors import RemoteEnvError
from remote_env.evaluate.config import AGGREGATES, DEFAULT_MODEL, ROLLOUTS, EvaluationConfig, make_config, read_config
from remote_env.evaluate.environments import BUNDLED
from remote_env.protocol.log_text import clean

_EXAMPLES = """
examples:
  remote-env eval -m localhost:5000 -e aloha --num_rollout 10 --num_envs 2     a policy server
  remote-env eval -m ckpt/act_sim_transfer_cube_scripted_zscore_example        a checkpoint, loaded here
  remote-env eval -m box:5000 -e aloha,aloha-insertion -o outputs/both         two environments; run the same again
                                                                               to go on after Ctrl-C or a crash
  remote-env eval -m scripted:aloha-transfer-cube --num_rollout 50             the scripted expert
  remote-env eval -m openpi://box:8000 -e my_tasks:make_env                    another system's server, your task
  remote-env eval -m localhost:5000 -e user@box:8888                           the simulator elsewhere, too
  remote-env eval --config configs/evaluate_remote.yaml --seed 1000            settings of a file; flags win

-m is a server's host:port, [::1]:5000, dialect://host:port, several with commas (environments spread over them), or
a checkpoint: whatever exists as a path is one. Each flag may be written with dashes or underscores.
Results: results.json, episodes.csv, episodes.jsonl (the ledger), plots/, videos/, captures/, workers.log.
"""


def add_parsers(subparsers: Any) -> None:
    """Add `remote-env eval`."""
    parser = subparsers.add_parser(
        "eval",
        help="evaluate a policy, local or remote",
        description="Run a policy on environments and write success rates, episodes, plots and videos.",
        allow_abbrev=False,
        **examples(_EXAMPLES),
    )
    add_evaluation_flags(parser)
    parser.set_defaults(run=run)


def add_evaluation_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags; those that are not given stay out of the namespace, so that a file's settings hold."""
    defaults = EvaluationConfig()
    _add_what_flags(parser, defaults)
    _add_how_flags(parser, defaults)
    _add_asynchronous_flags(parser, defaults)
    _add_result_flags(parser, defaults)


def _add_what_flags(parser: argparse.ArgumentParser, defaults: EvaluationConfig) -> None:
    group = parser.add_argument_group("what is evaluated")
    add = _Adder(group)
    add("-m", "--model_name_or_path", to="model", metavar="MODEL", help=f"see above (default {DEFAULT_MODEL})")
    known = ", ".join(BUNDLED)
    text = f"repeatable, or with commas: {known}; a YAML file; a Gymnasium id; module:function; a task server's HOST"
    add("-e", "--env", to="envs", action="append", metavar="ENV", help=f"{text}[:PORT] (default aloha)")
    add("--num_rollout", type=int, metavar="N", help=f"episodes per environment (default {defaults.num_rollout})")
    add("--seed", type=int, metavar="N", help="of episode 0; episode i has seed N + i (default 0)")
    add("--max_steps", type=int, metavar="N", help="of an episode, below what the environment allows")
    add("--task", metavar="TEXT", help="the instruction, for policies that take one")
    add("--mapping", metavar="FILE", help="YAML: how observations and actions map, where it does not go by itself")
    add("--config", metavar="FILE", help="YAML with the sections 'evaluation:' and 'server:'; flags win over it")


def _add_how_flags(parser: argparse.ArgumentParser, defaults: EvaluationConfig) -> None:
    add = _Adder(parser.add_argument_group("how"))
    add("--num_envs", type=int, metavar="N", help=f"environments side by side (default {defaults.num_envs})")
    add("--chunk_size", type=int, metavar="K", help=f"actions applied per inference (default {defaults.chunk_size})")
    add("--fps", type=float, metavar="HZ", help=f"rate of actions and videos (default {defaults.fps:g})")
    add("--dataset_id", metavar="ID", help="whose normalisation a checkpoint uses (default: its first)")
    add("--device", metavar="DEVICE", help="of a checkpoint: cpu, cuda, cuda:1, mps (default cpu)")
    add("--max_batch", type=int, metavar="N", help="of a checkpoint: environments inferred together (default 1)")
    add("--token", metavar="TOKEN", help="of a policy server that wants one; better in REMOTE_ENV_TOKEN")
    add("--timeout_s", type=float, metavar="S", help=f"for one inference (default {defaults.timeout_s:g})")
    text = f"how long a policy server that is gone is looked for (default {defaults.reconnect_timeout_s:g})"
    add("--reconnect_timeout_s", type=float, metavar="S", help=text)
    add(
        "--episode_timeout_s", type=float, metavar="S", help=f"for one episode (default {defaults.episode_timeout_s:g})"
    )
    add("--rollout", choices=ROLLOUTS, help="where the loop runs: here, or inside the task server beside its policy")
    add("--use_spawn", action="store_true", help="start processes with spawn instead of forkserver")


def _add_asynchronous_flags(parser: argparse.ArgumentParser, defaults: EvaluationConfig) -> None:
    add = _Adder(parser.add_argument_group("asynchronous chunks, for slow links (results depend on the clock)"))
    add("--asynchronous", action="store_true", help="ask for the next chunk while the present one is applied")
    text = f"ask when this part of a chunk is left (default {defaults.chunk_size_threshold:g})"
    add("--chunk_size_threshold", type=float, metavar="PART", help=text)
    add("--aggregate", choices=AGGREGATES, help=f"how overlapping chunks merge (default {defaults.aggregate})")


def _add_result_flags(parser: argparse.ArgumentParser, defaults: EvaluationConfig) -> None:
    group = parser.add_argument_group("results")
    add = _Adder(group)
    add("-o", "--output_dir", metavar="FOLDER", help="where results go (default: a new folder in ./outputs)")
    text = "of which episodes: none, all, or of first and failed one or both"
    add("--video", metavar="WHICH", help=f"{text} (default {','.join(defaults.video)})")
    add("-v", "--verbose", action="store_true", help="a line for each episode")
    begin = _Adder(group.add_mutually_exclusive_group())
    begin("--resume", to="begin", action="store_const", const="resume", help="there must be something to go on with")
    begin("--fresh", to="begin", action="store_const", const="fresh", help="remove the episodes that are there")


class _Adder:
    """Adds flags that may be written with dashes too, each for a setting of `EvaluationConfig` or `config`."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def __call__(self, *flags: str, to: str | None = None, **arguments: Any) -> None:
        dashed = [flag.replace("_", "-") for flag in flags if "_" in flag]
        action = self._group.add_argument(*flags, *dashed, default=argparse.SUPPRESS, **arguments)
        action.dest = to or flags[-1].lstrip("-")


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that the flags and the file named by --config give."""
    given = {name: value for name, value in vars(options).items() if name in (*EvaluationConfig.names(), "config")}
    file = given.pop("config", None)
    return {**(read_config(file) if file is not None else {}), **given}


def run(options: argparse.Namespace) -> int:
    """Evaluate and show the results; 0 when every episode was run, however it ended."""
    from remote_env.evaluate.evaluation import evaluate
    from remote_env.evaluate.telling import SUMMARY_COLUMNS, TerminalTeller, closing_lines, summary_rows

    config = make_config(given_settings(options))
    console = Console()
    teller = TerminalTeller(console, verbose=config.verbose)
    try:
        results = evaluate(config, teller)
    except RemoteEnvError as error:
        if config.verbose and (where := getattr(error, "remote_traceback", "")):
            print(clean(where), file=sys.stderr)
        raise
    print_table(SUMMARY_COLUMNS, summary_rows(results))
    for line in closing_lines(results, results.config["output_dir"]):
        teller.say(line)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The same for a program whose command line has the flags alone, as the examples'; its exit status."""
    from remote_env import cli

    return cli.main(["eval", *(sys.argv[1:] if arguments is None else arguments)])

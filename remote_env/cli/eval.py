"""`remote-env eval`: a policy, local or remote, on environments, over episodes with known seeds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from remote_env.cli.eval_flags import (
    add_asynchronous_flags,
    add_how_flags,
    add_result_flags,
    add_simulation_flags,
    add_what_flags,
    given_settings,
)
from remote_env.cli.show import examples, print_table
from remote_env.errors import RemoteEnvError
from remote_env.evaluate.config import EvaluationConfig, make_config
from remote_env.evaluate.results import Results
from remote_env.evaluate.telling import SUMMARY_COLUMNS, Teller, TerminalTeller, closing_lines, summary_rows
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
    add_what_flags(parser)
    add_how_flags(parser)
    add_simulation_flags(parser)
    add_asynchronous_flags(parser)
    add_result_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate and show the results; 0 when every episode was run, however it ended."""
    from remote_env.evaluate.evaluation import evaluate

    config = make_config(given_settings(options))
    return show_evaluation(config, lambda teller: evaluate(config, teller))


def show_evaluation(config: EvaluationConfig, evaluate: Callable[[Teller], Results]) -> int:
    """Run an evaluation on this terminal and show its results; with --verbose also where an error came from."""
    teller = TerminalTeller(Console(), verbose=config.verbose)
    try:
        results = evaluate(teller)
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

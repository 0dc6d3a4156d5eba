"""The command line of examples/eval_real.py: a policy on a robot, in real time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from remote_env.cli.eval import show_evaluation
from remote_env.cli.eval_flags import (
    FlagAdder,
    add_asynchronous_flags,
    add_how_flags,
    add_model_flags,
    add_result_flags,
    given_settings,
)
from remote_env.cli.show import examples
from remote_env.errors import RemoteEnvError
from remote_env.evaluate.config import make_config
from remote_env.evaluate.robots import find_file, read_robot, read_task
from remote_env.protocol.log_text import clean

INTERRUPTED = 130
_EXAMPLES = """
examples:
  python examples/eval_real.py --robot_config agilex_aloha --task agilex_transfer_cube -m localhost:5000
  python examples/eval_real.py --robot_config my_robot.yaml --task my_task.yaml -m box:5000 --asynchronous

Both names are files, or files of configs/. The robot is any class with LeRobot's robot interface; the bundled
agilex_aloha is a simulated robot, which is named so, until its file names yours. Keep a hand on the emergency stop.
After any error, and after Ctrl-C, nothing further is sent and the robot is disconnected.
"""


def main(arguments: Sequence[str] | None = None, *, folders: tuple[Path, ...] = ()) -> int:
    """Evaluate on a robot; the exit status as `remote-env`'s.

    Args:
        arguments: the command line; None takes the program's own.
        folders: where YAML files and robots' modules are looked for, besides where they are named.
    """
    options = _make_parser().parse_args(arguments)
    try:
        return _run(options, folders)
    except RemoteEnvError as error:
        print(f"error: {clean(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Run a policy on a robot and write success rates, episodes and plots.",
        allow_abbrev=False,
        **examples(_EXAMPLES),
    )
    add = FlagAdder(parser.add_argument_group("what is evaluated"))
    add("--robot_config", metavar="NAME", default="agilex_aloha", help="a YAML file (default agilex_aloha)")
    add("--task", to="robot_task", metavar="NAME", default="agilex_transfer_cube", help="a YAML file")
    add_model_flags(add)
    add_how_flags(parser)
    add_asynchronous_flags(parser)
    add_result_flags(parser)
    return parser


def _run(options: argparse.Namespace, folders: tuple[Path, ...]) -> int:
    from remote_env.evaluate.real_evaluation import evaluate_robot

    config = make_config(given_settings(options))
    robot = read_robot(find_file(options.robot_config, folders))
    task = read_task(find_file(options.robot_task, folders))
    return show_evaluation(config, lambda teller: evaluate_robot(config, robot, task, teller, folders=folders))

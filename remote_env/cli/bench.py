"""`remote-env bench HOST`: where the time of a step goes, and what would help most."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from remote_env.cli.bench_advice import PARTS, Advice, Measured, advise, explain_rest
from remote_env.cli.bench_measures import Bench, Run
from remote_env.cli.show import (
    add_login_options,
    examples,
    login_options,
    port_number,
    positive_number,
    print_json,
    print_table,
    show_bytes,
    status_line,
)
from remote_env.env import RemoteEnv
from remote_env.errors import ConfigError

_NEEDED = ("identity_file", "via", "accept_new_host_key", "known_hosts_file", "ssh_config_file", "connect_timeout_s")
_EPILOG = """
examples:
  remote-env bench user@box --env remote_env/AlohaTransferCube-v0 --python /opt/sim/bin/python
  remote-env bench user@box --env my_tasks:make_env --env-kwargs '{"obs_type": "pixels"}'
  remote-env bench user@box --server-port 8888      what is served there; its episode is reset
  remote-env bench local --env CartPole-v1 --json | jq .parts_ms

Steps the task by random actions: do not aim it at a server whose episode somebody needs, or at a robot. Of a step,
"encode" and "decode" are what both ends do with its bytes, "queue" its wait at the simulator, "simulate" the task's own
step, "render" what this machine draws, "network" the rest: the link and what carries it.
"""


def add_parsers(commands: Any) -> None:
    """Add `bench`."""
    parser = commands.add_parser(
        "bench",
        help="where the time of a step goes, and what would help most",
        description="Measure a task on a host: the link, single steps and where their time goes, steps ahead, chunks, "
        "and the coding of images; then say what would help most.",
        **examples(_EPILOG),
    )
    parser.add_argument("host", metavar="HOST", help='user@box, tcp://127.0.0.1:8888, or "local"')
    parser.add_argument("--env", metavar="ID", help="the task: an id, module:function or file.py:function")
    parser.add_argument("--env-kwargs", metavar="JSON", default="{}", help="the task's arguments")
    parser.add_argument("--simulator", default="gymnasium", help='"isaaclab" or "module:Class" (default %(default)s)')
    parser.add_argument("--server-port", type=port_number, metavar="PORT", help="of a task server that runs there")
    parser.add_argument("--python", metavar="CMD", help="the interpreter's command line there (default python3)")
    parser.add_argument("--launch", metavar="PREFIX", help="what leads into the container or job where it lives")
    parser.add_argument("--tunnel", choices=("channel", "openssh", "sshtunnel"), default="channel")
    parser.add_argument(
        "--seconds", type=positive_number, default=2.0, help="for each way of stepping (default %(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_login_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    if options.env is None and options.server_port is None and not options.host.startswith("tcp://"):
        options.parser.error("name the task with --env, or a server that runs there with --server-port")
    arguments = _arguments(options)
    began = time.monotonic()
    with status_line("starting") as line, RemoteEnv(options.host, **arguments) as env:
        started_s = time.monotonic() - began
        measured, single = Bench(env, options.seconds).measure(line.update)
    task = options.env or "the task there"
    if options.json:
        print_json(_to_plain(measured, single, started_s))
        return 0
    print(_headline(f"{task} on {options.host}", measured, started_s))
    _print_parts(measured, single)
    _print_ways(measured)
    _print_coders(measured)
    _print_advice(measured)
    return 0


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    login = login_options(options)
    return {
        "port": options.server_port,
        "env": options.env,
        "env_kwargs": _read_kwargs(options.env_kwargs),
        "simulator": options.simulator,
        "python": options.python,
        "launch": options.launch,
        "tunnel": options.tunnel,
        "ssh_port": login.ssh_port,
        "ask_secret": login.ask_secret,
        "timing": True,
        "progress": False,
        **{name: getattr(login, name) for name in _NEEDED},
    }


def _read_kwargs(text: str) -> dict[str, Any]:
    try:
        kwargs = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--env-kwargs {text!r} is no JSON ({error}); write '{{\"name\": value}}'") from error
    if not isinstance(kwargs, dict):
        raise ConfigError(f"--env-kwargs {text!r} is no JSON object; write '{{\"name\": value}}'")
    return kwargs


# Printing


def _headline(what: str, measured: Measured, started_s: float) -> str:
    rate = "" if measured.bytes_per_s is None else f", {show_bytes(measured.bytes_per_s)}/s"
    trip = _milliseconds(measured.round_trip_s)
    return f"{what} ({measured.way}): started in {started_s:.1f} s; round trip {trip} ms{rate}"


def _print_parts(measured: Measured, single: Run) -> None:
    rows = [
        (name, _milliseconds(measured.parts_s[name]), f"{measured.parts_s[name] / measured.step_s:.0%}")
        for name in PARTS
    ]
    p99_ms = _milliseconds(float(np.percentile(single.seconds, 99)))
    rows.append(("in all", _milliseconds(measured.step_s), f"p99 {p99_ms} ms, {single.steps} steps"))
    print()
    print_table(("A STEP", "MS", "SHARE"), rows)


def _print_ways(measured: Measured) -> None:
    ways = {"step": measured.step_s, **measured.others_s}
    print()
    print_table(
        ("WAY", "STEPS/S", "MS A STEP"),
        [(name, f"{1 / step_s:.0f}", _milliseconds(step_s)) for name, step_s in ways.items()],
    )


def _print_coders(measured: Measured) -> None:
    rate = measured.bytes_per_s
    if not measured.coders or rate is None:
        return
    rows = [
        (
            f"{cost.key or 'the observation'}: {cost.codec}",
            f"{cost.size_bytes / 1e3:.0f}",
            _milliseconds(cost.encode_s),
            _milliseconds(cost.decode_s),
            _milliseconds(cost.frame_s(rate)),
        )
        for cost in measured.coders
    ]
    print()
    print_table(("IMAGES, CODED HERE", "KB", "ENCODE MS", "DECODE MS", "MS A FRAME OVER THIS LINK"), rows)


def _print_advice(measured: Measured) -> None:
    found, rest = advise(measured), explain_rest(measured)
    print()
    if not found:
        print("Nothing about the wire would shorten a step by much.")
    for number, advice in enumerate(found, 1):
        print(f"{number}. {_then(advice, measured)}: {advice.what}\n   {advice.why}")
    if rest:
        print(rest[0].upper() + rest[1:] + ".")


def _then(advice: Advice, measured: Measured) -> str:
    how = "measured" if advice.is_measured else "reckoned"
    return f"{_milliseconds(measured.step_s)} -> {_milliseconds(max(advice.step_s, 0.0))} ms a step ({how})"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _to_plain(measured: Measured, single: Run, started_s: float) -> dict[str, Any]:
    return {
        "way": measured.way,
        "started_s": started_s,
        "round_trip_ms": measured.round_trip_s * 1e3,
        "bytes_per_s": measured.bytes_per_s,
        "steps": single.steps,
        "step_ms": _spread_ms(single.seconds),
        "parts_ms": _in_ms(measured.parts_s),
        "ways_ms": _in_ms(measured.others_s),
        "coders": [asdict(cost) for cost in measured.coders],
        "advice": [asdict(advice) for advice in advise(measured)],
    }


def _spread_ms(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
    return {"p50": float(p50), "p99": float(p99)}


def _in_ms(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: value * 1e3 for name, value in seconds.items()}

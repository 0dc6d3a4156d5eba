"""`remote-env bench`: what it measures on a real server behind a slow link, and what it advises."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from leak_check import isolated_home, no_leaks
from server_process import serving
from ssh_server import SshServer

sys.path.insert(0, str(Path(__file__).parent))

from command import FAR_PYTHON, login_words

from remote_env.cli import main
from remote_env.cli.bench_advice import PARTS, CoderCost, Measured, advise, explain_rest
from remote_env.cli.bench_measures import cost_of_coders, image_sizes
from remote_env.testing import CountingEnv, FaultProxy

__all__ = ["isolated_home", "no_leaks"]
COUNTING = "remote_env.testing.counting:CountingEnv"
DELAY_S = 0.005
PLAIN = dict.fromkeys(PARTS, 0.0)
IMAGE_BYTES = 900_000


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: its status, what it printed, what it complained of."""

    def said(*words: str) -> tuple[int, str, str]:
        status = main(words)
        return (status, *capsys.readouterr())

    return said


def measured(**changes: Any) -> Measured:
    """A step of 22 ms over a link of 20 ms."""
    usual = Measured(way="channel", round_trip_s=0.02, bytes_per_s=10e6, step_s=0.022, parts_s=PLAIN)
    return replace(usual, **{**changes, "parts_s": {**PLAIN, **changes.get("parts_s", {})}})


def images(step_s: float = 0.112, **changes: Any) -> Measured:
    """A step whose image takes 90 ms of it."""
    coders = [
        CoderCost("top", "raw", IMAGE_BYTES, 0.0, 0.0),
        CoderCost("top", "zstd", 45_000, 0.001, 0.0005),
        CoderCost("top", "slow", 9_000, 0.2, 0.1),
    ]
    return measured(step_s=step_s, image_bytes={"top": IMAGE_BYTES}, coders=coders, **changes)


# The command


def test_a_far_server_is_told_by_its_parts_and_chunks_are_the_advice(
    said: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(COUNTING) as server, FaultProxy(("127.0.0.1", server.port), seed=1) as proxy:
        proxy.delay(DELAY_S)
        monkeypatch.setenv("REMOTE_ENV_TOKEN", server.token)
        host = f"tcp://127.0.0.1:{proxy.address[1]}"
        status, output, errors = said("bench", host, "--seconds", "0.4", "--json")
    assert (status, errors) == (0, "")
    found = json.loads(output)
    assert found["way"] == "tcp"
    assert found["parts_ms"]["network"] >= 1e3 * DELAY_S
    assert found["step_ms"]["p50"] >= found["parts_ms"]["network"]
    assert found["ways_ms"]["step_many, 16 at once"] < found["step_ms"]["p50"]
    assert found["advice"][0]["what"].startswith("env.step_many")
    assert found["advice"][0]["is_measured"]


def test_a_task_of_its_own_is_started_for_it_and_images_are_coded(
    said: Callable[..., tuple[int, str, str]],
) -> None:
    kwargs = json.dumps({"image": True})
    status, printed, errors = said("bench", "local", "--env", COUNTING, "--env-kwargs", kwargs, "--seconds", "0.1")
    assert (status, errors) == (0, "")
    assert f"{COUNTING} on local (local): started in" in printed
    for heading in ("A STEP", "network", "STEPS/S", "step_many, 16 at once", "image: zstd", "1. "):
        assert heading in printed


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("local", "--env", "CartPole-v1", "--env-kwargs", "{"), "--env-kwargs '{' is no JSON"),
        (("local", "--env", "CartPole-v1", "--env-kwargs", "[1]"), "--env-kwargs '[1]' is no JSON object"),
    ],
)
def test_what_it_cannot_run_it_says(
    words: tuple[str, ...], error: str, said: Callable[..., tuple[int, str, str]]
) -> None:
    status, _, errors = said("bench", *words)
    assert status == 1
    assert error in errors


def test_without_a_task_it_says_how_to_name_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "local"])
    assert "name the task with --env, or a server that runs there with --server-port" in capsys.readouterr().err


def test_it_logs_in_as_the_other_commands_do(ssh_server: SshServer, said: Callable[..., tuple[int, str, str]]) -> None:
    login = [*login_words(ssh_server), "--python", FAR_PYTHON]
    status, output, errors = said(
        "bench", ssh_server.target, *login, "--env", "CartPole-v1", "--seconds", "0.1", "--json"
    )
    assert (status, errors) == (0, "")
    assert json.loads(output)["way"] == "channel"


# What it measures of images


def test_each_lossless_codec_is_measured_on_the_frames_that_came() -> None:
    env = CountingEnv(image=True)
    frames = [env.reset(seed=seed)[0] for seed in range(3)]
    assert image_sizes(env.observation_space) == {"image": 480 * 640 * 3}
    costs = {cost.codec: cost for cost in cost_of_coders(env.observation_space, frames)}
    assert {"raw", "zstd"} <= set(costs)
    assert "jpeg" not in costs
    assert costs["zstd"].size_bytes < costs["raw"].size_bytes


# What it advises


def test_what_was_run_goes_before_what_is_reckoned() -> None:
    run = advise(measured(others_s={"step_many, 16 at once": 0.004, "step_many, 64 at once": 0.003}))
    assert (run[0].what, run[0].step_s, run[0].is_measured) == ("env.step_many, 64 at once", 0.003, True)
    reckoned = advise(measured())
    assert reckoned[0].what.startswith("env.step_many")
    assert not reckoned[0].is_measured
    assert reckoned[0].step_s == pytest.approx(0.022 - 0.02 * 15 / 16)


def what(found: Measured) -> dict[str, float]:
    """Each advice by its first word to write, with what a step then takes."""
    return {advice.what: advice.step_s for advice in advise(found)}


def test_bytes_that_take_long_are_coded_left_out_or_drawn_here() -> None:
    steps: Mapping[str, float] = what(images())
    assert steps['RemoteEnv(…, codecs="auto")'] == pytest.approx(0.112 - 0.09 + 0.006)
    assert steps["RemoteEnv(…, observation_keys=[…])"] == pytest.approx(0.022)
    assert "RemoteEnv(…, image_every=4)" in steps
    assert "RemoteEnv(…, local_pixels=True)" not in steps
    drawn = what(images(draw_s=0.008, parts_s={"render": 0.01}))
    assert drawn["RemoteEnv(…, local_pixels=True)"] == pytest.approx(0.022 - 0.01 + 0.008)


def test_a_fast_link_needs_no_codec() -> None:
    assert not any("codecs" in name for name in what(images(bytes_per_s=5e9)))
    assert not any("image" in name for name in what(images(bytes_per_s=None)))


def test_another_tunnel_is_for_hosts_that_are_near() -> None:
    near = measured(round_trip_s=0.0005, step_s=0.001, parts_s={"network": 0.0006})
    assert 'RemoteEnv(…, tunnel="openssh")' in what(near)
    assert 'RemoteEnv(…, tunnel="openssh")' not in what(replace(near, way="openssh"))
    assert 'RemoteEnv(…, tunnel="openssh")' not in what(measured(parts_s={"network": 0.02}))


def test_what_the_wire_cannot_change_is_said_as_such() -> None:
    slow = measured(round_trip_s=0.0001, step_s=0.1, parts_s={"simulate": 0.098}, way="local")
    assert advise(slow) == []
    assert "98% of a step is the simulator itself" in explain_rest(slow)
    assert "drawing of images there" in explain_rest(replace(slow, parts_s={**PLAIN, "render": 0.09}))
    assert explain_rest(measured()) == ""

"""Settings, the names of environments, intervals and the ledger: what needs no process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_env.cli.eval_flags import read_token
from remote_env.errors import CaptureError, ConfigError
from remote_env.evaluate.config import DEFAULT_MODEL, EvaluationConfig, make_config, read_config
from remote_env.evaluate.environments import choose_environment, choose_environments
from remote_env.evaluate.episodes import EpisodeResult
from remote_env.evaluate.ledger import Ledger, claim_folder
from remote_env.evaluate.model import find_model
from remote_env.evaluate.statistics import Z_95, describe_numbers, wilson_interval

RESULT = EpisodeResult("aloha", 0, 7, True, 12.5, 30, 4.0, "terminated", "0123456789abcdef", (1.5, 2.0), 0.3)


def test_the_defaults_are_those_that_users_know():
    config = EvaluationConfig()
    assert config.model == "ckpt/act_sim_transfer_cube_scripted_zscore_example"
    assert (config.envs, config.num_rollout, config.num_envs) == (("aloha",), 4, 2)
    assert (config.chunk_size, config.fps, config.use_spawn) == (64, 50.0, False)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("num_rolout", 3, "did you mean 'num_rollout'"),
        ("num_rollout", 0, "num_rollout=0: a whole number from 1 to 1000000"),
        ("num_rollout", 10**9, "from 1 to 1000000"),
        ("timeout_s", 1e300, r"at most 1e\+07"),
        ("episode_timeout_s", float("inf"), "at most"),
        ("num_envs", True, "a whole number"),
        ("fps", "fast", "a number above 0"),
        ("fps", float("nan"), "a number above 0"),
        ("seed", -1, "from 0 on"),
        ("use_spawn", "yes", "true or false"),
        ("video", "some", "'first' and 'failed'"),
        ("video", "none,first", "'first' and 'failed'"),
        ("env", [], "names no environment"),
        ("chunk_size_threshold", 1.5, "from 0 to 1"),
        ("aggregate", "median", "weighted_average"),
        ("mapping", {"actions": {}}, "did you mean 'action'"),
        ("mapping", "nowhere.yaml", "cannot be read"),
    ],
)
def test_a_setting_that_is_none_is_named_with_what_is_allowed(setting, value, message):
    with pytest.raises(ConfigError, match=message):
        make_config({setting: value})


def write(folder, text):
    path = folder / "eval.yaml"
    path.write_text(text)
    return path


def test_a_file_gives_the_server_and_the_settings(tmp_path):
    path = write(tmp_path, "server: {host: box, port: 5001}\nevaluation: {env: [aloha, aloha-insertion], fps: 30}\n")
    config = make_config(read_config(path))
    assert (config.model, config.envs, config.fps) == ("box:5001", ("aloha", "aloha-insertion"), 30.0)


@pytest.mark.parametrize(
    ("server", "model"),
    [
        ("{host: '::1'}", "[::1]:5000"),
        ("{dialect: openpi, port: 8000}", "openpi://localhost:8000"),
        ("{port: 5002}", "localhost:5002"),
    ],
)
def test_a_server_section_becomes_an_address(tmp_path, server, model):
    assert read_config(write(tmp_path, f"server: {server}\n"))["model"] == model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evaluations: {}", "did you mean 'evaluation'"),
        ("evaluation: {num_rolout: 1}", "did you mean 'num_rollout'"),
        ("server: {hots: a}", "did you mean 'host'"),
        ("server: {host: a}\nevaluation: {model: b}", "leave one out"),
        ("- 1", "must hold keys"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_file_with_a_fault_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_config(write(tmp_path, text))


def test_the_shipped_file_is_read(request):
    config = make_config(read_config(request.config.rootpath / "configs" / "evaluate_remote.yaml"))
    assert (config.model, config.num_rollout) == ("localhost:5000", 10)


@pytest.mark.parametrize(
    ("text", "env", "host", "port"),
    [
        ("aloha", "remote_env/AlohaTransferCube-v0", None, None),
        ("aloha_insertion", "remote_env/AlohaInsertion-v0", None, None),
        ("Pendulum-v1", "Pendulum-v1", None, None),
        ("gym_aloha:gym_aloha/AlohaInsertion-v0", "gym_aloha:gym_aloha/AlohaInsertion-v0", None, None),
        ("my_tasks:make_env", "my_tasks:make_env", None, None),
        ("/srv/my_task.py:make", "/srv/my_task.py:make", None, None),
        ("localhost:8888", None, "tcp://localhost:8888", None),
        ("127.0.0.1:8888", None, "tcp://127.0.0.1:8888", None),
        ("[::1]:8888", None, "tcp://[::1]:8888", None),
        ("tcp://10.0.0.2:8888", None, "tcp://10.0.0.2:8888", None),
        ("box:8888", None, "box", 8888),
        ("user@box:8888", None, "user@box", 8888),
        ("user@box", None, "user@box", None),
        ("box.example.org", None, "box.example.org", None),
        ("ssh://user@box:2222", None, "ssh://user@box:2222", None),
    ],
)
def test_what_a_text_names(text, env, host, port):
    choice = choose_environment(text)
    assert (choice.env, choice.host, choice.port) == (env, host, port)


@pytest.mark.parametrize(("text", "meant"), [("alhoa", "aloha"), ("Pendulun-v1", "Pendulum-v1")])
def test_an_unknown_name_lists_the_known_ones_the_closest_first(text, meant):
    with pytest.raises(ConfigError, match=f"did you mean {meant}") as raised:
        choose_environment(text)
    assert "aloha-insertion" in str(raised.value)


def test_a_yaml_file_describes_an_environment(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("env: aloha\nenv_kwargs: {width: 320}\nhost: user@box\nmax_steps: 50\ntask: hand it over\n")
    choice = choose_environment(str(path))
    assert (choice.name, choice.host, choice.max_steps, choice.task) == ("mine", "user@box", 50, "hand it over")
    assert dict(choice.kwargs) == {"obs_type": "state", "width": 320}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("envs: aloha", "did you mean 'env'"),
        ("name: x", "names neither env: nor host:"),
        ("env: aloha\nremote: {python: python3}", "host: must say where"),
        ("host: box\nremote: {pyton: a}", "did you mean 'python'"),
        ("env: aloha\nmax_steps: 0", "max_steps=0"),
        ("env: nope", "no such environment"),
    ],
)
def test_a_yaml_environment_with_a_fault_is_refused(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        choose_environment(str(tmp_path / "mine.yaml"))


def test_equal_names_are_told_apart():
    assert [choice.name for choice in choose_environments(["aloha", "aloha"])] == ["aloha", "aloha#2"]


def test_wilsons_interval_against_known_values():
    low, high = wilson_interval(15, 20)
    for bound in (low, high):  # where the observed rate is z standard deviations away
        assert abs(0.75 - bound) == pytest.approx(Z_95 * (bound * (1 - bound) / 20) ** 0.5)
    assert (round(low, 4), round(high, 4)) == (0.5313, 0.8881)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(4, 4)[1] == 1.0
    assert round(wilson_interval(0, 10)[1], 4) == 0.2775


@given(st.integers(1, 2000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilsons_interval_holds_the_observed_rate(counts):
    successes, trials = counts
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1


def test_numbers_are_described():
    assert describe_numbers([]) == {"count": 0}
    told = describe_numbers([1.0, 2.0, 3.0])
    assert (told["count"], told["mean"], told["p50"], told["max"]) == (3, 2.0, 2.0, 3.0)


def test_a_result_survives_json():
    assert EpisodeResult.from_plain(json.loads(json.dumps(RESULT.to_plain()))) == RESULT


def test_a_ledger_gives_back_what_was_appended(tmp_path):
    with Ledger(tmp_path, {"seed": 1}) as ledger:
        ledger.append(RESULT)
    with Ledger(tmp_path, {"seed": 1}, "resume") as ledger:
        assert ledger.results == {("aloha", 0): RESULT}


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path):
    with Ledger(tmp_path, {}) as ledger:
        ledger.append(RESULT)
        path = ledger.path
    path.write_bytes(path.read_bytes() + b'{"env": "aloha", "ind')
    with Ledger(tmp_path, {}) as ledger:
        assert list(ledger.results) == [("aloha", 0)]
        ledger.append(RESULT)
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 3


def begun(folder, identity):
    with Ledger(folder, identity) as ledger:
        ledger.append(RESULT)


def test_another_evaluation_is_refused_with_what_differs(tmp_path):
    begun(tmp_path, {"seed": 1, "model": {"name": "a"}})
    with pytest.raises(ConfigError, match=r"model\.name was 'a' and is 'b'; seed was 1 and is 2.*--fresh"):
        Ledger(tmp_path, {"seed": 2, "model": {"name": "b"}})
    Ledger(tmp_path, {"seed": 2, "model": {"name": "b"}}, "fresh").close()
    begun(tmp_path, {"seed": 2, "model": {"name": "b"}})
    with pytest.raises(ConfigError, match=r"model is missing; tasks is new"):
        Ledger(tmp_path, {"seed": 2, "tasks": {}})


def test_an_evaluation_that_never_got_going_is_in_nobody_s_way(tmp_path):
    Ledger(tmp_path, {"seed": 1}).close()
    begun(tmp_path, {"seed": 2})
    with Ledger(tmp_path, {"seed": 2}) as ledger:
        assert list(ledger.results.values()) == [RESULT]


def test_a_folder_is_one_evaluation_s_at_a_time(tmp_path):
    with claim_folder(tmp_path / "out", "continue"):
        with (
            pytest.raises(ConfigError, match="another evaluation writes into"),
            claim_folder(tmp_path / "out", "fresh"),
        ):
            pass
        with claim_folder(tmp_path / "other", "fresh"):
            pass
    with claim_folder(tmp_path / "out", "resume"):
        pass
    with claim_folder(tmp_path / "nothing", "resume"):
        assert not (tmp_path / "nothing").exists()


def test_the_default_checkpoint_is_found_from_anywhere_in_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(find_model(DEFAULT_MODEL)) == Path(__file__).parents[2] / DEFAULT_MODEL
    assert find_model("ckpt/mine") == "ckpt/mine"
    monkeypatch.setattr("remote_env.evaluate.model.__file__", str(tmp_path / "a" / "b" / "model.py"))
    with pytest.raises(ConfigError, match=r"no -m is given.*run this from the root of a clone"):
        find_model(DEFAULT_MODEL)


def test_a_token_comes_from_a_file(tmp_path):
    for name in ("token", "empty"):
        (tmp_path / name).touch(0o600)
    (tmp_path / "token").write_text("secret\n")
    assert read_token(str(tmp_path / "token")) == "secret"
    for name, message in (("empty", "is empty"), ("nowhere", "cannot be read")):
        with pytest.raises(ConfigError, match=message):
            read_token(str(tmp_path / name))
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(ConfigError, match="make it private: chmod go-rwx"):
        read_token(str(tmp_path / "token"))


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(ConfigError, match="--resume"):
        Ledger(tmp_path, {}, "resume")


@pytest.mark.parametrize("content", ["no json\n", "[1]\n", '{"format": 9}\n', "torn"])
def test_a_damaged_ledger_is_told(tmp_path, content):
    (tmp_path / "episodes.jsonl").write_text(content)
    with pytest.raises(CaptureError, match=r"episodes\.jsonl"):
        Ledger(tmp_path, {})


def test_a_folder_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CaptureError, match="give another -o"):
        Ledger(tmp_path / "file" / "out", {})

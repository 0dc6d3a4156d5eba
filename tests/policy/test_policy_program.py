"""The policy server's command line and file: what is taken, what is refused and with which words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remote_env.errors import ConfigError
from remote_env.policy.dialects import load_dialect
from remote_env.policy.server import program
from remote_env.policy.server.exposure import (
    asks_all_for_the_token,
    check_exposure,
    describe_clients,
    drop_flags,
    is_loopback,
)
from remote_env.policy.server.log import Log
from remote_env.policy.server.settings import (
    Endpoint,
    Settings,
    normalize_flags,
    parse_endpoint,
    read_settings,
    read_yaml,
)
from remote_env.policy.token_file import read_token, remove_token, token_path, write_token

ROOT = Path(__file__).resolve().parents[2]


# Flags

EVERY_FLAG = (
    "-m box --host ::1 -p 0 --dataset-id a --chunk-size 8 --device cuda:0,cuda:1 --listen renv://[::1]:1 "
    "--listen lerobot://localhost --max-batch 4 --max-wait-ms 0.5 --max-queue 3 --queue-policy refuse "
    "--max-clients 5 --health-port 9 --allow-model x --allow-model y --insecure"
)


def test_defaults() -> None:
    settings = read_settings([])
    assert settings == Settings()
    assert settings.model_name_or_path == "ckpt/act_sim_transfer_cube_scripted_zscore_example"
    assert (settings.host, settings.port, settings.chunk_size, settings.device) == ("127.0.0.1", 5000, 64, "cpu")
    assert settings.endpoints == (Endpoint("", "127.0.0.1", 5000),)
    assert settings.max_batch == 1


def test_every_flag_also_with_dashes() -> None:
    words = EVERY_FLAG.split()
    settings = read_settings(words)
    assert settings == read_settings(normalize_flags(words))
    assert "--max_wait_ms" in normalize_flags(words)
    assert settings.endpoints == (Endpoint("renv", "::1", 1), Endpoint("lerobot", "localhost", 8080))
    assert settings.devices == ["cuda:0", "cuda:1"]
    assert settings.allow_model == (Path("x"), Path("y"))
    assert (settings.max_wait_ms, settings.health_port, settings.insecure) == (0.5, 9, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prot 5", "unknown argument '--prot'; did you mean --port?"),
        ("--max-btach=5", "did you mean --max_batch?"),
        ("--mod x", "unknown argument '--mod'"),  # no abbreviations
        ("stray", "unknown argument 'stray'"),
        ("--port x", "'x' is no port; give 1 to 65535, or 0 for any that is free"),
        ("--port 70000", "'70000' is no port"),
        ("--device gpu", "'gpu' is no device; there are cpu, mps, cuda, cuda:N, and several with commas between"),
        ("--chunk_size 0", "'0' is no whole number from 1 on"),
        ("--max_wait_ms nan", "'nan' is no number of milliseconds"),
        ("--queue_policy newest", "'newest' is unknown; there are latest and refuse"),
        ("--listen 5000", "'5000' is no place to listen; write DIALECT://HOST:PORT, such as renv://127.0.0.1:5000"),
        ("--listen zmq://a:1", "unknown dialect 'zmq'; there are renv, ilstudio, openpi, lerobot"),
        ("--listen renv://a:99999", "'99999' is no port"),
    ],
)
def test_wrong_flags_are_errors(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read_settings(words.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("renv://0.0.0.0:5000", Endpoint("renv", "0.0.0.0", 5000)),
        ("openpi://box", Endpoint("openpi", "box", 8000)),
        ("ilstudio://[fe80::1]:5001", Endpoint("ilstudio", "fe80::1", 5001)),
        ("127.0.0.1:0", Endpoint("", "127.0.0.1", 0)),
    ],
)
def test_places(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint
    assert parse_endpoint(str(endpoint)) == endpoint


# The file


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("port: 7000\nmax-batch: 8\nlisten: [renv://127.0.0.1:1]\ninsecure: true\nallow_model: /models\n")
    settings = read_settings(["--port", "7001", "--config", str(path)])
    assert (settings.port, settings.max_batch, settings.insecure) == (7001, 8, True)
    assert settings.listen == (Endpoint("renv", "127.0.0.1", 1),)
    assert settings.allow_model == (Path("/models"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_btach: 2", "unknown key 'max_btach'; did you mean max_batch? The keys are model_name_or_path, host,"),
        ("zebra: 2", "unknown key 'zebra'. The keys are"),
        ("port: many", "port: 'many' is no port"),
        ("port: ²", "port: '²' is no port"),
        ("max_batch: " + "9" * 100, "is no whole number from 1 on"),
        ("port: 2026-99-99", "is not YAML: month must be in 1..12"),
        ("port: " + "[" * 5000, "is not YAML"),
        ("port: [1, 2]", "port: one value is needed; got [1, 2]"),
        ("port:", "port: one value is needed; got None"),
        ("insecure: 1", "insecure: write true or false; got 1"),
        ("listen: [5]", "listen: '5' is no place to listen"),
        ("- port", "must hold one mapping, such as 'port: 5000'; got list"),
        ("", "must hold one mapping"),
        ("port: [", "is not YAML"),
    ],
)
def test_wrong_files_are_errors(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml: No such file or directory" in capsys.readouterr().err


def test_the_shipped_example_says_the_defaults() -> None:
    path = ROOT / "configs" / "policy_server.yaml"
    assert read_settings(["--config", str(path)]) == Settings()
    lines = [
        line.removeprefix("# ")
        for line in path.read_text().splitlines()
        if line.startswith(("#  ", "# listen", "# health"))
    ]
    assert any("lerobot://" in line for line in lines)


# Beyond loopback


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
    ],
)
def test_loopback(host: str, answer: bool) -> None:
    assert is_loopback(host) is answer


COMMAND = ["python", "servers/start_policy_server.py"]


def refusal(*flags: str) -> str:
    settings = read_settings(flags)
    endpoint = settings.endpoints[0]
    dialects = {name: load_dialect(name) for name in ([endpoint.dialect] if endpoint.dialect else ["renv", "ilstudio"])}
    with pytest.raises(ConfigError) as caught:
        check_exposure(settings, endpoint, dialects, [*COMMAND, *flags])
    return str(caught.value)


def test_the_refusal_prints_the_lines_to_run() -> None:
    message = refusal("-m", "my model", "--host", "0.0.0.0", "-p5001")
    assert "refused to listen on 0.0.0.0:5001, beyond this machine: the ilstudio dialect cannot authenticate" in message
    python = "    python servers/start_policy_server.py -m 'my model'"
    assert f"{python} --listen renv://0.0.0.0:5001 --insecure\n" in message
    assert message.endswith(f"{python} --host 0.0.0.0 -p5001 --insecure")
    assert "remote-env tunnel HOST 5001 --background" in message
    assert "ssh -N -L 5001:127.0.0.1:5001 HOST" in message


@pytest.mark.parametrize("dialect", ["renv", "openpi"])
def test_what_authenticates_is_refused_too_since_nothing_encrypts_it(dialect: str) -> None:
    message = refusal("--listen", f"{dialect}://0.0.0.0:5001")
    assert f"refused to listen on {dialect}://0.0.0.0:5001, beyond this machine: nothing is encrypted there" in message
    assert "remote-env tunnel HOST 5001 --background" in message
    assert message.endswith(f"{' '.join(COMMAND)} --listen {dialect}://0.0.0.0:5001 --insecure")


@pytest.mark.parametrize(
    ("place", "names", "asks"),
    [
        ("openpi://0.0.0.0:1", ["openpi"], True),
        ("renv://0.0.0.0:1", ["renv"], True),
        ("openpi://127.0.0.1:1", ["openpi"], False),
        ("lerobot://0.0.0.0:1", ["lerobot"], False),
        ("0.0.0.0:1", ["renv", "ilstudio", "openpi"], False),
    ],
)
def test_where_all_must_prove_the_token(place: str, names: list[str], asks: bool) -> None:
    dialect, _, rest = place.rpartition("://")
    endpoint = Endpoint(dialect, rest.partition(":")[0], 1)
    assert asks_all_for_the_token(endpoint, {name: load_dialect(name) for name in names}) is asks


def test_the_safe_line_keeps_the_other_places() -> None:
    message = refusal("--listen", "lerobot://0.0.0.0:8080", "--listen=openpi://127.0.0.1:8000")
    assert "the lerobot dialect cannot authenticate" in message
    assert f"{' '.join(COMMAND)} --listen renv://0.0.0.0:8080 --listen openpi://127.0.0.1:8000 --insecure\n" in message


@pytest.mark.parametrize(
    "flags", [["--host", "0.0.0.0", "--insecure"], ["--listen", "renv://127.0.0.1:5000"], ["--host", "::1"]]
)
def test_what_is_not_refused(flags: list[str]) -> None:
    settings = read_settings(flags)
    endpoint = settings.endpoints[0]
    dialects = {name: load_dialect(name) for name in ([endpoint.dialect] if endpoint.dialect else ["renv", "ilstudio"])}
    check_exposure(settings, endpoint, dialects, COMMAND)


def test_a_host_that_nobody_knows() -> None:
    with pytest.raises(ConfigError, match=r"the host 'no\.such\.host\.invalid' is unknown here"):
        is_loopback("no.such.host.invalid")


def test_flags_are_dropped_with_their_values() -> None:
    text = "a.py -p 1 -p2 --port=3 --port 4 --host x -m y --listen=z --insecure"
    words = text.split()
    assert drop_flags(words, ("--port", "--host", "--listen")) == ["a.py", "-m", "y", "--insecure"]


def test_clients_are_told_where_the_token_is_and_not_what_it_is() -> None:
    path = Path("/cache/5000.token")
    lines = describe_clients(Endpoint("", "0.0.0.0", 5000), ["renv", "openpi"], path, beyond=True)
    assert lines[0].endswith("python examples/policy_client_example.py --host localhost --port 5000")
    assert "REMOTE_ENV_TOKEN=$(ssh " in lines[1]
    assert "cat /cache/5000.token)" in lines[1]
    assert "api_key=TOKEN" in lines[2]
    assert len(describe_clients(Endpoint("", "127.0.0.1", 5000), ["renv", "openpi"], path, beyond=False)) == 1
    lines = describe_clients(Endpoint("", "::1", 5000), ["renv"], path, beyond=False)
    assert lines[0].endswith("--host ::1 --port 5000")


@pytest.mark.parametrize(
    "flags", ["--listen renv://127.0.0.1:5072 --listen ilstudio://127.0.0.1:5072", "-p 5072 --health-port 5072"]
)
def test_a_port_that_is_asked_for_twice(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(flags.split()) == 1
    assert "error: 127.0.0.1:5072 is asked for twice" in capsys.readouterr().err


def test_a_host_may_have_brackets() -> None:
    assert read_settings(["--host", "[::1]"]).endpoints == (Endpoint("", "::1", 5000),)


# The token's file


def test_a_token_file_is_private(isolated_home: Path) -> None:
    previous = os.umask(0)
    try:
        path = write_token(5000, "t" * 32)
    finally:
        os.umask(previous)
    assert path == token_path(5000) == isolated_home / "cache" / "remote-env" / "policies" / "5000.token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert read_token(5000) == "t" * 32
    remove_token(5000, "another")
    assert path.exists()
    remove_token(5000, "t" * 32)
    assert not path.exists()
    assert read_token(5000) is None


def test_a_folder_that_others_may_read_gets_no_token(isolated_home: Path) -> None:
    folder = token_path(5000).parent
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    try:
        with pytest.raises(ConfigError, match=f"can be reached by others.*chmod go-rwx {folder}"):
            write_token(5000, "t" * 32)
        assert list(folder.iterdir()) == []
    finally:
        folder.chmod(0o700)


def test_a_token_file_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot write the token file .*: Not a directory; make the folder writable"):
        write_token(5000, "t" * 32)


def test_a_short_token_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("REMOTE_ENV_TOKEN", "secret")
    assert program.main(["-p", "0"]) == 1
    error = capsys.readouterr().err
    assert "REMOTE_ENV_TOKEN is shorter than 32 characters; make one: openssl rand -hex 32" in error
    assert "secret" not in error


def test_what_clients_send_cannot_look_like_the_log_s_own_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Log()("Client #1: no field 'a\n12:00:00 Client #7 closed\x1b[2J\r\x9b'")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("Client #1: no field 'a")
    assert lines[1] == "  12:00:00 Client #7 closed\\x1b[2J\\x0d\\x9b'"


def test_a_token_file_that_cannot_be_put_in_place_leaves_nothing(isolated_home: Path) -> None:
    path = token_path(5000)
    path.mkdir(mode=0o700, parents=True)
    path.parent.chmod(0o700)
    with pytest.raises(ConfigError, match="cannot write the token file"):
        write_token(5000, "t" * 32)
    assert list(path.parent.iterdir()) == [path]
    path.rmdir()


# The shell script


def test_the_script_takes_model_path_and_passes_the_rest(tmp_path: Path) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)

    def words(*arguments: str) -> list[str]:
        environment: dict[str, Any] = {**os.environ, "PYTHON": str(stand_in)}
        command = [str(ROOT / "scripts" / "start_policy_server.sh"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.splitlines()[1:]

    assert words("--model_path", "a b", "-p", "1", "--insecure") == ["-m", "a b", "-p", "1", "--insecure"]
    assert words("--model_path=a b") == ["--model_name_or_path=a b"]
    assert words() == []


def test_help_from_another_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "servers" / "start_policy_server.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30)
    for name in Settings.__dataclass_fields__:
        assert f"--{name}" in done.stdout

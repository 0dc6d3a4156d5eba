"""An address, or a checkpoint?"""

from __future__ import annotations

from pathlib import Path

import pytest
from policies_for_tests import NullPolicy

from remote_env.errors import ConfigError, ConnectError
from remote_env.policy import several_servers
from remote_env.policy.address import PolicyAddress, open_policy, parse_policy


@pytest.mark.parametrize(
    ("text", "dialect", "host", "port"),
    [
        ("localhost:5000", "renv", "localhost", 5000),
        ("127.0.0.1:1", "renv", "127.0.0.1", 1),
        ("gpu-box.lab:65535", "renv", "gpu-box.lab", 65535),
        ("[::1]:5000", "renv", "::1", 5000),
        ("[fe80::1]:5000", "renv", "fe80::1", 5000),
        ("renv://box:5000", "renv", "box", 5000),
        ("ilstudio://box:5001", "ilstudio", "box", 5001),
        ("openpi://box", "openpi", "box", 8000),
        ("openpi://box:8000/", "openpi", "box", 8000),
        ("openpi://[::1]", "openpi", "::1", 8000),
        ("lerobot://[::1]:8080", "lerobot", "::1", 8080),
    ],
)
def test_addresses(text: str, dialect: str, host: str, port: int) -> None:
    assert parse_policy(text) == PolicyAddress(dialect, host, port)
    assert parse_policy(str(parse_policy(text))) == PolicyAddress(dialect, host, port)


@pytest.mark.parametrize(
    "text",
    [
        "ckpt/act_sim_transfer_cube_scripted_zscore_example",
        "C:\\ckpt",
        "C:/ckpt",
        "C:\\ckpt:5000",
        "ckpt/run:5000",
        "./run:5000",
        "scripted:aloha-transfer-cube",
        "my_module:make_policy",
        "policy.onnx",
        "box:5000x",
        "a,b",
    ],
)
def test_checkpoints(text: str) -> None:
    assert parse_policy(text) == text


def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_policy("box:5000") == PolicyAddress("renv", "box", 5000)
    (tmp_path / "box:5000").mkdir()
    assert parse_policy("box:5000") == "box:5000"


def test_several_servers() -> None:
    found = parse_policy("a:5000, openpi://b:8000,[::1]:5002")
    assert isinstance(found, PolicyAddress)
    assert [(one.dialect, one.host, one.port) for one in found.all] == [
        ("renv", "a", 5000),
        ("openpi", "b", 8000),
        ("renv", "::1", 5002),
    ]
    assert str(found) == "a:5000,openpi://b:8000,[::1]:5002"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://box:5000", "unknown dialect 'ftp'; there are renv, ilstudio, openpi, lerobot"),
        ("box:70000", "1 to 65535"),
        ("box:0", "1 to 65535"),
        ("::1:5000", r"brackets, as in \[::1\]:5000"),
        ("[box]:5000", "no IPv6 address"),
        ("openpi://", "write openpi://host:8000"),
        ("openpi://box:8000/path", "write openpi://host:8000"),
        ("a:5000,b", "between commas"),
        ("  ", "no policy was named"),
    ],
)
def test_faults(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_policy(text)


class Dialect:
    """Stands for a dialect's module: servers that do not answer, but for one."""

    def __init__(self, alive: str) -> None:
        self.alive, self.asked = alive, []

    def connect(self, host: str, port: int, **options: object) -> NullPolicy:
        self.asked.append(host)
        if host != self.alive:
            raise ConnectError(f"connection refused by {host}")
        policy = NullPolicy()
        policy.where = f"{host}:{port}"  # type: ignore[attr-defined]
        return policy


def test_clients_spread_over_servers_and_pass_over_dead_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    dialect, lines = Dialect("b"), []
    monkeypatch.setattr(several_servers, "load_dialect", lambda name: dialect)
    for _ in range(3):
        assert open_policy("a:1,b:2,c:3", log=lines.append).where == "b:2"
    assert set(dialect.asked) == {"a", "b", "c"}
    assert any("connection refused by a" in line for line in lines)
    dialect.alive = "none"
    with pytest.raises(ConnectError, match="none of the 3 policy servers answers") as raised:
        open_policy("a:1,b:2,c:3", log=lines.append)
    assert "refused by c" in str(raised.value)


def test_what_only_a_local_policy_uses_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(several_servers, "load_dialect", lambda name: Dialect("a"))
    open_policy("a:1", dataset_id="mine", device="cuda", log=lines.append)
    assert [line.split(" is ")[0] for line in lines] == ["warning: dataset_id='mine'", "warning: device='cuda'"]
    open_policy("a:1", log=lines.append)
    assert len(lines) == 2


def test_a_local_policy_is_loaded() -> None:
    with open_policy("scripted:aloha-transfer-cube", chunk_size=7) as policy:
        assert policy.metadata.chunk_size == 7

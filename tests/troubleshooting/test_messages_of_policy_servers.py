"""What is told when a policy server does not start, is asked whether it lives, or is not reached."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from onnx_graphs import write_linear
from policies_for_tests import EchoPolicy, observe
from policy_server_process import PolicyServerProcess, policy_server
from quotes import ROOT, produces
from renv_serving import TOKEN, RenvServer, serving

from remote_env.policy import load_policy, open_policy
from remote_env.policy.dialects import load_dialect
from remote_env.policy.dialects import renv as renv_dialect
from remote_env.policy.policy import Chunk
from remote_env.policy.server import program

CHECKPOINT = ROOT / "ckpt" / "act_sim_transfer_cube_scripted_zscore_example"
PAGE = ROOT / "docs" / "troubleshooting.md"
OTHER_TOKEN = "f" * 64
Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """What the server's program prints when it does not start."""
    monkeypatch.setattr(sys, "argv", ["servers/start_policy_server.py"])

    def start(*flags: str, **options: Any) -> str:
        assert program.main(list(flags), **options) == 1
        return capsys.readouterr().err

    return start


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have packages be as if they were not installed."""

    def remove(package: str, *modules: str) -> None:
        for name in [name for name in sys.modules if name == package or name.startswith((f"{package}.", *modules))]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

    return remove


def ask(address: str, **options: Any) -> Chunk:
    """The first actions of whatever is at an address."""
    with open_policy(address, **{"timeout_s": 5.0, "reconnect_timeout_s": 0.1, **options}) as policy:
        return policy.infer(observe(), episode_ids=[""])


@pytest.fixture(scope="module")
def server(isolated_home: Path) -> Iterator[RenvServer]:
    """A server of renv alone."""
    with serving(EchoPolicy()) as server:
        yield server


# Is it alive?


@produces("HTTP/1.1 200 OK…ready")
def test_health_of_a_server_that_takes_clients() -> str:
    with policy_server("echo") as server:
        metrics = server.http("/metrics")
        named = re.findall(r"`(remote_env_\w+)`", PAGE.read_text())
        assert named
        assert all(name in metrics for name in named)
        return server.http("/healthz")


@produces("HTTP/1.1 503 Service Unavailable…not ready: loading the model for … s")
def test_health_while_the_model_loads() -> str:
    server = PolicyServerProcess("loading_forever", "--health_port", "0")
    try:
        log = server.wait_for("loading loading_forever on cpu")
        return server.http("/healthz", port=int(re.findall(r"http://127\.0\.0\.1:(\d+)/healthz", log)[0]))
    finally:
        server.stop()


# Starting it


@produces("error: refused to listen on …, beyond this machine: the … dialect cannot authenticate clients, …")
def test_beyond_loopback_without_authentication(refused: Refused) -> str:
    for place in ("ilstudio://0.0.0.0:5000", "lerobot://0.0.0.0:8080"):
        assert f"refused to listen on {place}, beyond this machine" in refused("--listen", place)
    told = refused("-m", "my_checkpoint", "--host", "0.0.0.0")
    assert told in PAGE.read_text(), told
    return told


@produces("error: refused to listen on …, beyond this machine: nothing is encrypted there, …")
def test_beyond_loopback_with_authentication(refused: Refused) -> str:
    return refused("--listen", "renv://0.0.0.0:5000")


@produces("error: the port … is busy: process … (…) listens there; …")
def test_a_busy_port(refused: Refused) -> str:
    with socket.create_server(("127.0.0.1", 0)) as other:
        return refused("-p", str(other.getsockname()[1]))


@produces("ConfigError: no policy '…': there is no …; a policy is one of…")
def test_a_checkpoint_that_is_not_there() -> None:
    load_policy("no/such/checkpoint")


@produces("ConfigError: no normalize.json for the checkpoint …; looked for…")
def test_a_checkpoint_without_its_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint"
    folder.mkdir(parents=True)
    for name in ("policy.onnx", "policy.json"):
        shutil.copy(CHECKPOINT / name, folder)
    load_policy(folder)


@produces("ConfigError: … has no dataset '…'; it has …")
def test_another_dataset() -> None:
    load_policy(CHECKPOINT, dataset_id="my_dataset")


@produces("ConfigError: this checkpoint is an ONNX graph and needs 'onnxruntime', which is not installed here: …")
def test_without_onnxruntime(without: Callable[..., None]) -> None:
    without("onnxruntime")
    load_policy(CHECKPOINT)


@produces("ConfigError: this checkpoint needs 'torch', which is not installed here: …")
def test_without_torch(without: Callable[..., None], tmp_path: Path) -> None:
    without("torch")
    (tmp_path / "policy.pt").touch()
    load_policy(tmp_path)


@produces("ConfigError: the dialect '…' needs …, which is not installed here: pip install 'remote-env[…]'")
def test_without_a_dialect_s_package(without: Callable[..., None]) -> None:
    without("websockets", "remote_env.policy.dialects.openpi", "remote_env.policy.dialects.websocket_link")
    with pytest.raises(Exception, match=r"'openpi' needs 'websockets\S*', .* 'remote-env\[policy\]'"):
        load_dialect("openpi")
    without("grpc", "remote_env.policy.dialects.lerobot")
    load_dialect("lerobot")


@produces("openpi is not served: the dialect 'openpi' needs …")
def test_a_port_of_no_named_dialect_goes_without(
    without: Callable[..., None], refused: Refused, capsys: pytest.CaptureFixture[str]
) -> str:
    without("websockets", "remote_env.policy.dialects.openpi", "remote_env.policy.dialects.websocket_link")
    settings = program.read_settings(["-p", "0"])
    lines: list[str] = []
    server = program.Server(settings, lines.append, load_policy, command=["python"])
    assert list(server._dialects(settings.endpoints[0])) == ["renv", "ilstudio"]
    return lines[0]


@produces("ConfigError: device='cuda': onnxruntime has no working CUDAExecutionProvider here; …")
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    write_linear(tmp_path / "policy.onnx")
    (tmp_path / "policy.json").write_text((CHECKPOINT / "policy.json").read_text())
    load_policy(tmp_path, device="cuda")


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return (print, ("it ran",))


@produces("ConfigError: … is refused: it holds more than tensors, or is damaged: …")
def test_weights_that_would_run_code(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"weights": Hostile()}, tmp_path / "policy.pt")
    policy = '{"observation": {}, "action_names": ["x"], "chunk_size": 1, "normalizer": "none", '
    (tmp_path / "policy.json").write_text(policy + '"factory": "network.py:make"}')
    (tmp_path / "network.py").write_text("import torch\ndef make(): return torch.nn.Linear(1, 1)\n")
    load_policy(tmp_path)


@produces("error: … could not be loaded on …: …out of memory…; free memory (…")
def test_a_model_that_needs_too_much(refused: Refused) -> str:
    def load(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 14.00 GiB. GPU 0 has a total capacity of 8.00 GiB.")

    return refused("-m", "a_large_model", "-p", "0", load=load)


# Reaching it


@produces("ConnectError: nothing answers at …:… (…refused); is the server running?")
def test_nobody_listens() -> None:
    ask("127.0.0.1:1")


@produces("ConnectError: none of the … policy servers answers:…")
def test_none_of_several() -> None:
    ask("127.0.0.1:1,127.0.0.1:2", token=TOKEN)


@produces("ConfigError: no token for the policy server at …: token= is not given, …")
def test_no_token(server: RenvServer) -> None:
    ask(f"127.0.0.1:{server.port}")


@produces("AuthError: the policy server at …: the server does not have this token: …")
def test_another_token(server: RenvServer) -> None:
    ask(f"127.0.0.1:{server.port}", token=OTHER_TOKEN)


@produces("AuthError: … refused this client (401): …")
def test_openpi_without_the_token() -> None:
    with serving(EchoPolicy(), dialect="openpi", require_token=True) as server:
        with pytest.raises(Exception, match=r"\(401\): a wrong token"):
            ask(f"openpi://127.0.0.1:{server.port}", token=OTHER_TOKEN)
        ask(f"openpi://127.0.0.1:{server.port}")


@produces("ConnectError: … does not answer as a policy server does: …; if a server of another dialect listens there, …")
def test_renv_where_another_dialect_is_spoken() -> None:
    with serving(EchoPolicy(), dialect="ilstudio") as server:
        ask(f"127.0.0.1:{server.port}", token=TOKEN)


@produces("ConnectError: … opens no WebSocket: …; does it speak openpi?")
def test_openpi_where_another_dialect_is_spoken(server: RenvServer) -> None:
    ask(f"openpi://127.0.0.1:{server.port}")


@produces("ConnectionLost: the policy server at ilstudio://… is lost (…); tried again for … s. …")
def test_ilstudio_where_another_dialect_is_spoken(server: RenvServer) -> None:
    ask(f"ilstudio://127.0.0.1:{server.port}")


@produces("dropped …: it speaks ilstudio; this port takes renv")
def test_what_the_log_says_of_another_dialect() -> str:
    with serving(EchoPolicy()) as server:
        with contextlib.suppress(Exception):
            ask(f"ilstudio://127.0.0.1:{server.port}")
        return next(line for line in server.lines if line.startswith("dropped"))


@produces("ConnectError: the policy server has no place for one more client (--max_clients); …")
def test_one_client_too_many() -> None:
    with serving(EchoPolicy(), max_clients=1) as server, server.connect():
        renv_dialect.connect("127.0.0.1", server.port, token=TOKEN)

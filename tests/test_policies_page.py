"""The Python blocks of docs/policies.md, run as they stand: only hosts, ports and a reader's own names are put in."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from leak_check import isolated_home, no_leaks, wait_until

from remote_env.policy import Policy, open_policy

__all__ = ["isolated_home", "no_leaks"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "policies.md").read_text()
CHECKPOINT = ROOT / "ckpt" / "act_sim_transfer_cube_scripted_zscore_example"
START_TIMEOUT_S = 30.0


def block_with(words: str) -> str:
    """The one Python block of the page that holds `words`."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if words in block]
    return block


def put(block: str, **instead: str) -> str:
    """The block with what a reader fills in; each must stand there."""
    for old, new in instead.items():
        assert old in block
        block = block.replace(old, new)
    return block


@contextmanager
def served(model: Path | str, folder: Path) -> Iterator[int]:
    """servers/start_policy_server.py with that model, started in `folder`; the port that it took."""
    log = folder / "server.txt"
    command = [sys.executable, str(ROOT / "servers" / "start_policy_server.py"), "-m", str(model), "-p", "0"]
    with log.open("wb") as file, subprocess.Popen(command, cwd=folder, stdout=file, stderr=file) as process:
        try:
            wait_until(
                lambda: "waiting for clients" in log.read_text() or process.poll() is not None,
                "it starts",
                START_TIMEOUT_S,
            )
            found = re.search(r"listening on 127\.0\.0\.1:(\d+) ", log.read_text())
            assert found, log.read_text()
            yield int(found[1])
        finally:
            process.terminate()
            assert process.wait(15) == 0, log.read_text()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory, isolated_home: Path) -> Iterator[int]:
    with served(CHECKPOINT, tmp_path_factory.mktemp("shipped")) as port:
        yield port


def test_the_client_without_this_library_gets_actions(shipped: int, tmp_path: Path) -> None:
    program = tmp_path / "client.py"
    program.write_text(put(block_with("websockets.sync.client"), **{"localhost:5000": f"localhost:{shipped}"}))
    command = [sys.executable, "-W", "error", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stderr, done.stdout) == ("", "(64, 14)\n" * 3)


def test_the_client_without_this_library_shows_the_servers_error(shipped: int, tmp_path: Path) -> None:
    program = tmp_path / "client.py"
    instead = {"localhost:5000": f"localhost:{shipped}", "np.zeros(41": "np.zeros(7"}
    program.write_text(put(block_with("websockets.sync.client"), **instead))
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "(7,)" in done.stderr
    assert "(41,)" in done.stderr


def test_the_policy_of_ones_own_is_served_as_its_file_and_asked(tmp_path: Path) -> None:
    (tmp_path / "hold.py").write_text(block_with("class Hold"))
    states = np.arange(28, dtype=np.float32).reshape(2, 14)
    with served("./hold.py:Hold", tmp_path) as port:
        names: dict = {"states": states}
        try:
            exec(put(block_with('open_policy("box:5000")'), **{"box:5000": f"localhost:{port}"}), names)
        finally:
            if isinstance(policy := names.get("policy"), Policy):
                policy.close()
    assert (names["chunk"].shape, names["chunk"].dtype) == ((2, 16, 14), np.float32)
    assert (names["chunk"] == states[:, None]).all()


def test_a_checkpoint_is_opened_by_its_path_as_by_its_address(shipped: int) -> None:
    states = {"state": np.zeros((1, 41), np.float32)}
    with open_policy(str(CHECKPOINT)) as here, open_policy(f"localhost:{shipped}") as there:
        chunks = [policy.infer(states, episode_ids=["0"]) for policy in (here, there)]
        assert here.metadata.observation == there.metadata.observation
    np.testing.assert_array_equal(*chunks)


def test_the_policy_beside_the_simulator_acts_as_the_page_says(monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)  # where its checkpoint's path begins
    block = block_with("policy=LocalFolder")
    exec(put(block, **{'"user@box"': "None", "n_episodes=10": "n_episodes=1"}), {})
    line = r"<Rollout seed=0, \d+ steps, terminated, reward \d+, success=True>"
    assert re.fullmatch(line + "\n", capsys.readouterr().out)
    assert re.search(line, block)

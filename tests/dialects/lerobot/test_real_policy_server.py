"""Our client at LeRobot's own policy server, unmodified; and LeRobot's checkpoints in ours."""

from __future__ import annotations

import numpy as np
import pytest
import torchvision_ops  # noqa: F401
from lerobot_programs import free_port
from random_act import ACTION_SIZE, CHUNK_SIZE, IMAGE_SHAPE, STATE_SIZE

from remote_env.errors import ConfigError, ConnectError, InputError, PolicyError
from remote_env.policy.dialects.lerobot import connect
from remote_env.policy.lerobot_policy import describe
from remote_env.policy.loading import load_policy


def observe(seed: int = 0, rows: int = 1) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "observation.state": generator.normal(size=(rows, STATE_SIZE)).astype(np.float32),
        "observation.images.top": generator.integers(0, 256, (rows, *IMAGE_SHAPE), np.uint8),
    }


def test_lerobot_server_gives_what_the_policy_gives_here(programs, act_folder):
    port = free_port()
    server = programs.lerobot_server(port)
    with (
        load_policy(act_folder) as local,
        connect("127.0.0.1", port, metadata=describe(act_folder), pretrained_name_or_path=str(act_folder)) as remote,
    ):
        assert remote.metadata.observation == local.metadata.observation
        for seed in range(3):
            expected = local.infer(observe(seed), episode_ids=[""])
            chunk = remote.infer(observe(seed), episode_ids=[""])
            assert chunk.shape == (1, CHUNK_SIZE, ACTION_SIZE)
            np.testing.assert_allclose(chunk, expected, atol=1e-4)
        two = remote.infer(observe(7, rows=2), episode_ids=["a", "b"])
        np.testing.assert_allclose(two, local.infer(observe(7, rows=2), episode_ids=["a", "b"]), atol=1e-4)
        remote.reset()
        np.testing.assert_allclose(remote.infer(observe(2), episode_ids=[""]), expected, atol=1e-4)
        server.end()
    with pytest.raises(ConnectError, match="no LeRobot policy server answers"):
        connect("127.0.0.1", port, metadata=describe(act_folder), pretrained_name_or_path="x")


def test_without_metadata_features_are_what_they_look_like(programs, act_folder):
    port = free_port()
    programs.lerobot_server(port)
    with connect("127.0.0.1", port, pretrained_name_or_path=str(act_folder), chunk_size=5) as remote:
        chunk = remote.infer(observe(), episode_ids=[""])
        assert chunk.shape == (1, 5, ACTION_SIZE)
        assert len(remote.metadata.action_names) == ACTION_SIZE


def test_a_lerobot_server_that_fails_is_a_policy_error(programs, act_folder):
    port = free_port()
    server = programs.lerobot_server(port)
    options = {"pretrained_name_or_path": str(act_folder), "timeout_s": 60.0}
    with connect("127.0.0.1", port, **options) as remote:
        short = {"observation.state": np.zeros((1, 3), np.float32)}
        with pytest.raises(PolicyError, match="its log says which"):
            remote.infer(short, episode_ids=[""])
    assert "Error in StreamActions" in server.log
    with pytest.raises(ConfigError, match="nowhere"):
        connect("127.0.0.1", port, metadata=describe(act_folder), pretrained_name_or_path="/nowhere")
    with pytest.raises(ConfigError, match="pretrained_name_or_path"):
        connect("127.0.0.1", port)


def test_a_pretrained_folder_loads_and_infers_in_batches(act_folder):
    with load_policy(act_folder) as policy:
        rows = observe(1, rows=3)
        chunk = policy.infer(rows, episode_ids=["a", "b", "c"])
        assert chunk.shape == (3, CHUNK_SIZE, ACTION_SIZE)
        one = policy.infer({name: value[1:2] for name, value in rows.items()}, episode_ids=["b"])
        np.testing.assert_allclose(one[0], chunk[1], atol=1e-4)
        with pytest.raises(InputError, match=r"observation\.state"):
            policy.infer({**rows, "observation.state": np.zeros((3, 2), np.float32)}, episode_ids=["a", "b", "c"])
    with load_policy(act_folder, chunk_size=7) as policy:
        assert policy.infer(observe(), episode_ids=[""]).shape == (1, 7, ACTION_SIZE)


def test_what_lerobot_cannot_load_is_said(act_folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((act_folder / name).read_bytes())
    with pytest.raises(ConfigError, match="LeRobot cannot load"):
        load_policy(tmp_path)  # without its processors
    with pytest.raises(ConfigError, match="normalises by itself"):
        load_policy(act_folder, dataset_id="other")

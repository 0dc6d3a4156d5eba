"""Write tests/data/lerobot_recorded.json: what LeRobot and torch themselves put on the wire, for tests without them.

.venv-lerobot/bin/python tests/dialects/lerobot/record_fixtures.py
"""

from __future__ import annotations

import base64
import json
import pickle
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torchvision_ops  # noqa: F401  isort: skip
import numpy as np
import torch
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedAction, TimedObservation
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.utils import hw_to_dataset_features
from lerobot.transport import services_pb2
from lerobot.transport.utils import send_bytes_in_chunks
from random_act import save_random_act

TARGET = Path(__file__).resolve().parents[2] / "data" / "lerobot_recorded.json"
ROBOT = {"waist.pos": float, "elbow.pos": float, "top": (4, 6, 3)}


def record() -> dict[str, bytes]:
    features = hw_to_dataset_features(ROBOT, "observation", use_video=False)
    observation = {
        "waist.pos": 0.5,
        "elbow.pos": np.float32(-1.25),
        "top": np.arange(72, dtype=np.uint8).reshape(4, 6, 3),
        "task": "pick up the cube",
    }
    actions = torch.arange(6, dtype=torch.float32).reshape(3, 2)
    typed = {"observation.state": PolicyFeature(FeatureType.STATE, (2,))}
    timed = pickle.dumps(TimedObservation(1700000000.5, 7, observation, must_go=True))
    (only,) = send_bytes_in_chunks(b"abc", services_pb2.Observation)
    long = list(send_bytes_in_chunks(bytes(5 << 20), services_pb2.Observation))
    return {
        "setup": pickle.dumps(RemotePolicyConfig("act", "somebody/act", features, 50, "cuda", {"a": "b"})),
        "setup_with_policy_features": pickle.dumps(RemotePolicyConfig("act", "somebody/act", typed, 50)),
        "observation": timed,
        "observation_of_protocol_2": pickle.dumps(pickle.loads(timed), protocol=2),
        "observation_of_protocol_5": pickle.dumps(pickle.loads(timed), protocol=5),
        **{
            f"actions_{str(dtype).removeprefix('torch.')}": pickle.dumps(
                [TimedAction(3.5 + 0.02 * step, 7 + step, row) for step, row in enumerate(actions.to(dtype))]
            )
            for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)
        },
        "actions_transposed": pickle.dumps([TimedAction(3.5, 7, actions.t()[1])]),
        "message_end": only.SerializeToString(),
        "message_states": bytes(message.transfer_state for message in long),
        "policy_setup": services_pb2.PolicySetup(data=b"abc").SerializeToString(),
        "actions": services_pb2.Actions(data=b"abc").SerializeToString(),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_random_act(Path(folder))
        config = json.loads((Path(folder) / "config.json").read_text())
    versions = {name: version(name) for name in ("lerobot", "torch", "numpy", "grpcio", "protobuf")}
    content = {
        "versions": {"python": sys.version.split()[0], **versions},
        "bytes": {name: base64.b64encode(data).decode() for name, data in record().items()},
        "config.json": config,
    }
    TARGET.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""openpi's own client, unmodified, against the server at 127.0.0.1:<port>: run by tests/policy/test_openpi_peers.py.

It runs in an environment that has openpi-client and its numpy, and nothing of ours. The server's policy takes a state
of 14 numbers, a camera (48, 64, 3) and a text; action k is the state plus k, with K = 4.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import InvalidStatus

port, api_key = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None


def observe(value: float) -> dict[str, object]:
    return {
        "observation/state": np.full(14, value),  # float64, as robots have it
        "observation/image0": np.zeros((3, 48, 64), np.uint8),  # channels first, as many of openpi's examples
        "observation/wrist_image": np.zeros((8, 8, 3), np.uint8),  # not for this policy
        "prompt": "lift the cube",
    }


def fail(error: type[Exception], call: Callable[[], object]) -> Exception:
    """What `call` raises, which must be an `error`."""
    try:
        call()
    except error as caught:
        return caught
    raise AssertionError(f"no {error.__name__} came")


if api_key:
    for wrong in (None, "wrong"):
        refused = fail(InvalidStatus, partial(WebsocketClientPolicy, "127.0.0.1", port, wrong))
        assert refused.response.status_code == 401

policy = WebsocketClientPolicy("127.0.0.1", port, api_key)
metadata = policy.get_server_metadata()
assert metadata["action_horizon"] == 4, metadata
assert metadata["remote_env"]["policy"]["observation"]["state"]["shape"] == [14], metadata

reply = policy.infer(observe(1.5))
assert (reply["actions"].shape, reply["actions"].dtype) == ((4, 14), np.float32), reply
np.testing.assert_array_equal(reply["actions"][3], np.full(14, 4.5, np.float32))
assert reply["server_timing"]["infer_ms"] > 0
assert "prev_total_ms" not in reply["server_timing"]
assert policy.infer(observe(1.5))["server_timing"]["prev_total_ms"] > 0

assert "the policy 'echo' does not fit" in str(fail(RuntimeError, lambda: policy.infer({"state": np.zeros(3)})))
cause = str(fail(RuntimeError, lambda: policy.infer(observe(-1.0))))
assert "Traceback" in cause, cause
assert "chokes on a negative number" in cause, cause

broker = ActionChunkBroker(policy, action_horizon=4)
seen = [broker.infer(observe(10.0 * step))["actions"] for step in range(6)]
assert [float(action[0]) for action in seen] == [0, 1, 2, 3, 40, 41], seen
assert seen[0].shape == (14,)
broker.reset()
assert float(broker.infer(observe(7.0))["actions"][0]) == 7
print("all is well with openpi-client", version("openpi-client"))

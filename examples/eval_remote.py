"""Evaluate a policy, served elsewhere or loaded here; `remote-env eval` is the same command.

    python examples/eval_remote.py -m localhost:5000 -e aloha --num_rollout 10 --num_envs 2 --chunk_size 64
    python examples/eval_remote.py -m ckpt/act_sim_transfer_cube_scripted_zscore_example -e aloha

`--help` lists every flag. A loop of your own needs no more than the client:

    from eval_remote import RemotePolicyClient

    with RemotePolicyClient("localhost", 5000, chunk_size=64) as policy:
        policy.reset()
        action = policy.select_action(observation, t)
"""

from __future__ import annotations

import sys

from remote_env.cli.eval import main
from remote_env.policy.client import RemotePolicyClient

__all__ = ["RemotePolicyClient", "main"]

if __name__ == "__main__":
    sys.exit(main())

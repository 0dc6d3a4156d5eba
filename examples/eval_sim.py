"""Evaluate a policy in simulation; takes the flags of eval_remote.py, and an address or a checkpoint alike.

python examples/eval_sim.py -m ckpt/act_sim_transfer_cube_scripted_zscore_example -e aloha --num_rollout 10
"""

from __future__ import annotations

import sys

from eval_remote import main

if __name__ == "__main__":
    sys.exit(main())

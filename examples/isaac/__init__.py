"""Two tasks for Isaac Lab 3 without anything from the network: an arm that picks a cube, and a cart with a pole.

This package is sent to the machine that has Isaac Lab (`upload=["examples/isaac"]`). Importing it needs Gymnasium
alone: `arm`, `expert` and this file also run on the client; `pick` and `cartpole` import Isaac Lab.
"""

from __future__ import annotations

import gymnasium

PICK_ID = "RemoteEnv-IsaacPick-v0"
CARTPOLE_ID = "RemoteEnv-IsaacCartpole-v0"

gymnasium.register(
    PICK_ID,
    entry_point=f"{__name__}.pick:IsaacPickEnv",
    disable_env_checker=True,  # it checks for numpy values; Isaac Lab has tensors
    kwargs={"env_cfg_entry_point": f"{__name__}.pick:IsaacPickEnvCfg"},
)
gymnasium.register(
    CARTPOLE_ID,
    entry_point="isaaclab_tasks.core.cartpole.cartpole_direct_env:CartpoleEnv",
    disable_env_checker=True,
    kwargs={"env_cfg_entry_point": f"{__name__}.cartpole:LocalCartpoleEnvCfg"},
)

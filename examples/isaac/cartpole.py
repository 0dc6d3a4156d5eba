"""Isaac Lab's own `Isaac-Cartpole-Direct`, with our files instead of the network's. Needs Isaac Lab."""

from __future__ import annotations

from pathlib import Path

from isaaclab.utils.configclass import configclass
from isaaclab_tasks.core.cartpole.cartpole_direct_env_cfg import CartpoleEnvCfg

ASSETS = Path(__file__).parent / "assets"


@configclass
class LocalCartpoleEnvCfg(CartpoleEnvCfg):
    """The registered task's configuration; only what is drawn and weighed comes from here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scene.num_envs = 1
        self.scene.ground.spawn.usd_path = str(ASSETS / "ground.usda")
        self.scene.ground.spawn.color = None  # of a material that our plane does not have
        self.scene.cartpole.spawn.usd_path = str(ASSETS / "cartpole.usda")

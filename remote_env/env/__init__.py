"""RemoteEnv: a `gymnasium.Env` whose simulator runs on another machine."""

from remote_env.env.remote_env import RemoteEnv
from remote_env.env.rollouts import Rollout, RolloutStatus
from remote_env.env.task import LocalFolder

__all__ = ["LocalFolder", "RemoteEnv", "Rollout", "RolloutStatus"]

"""The embedded tasks. Importing this package imports neither MuJoCo nor any task."""

from __future__ import annotations

import gymnasium

TRANSFER_CUBE_ID = "remote_env/AlohaTransferCube-v0"
INSERTION_ID = "remote_env/AlohaInsertion-v0"
MAX_EPISODE_STEPS = 300  # as gym-aloha: 6 s at 50 Hz

ALOHA_TASKS = {TRANSFER_CUBE_ID: "transfer_cube", INSERTION_ID: "insertion"}  # id -> as `aloha_model_path` takes it


def register_tasks() -> None:
    """Register the embedded tasks with Gymnasium; calling it again does nothing."""
    for task_id, task in ALOHA_TASKS.items():
        if task_id in gymnasium.registry:
            continue
        gymnasium.register(
            id=task_id,
            entry_point="remote_env.tasks.aloha:AlohaEnv",
            max_episode_steps=MAX_EPISODE_STEPS,
            kwargs={"task": task},
        )

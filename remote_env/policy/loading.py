"""load_policy: whatever a path or a name stands for, as a Policy that runs here."""

from __future__ import annotations

from pathlib import Path

from remote_env.errors import ConfigError
from remote_env.policy.policy import Policy
from remote_env.policy.scripted import PREFIX, ScriptedPolicy


def load_policy(
    path_or_name: str | Path, *, dataset_id: str = "", device: str = "cpu", chunk_size: int | None = None
) -> Policy:
    """The policy that a path or a name stands for, loaded and ready.

    Args:
        path_or_name: a checkpoint's folder or file, or a scripted policy ("scripted:aloha-transfer-cube").
        dataset_id: whose statistics normalise; "" takes the first of normalize.json.
        device: "cpu", "cuda", "cuda:N" or "mps"; never another one than this.
        chunk_size: the most actions that one inference gives; None gives as many as the policy has.

    Raises:
        ConfigError: there is no such policy, what it holds does not fit, or it cannot run here as asked.
    """
    text = str(path_or_name)
    if chunk_size is not None and chunk_size < 1:
        raise ConfigError(f"chunk_size={chunk_size}: a chunk has at least one action")
    if text.startswith(PREFIX):
        return ScriptedPolicy(text, chunk_size=chunk_size)
    raise ConfigError(f"no policy {text!r} ({dataset_id!r}, {device!r})")

"""The policy that is evaluated: reached at its server, or loaded here and served to the workers."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError
from remote_env.evaluate.config import DEFAULT_MODEL, EvaluationConfig
from remote_env.evaluate.policy_host import PolicyHost
from remote_env.policy.address import open_policy, parse_policy
from remote_env.policy.policy import Policy, PolicyMetadata

DIGEST_BYTES = 256 << 20  # larger files count with their size alone


@dataclass(frozen=True)
class Model:
    """The policy, as the workers reach it.

    Attributes:
        kind: "local", "remote", or "far": beside the simulator.
        text: as it was named.
        metadata: the policy's own.
        address: where the workers reach it.
        token: for that; None looks where clients look.
        load_s: until it was loaded, or its server had answered [s].
        digest: of a local checkpoint's files; "" of a remote or scripted one.
    """

    kind: str
    text: str
    metadata: PolicyMetadata
    address: str
    token: str | None
    load_s: float
    digest: str = ""

    def to_plain(self) -> dict[str, Any]:
        """What it is, as JSON."""
        return {
            "kind": self.kind,
            "text": self.text,
            "name": self.metadata.name,
            "digest": self.digest,
            "metadata": self.metadata.to_plain(),
        }

    def identity(self) -> dict[str, Any]:
        """What tells it from another policy."""
        plain = self.metadata.to_plain()
        facts = {name: plain[name] for name in ("name", "chunk_size", "normalizer", "action_names", "observation")}
        # A checkpoint is what its files hold, wherever it lies.
        return {"kind": self.kind, "text": "" if self.digest else self.text, "digest": self.digest, **facts}


def find_model(text: str) -> str:
    """The model as it can be opened from here: the default also lies in the checkout that this package runs from.

    Raises:
        ConfigError: it is the default, and there is none.
    """
    if text != DEFAULT_MODEL or Path(text).exists():
        return text
    beside = Path(__file__).resolve().parents[2] / DEFAULT_MODEL
    if beside.exists():
        return str(beside)
    raise ConfigError(
        f"no -m is given, and the default {DEFAULT_MODEL}, which comes with the repository, is not in {Path.cwd()}; "
        "run this from the root of a clone, or give -m: a checkpoint's path, or host:port of a policy server"
    )


def far_model(config: EvaluationConfig, *, own: bool) -> Model:
    """The policy beside a far simulator, which opens it: the one that `config` names, or the task server's own."""
    text = "the task server's own" if own else config.model
    digest = "" if own else digest_files(Path(config.model).expanduser())
    metadata = PolicyMetadata(name=text, observation={}, action_names=())
    return Model("far", text, metadata, "", None, 0.0, digest)


def open_model(config: EvaluationConfig, stack: contextlib.ExitStack, log: Callable[[str], None]) -> Model:
    """Load the checkpoint and serve it until `stack` closes, or see that the policy server answers.

    Raises:
        ConfigError: there is no such checkpoint, or it cannot be had as asked.
        ConnectError: no policy server answers.
    """
    model, policy = open_policy_here(config, log)
    if model.kind == "remote":
        policy.close()
        return replace(model, address=config.model, token=config.token)
    host = PolicyHost(policy, max_batch=config.max_batch, log=_nothing)
    stack.callback(host.close)
    return replace(model, address=host.address, token=host.token)


def open_policy_here(config: EvaluationConfig, log: Callable[[str], None]) -> tuple[Model, Policy]:
    """The policy for use in this process, and what it is; the caller closes it.

    Raises:
        ConfigError: there is no such checkpoint, or it cannot be had as asked.
        ConnectError: no policy server answers.
    """
    is_local = isinstance(parse_policy(config.model), str)
    started = time.perf_counter()
    policy = open_policy(
        config.model,
        dataset_id=config.dataset_id,
        device=config.device or "cpu",
        chunk_size=config.chunk_size if is_local else None,
        token=config.token,
        timeout_s=config.timeout_s,
        reconnect_timeout_s=config.reconnect_timeout_s,
        task=config.task,
        log=lambda text: log(text.removeprefix("warning: ")),
    )
    load_s = time.perf_counter() - started
    try:
        _check_chunks(config, policy.metadata)
        digest = digest_files(Path(config.model).expanduser()) if is_local else ""
    except BaseException:
        policy.close()
        raise
    return Model("local" if is_local else "remote", config.model, policy.metadata, "", None, load_s, digest), policy


def _check_chunks(config: EvaluationConfig, metadata: PolicyMetadata) -> None:
    if metadata.extra.get("whole_chunks") and config.chunk_size < metadata.chunk_size:
        raise ConfigError(
            f"{metadata.name} counts on whole chunks of {metadata.chunk_size} actions, and --chunk_size is "
            f"{config.chunk_size}; start its server with --chunk_size {config.chunk_size}, or leave the flag out"
        )


def _nothing(_: str) -> None:
    """Who connects to our own port is no news."""


def digest_files(path: Path) -> str:
    """16 hex digits of a checkpoint's files, names and content; "" when there are none."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    files = [each for each in files if each.is_file()]
    if not files:
        return ""
    digest = hashlib.sha256()
    for each in files:
        digest.update(f"{each.relative_to(path) if path.is_dir() else each.name}\0{each.stat().st_size}\0".encode())
        if each.stat().st_size <= DIGEST_BYTES:
            digest.update(each.read_bytes())
    return digest.hexdigest()[:16]

"""What is to be evaluated, and how: settings with their defaults, from flags and from YAML."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError

DEFAULT_MODEL = "ckpt/act_sim_transfer_cube_scripted_zscore_example"
DEFAULT_ENVS = ("aloha",)
DEFAULT_FOLDER = Path("outputs")
VIDEOS = ("none", "first", "failed", "all")
AGGREGATES = ("weighted_average", "latest_only", "average", "conservative")
ROLLOUTS = ("client", "server")
STARTS = ("continue", "resume", "fresh")
# Other names for settings, in YAML files.
ALIASES = {"env": "envs", "model_name_or_path": "model", "start": "begin"}
SERVER_KEYS = ("host", "port", "dialect", "token")
MOST = 1_000_000  # of what is counted: more is a slip of the keyboard
LONGEST_S = 1e7  # of a time limit; the system's own clocks end somewhere beyond
FASTEST_HZ = 1e5


@dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation.

    Attributes:
        model: a policy server's address ("localhost:5000", "openpi://box:8000", several with commas) or a checkpoint.
        envs: what to evaluate on, one after another; see `remote_env.evaluate.environments.choose_environment`.
        num_rollout: episodes per environment; each is run.
        num_envs: how many run at the same time, each in a process of its own.
        chunk_size: how many actions of a chunk are applied before the policy is asked again.
        fps: at which actions are meant to be applied, and of the videos [Hz].
        use_spawn: start the processes with "spawn" instead of "forkserver".
        output_dir: where results go; None makes a new folder in ./outputs.
        verbose: tell of each episode.
        dataset_id: whose normalisation a local checkpoint uses; "" is its first.
        device: of a local checkpoint; "" is "cpu".
        max_steps: of an episode, below what the environment allows; None leaves it to that.
        seed: of episode 0; episode i has seed + i.
        begin: "continue" goes on with what the output folder holds of the same evaluation, "resume" wants such, and
            "fresh" removes it.
        video: of which episodes: any of "first", "failed", "all", or "none".
        plots: whether to draw them.
        asynchronous: ask for the next chunk while the present one is applied.
        chunk_size_threshold: asynchronous: ask when no more than this part of the chunk is left.
        aggregate: asynchronous: how overlapping chunks are merged.
        rollout: "client": the loop runs here; "server": beside the simulator, in the task server.
        mapping: how observations and actions map, where it does not go by itself: {"observation": …, "action": …}.
        task: the instruction, for policies that take a text.
        max_batch: of a local checkpoint: rows of how many environments are inferred together; more than 1 is
            quicker on a GPU and may change low bits.
        token: of a policy server that wants one; None looks where clients look.
        timeout_s: for one inference, and to reach the policy server [s].
        reconnect_timeout_s: how long a policy server that is gone is looked for [s].
        episode_timeout_s: for one episode; then its worker is ended and another tries once more [s].
    """

    model: str = DEFAULT_MODEL
    envs: tuple[str, ...] = DEFAULT_ENVS
    num_rollout: int = 4
    num_envs: int = 2
    chunk_size: int = 64
    fps: float = 50.0
    use_spawn: bool = False
    output_dir: Path | None = None
    verbose: bool = False
    dataset_id: str = ""
    device: str = ""
    max_steps: int | None = None
    seed: int = 0
    begin: str = "continue"
    video: tuple[str, ...] = ("first", "failed")
    plots: bool = True
    asynchronous: bool = False
    chunk_size_threshold: float = 0.5
    aggregate: str = "weighted_average"
    rollout: str = "client"
    mapping: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""
    max_batch: int = 1
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    reconnect_timeout_s: float = 30.0
    episode_timeout_s: float = 1800.0

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings."""
        return tuple(each.name for each in dataclasses.fields(cls))


def make_config(given: Mapping[str, Any]) -> EvaluationConfig:
    """The configuration with these settings, checked; the others have their defaults.

    Raises:
        ConfigError: a setting is unknown or has no value of its kind; the message names it and what is allowed.
    """
    settings = {ALIASES.get(name, name): value for name, value in given.items()}
    check_names(settings, EvaluationConfig.names(), "an evaluation")
    return EvaluationConfig(**{name: _CHECKS[name](name, value) for name, value in settings.items()})


def check_names(given: Iterable[str], allowed: Iterable[str], where: str) -> None:
    """Raise ConfigError when a name is not allowed, with the one that was meant."""
    allowed = list(allowed)
    for name in given:
        if name not in allowed:
            close = difflib.get_close_matches(str(name), allowed, 1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{where} has no setting {name!r}{meant or '.'} There are: {', '.join(sorted(allowed))}")


def read_config(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file with the sections `evaluation:` and, for the policy server's address, `server:`.

    Raises:
        ConfigError: there is no such file, it is no YAML, or holds what is not known.
    """
    sections = read_yaml(path)
    check_names(sections, ("server", "evaluation"), f"{path}")
    settings = dict(sections.get("evaluation") or {})
    known = (*EvaluationConfig.names(), *ALIASES)
    check_names(settings, known, f"{path}, section 'evaluation',")
    return {**_read_server(sections.get("server") or {}, settings, path), **settings}


def _read_server(server: Any, settings: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    if not server:
        return {}
    if not isinstance(server, Mapping):
        raise ConfigError(f"{path}: 'server' holds {server!r}; write host: and port: below it")
    check_names(server, SERVER_KEYS, f"{path}, section 'server',")
    if {"model", "model_name_or_path"} & set(settings):
        raise ConfigError(f"{path} names a policy server in 'server' and a model in 'evaluation'; leave one out")
    host, port = str(server.get("host", "localhost")), whole_number("port", server.get("port", 5000))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    dialect = server.get("dialect", "renv")
    token = {"token": server["token"]} if server.get("token") else {}
    return {"model": address if dialect == "renv" else f"{dialect}://{address}", **token}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError when there is none."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}; it must hold keys with values")
    return content


# Checks of single settings, each with its name


def whole_number(name: str, value: Any) -> int:
    """A whole number from 1 to `MOST`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise ConfigError(f"{name}={value!r}: a whole number from 1 to {MOST}")
    return value


def positive_number(name: str, value: Any) -> float:
    """A finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"{name}={value!r}: a number above 0")
    return float(value)


def _up_to(most: float) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        if isinstance(value, (int, float)) and value > most:
            raise ConfigError(f"{name}={value!r}: a number above 0, and at most {most:g}")
        return positive_number(name, value)

    return check


def _seed(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{name}={value!r}: a whole number from 0 on")
    return value


def _fraction(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(f"{name}={value!r}: a number from 0 to 1")
    return float(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}: true or false")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name}={value!r}: a text")
    return value


def _model(name: str, value: Any) -> str:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ConfigError(f"{name}={value!r}: a policy server's host:port, or the path of a checkpoint")
    return str(value)


def _choice(*allowed: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in allowed:
            raise ConfigError(f"{name}={value!r}; allowed: {', '.join(allowed)}")
        return str(value)

    return check


def split_words(value: Any) -> tuple[str, ...]:
    """The words of a text with commas, or of a list of such."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{value!r}: a text, or a list of them")
    return tuple(word.strip() for text in texts for word in text.split(",") if word.strip())


def _envs(name: str, value: Any) -> tuple[str, ...]:
    words = split_words(value)
    if not words:
        raise ConfigError(f"{name}={value!r} names no environment")
    return words


def _videos(name: str, value: Any) -> tuple[str, ...]:
    words = split_words(value)
    wrong = [word for word in words if word not in VIDEOS]
    if wrong or not words or ("none" in words and len(words) > 1):
        raise ConfigError(f"{name}={value!r}; allowed: 'none', 'all', or of 'first' and 'failed' one or both")
    return () if words == ("none",) else words


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    content = read_yaml(value) if isinstance(value, (str, Path)) else value
    if not isinstance(content, Mapping):
        raise ConfigError(f"{name}={value!r}: a YAML file, or a mapping with 'observation' and 'action'")
    check_names(content, ("observation", "action"), f"{name}={value!r}" if isinstance(value, str) else name)
    return dict(content)


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "model": _model,
    "envs": _envs,
    "num_rollout": whole_number,
    "num_envs": whole_number,
    "chunk_size": whole_number,
    "fps": _up_to(FASTEST_HZ),
    "use_spawn": _flag,
    "output_dir": _optional(lambda _name, value: Path(value).expanduser()),
    "verbose": _flag,
    "dataset_id": _text,
    "device": _text,
    "max_steps": _optional(whole_number),
    "seed": _seed,
    "begin": _choice(*STARTS),
    "video": _videos,
    "plots": _flag,
    "asynchronous": _flag,
    "chunk_size_threshold": _fraction,
    "aggregate": _choice(*AGGREGATES),
    "rollout": _choice(*ROLLOUTS),
    "mapping": _mapping,
    "task": _text,
    "max_batch": whole_number,
    "token": _optional(_text),
    "timeout_s": _up_to(LONGEST_S),
    "reconnect_timeout_s": _up_to(LONGEST_S),
    "episode_timeout_s": _up_to(LONGEST_S),
}

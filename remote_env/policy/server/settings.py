"""The server's settings: flags, a YAML file below them, defaults below that."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError
from remote_env.policy.dialects import DEFAULT_PORTS, DIALECTS
from remote_env.policy.server.connections import MAX_CLIENTS
from remote_env.policy.server.service import MAX_QUEUE, QUEUE_POLICIES

DEFAULT_MODEL = "ckpt/act_sim_transfer_cube_scripted_zscore_example"
_LISTEN = re.compile(r"(?:([a-z]+)://)?(\[[0-9A-Fa-f:.%]+\]|[^/\\:\s\[\]]+)(?::(\d{1,5}))?/?")
_DIGITS = re.compile(r"[0-9]{1,9}")
SHORT = {"-m": "--model_name_or_path", "-p": "--port"}


@dataclass(frozen=True)
class Endpoint:
    """One place to listen at.

    Attributes:
        dialect: that is spoken there; "" tells renv, ilstudio and openpi apart by the first bytes.
        host: a name or an address, without brackets.
        port: 0 for any that is free.
    """

    dialect: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.dialect}://{host}:{self.port}" if self.dialect else f"{host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """DIALECT://HOST:PORT, or HOST:PORT for a port that tells dialects apart.

    Raises:
        ConfigError: it is neither.
    """
    found = _LISTEN.fullmatch(text)
    if found is None or (not found[1] and not found[3]):
        raise ConfigError(f"{text!r} is no place to listen; write DIALECT://HOST:PORT, such as renv://127.0.0.1:5000")
    dialect, host, port = found[1] or "", found[2].strip("[]"), found[3]
    if dialect and dialect not in DIALECTS:
        raise ConfigError(f"{text!r}: unknown dialect {dialect!r}; there are {', '.join(DIALECTS)}")
    return Endpoint(dialect, host, _port(port) if port else DEFAULT_PORTS[dialect])


def _port(text: str) -> int:
    if not _DIGITS.fullmatch(text) or int(text) > 65535:
        raise ConfigError(f"{text!r} is no port; give 1 to 65535, or 0 for any that is free")
    return int(text)


def _at_least_one(text: str) -> int:
    if not _DIGITS.fullmatch(text) or int(text) == 0:
        raise ConfigError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 60_000:
        raise ConfigError(f"{text!r} is no number of milliseconds from 0 to 60000")
    return value


def _devices(text: str) -> str:
    names = [name.strip() for name in text.split(",")]
    if not all(re.fullmatch(r"cpu|mps|cuda(:\d+)?", name) for name in names):
        raise ConfigError(f"{text!r} is no device; there are cpu, mps, cuda, cuda:N, and several with commas between")
    return ",".join(names)


def _queue_policy(text: str) -> str:
    if text not in QUEUE_POLICIES:
        raise ConfigError(f"{text!r} is unknown; there are {' and '.join(QUEUE_POLICIES)}")
    return text


def _text(text: str) -> str:
    if not text.strip():
        raise ConfigError("it is empty")
    return text


def _host(text: str) -> str:
    """Without the brackets of an IPv6 address."""
    return _text(text[1:-1] if text.startswith("[") and text.endswith("]") else text)


def _option(
    default: Any, parse: Callable[[str], Any] | None, meaning: str, metavar: str = "", *, many: bool = False
) -> Any:
    details = {"parse": parse, "meaning": meaning, "metavar": metavar, "many": many}
    return field(default=default, metadata=details)


@dataclass(frozen=True)
class Settings:
    """What the server does; each field is a flag of that name and a key of the YAML file."""

    model_name_or_path: str = _option(
        DEFAULT_MODEL, _text, "the checkpoint's folder or file, or scripted:NAME", "MODEL"
    )
    host: str = _option("127.0.0.1", _host, "address to listen on; beyond loopback see --insecure", "HOST")
    port: int = _option(5000, _port, "port to listen on; its first bytes tell renv, ilstudio and openpi apart", "PORT")
    dataset_id: str = _option("", str, "whose statistics normalise; the first of normalize.json by default", "ID")
    chunk_size: int = _option(64, _at_least_one, "the most actions that one inference gives", "K")
    device: str = _option("cpu", _devices, "cpu, cuda, cuda:N or mps; cuda:0,cuda:1 runs a copy on each", "DEVICE")
    listen: tuple[Endpoint, ...] = _option(
        (), parse_endpoint, "listen there and only there; may be repeated", "DIALECT://HOST:PORT", many=True
    )
    max_batch: int = _option(1, _at_least_one, "observations of several clients that may run together", "N")
    max_wait_ms: float = _option(2.0, _milliseconds, "how long a batch with room waits for other clients", "MS")
    max_queue: int = _option(MAX_QUEUE, _at_least_one, "requests that may wait, per device", "N")
    queue_policy: str = _option(
        "latest", _queue_policy, "when it is full: drop the client's own older request, or refuse the new", "POLICY"
    )
    max_clients: int = _option(MAX_CLIENTS, _at_least_one, "clients that may be connected at once", "N")
    health_port: int | None = _option(None, _port, "a further port that answers /healthz and /metrics only", "PORT")
    allow_model: tuple[Path, ...] = _option(
        (), Path, "lerobot clients may choose a model below this folder, too; may be repeated", "DIR", many=True
    )
    insecure: bool = _option(
        False, None, "listen beyond loopback, where nothing is encrypted and not every dialect authenticates"
    )

    @property
    def devices(self) -> list[str]:
        """One per copy of the policy."""
        return self.device.split(",")

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where to listen."""
        return self.listen or (Endpoint("", self.host, self.port),)


_FIELDS = {entry.name: entry for entry in fields(Settings)}


class _Parser(argparse.ArgumentParser):
    """Says which flag was perhaps meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(
                f"unknown argument {unknown[0]!r}{_guess(unknown[0], [f'--{name}' for name in (*_FIELDS, 'config')])}"
            )
        return found, unknown


def _guess(text: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(text.partition("=")[0], list(known), 1)
    return f"; did you mean {close[0]}?" if close else "."


def make_parser(program: str | None = None) -> argparse.ArgumentParser:
    """The command line; what is not given is not set."""
    parser = _Parser(
        prog=program,
        description="Serve a policy to any number of clients.",
        epilog="Flags may be written with dashes, too. A flag overrides the file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, entry in _FIELDS.items():
        short = [key for key, long in SHORT.items() if long == f"--{name}"]
        _add(parser, [*short, f"--{name}"], entry.metadata, entry.default)
    parser.add_argument(
        "--config", metavar="FILE", help="a YAML file with any of these names (configs/policy_server.yaml)"
    )
    return parser


def _add(parser: argparse.ArgumentParser, names: list[str], details: Mapping[str, Any], default: Any) -> None:
    meaning, parse = details["meaning"], details["parse"]
    if parse is None:
        parser.add_argument(*names, action="store_true", help=meaning)
        return
    shown = f" (default {default})" if default not in ((), None, "") else ""
    action = "append" if details["many"] else "store"
    parser.add_argument(
        *names, type=_for_argparse(parse), action=action, metavar=details["metavar"], help=meaning + shown
    )


def _for_argparse(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def normalize_flags(arguments: Sequence[str]) -> list[str]:
    """`--max-batch` as `--max_batch`."""

    def normalize(word: str) -> str:
        name, equals, value = word.partition("=")
        return name[:2] + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word

    return [normalize(word) for word in arguments]


def read_settings(arguments: Sequence[str], program: str | None = None) -> Settings:
    """The settings that a command line asks for; argparse ends the program when a flag is wrong.

    Raises:
        ConfigError: the YAML file cannot be read or has a wrong key or value.
    """
    given = vars(make_parser(program).parse_args(normalize_flags(arguments)))
    path = given.pop("config", None)
    values: dict[str, Any] = {**(read_yaml(Path(path)) if path else {}), **given}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Settings(**values)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a file.

    Raises:
        ConfigError: it cannot be read, is no mapping, or has an unknown key or a wrong value.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ConfigError("--config needs PyYAML, which is not installed here: pip install pyyaml") from error
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold one mapping, such as 'port: 5000'; got {type(content).__name__}")
    return dict(_read_entry(path, key, value) for key, value in content.items())


def _read_entry(path: Path, key: Any, value: Any) -> tuple[str, Any]:
    name = str(key).replace("-", "_")
    if name not in _FIELDS:
        raise ConfigError(f"{path}: unknown key {str(key)!r}{_guess(name, _FIELDS)} The keys are {', '.join(_FIELDS)}.")
    details = _FIELDS[name].metadata
    try:
        return name, _read_value(value, details["parse"], many=details["many"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {key}: {error}") from error


def _read_value(value: Any, parse: Callable[[str], Any] | None, *, many: bool) -> Any:
    if parse is None:
        if not isinstance(value, bool):
            raise ConfigError(f"write true or false; got {value!r}")
        return value
    if many:
        return [_read_value(item, parse, many=False) for item in (value if isinstance(value, list) else [value])]
    if value is None or isinstance(value, (bool, list, dict)):
        raise ConfigError(f"one value is needed; got {value!r}")
    return parse(str(value))

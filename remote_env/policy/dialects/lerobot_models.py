"""Which policy a robot client gets: the one that is served, or one of a folder that clients may choose from."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from remote_env.errors import ConfigError
from remote_env.policy.dialects.lerobot_pickle import RemotePolicyConfig
from remote_env.policy.loading import load_policy
from remote_env.policy.server.service import PolicyService, ServeContext

MAX_LOADED = 4


@dataclass
class _Loaded:
    service: PolicyService
    users: int = 0


class Models:
    """The policies that robot clients may ask for.

    One that a client chose is loaded when the first asks for it, and closed when the last has gone.

    Args:
        service: of the policy that is served.
        context: says what it was named by, and which folders are allowed.
    """

    def __init__(self, service: PolicyService, context: ServeContext) -> None:
        self._service, self._context = service, context
        self._mutex = threading.Lock()  # held while one is loaded: two clients never load the same at once
        self._loaded: dict[tuple[Path, str], _Loaded] = {}

    def take(self, setup: RemotePolicyConfig) -> PolicyService:
        """The service of the policy that a client names; to be given back by `leave`.

        Raises:
            ConfigError: it is neither the one that is served nor in an allowed folder, or it cannot be loaded.
        """
        name = setup.pretrained_name_or_path
        if self._is_served(name):
            return self._service
        key = (self._allowed_path(name), setup.device)
        with self._mutex:
            if key not in self._loaded:
                self._loaded[key] = _Loaded(self._load(*key))
            self._loaded[key].users += 1
            return self._loaded[key].service

    def leave(self, service: PolicyService) -> None:
        """A client of this service has gone."""
        with self._mutex:
            for key, loaded in list(self._loaded.items()):
                if loaded.service is service:
                    loaded.users -= 1
                    if not loaded.users:
                        del self._loaded[key]
                        service.close()

    def close(self) -> None:
        """Close every policy that was loaded here."""
        with self._mutex:
            for loaded in self._loaded.values():
                loaded.service.close()
            self._loaded.clear()

    def _load(self, path: Path, device: str) -> PolicyService:
        if len(self._loaded) >= MAX_LOADED:
            raise ConfigError(
                f"{MAX_LOADED} policies are loaded for other clients already; try again when one has gone"
            )
        self._context.log(f"loading {path} on {device} for a robot client")
        return PolicyService([load_policy(path, device=device)], log=self._context.log)

    def _is_served(self, name: str) -> bool:
        model = self._context.model
        return name == model or (Path(model).exists() and Path(name).resolve() == Path(model).resolve())

    def _allowed_path(self, name: str) -> Path:
        path = Path(name).resolve()
        if any(path.is_relative_to(folder.resolve()) for folder in self._context.allow_models) and path.exists():
            return path
        raise ConfigError(
            f"the robot client asks for the policy {name!r}; this server serves {self._context.model!r}, to those who "
            f"ask for just that{self._allowance()}"
        )

    def _allowance(self) -> str:
        folders = ", ".join(map(str, self._context.allow_models))
        return f", and what lies in {folders}" if folders else "; --allow_model DIR lets clients choose from a folder"

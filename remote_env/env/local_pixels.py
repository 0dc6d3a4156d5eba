"""local_pixels=: images in observations are drawn here, from the scene's state, instead of sent."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from gymnasium import Space, spaces

from remote_env.env.arguments import Arguments
from remote_env.env.local_view import LocalView, Source
from remote_env.errors import ConfigError, ProtocolError, Unsupported
from remote_env.protocol.chunks import Transitions
from remote_env.protocol.delivery import SEPARATOR, Selection, join_path
from remote_env.protocol.image_stream import image_paths
from remote_env.session import Session
from remote_env.state import SceneState

if TYPE_CHECKING:
    from remote_env.replay.cameras import Aim
    from remote_env.replay.replayer import Frame, Replayer

_WITH_POLICY = "local_pixels= draws images here, and a policy needs them beside the simulator; leave one of them out"
QUALITY = "quality"  # what tasks that say how they render themselves call it


class Task(Source, Protocol):
    """What local pixels ask of their environment."""

    def call(self, name: str) -> Any:
        """An attribute of the task."""


class LocalPixels:
    """Draws what a session leaves out of its observations.

    Args:
        arguments: of the environment.

    Raises:
        ConfigError: the arguments contradict each other, or MuJoCo is not installed.
    """

    def __init__(self, arguments: Arguments) -> None:
        _check(arguments)
        self._arguments = arguments
        given = arguments.local_pixels
        self._cameras = dict(given) if isinstance(given, Mapping) else None
        self._view = LocalView(arguments)
        self._session: Session | None = None
        self._space: Space[Any] | None = None
        self._images: dict[str, _Camera] = {}
        self._replayers: dict[tuple[int, int], Replayer] = {}

    @classmethod
    def of(cls, arguments: Arguments) -> LocalPixels | None:
        """What `local_pixels=` asks for, None where it asks for nothing."""
        given = arguments.local_pixels
        if given is None or given is False:
            return None
        return cls(arguments)

    def space(self, session: Session) -> Space[Any]:
        """Of observations with their images."""
        if self._space is None or self._session is not session:
            return session.observation_space
        return self._space

    def begin(self, session: Session, task: Task, timeout_s: float) -> None:
        """Have a session leave out what is drawn here; nothing where it does already.

        Args:
            session: that an episode is about to begin in.
            task: whose observations they are.
            timeout_s: for the answer [s].

        Raises:
            ConfigError: there is no such image or camera, or observations are no dict.
            ReplayError, Unsupported: there is no local model of the task.
        """
        if self._session is session:
            return
        if "policy" in session.ready:
            raise ConfigError(_WITH_POLICY)
        space = session.observation_space
        names = self._find_images(space)
        quality = (self._arguments.local_view or {}).get(QUALITY)
        if quality is None:
            quality = task.call(QUALITY) if QUALITY in session.ready["callable_names"] else "full"
        self._free_replayers()
        self._images = {path: self._camera(path, name, space, task, quality) for path, name in names.items()}
        keys = tuple(_paths_without(space, names))
        wants_states = self._arguments.capture_state or self._arguments.render is not None
        session.deliver(replace(session.delivery, keys=keys, state_links=wants_states), timeout_s, abandons=True)
        self._space, self._session = space, session

    def complete(self, observation: Any, state: SceneState | None, keys: Collection[str] | None = None) -> Any:
        """An observation with its images, in the space's order.

        Args:
            observation: as the session brought it.
            state: what it shows.
            keys: of those that are wanted; None for all.

        Raises:
            ConfigError: no OpenGL can be used here.
            ReplayError: the state does not fit the local model.
        """
        space = self._space if keys is None else Selection(self._space, keys).space
        wanted = [path for path in self._images if keys is None or _find(space, path) is not None]
        if not wanted:
            return observation
        if state is None:
            raise ProtocolError("the server has sent an observation without the state that its images are drawn from")
        for replayer in {id(each): each for each in (self._images[path].replayer for path in wanted)}.values():
            replayer.set_state(state)
        frames = {path: self._images[path].render() for path in wanted}
        return _with_images(space, observation, frames)

    def complete_rows(self, chunk: Transitions, keys: Collection[str] | None = None) -> Transitions:
        """Transitions whose observations have their images; as `complete`."""
        from remote_env.protocol import stacking

        states: Sequence[Any] = chunk.states or []
        if not states:
            return chunk
        rows = stacking.rows(chunk.observations) if chunk.observations else [{}] * len(states)
        whole = [self.complete(row, state, keys) for row, state in zip(rows, states, strict=True)]
        return chunk._replace(observations=stacking.stack(whole))

    def sent_keys(self, keys: Collection[str]) -> tuple[str, ...]:
        """Of some keys those that the server has to send."""
        return tuple(_paths_without(Selection(self._space, keys).space, self._images))

    def close(self) -> None:
        """Free what draws; calling it again does nothing."""
        self._session = None
        self._free_replayers()
        self._view.close()

    def _free_replayers(self) -> None:
        replayers, self._replayers = self._replayers, {}
        for replayer in replayers.values():
            replayer.close()

    def _find_images(self, space: Space[Any]) -> dict[str, str]:
        """The images that are drawn here, by path, and the camera of each."""
        if not isinstance(space, spaces.Dict):
            raise ConfigError(f"local_pixels= leaves images out of dict observations; this task's are {space}")
        known = image_paths(space)
        if self._cameras is None:
            if not known:
                raise ConfigError(f"local_pixels= has nothing to draw: there is no image in {space}")
            return {path: path.rpartition(SEPARATOR)[2] for path in known}
        if unknown := sorted(set(self._cameras) - set(known)):
            raise ConfigError(f"local_pixels= names {unknown[0]!r}; the images in observations are {', '.join(known)}")
        return self._cameras

    def _camera(self, path: str, name: str, space: Space[Any], task: Task, quality: str) -> _Camera:
        from remote_env.replay.cameras import aim

        height, width, channels = _image_shape(path, _find(space, path))
        if channels != 3:
            raise ConfigError(f"the images at {path!r} have {channels} channels; local_pixels= draws 3")
        if (width, height) not in self._replayers:
            looks: dict[str, Any] = {"width": width, "height": height, "quality": quality}
            self._replayers[width, height] = self._view.make_replayer(task, **looks)
        replayer = self._replayers[width, height]
        try:
            return _Camera(replayer, aim(replayer.model, name))
        except ConfigError as error:
            raise ConfigError(
                f"the images at {path!r} need a camera of the local model: {error}. Say which with "
                f"local_pixels={{{path!r}: camera}}"
            ) from error


class _Camera:
    """One camera of a local model, whose state is set already."""

    def __init__(self, replayer: Replayer, view: Aim) -> None:
        self.replayer, self._aim = replayer, view

    def render(self) -> Frame:
        return self.replayer.render(self._aim)


def _check(arguments: Arguments) -> None:
    given = arguments.local_pixels
    is_mapping = isinstance(given, Mapping) and all(isinstance(text, str) for pair in given.items() for text in pair)
    if given is not True and not (is_mapping and given):
        raise ConfigError(
            f"local_pixels={given!r}: True draws all images of observations, a dict those that it names, each with its "
            'camera in the local model: {"pixels/top": "top"}'
        )
    if arguments.policy is not None:
        raise ConfigError(_WITH_POLICY)
    if given is True and (arguments.codecs or arguments.image_every != 1):
        raise ConfigError("with local_pixels=True no image crosses: leave out codecs= and image_every=")


def _image_shape(path: str, box: Any) -> tuple[int, int, int]:
    if len(box.shape) != 3 or box.dtype != np.uint8:
        raise Unsupported(f"the images at {path!r} are {box}; local_pixels= draws (height, width, 3) uint8")
    height, width, channels = box.shape
    return int(height), int(width), int(channels)


def _find(space: Any, path: str) -> Any:
    """What of a Dict space lies at a path; None where there is nothing."""
    key, _, rest = path.partition(SEPARATOR)
    for name, child in getattr(space, "spaces", {}).items() if isinstance(space, spaces.Dict) else ():
        if str(name) == path:
            return child
        if str(name) == key and rest:
            return _find(child, rest)
    return None


def _paths_without(space: Any, images: Collection[str], path: str = "") -> Iterator[str]:
    """The paths of a Dict space that hold none of these images, as few as can be."""
    for key, child in space.spaces.items():
        inner = join_path(path, key)
        if inner in images:
            continue
        if any(image.startswith(inner + SEPARATOR) for image in images):
            yield from _paths_without(child, images, inner)
        else:
            yield inner


def _with_images(space: Any, observation: Mapping[str, Any], images: Mapping[str, Any], path: str = "") -> Any:
    whole = {}
    for key, child in space.spaces.items():
        inner = join_path(path, key)
        if inner in images:
            whole[key] = images[inner]
        elif any(image.startswith(inner + SEPARATOR) for image in images):
            whole[key] = _with_images(child, observation.get(key, {}), images, inner)
        elif key in observation:  # a late reply may bring less
            whole[key] = observation[key]
    return whole

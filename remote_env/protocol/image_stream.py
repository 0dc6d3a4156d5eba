"""Images of observations, coded one by one and against the last one (docs/protocol.md, "Coded observations"). Pure.

`ImageSender` and `ImageReceiver` are opposites: what the one encodes, in the order of the replies, the other decodes,
exactly for every codec but "jpeg". A reply may be decoded twice, as it is when its connection breaks meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

from remote_env.errors import ConfigError, MessageTooBig, ProtocolError
from remote_env.protocol.blosc_frames import MAX_BYTES, encode_blosc
from remote_env.protocol.coding import (
    CODED_KEYS,
    CODERS,
    PACKAGES,
    available_coders,
    decode_array,
    decode_bits,
    encode_array,
    read_head,
    read_parts,
)

CODECS = (*CODERS, "delta")
_FIRST_CODERS = {"delta": "zstd"}  # what codes an image that there is nothing before
_KEEP, _BASE, _AGE = "keep", "base", "age"
_DELTA_KEYS = CODED_KEYS | {_KEEP, _BASE}
_LAST_KEYS = frozenset(("coder", _BASE, _AGE))
_MAX_AGE = 1 << 31

Array = NDArray[Any]
Reference = tuple[int, int]  # the number of a reply, and the row in it
Plan = Any  # a path where a Box lies; a dict by key or index where some lie below; None where none does


class _Kept(NamedTuple):
    """An image that later ones may build on; `array` is None at a sender that needs no more than the reference."""

    reference: Reference
    array: Array | None


def available_codecs() -> tuple[str, ...]:
    """The codecs whose packages are installed here."""
    coders = available_coders()
    return (*coders, "delta") if {"zstd", "bitzstd"} <= set(coders) else coders


def box_paths(space: Space[Any]) -> dict[str, spaces.Box]:
    """The Boxes inside a space of Dicts and Tuples by their paths: "pixels/top", and "" for a space that is one."""
    return {"/".join(map(str, path)): box for path, box in _boxes(space, ())}


def image_paths(space: Space[Any]) -> tuple[str, ...]:
    """The paths of those Boxes that hold images: uint8 of at least three dimensions."""
    return tuple(path for path, box in box_paths(space).items() if box.dtype == np.uint8 and len(box.shape) > 2)


def check_codecs(space: Space[Any], codecs: Mapping[str, str], *, have: Sequence[str], end: str) -> None:
    """Raise ConfigError for a path that the space lacks, or a codec that is unknown, not there, or not for that path.

    Args:
        space: of the observations that are sent.
        codecs: by path.
        have: the codecs of the end that is spoken of.
        end: its name, for the message.
    """
    boxes = box_paths(space)
    for path, codec in codecs.items():
        if path not in boxes:
            raise ConfigError(f"codecs= names {path!r}, which no observation has; there are {sorted(boxes)}")
        if codec not in CODECS:
            raise ConfigError(f"unknown codec {codec!r} for {path!r}; there are {', '.join(CODECS)}")
        if codec not in have:
            raise ConfigError(
                f"{end} cannot code {path!r} as {codec!r}: it lacks {PACKAGES.get(codec, 'numcodecs')!r}; there "
                "pip install 'remote-env[images]', or take another codec: raw needs nothing"
            )
        box = boxes[path]
        if codec == "jpeg" and (box.dtype != np.uint8 or len(box.shape) < 3 or box.shape[-1] != 3):
            raise ConfigError(
                f"JPEG codes uint8 images (..., H, W, 3), and {path!r} is {box.dtype} {box.shape}; take a lossless "
                "codec for it"
            )


class ImageSender:
    """Encodes the observations of a session, at the server.

    Args:
        space: of the observations, as they are sent.
        codecs: one of `CODECS` by the path of a Box; what is not named is sent as it is.
        image_every: of how many observations one brings its images; the others say that the last ones still hold.

    Raises:
        ConfigError: such a path or codec is not to be had here.
    """

    def __init__(self, space: Space[Any], codecs: Mapping[str, str], *, image_every: int = 1) -> None:
        check_codecs(space, codecs, have=available_codecs(), end="the server")
        self._every = image_every
        self._thinned = frozenset(image_paths(space) if image_every > 1 else ())
        self._codecs = {path: codecs.get(path, "raw") for path in box_paths(space)}
        self._coded = frozenset(path for path, codec in self._codecs.items() if codec != "raw") | self._thinned
        self._plan = _make_plan(space, lambda path: path in self._coded)
        self.forget()

    def forget(self) -> None:
        """Build on nothing that was encoded so far: the reply with it was not sent."""
        self._kept: dict[str, _Kept] = {}
        self._age = 0

    def encode(self, observation: Any, sequence: int, *, is_key: bool = False) -> Any:
        """What stands for an observation in a message.

        Args:
            observation: of the space; where it is not, it is sent as it is.
            sequence: the number of the reply.
            is_key: it brings its images, and builds on nothing before it; so it is for a RESET and an episode's end.

        Raises:
            InputError: "jpeg" was asked for, and there is no such image.
        """
        age = self._next_age(self._kept, self._age, is_due=is_key)
        encoded, kept = self._encode(observation, (sequence, 0), {} if is_key else self._kept, age)
        self._kept, self._age = kept, age
        return encoded

    def encode_rows(self, observations: Sequence[Any], sequence: int, *, ends: bool = False) -> list[Any]:
        """What stands for the observations of one reply, each of which may build on the one before.

        Args:
            observations: in their order.
            sequence: the number of the reply.
            ends: the last one ends the episode, and so brings its images.

        Raises:
            InputError: as `encode`.
        """
        rows, kept, age = [], self._kept, self._age
        for row, observation in enumerate(observations):
            age = self._next_age(kept, age, is_due=ends and row == len(observations) - 1)
            encoded, kept = self._encode(observation, (sequence, row), kept, age)
            rows.append(encoded)
        self._kept, self._age = kept, age
        return rows

    def _next_age(self, kept: Mapping[str, _Kept], age: int, *, is_due: bool) -> int:
        """How old its images will be; where none is kept it brings its own."""
        return 0 if is_due or not kept else (age + 1) % self._every

    def _encode(
        self, observation: Any, reference: Reference, before: Mapping[str, _Kept], age: int
    ) -> tuple[Any, dict[str, _Kept]]:
        kept: dict[str, _Kept] = {}

        def leaf(path: str, value: Any) -> Any:
            if type(value) is not np.ndarray or value.dtype.hasobject:
                return value
            last = before.get(path)
            if age and last is not None and path in self._thinned:
                kept[path] = last
                return {"coder": "last", _BASE: list(last.reference), _AGE: age}
            return self._encode_array(path, value, reference, last, kept)

        return _rebuild(observation, self._plan, leaf), kept

    def _encode_array(
        self, path: str, array: Array, reference: Reference, last: _Kept | None, kept: dict[str, _Kept]
    ) -> Any:
        codec = self._codecs[path]
        is_delta = codec == "delta"
        if not (is_delta or path in self._thinned):
            return encode_array(array, codec)
        kept[path] = _Kept(reference, array.copy() if is_delta else None)  # a copy: tasks write into their arrays
        if is_delta and last is not None and last.array is not None:
            coded = _encode_delta(array, last.array)
            if coded is not None:
                return {**coded, _KEEP: True, _BASE: list(last.reference)}
        whole = encode_array(array, _FIRST_CODERS.get(codec, codec))
        return {**(_coded_raw(array) if whole is array else whole), _KEEP: True}


class ImageReceiver:
    """Decodes the observations of a session, at the client.

    Args:
        space: of the observations, as they are sent.
        max_bytes: how much all that one reply decodes to may take.

    Attributes:
        age: how many steps before this observation its images were made; 0: they are its own.
        ages: that of each row.
    """

    def __init__(self, space: Space[Any], *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._plan = _make_plan(space, lambda _path: True)
        self._kept: dict[str, tuple[_Kept, ...]] = {}  # of each path those of the last two replies that brought one
        self.ages: tuple[int, ...] = (0,)

    @property
    def age(self) -> int:
        """How many steps before the last observation its images were made."""
        return self.ages[-1]

    def decode(self, value: Any, sequence: int) -> Any:
        """The observation that a value of a reply stands for; every array in it is the caller's own.

        Raises:
            MessageTooBig: its arrays would take too much; nothing was allocated for them.
            ProtocolError: it is not what `ImageSender.encode` makes, or builds on what did not come.
            ConfigError: the package that decodes it is not installed here.
        """
        return self.decode_rows([value], sequence)[0]

    def decode_rows(self, values: Any, sequence: int) -> list[Any]:
        """The observations of one reply; raises what `decode` does."""
        if not isinstance(values, list):
            raise ProtocolError(f"the observations of several steps are a list, and this is a {type(values).__name__}")
        reading = _Reading(self._kept, sequence, self._max_bytes)
        observations = [reading.read(self._plan, value) for value in values]
        # At once and last, so that an interrupted call has changed nothing.
        self._kept, self.ages = reading.kept(), tuple(reading.ages) or (0,)
        return observations


class _Reading:
    """Decodes one reply."""

    def __init__(self, before: Mapping[str, tuple[_Kept, ...]], sequence: int, max_bytes: int) -> None:
        self._before, self._sequence, self._left_bytes = before, sequence, max_bytes
        self._latest: dict[str, _Kept] = {}
        self.ages: list[int] = []

    def read(self, plan: Plan, value: Any) -> Any:
        """The observation of the next row."""
        self.ages.append(0)
        return _rebuild(value, plan, self._leaf)

    def kept(self) -> dict[str, tuple[_Kept, ...]]:
        """What is to be kept from now on."""
        kept = dict(self._before)
        for path, latest in self._latest.items():
            others = [one for one in kept.get(path, ()) if one.reference[0] != self._sequence]
            kept[path] = (*others[-1:], latest)
        return kept

    def _leaf(self, path: str, value: Any) -> Any:
        if type(value) is not dict:
            return value
        if not isinstance(value.get("coder"), str):
            raise ProtocolError(f"a coded array whose coder is a {type(value.get('coder')).__name__}")
        if value["coder"] == "last":
            return self._read_last(path, value)
        array = self._read_array(path, value)
        if _KEEP in value:
            self._latest[path] = _Kept((self._sequence, len(self.ages) - 1), array.copy())  # users write into theirs
        return array

    def _read_array(self, path: str, value: dict[str, Any]) -> Array:
        if value.keys() not in (CODED_KEYS, CODED_KEYS | {_KEEP}, _DELTA_KEYS):
            raise ProtocolError(f"a coded array with the keys {sorted(map(str, value))[:10]}")
        dtype, shape, size = read_head(value, max_bytes=self._left_bytes)
        self._left_bytes -= size
        if value["coder"] not in ("raw", "delta"):
            return decode_array(value, max_bytes=size)
        parts = read_parts(value["data"])
        if value["coder"] == "raw":
            return _read_raw(parts, dtype, shape, size)
        base = self._find_base(path, value)
        if base.dtype != dtype or base.shape != shape:
            raise ProtocolError(f"a delta of {dtype} {shape} to an image of {path!r} that is {base.dtype} {base.shape}")
        array = decode_bits(parts, dtype, shape, size)
        difference = _as_bytes(array)
        np.add(difference, _as_bytes(base), out=difference)
        return array

    def _read_last(self, path: str, value: dict[str, Any]) -> Array:
        age = value.get(_AGE)
        if value.keys() != _LAST_KEYS or type(age) is not int or not 0 < age < _MAX_AGE:
            raise ProtocolError(
                f"an image that stays, with the keys {sorted(map(str, value))[:10]} and the age {age!r:.40}"
            )
        base = self._find_base(path, value)
        self._left_bytes -= base.nbytes
        if self._left_bytes < 0:
            raise MessageTooBig("a reply whose images, those that stay among them, take more than is allowed")
        self.ages[-1] = max(self.ages[-1], age)
        return base.copy()

    def _find_base(self, path: str, value: Mapping[str, Any]) -> Array:
        reference = value.get(_BASE)
        whole = isinstance(reference, list) and all(type(number) is int for number in reference)
        latest = self._latest.get(path)
        for one in (*self._before.get(path, ()), *(() if latest is None else (latest,))):
            array: Array | None = one.array
            if whole and array is not None and list(one.reference) == reference:
                return array
        raise ProtocolError(f"what stands for {path!r} builds on {reference!r:.80}, which is not kept")


# The difference to another array


def _encode_delta(array: Array, base: Array) -> dict[str, Any] | None:
    """The coded difference; None when it would not be smaller than the array, or there is no difference of these."""
    if array.dtype != base.dtype or array.shape != base.shape or not 0 < array.nbytes <= MAX_BYTES:
        return None
    difference = np.subtract(_as_bytes(np.ascontiguousarray(array)), _as_bytes(base))
    width = _item_width(array)
    frame = encode_blosc(difference.view(f"V{width}"), "zstd", "byte")
    if len(frame) >= array.nbytes:
        return None
    data = [np.frombuffer(frame, np.uint8)]
    return {"coder": "delta", "dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def _item_width(array: Array) -> int:
    """How many bytes belong together: those of a number, and of an image those of a pixel."""
    if array.dtype.itemsize > 1 or not array.ndim or array.shape[-1] > 4:
        return int(array.dtype.itemsize)
    return int(array.shape[-1])


def _as_bytes(array: Array) -> NDArray[np.uint8]:
    whole: NDArray[np.uint8] = array.reshape(-1).view(np.uint8)
    return whole


def _coded_raw(array: Array) -> dict[str, Any]:
    whole = _as_bytes(np.ascontiguousarray(array))
    return {"coder": "raw", "dtype": array.dtype.name, "shape": list(array.shape), "data": [whole]}


def _read_raw(parts: list[NDArray[Any]], dtype: np.dtype[Any], shape: tuple[int, ...], size: int) -> Array:
    if len(parts) != 1 or len(parts[0]) != size:
        raise ProtocolError(f"an array {dtype} {shape} with {sum(map(len, parts))} bytes in {len(parts)} parts")
    array: Array = parts[0].view(dtype).reshape(shape)
    return array


# Where the images lie


def _boxes(space: Space[Any], path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], spaces.Box]]:
    if isinstance(space, spaces.Box):
        yield path, space
    for key, part in _parts(space):
        yield from _boxes(part, (*path, key))


def _parts(space: Space[Any]) -> list[tuple[Any, Space[Any]]]:
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    return list(enumerate(space.spaces)) if isinstance(space, spaces.Tuple) else []


def _make_plan(space: Space[Any], is_wanted: Callable[[str], bool], path: tuple[Any, ...] = ()) -> Plan:
    if isinstance(space, spaces.Box):
        name = "/".join(map(str, path))
        return name if is_wanted(name) else None
    below = {key: _make_plan(part, is_wanted, (*path, key)) for key, part in _parts(space)}
    return {key: plan for key, plan in below.items() if plan is not None} or None


def _rebuild(value: Any, plan: Plan, leaf: Callable[[str, Any], Any]) -> Any:
    """`value` with what `leaf` makes of each place of the plan; where it is of another form it stays as it is."""
    if type(plan) is str:
        return leaf(plan, value)
    if plan is None:
        return value
    if isinstance(value, dict):
        return {key: _rebuild(part, plan.get(key), leaf) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_rebuild(part, plan.get(index), leaf) for index, part in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    return value

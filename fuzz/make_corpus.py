"""Write fuzz/corpus anew: `python -m fuzz.make_corpus`. A few dozen valid inputs for each target.

They come from the recorded conversations and values under tests/data, and from our own writers.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from remote_env.policy.dialects import ilstudio_messages, lerobot_pickle, openpi_messages
from remote_env.policy.meta import MetaObs
from remote_env.protocol import chunks, codec, delivery, frames, layout, state_delta, state_stream
from remote_env.protocol.batch import split_objects
from remote_env.protocol.coding import encode_array
from remote_env.protocol.image_stream import ImageSender
from remote_env.protocol.task import TaskSpec
from remote_env.spaces import space_to_plain
from remote_env.state import EntityLayout, SceneDescription, SceneLayout, Shape

FOLDER = Path(__file__).parent / "corpus"
DATA = Path(__file__).parents[1] / "tests" / "data"
CONVERSATIONS = ("golden_frames.json", "golden_batch_frames.json", "golden_policy_frames.json")
MAX_SIZE = 8192  # a search among small inputs is a quick one


def golden_frames() -> list[tuple[frames.Header, bytes]]:
    """Every recorded frame, in the present version: its header, and body and payload."""
    found = []
    for name in CONVERSATIONS:
        for entry in json.loads((DATA / name).read_text()):
            frame = bytes.fromhex(entry["hex"])
            header = frames.Header._make(frames.HEADER.unpack_from(frame))
            found.append((header, frame[frames.HEADER_SIZE :]))
    return found


def golden_bodies() -> list[tuple[int, bytes]]:
    """Every recorded value: the size of its payload, and its body."""
    values = json.loads((DATA / "codec_golden.json").read_text()).values()
    return [(sum(json.loads(value["payload_sizes"])), bytes.fromhex(value["body"])) for value in values]


def for_frames() -> Iterator[bytes]:
    """Whole frames, one by one and together, and bodies to be framed."""
    packed = [
        bytes(frames.pack_frame(header.type, rest[: header.body_size], payload_size=header.payload_size))
        + rest[header.body_size :]
        for header, rest in golden_frames()
    ]
    pieces = bytes((1, 7, 40, 3))
    for frame in packed[:20]:
        yield bytes((0,)) + pieces + frame
    yield bytes((2,)) + pieces + b"".join(packed[:6])
    yield bytes((1,)) + pieces + bytes((34, 1, 5)) + b"abcde" + bytes((64, 0, 0))


def for_codec() -> Iterator[bytes]:
    """Bodies behind their payloads' sizes."""
    for size, body in golden_bodies():
        yield (size // 4).to_bytes(2, "little") + body


def for_link() -> Iterator[bytes]:
    """Link messages by themselves and as frames, and HTTP."""
    kinds = sorted(frames.NAMES)
    for header, rest in golden_frames():
        if header.type < frames.READY:
            yield bytes((kinds.index(header.type) << 2 & 0xFF,)) + rest
            yield b"\x01" + bytes(frames.pack_frame(header.type, rest))
            yield b"\x03" + bytes(frames.pack_frame(header.type, rest))
    yield b"\x01GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"\x01HEAD / HTTP/1.1\r\n\r\n"


def for_layouts() -> Iterator[bytes]:
    """Something of each kind that is read."""
    from fuzz.targets.layouts import LAYOUTS, SPACES

    for index, (space, fixed) in enumerate(zip(SPACES, LAYOUTS, strict=True)):
        assert fixed is not None
        body = bytearray(fixed.size)
        space.seed(0)
        fixed.write(space.sample(), body, 0)
        yield bytes((index,)) + bytes(body)
    yield bytes((8, 0)) + bytes(10)
    yield bytes((9, 1)) + bytes(18)
    yield bytes((10, 0)) + bytes(5000)
    for reward in (0.5, np.float64(1), np.float32(2), 3, np.int64(4)):
        transition = bytearray(layout.TRANSITION_SIZE)
        layout.write_transition(transition, 0, reward, True, np.bool_(True))
        yield bytes((11,)) + bytes(transition)
    yield bytes((12,)) + layout.pack_state(3, np.arange(4.0))
    tail, _ = codec.encode({"info": {"a": 1}}, where="info")
    yield bytes((13,)) + bytes(layout.TRANSITION_SIZE + 8) + tail


def plain_values() -> Iterator[tuple[int, Any]]:
    """What each reader of decoded values takes, behind the reader's number."""
    for space in (
        spaces.Box(-1, 1, (2, 2), np.float32),
        spaces.Dict({"a": spaces.Discrete(3, start=-1), "b": spaces.Text(4, charset="ab")}),
        spaces.Tuple([spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3]), spaces.Sequence(spaces.Discrete(2))]),
        spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(3)),
        spaces.OneOf([spaces.Discrete(2), spaces.Box(0, 255, (4, 4, 3), np.uint8)]),
    ):
        yield 0, space_to_plain(space)
    scene = SceneLayout((EntityLayout("arm", ("a", "b"), ("hand",)), EntityLayout("cube")), "toy 1")
    yield 1, scene.to_plain()
    yield 1, (np.zeros(14), None)
    yield 2, SceneDescription((Shape("cube", "cube", "box", (0.1, 0.1, 0.1)),), "<mujoco/>", ("a note",)).to_plain()
    yield (
        3,
        {
            "begin": (1, None),
            "steps": 2,
            "time_s": 0.5,
            "size_bytes": 1000,
            "want": ["observation"],
            "chunk_size": None,
            "stacked": True,
        },
    )
    yield (
        3,
        {
            "steps": 2,
            "rows": {
                "reward": np.zeros(2),
                "observation": {"a": np.zeros((3, 2)), "b": [1, 2, 3]},
                "state": [(0, scene.to_plain(), np.zeros((3, scene.size)))],
            },
            "last": (0.5, False, True, {}),
            "success": None,
            "inferences": 1,
            "inference_s": 0.5,
            "elapsed_s": 1.0,
        },
    )
    objects = np.empty(2, object)
    objects[:] = [None, {"deeper": np.array(["a", None], object)}]
    yield 4, split_objects({"final": objects, "list": [1, np.array([None], object)]})
    yield 4, (np.array([1, 3]), np.zeros((2, 14)))
    yield 5, TaskSpec("CartPole-v1", {"a": 1}).to_plain()


def for_values() -> Iterator[bytes]:
    """Bodies behind the reader's number and the payload's size."""
    for reader, value in plain_values():
        body, payload = codec.encode(value, where="value")
        yield bytes((reader, sum(map(len, payload)) // 4096)) + body
    for header, rest in golden_frames():
        if header.type == frames.READY:
            yield bytes((0, 0)) + rest


def for_inference() -> Iterator[bytes]:
    """INFERs and RESULTs behind the codec's number, the flags and the payload's size."""
    from fuzz.targets.inference import CODECS

    state, image = np.zeros((1, 2), np.float32), np.zeros((1, 24, 24, 3), np.uint8)
    for index, observation in enumerate(
        (
            {"state": state},
            {"state": state, "text": ["go"]},
            {"state": state, "image": image[:, :8], "none": np.zeros((1, 0), np.int64)},
            {"image": encode_array(image, "zstd"), "text": ["go"]},
        )
    ):
        for episodes in (("",), ("one",)):
            request = CODECS[index].pack_request(observation, episodes)
            size = request.payload_size // 64
            head = bytes((index << 1, request.flags)) + size.to_bytes(2, "little")
            yield head + bytes(request.frame[frames.HEADER_SIZE :])
    chunk = np.zeros((1, 3, 2), np.float32)
    result = CODECS[0].pack_result(chunk, 0.5)
    yield bytes((1, result.flags, 0, 0)) + bytes(result.frame[frames.HEADER_SIZE :])


def for_codings() -> Iterator[bytes]:
    """Coded arrays' bytes behind the number of what they are decoded as."""
    from fuzz.targets.codings import HEADS

    for index, (coder, dtype, shape) in enumerate(HEADS):
        array = np.zeros(shape, dtype)
        if coder == "jpeg":
            parts = encode_array(array, "jpeg")["data"]
            yield bytes((index,)) + b"".join(part.tobytes() for part in parts)
        elif array.nbytes >= 1024:
            yield bytes((index,)) + encode_array(array, coder)["data"][0].tobytes()


def _body(value: Any) -> bytes:
    return codec.encode(value, where="value")[0]


def for_deliveries() -> Iterator[bytes]:
    """Observations with coded images, states as changes, what is asked for them, behind the number of their reader."""
    from fuzz.targets.deliveries import CODECS, IMAGE, READERS, SPACE, VECTOR

    numbers = {reader.__name__: number for number, reader in enumerate(READERS)}
    for codec_name in CODECS:
        sender = ImageSender(SPACE, {"i": codec_name}, image_every=2)
        observations = [{"i": IMAGE + row, "n": np.zeros(3)} for row in range(3)]
        sender.encode(observations[0], 1, is_key=True)
        rows = sender.encode_rows(observations, 2, ends=True)
        yield bytes((numbers["read_images"],)) + _body(rows)
    change = state_delta.encode(VECTOR + 1, VECTOR)
    assert change is not None
    yield bytes((numbers["read_state"], 1)) + layout.pack_change(0, VECTOR.size, 1, change)
    yield bytes((numbers["read_state"], 0)) + layout.pack_state(0, VECTOR)
    yield bytes((numbers["read_state_rows"],)) + _body(state_stream.pack_rows(np.zeros((5, VECTOR.size))))
    yield bytes((numbers["read_state_rows"],)) + _body(np.zeros((2, VECTOR.size)))
    plan = delivery.DeliveryPlan(("i",), True, 2, {"i": "zstd"}, True, True)
    yield bytes((numbers["read_request"],)) + _body(plan.to_plain())
    yield bytes((numbers["read_request"],)) + _body(chunks.ChunkOptions(keys=("i",)).to_plain())
    yield bytes((numbers["read_request"],)) + _body({"a": np.zeros((2, 3, 1)), "b": (np.zeros((2, 3)), [[1] * 3] * 2)})
    yield bytes((numbers["read_request"],)) + _body(np.zeros((1 << 31, 0)))
    outcome = {"ran": 2, "reward": np.zeros(2), "terminated": np.zeros(2, bool), "truncated": np.zeros(2, bool)}
    yield bytes((numbers["read_outcomes"],)) + _body(outcome)
    tried = {
        "rewards": np.zeros((2, 3)),
        "ran": np.zeros(2, np.int64),
        "observations": np.zeros((2, 3)),
        "infos": [1, 2],
    }
    yield bytes((numbers["read_outcomes"],)) + _body(
        {**tried, **{f: np.zeros(2, bool) for f in ("terminated", "truncated")}}
    )


class Numpy:
    """Values as numpy's users pickle them."""

    VALUES: tuple[Any, ...] = (
        {"a": [1, 2.5, None, True], "b": ("x", b"y"), "c": {1, 2}, "d": frozenset("z")},
        np.arange(6, dtype=np.float32).reshape(2, 3),
        [np.float64(1), np.int64(2), np.array([[1]], order="F")],
        np.array([{"a": 1}, {}], object),
        2**80,
        bytearray(b"abc"),
    )


def for_pickles() -> Iterator[bytes]:
    """Pickles of every protocol, and what the dialects' own writers make."""
    for value in Numpy.VALUES:
        for protocol in (0, 2, 3, 4, 5):
            file = io.BytesIO()
            pickle.Pickler(file, protocol).dump(value)
            yield bytes((1,)) + file.getvalue()
    yield bytes((2,)) + ilstudio_messages.write_request(MetaObs(state=np.zeros(3, np.float32), raw_lang="go"))
    setup = lerobot_pickle.RemotePolicyConfig("act", "x", {"observation.state": {"dtype": "float32", "shape": (2,)}}, 5)
    yield bytes((3,)) + lerobot_pickle.dump_setup(setup)
    observation = lerobot_pickle.TimedObservation(0.5, 1, {"a.pos": 0.5, "task": "go"})
    yield bytes((4,)) + lerobot_pickle.dump_observation(observation)
    chunk = np.zeros((1, 2, 3), np.float32)[0]
    yield bytes((5,)) + lerobot_pickle.dump_actions(chunk, timestamp=0.5, timestep=1, dt_s=0.1)
    yield bytes((6,)) + openpi_messages.encode({"state": np.zeros(3), "prompt": "go", "n": np.float32(1)})


def write(name: str, inputs: Iterable[bytes]) -> int:
    """Write one target's inputs, each under its own digest; how many they are."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for data in inputs:
        if len(data) <= MAX_SIZE:
            (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return len(list(folder.iterdir()))


def main() -> None:
    """Write all of them, and say how many."""
    for name, inputs in (
        ("frames", for_frames()),
        ("codec", for_codec()),
        ("link", for_link()),
        ("layouts", for_layouts()),
        ("values", for_values()),
        ("inference", for_inference()),
        ("codings", for_codings()),
        ("deliveries", for_deliveries()),
        ("pickles", for_pickles()),
    ):
        print(f"{name}: {write(name, inputs)} inputs")


if __name__ == "__main__":
    main()

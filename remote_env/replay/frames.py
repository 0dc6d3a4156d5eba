"""States to frames, in this process or in several.

Each worker process renders every n-th state and hands frames over one by one, so frames come in order, at
most one per worker waits, and memory does not grow with the episode. Workers are plain programs on pipes: a
script that replays needs no `if __name__ == "__main__"`, and a worker whose parent is gone ends at its next
frame.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import mujoco
import numpy as np

from remote_env.errors import RemoteEnvError, ReplayError
from remote_env.render import Quality
from remote_env.replay.cameras import Cameras, aims, as_tuple, grid, tile
from remote_env.replay.mapping import MappingLike
from remote_env.replay.processes import running
from remote_env.replay.replayer import Frame, Replayer
from remote_env.state import SceneDescription, SceneLayout, SceneState

# Rough software-GL times per frame [s]; a job shorter than SERIAL_BELOW_S is not worth starting processes
# for.
_FRAME_S: dict[Quality, float] = {"fast": 0.016, "full": 0.15}
SERIAL_BELOW_S = 3.0
MAX_PROCESSES = 8
_PIPE_BYTES = 1 << 20  # Linux lets anyone have this much: a worker puts a whole frame down and goes on
_HEAD = struct.Struct("<cQ")
_FRAME, _ERROR = b"f", b"x"
_ROOT = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class View:
    """What a frame shows; see `Replayer`.

    Attributes:
        width: of the frame, or of each tile [pixels].
        height: likewise.
        camera: as `cameras.aim` takes it, or a sequence of such: tiled.
        quality: "fast" or "full".
    """

    width: int = 640
    height: int = 480
    camera: Cameras = None
    quality: Quality = "fast"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a frame: (H, W, 3), all tiles together."""
        rows, columns = grid(len(as_tuple(self.camera)))
        return rows * self.height, columns * self.width, 3


@dataclass(frozen=True)
class LocalScene:
    """The model that a replay is shown in, and how captured names become its own.

    Attributes:
        model: compiled.
        mapping: as `Replayer` takes it, or None.
        description: what the captured scene looks like, or None.
    """

    model: mujoco.MjModel
    mapping: MappingLike = None
    description: SceneDescription | None = None

    def open(self, view: View | None = None) -> Replayer:
        """A replayer of this scene, to be closed by the caller."""
        view = view or View()
        return Replayer(
            self.model,
            mapping=self.mapping,
            description=self.description,
            width=view.width,
            height=view.height,
            camera=as_tuple(view.camera)[0],
            quality=view.quality,
        )


def default_processes(frames: int, quality: Quality) -> int:
    """How many processes render `frames` frames soonest on this machine; 1 means this one."""
    if frames * _FRAME_S[quality] < SERIAL_BELOW_S:
        return 1
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, MAX_PROCESSES)


def render_here(states: Sequence[SceneState], scene: LocalScene, view: View) -> Iterator[Frame]:
    """A frame for each state, (H, W, 3) uint8 RGB."""
    with scene.open(view) as replayer:
        cameras = aims(replayer.model, view.camera)
        for state in states:
            replayer.set_state(state)
            yield tile([replayer.render(camera) for camera in cameras])


def render_in_processes(states: Sequence[SceneState], scene: LocalScene, view: View, processes: int) -> Iterator[Frame]:
    """As `render_here`, with `processes` workers; they are gone when this ends, however it ends.

    Raises:
        ReplayError: a worker died.
        ConfigError: a worker could not render; see `Replayer`.
    """
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker()) for _ in range(processes)]
        for index, worker in enumerate(workers):
            _send_job(worker, states[index::processes], scene, view)
        for index in range(len(states)):
            data = _receive(workers[index % processes])
            yield np.frombuffer(data, np.uint8).reshape(view.shape)


def _worker() -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    path = os.pathsep.join([_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    return running(
        [sys.executable, "-m", "remote_env.replay.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pipesize=_PIPE_BYTES,
        # Mesa's software renderer starts a thread per CPU; several processes that do so only wait for each other.
        env={"LP_NUM_THREADS": "0"} | os.environ | {"PYTHONPATH": path},
    )


def _send_job(worker: subprocess.Popen[bytes], states: Sequence[SceneState], scene: LocalScene, view: View) -> None:
    values = np.stack([state.values for state in states])
    job = pickle.dumps((scene, view, states[0].layout, values), protocol=5)
    pipe: IO[bytes] = worker.stdin  # type: ignore[assignment]  # it is a pipe
    try:
        pipe.write(job)
        pipe.close()
    except BrokenPipeError:
        _receive(worker)


def _receive(worker: subprocess.Popen[bytes]) -> bytes:
    pipe: IO[bytes] = worker.stdout  # type: ignore[assignment]  # it is a pipe
    head = pipe.read(_HEAD.size)
    if len(head) == _HEAD.size:
        kind, size = _HEAD.unpack(head)
        data = pipe.read(size)
        if len(data) == size:
            if kind == _ERROR:
                raise pickle.loads(data)  # noqa: S301  # from our own child
            return data
    raise ReplayError(
        f"a rendering process ended with status {worker.wait()}; its own messages stand above. "
        "Try processes=1 to render in this process"
    )


def serve(job: tuple[LocalScene, View, SceneLayout, Any], out: IO[bytes]) -> None:
    """A worker's whole life: render the job's states to `out`."""
    scene, view, layout, values = job
    states = [SceneState(layout, row) for row in values]
    try:
        for frame in render_here(states, scene, view):
            _send(out, _FRAME, frame.data)
    except RemoteEnvError as error:
        _send(out, _ERROR, pickle.dumps(error))


def _send(out: IO[bytes], kind: bytes, data: bytes | memoryview) -> None:
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    out.write(_HEAD.pack(kind, size))
    out.write(data)
    out.flush()

"""What a server of the dialect lerobot knows about each robot client; nothing of it is shared between two."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from remote_env.errors import ConfigError, InputError
from remote_env.policy.dialects.lerobot_mapping import RobotMapping
from remote_env.policy.dialects.lerobot_models import Models
from remote_env.policy.dialects.lerobot_pickle import RemotePolicyConfig, TimedObservation
from remote_env.policy.policy import Chunk, ObservationBatch
from remote_env.policy.server.service import PolicyService, ServeContext, ServedClient

REPLACED_EVERY = 100  # how many replaced observations one line tells of
MAX_ROBOTS = 16
CALLS_PER_ROBOT = 4  # one waits for actions, one brings an observation; and again while those are being cancelled
MAX_STRANGERS = 4
QUIET_S = 60.0  # a robot client that was not heard for so long makes room for another; LeRobot's ask all the time
CHECK_S = 1.0  # how often it is looked for calls and robots that take too long
STRANGER_WAIT_S = 1.0  # how long a client that nobody knows waits, since it asks again at once
MAX_COMPLAINTS = 256


@dataclass(frozen=True)
class Waiting:
    """An observation that waits for its turn.

    Attributes:
        batch: what the policy takes.
        timestamp: the robot's [s].
        timestep: the robot's.
    """

    batch: ObservationBatch
    timestamp: float
    timestep: int


class Robot:
    """One robot client: its place at a policy, its instructions, and the one observation that waits.

    Args:
        peer: its address as gRPC writes it.
        models: where its policy comes from.
        context: of the server.

    Attributes:
        setup: its instructions; None before they came.
        seen: when it last called (monotonic) [s].
        calls: how many of its calls run.
    """

    def __init__(self, peer: str, models: Models, context: ServeContext) -> None:
        self.peer = peer
        self.setup: RemotePolicyConfig | None = None
        self.seen, self.calls = time.monotonic(), 0
        self._models, self._context = models, context
        self._state = threading.Condition()  # guards what follows
        self._service: PolicyService | None = None
        self._served: ServedClient | None = None
        self._mapping: RobotMapping | None = None
        self._waiting: Waiting | None = None
        self._replaced = 0
        self._closed = False

    def instruct(self, setup: RemotePolicyConfig) -> None:
        """Give the robot the policy that it asks for.

        Raises:
            ConfigError: it may not have that, or its observations do not fit it.
        """
        service = self._models.take(setup)
        try:
            mapping = RobotMapping(setup, service.metadata)
        except BaseException:
            self._models.leave(service)
            raise
        self.leave()
        with self._state:
            self.setup, self._mapping, self._service = setup, mapping, service
            self._served = service.open_client(show_peer(self.peer), "lerobot")
            self._closed = False
        self._context.log(
            f"{self._name} takes {setup.actions_per_chunk} actions per chunk; its robot feeds the policy so:\n"
            + mapping.describe()
        )

    def restart(self) -> None:
        """A new episode: what waits is dropped, and the policy forgets the last one."""
        with self._state:
            self._waiting, served = None, self._served
        if served is not None:
            served.reset()

    def put(self, observation: TimedObservation) -> None:
        """Let an observation wait; an older one that still waits is dropped.

        Raises:
            InputError: it is not what the instructions promised, or there were none.
        """
        if self._mapping is None:
            raise InputError("an observation before the policy instructions; start the robot client again")
        waiting = Waiting(self._mapping.batch(observation.observation), observation.timestamp, observation.timestep)
        with self._state:
            replaced, self._waiting = self._waiting, waiting
            self._replaced += replaced is not None
            self._state.notify()
        if replaced is not None and self._replaced % REPLACED_EVERY == 1:
            self._context.log(
                f"{self._name}: observation #{replaced.timestep} was dropped, since #{waiting.timestep} came before "
                f"its turn ({self._replaced} so far)"
            )

    def take(self, timeout_s: float) -> Waiting | None:
        """The observation that waits, once there is one; None after `timeout_s`, or when the server ends."""
        with self._state:
            self._state.wait_for(lambda: self._waiting is not None or self._closed, timeout_s)
            waiting, self._waiting = self._waiting, None
            return waiting

    def infer(self, waiting: Waiting) -> Chunk:
        """(K, D) actions, K at most what the instructions say.

        Raises:
            PolicyError: the policy raised, or the server stops.
            InputError: the policy does not take this, or the robot has gone.
        """
        with self._state:
            served, setup = self._served, self.setup
        if served is None or setup is None:
            raise InputError("the robot client has gone")
        return served.infer(waiting.batch)[0, : setup.actions_per_chunk]

    def leave(self) -> None:
        """Its client has gone: its place is given up. What it asked for is kept, in case it comes back."""
        with self._state:
            served, service, self._served, self._service = self._served, self._service, None, None
            self._waiting, self._closed = None, True
            self._state.notify_all()
        if served is not None:
            served.close()
        if service is not None:
            self._models.leave(service)

    @property
    def has_left(self) -> bool:
        """Whether it holds no place."""
        return self._served is None

    @property
    def _name(self) -> str:
        served: Any = self._served
        return f"Client #{served.number}" if served is not None else show_peer(self.peer)


class Robots:
    """The robot clients, each by its own connection.

    gRPC does not tell when a connection ends. A robot client always waits for actions, so that it has gone when that
    call is cancelled; its instructions are kept for a while, since LeRobot's clients connect again without a word.

    Args:
        models: where their policies come from.
        context: of the server.

    Attributes:
        limit: how many there may be.
    """

    limit = MAX_ROBOTS

    def __init__(self, models: Models, context: ServeContext) -> None:
        self._models, self._context = models, context
        self._state = threading.Condition()  # guards what follows
        self._robots: dict[str, Robot] = {}
        self._strangers = threading.Semaphore(MAX_STRANGERS)
        self._gone: set[str] = set()  # peers whose call was cancelled
        self._deadlines: dict[Any, float] = {}  # calls that may not take for ever
        self._complaints: set[tuple[str, str]] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._look_after, name="lerobot-robots", daemon=True)

    def start(self) -> None:
        """Look after those that go without a word, from now on."""
        self._thread.start()

    def open(self, peer: str) -> Robot:
        """The robot client at this address, which begins anew.

        Raises:
            ConfigError: there are too many.
        """
        with self._state:
            self._gone.discard(peer)
            if (robot := self._robots.get(peer)) is not None:
                return robot
            displaced = self._make_room()
            robot = self._robots[peer] = Robot(peer, self._models, self._context)
        if displaced is not None:
            displaced.leave()
        return robot

    @contextlib.contextmanager
    def using(self, call: Any, *, timeout_s: float = 0.0, leaves_when_cancelled: bool = False) -> Iterator[Robot]:
        """The robot that makes this call, while it is answered.

        Args:
            call: gRPC's context.
            timeout_s: after how long the call is cancelled; 0 never does.
            leaves_when_cancelled: a client that cancels this call has gone.

        Raises:
            ConfigError: it is not known here, or its policy cannot be had any more.
        """
        peer, done = call.peer(), threading.Event()
        robot = self._find(peer)
        with self._state:
            if robot.calls >= CALLS_PER_ROBOT:
                raise ConfigError(f"it makes more than {CALLS_PER_ROBOT} calls at once")
            robot.calls += 1
            if timeout_s:
                self._deadlines[call] = time.monotonic() + timeout_s
        if leaves_when_cancelled and not call.add_callback(lambda: None if done.is_set() else self._note_gone(peer)):
            self._note_gone(peer)
        try:
            yield robot
        finally:
            done.set()
            with self._state:
                robot.calls -= 1
                robot.seen = time.monotonic()
                self._deadlines.pop(call, None)

    def forget(self, peer: str) -> None:
        """The robot client at this address has said goodbye."""
        with self._state:
            robot = self._robots.pop(peer, None)
        if robot is not None:
            robot.leave()

    def complain(self, call: Any, words: str) -> None:
        """Log what went wrong for a client; the same words once."""
        complaint = (call.peer(), words)
        with self._state:
            is_new = complaint not in self._complaints
            if len(self._complaints) >= MAX_COMPLAINTS:
                self._complaints.clear()
            self._complaints.add(complaint)
        if is_new:
            self._context.log(f"robot client at {show_peer(call.peer())}: {words}")

    def close(self) -> None:
        """Let every robot go; may be called again."""
        with self._state:
            robots, self._robots, self._closed = list(self._robots.values()), {}, True
            self._state.notify_all()
        for robot in robots:
            robot.leave()
        if self._thread.is_alive():
            self._thread.join()

    def _find(self, peer: str) -> Robot:
        with self._state:
            robot = self._robots.get(peer) or self._adopt(peer)
        if robot is None:
            if self._strangers.acquire(blocking=False):
                self._context.stopping.wait(STRANGER_WAIT_S)
                self._strangers.release()
            raise ConfigError("it is not known here (any more): start the robot client again")
        if robot.has_left and robot.setup is not None:
            robot.instruct(robot.setup)
        return robot

    def _adopt(self, peer: str) -> Robot | None:
        """One that went without a word and may be this one: its host is the same, and all who went had its setup."""
        left = [robot for robot in self._robots.values() if robot.has_left and robot.setup is not None]
        left = [robot for robot in left if _host(robot.peer) == _host(peer)]
        if not left or any(robot.setup != left[0].setup for robot in left):
            return None
        robot = self._robots.pop(left[-1].peer)
        self._context.log(f"the robot client that was at {show_peer(robot.peer)} is back at {show_peer(peer)}")
        robot.peer = peer
        self._robots[peer] = robot
        return robot

    def _make_room(self) -> Robot | None:
        """Have a place free; the robot that lost it, if one did."""
        if self._closed:
            raise ConfigError("the policy server is stopping")
        if len(self._robots) < self.limit:
            return None
        before = time.monotonic() - QUIET_S
        idle = [robot for robot in self._robots.values() if not robot.calls and (robot.has_left or robot.seen < before)]
        if not idle:
            raise ConfigError(f"{self.limit} robot clients are here already; try again when one has gone")
        return self._robots.pop(min(idle, key=lambda robot: robot.seen).peer)

    def _note_gone(self, peer: str) -> None:
        with self._state:
            self._gone.add(peer)
            self._state.notify_all()

    # In the thread that looks after them

    def _look_after(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._closed or self._gone, CHECK_S)
                if self._closed:
                    return
                gone = [self._robots[peer] for peer in self._gone if peer in self._robots]
                self._gone.clear()
                gone += self._take_idle()
                late = self._take_late()
            for robot in gone:
                robot.leave()
            for call in late:
                call.cancel()

    def _take_idle(self) -> list[Robot]:
        before = time.monotonic() - self._context.idle_timeout_s
        idle = [robot for robot in self._robots.values() if not robot.calls and robot.seen < before]
        for robot in idle:
            del self._robots[robot.peer]
        return idle

    def _take_late(self) -> list[Any]:
        now = time.monotonic()
        return [call for call, deadline in self._deadlines.items() if deadline < now]


def show_peer(peer: str) -> str:
    """An address as gRPC writes it, to read: "ipv4:127.0.0.1:5000" is 127.0.0.1:5000."""
    return unquote(peer).partition(":")[2] or peer


def _host(peer: str) -> str:
    return show_peer(peer).rpartition(":")[0]

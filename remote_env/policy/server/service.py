"""What the dialects serve: the policies, and each client's place at one of them."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from remote_env.errors import ConfigError, InputError, RemoteEnvError
from remote_env.policy.policy import Chunk, Feature, ObservationBatch, Policy, PolicyMetadata
from remote_env.policy.quick_check import QuickCheck
from remote_env.policy.server.histogram import BATCH_BOUNDS, LATENCY_BOUNDS_S, Histogram
from remote_env.policy.server.runner import Room
from remote_env.policy.server.worker import Worker

QUEUE_POLICIES = ("latest", "refuse")
MAX_QUEUE = 64
WAIT_TIMEOUT_S = 120.0
MAX_EPISODES = 4096  # of one client that are remembered at once
MAX_NAME_LENGTH = 256
MAX_MESSAGE_BYTES = 256 << 20
IDLE_TIMEOUT_S = 3600.0
LINES_EVERY = 10
NO_PLACE = "the policy server has no place for one more client (--max_clients); try again later"


@dataclass(frozen=True)
class ServeContext:
    """What a dialect knows about the place it serves at.

    Attributes:
        token: the secret that clients prove; None where none was made.
        require_token: a dialect that can authenticate without having to (openpi) must.
        log: takes a line.
        stopping: set when the server ends; open sockets are shut down right after.
        max_message_bytes: a larger message is refused before it is read.
        idle_timeout_s: a connection on which nothing comes for so long is closed.
        allow_models: folders from which clients may choose a model (lerobot).
        model: what is served, as it was named.
        admit: takes a place for this connection among the clients, once it has proved itself; False when all are taken.
    """

    token: str | None = None
    require_token: bool = False
    log: Callable[[str], None] = print
    stopping: threading.Event = field(default_factory=threading.Event)
    max_message_bytes: int = MAX_MESSAGE_BYTES
    idle_timeout_s: float = IDLE_TIMEOUT_S
    allow_models: Sequence[Path] = ()
    model: str = ""
    admit: Callable[[], bool] = lambda: True


class PolicyService:
    """The policies of a server, one per device, and its clients.

    Args:
        policies: copies of one policy; owned from now on.
        log: takes a line.
        max_batch: rows of several clients that may run together; 1 keeps every result bit-reproducible.
        max_wait_s: how long a batch with room waits for other clients.
        max_queue: requests that may wait per policy.
        queue_policy: "latest" or "refuse", see `Worker`.
        wait_timeout_s: how long a request may wait for its turn.

    Raises:
        ConfigError: a number or the queue policy is out of range.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        *,
        log: Callable[[str], None] = print,
        max_batch: int = 1,
        max_wait_s: float = 0.0,
        max_queue: int = MAX_QUEUE,
        queue_policy: str = "latest",
        wait_timeout_s: float = WAIT_TIMEOUT_S,
    ) -> None:
        if not policies or max_batch < 1 or max_queue < 1 or max_wait_s < 0:
            raise ConfigError("a policy server needs a policy, max_batch and max_queue of at least 1, max_wait of 0 up")
        if queue_policy not in QUEUE_POLICIES:
            raise ConfigError(f"unknown queue policy {queue_policy!r}; there are {' and '.join(QUEUE_POLICIES)}")
        self.log, self.metadata = log, policies[0].metadata
        self.workers = [
            Worker(
                policy,
                log,
                max_batch=max_batch,
                max_wait_s=max_wait_s,
                max_queue=max_queue,
                queue_policy=queue_policy,
                wait_timeout_s=wait_timeout_s,
            )
            for policy in policies
        ]
        self._mutex = threading.Lock()
        self._numbers = itertools.count(1)
        self._clients: dict[int, ServedClient] = {}
        self._requests: Counter[str] = Counter()  # of clients that have gone, by dialect
        self._errors: Counter[str] = Counter()

    def open_client(self, address: str, dialect: str) -> ServedClient:
        """A place for a client that has connected; it is logged, and given the policy with the fewest clients.

        Args:
            address: of the client, to show.
            dialect: that it speaks.
        """
        with self._mutex:
            worker = min(self.workers, key=lambda worker: worker.clients)
            worker.clients += 1
            client = ServedClient(self, worker, next(self._numbers), address, dialect)
            self._clients[client.number] = client
        self.log(f"Client #{client.number} connected from {address} ({dialect})")
        return client

    def forget(self, client: ServedClient) -> None:
        """A client has gone; called by its `close`."""
        with self._mutex:
            del self._clients[client.number]
            client.worker.clients -= 1
            self._requests[client.dialect] += client.count
            self._errors[client.dialect] += client.errors
        self.log(f"Client #{client.number} closed: {client.count} requests in total")

    def warm_up(self) -> None:
        """Let every policy infer once, from zeros: the first client does not wait for what happens only once."""
        for worker in self.workers:
            started = time.monotonic()
            try:
                worker.warm_up(zero_observation(self.metadata))
            except RemoteEnvError as error:
                self.log(f"not warmed up, the policy failed on zeros: {error}")
            else:
                self.log(f"warmed up with zeros in {time.monotonic() - started:.2f} s")

    @property
    def living(self) -> list[ServedClient]:
        """The clients that are connected."""
        with self._mutex:
            return list(self._clients.values())

    def requests_by_dialect(self) -> tuple[Counter[str], Counter[str]]:
        """How many requests were answered with actions, and how many with an error, by dialect."""
        with self._mutex:
            requests, errors = self._requests.copy(), self._errors.copy()
            for client in self._clients.values():
                requests[client.dialect] += client.count
                errors[client.dialect] += client.errors
        return requests, errors

    def latencies(self) -> Histogram:
        """Seconds from a request's coming to its answer."""
        return Histogram.sum(LATENCY_BOUNDS_S, (worker.latencies for worker in self.workers))

    def batches(self) -> Histogram:
        """Rows of each inference."""
        return Histogram.sum(BATCH_BOUNDS, (worker.batches for worker in self.workers))

    def close(self, timeout_s: float = 5.0) -> bool:
        """Refuse what waits and close the policies; False when one was still busy after `timeout_s`."""
        closed = [worker.close(timeout_s) for worker in self.workers]
        return all(closed)


class ServedClient:
    """One client's place at a policy; its episodes are its own, whatever it calls them.

    Attributes:
        number: from 1 on.
        address: where it comes from.
        dialect: what it speaks.
        count: requests answered with actions.
        errors: requests answered with an error.
    """

    def __init__(self, service: PolicyService, worker: Worker, number: int, address: str, dialect: str) -> None:
        self.service, self.worker = service, worker
        self.number, self.address, self.dialect = number, address, dialect
        self.count = self.errors = 0
        self._mutex = threading.Lock()
        self._metadata = worker.metadata
        self._has_memory = worker.metadata.has_memory
        self._check = QuickCheck(worker.metadata)
        self._remembered: set[str] = set()  # names within the policy
        self._named: tuple[Sequence[str], list[str]] = ((), [])  # the last translation
        self._closed = False

    @property
    def metadata(self) -> PolicyMetadata:
        """Of the policy."""
        return self._metadata

    def infer(self, observation: ObservationBatch, episodes: Sequence[str] = ("",)) -> Chunk:
        """The actions for these rows; blocks until they are there. Thread-safe.

        Args:
            observation: feature name -> (B, *shape), as `Policy.infer` takes it; checked here.
            episodes: B names, the client's own, of the episodes that the rows belong to.

        Returns:
            (B, K, D) float32, the caller's own.

        Raises:
            InputError: the observation is not what the policy takes; nothing ran.
            PolicyError: the policy raised (`remote_traceback`), the queue is full, or the server stops.
        """
        try:
            rows = self._check(observation)
            if len(episodes) != rows:
                raise InputError(f"{rows} rows came with {len(episodes)} episode names; name each row's episode")
            chunk = self.worker.infer(self.number, observation, self._names(episodes))
        except Exception:
            self.count_error()
            raise
        with self._mutex:
            count = self.count = self.count + 1
        if count % LINES_EVERY == 0:
            self._log_count(count)
        return chunk

    def infer_at_once(
        self, observation: ObservationBatch, episodes: Sequence[str], room: Room, started: float
    ) -> tuple[Chunk, float] | None:
        """`infer` in a fraction of its time, if the policy is free and runs every request alone.

        Args:
            observation: one row, which the caller knows to be what the policy takes.
            episodes: one name.
            room: for the actions, to be filled.
            started: when the request came [monotonic s].

        Returns:
            The actions, `room.actions` itself unless the policy gave more or fewer, and seconds since `started`; None
            when nothing ran, and `infer` is to be called.

        Raises:
            InputError, PolicyError: as `infer`.
        """
        try:
            known, names = self._named
            if known is not episodes or self._has_memory:
                names = self._names(episodes)
            answer = self.worker.infer_at_once(observation, names, room, started)
        except Exception:
            self.count_error()
            raise
        if answer is not None:
            with self._mutex:
                count = self.count = self.count + 1
            if count % LINES_EVERY == 0:
                self._log_count(count)
        return answer

    def _log_count(self, count: int) -> None:
        self.service.log(f"Client #{self.number}: {count} requests processed")

    def count_error(self) -> None:
        """A request was answered with an error; `infer` counts its own, a dialect those that it could not read."""
        with self._mutex:
            self.errors += 1

    def reset(self, episodes: Sequence[str] | None = None) -> None:
        """Have the policy forget these episodes of this client; all of them when None.

        Raises:
            PolicyError: the policy raised, or the server stops.
        """
        with self._mutex:
            names = list(self._remembered) if episodes is None else [self._name(episode) for episode in episodes]
            self._remembered.difference_update(names)
        if names and self._has_memory:
            self.worker.reset(self.number, names)

    def close(self) -> None:
        """The client has gone: its episodes are forgotten, its total is logged; may be called again."""
        with self._mutex:
            first, self._closed = not self._closed, True
        if not first:
            return
        try:
            if not self.worker.closed:
                self.reset()
        except RemoteEnvError as error:
            self.service.log(f"Client #{self.number}: its episodes could not be reset: {error}")
        finally:
            self.service.forget(self)

    def _name(self, episode: str) -> str:
        if len(episode) > MAX_NAME_LENGTH:
            raise InputError(f"an episode's name has {len(episode)} characters; {MAX_NAME_LENGTH} are allowed")
        return f"{self.number}/{episode}"

    def _names(self, episodes: Sequence[str]) -> list[str]:
        """The episodes' names within the policy, where no two clients share one."""
        known, names = self._named
        if known != tuple(episodes):
            names = [self._name(episode) for episode in episodes]
            self._named = (tuple(episodes), names)
        if self._has_memory and not self._remembered.issuperset(names):
            self._remember(names)
        return names

    def _remember(self, names: Sequence[str]) -> None:
        with self._mutex:
            if len(self._remembered.union(names)) > MAX_EPISODES:
                raise InputError(f"more than {MAX_EPISODES} episodes at once; reset those that have ended")
            self._remembered.update(names)


def zero_observation(metadata: PolicyMetadata) -> ObservationBatch:
    """One row of zeros and empty texts."""
    return {name: _zero(feature) for name, feature in metadata.observation.items()}


def _zero(feature: Feature) -> object:
    return [""] if feature.kind == "text" else np.zeros((1, *feature.shape), feature.dtype)

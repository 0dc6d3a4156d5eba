"""What clients of servers that are not ours share: a connection that is made again, and learning from replies."""

from __future__ import annotations

import abc
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from remote_env.errors import AuthError, ConnectError, ConnectionLost, InputError, PolicyError, RemoteEnvError
from remote_env.policy.observation import check_batch
from remote_env.policy.policy import Chunk, ObservationBatch, Policy, PolicyMetadata

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0


class Link(Protocol):
    """A connection to such a server."""

    def close(self) -> None:
        """Free it; never raises."""


L = TypeVar("L", bound=Link)


def unknown_metadata(name: str) -> PolicyMetadata:
    """Metadata of a policy of which nothing is known but where it is; `extra["unknown"]` is True."""
    return PolicyMetadata(name, {}, (), batches=False, extra={"unknown": True})


class ForeignPolicy(Policy, Generic[L]):
    """A policy at a server whose protocol knows neither metadata of ours nor request numbers.

    Every call has a deadline. A connection that breaks is made again, with pauses that double, and the request is sent
    again: these protocols cannot say whether it ran already. To a policy with memory it is not: that is an error, since
    the server forgets with the connection. Thread-safe: one call at a time.

    Args:
        address: to show.
        metadata: as far as it is known; the size of actions and chunks is learned from the first reply otherwise.
        timeout_s: until a call fails [s].
        reconnect_timeout_s: for how long a broken connection is tried again [s].
        chunk_size: the most actions that a reply gives; None takes all.
    """

    def __init__(
        self,
        address: str,
        metadata: PolicyMetadata | None,
        *,
        timeout_s: float,
        reconnect_timeout_s: float,
        chunk_size: int | None = None,
    ) -> None:
        self.metadata = metadata or unknown_metadata(address)
        self._address, self._timeout_s, self._reconnect_timeout_s = address, timeout_s, reconnect_timeout_s
        self._chunk_size = chunk_size
        self._mutex = threading.Lock()
        self._link: L | None = None

    @abc.abstractmethod
    def _open(self, deadline: float) -> L:
        """A new connection; ConnectError or DeadlineExceeded when there is none."""

    @abc.abstractmethod
    def _ask(self, link: L, request: Any, deadline: float) -> Any:
        """The reply to one request.

        Raises:
            ConnectionLost: the connection broke; it is made again.
            PolicyError: the server said that its inference failed.
        """

    def open(self) -> None:
        """Make the first connection, so that a wrong address is told at once; ConnectError."""
        with self._mutex:
            self._link = self._open(time.monotonic() + self._timeout_s)

    def close(self) -> None:
        """See `Policy.close`."""
        with self._mutex:
            self._drop()

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _call(self, request: Any) -> Any:
        """The reply to `request`, over as many connections as it takes within the deadlines."""
        with self._mutex:
            try:
                return self._try(request)
            except PolicyError:
                raise
            except RemoteEnvError:
                self._drop()  # a late reply must not answer the next request
                raise

    def _try(self, request: Any) -> Any:
        give_up_at = time.monotonic() + self._reconnect_timeout_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                if self._link is None:
                    self._link = self._open(
                        time.monotonic() + min(self._timeout_s, max(self._reconnect_timeout_s, 1.0))
                    )
                return self._ask(self._link, request, time.monotonic() + self._timeout_s)
            except AuthError:
                raise
            except (ConnectionLost, ConnectError) as error:
                self._drop()
                if self.metadata.has_memory and isinstance(error, ConnectionLost):
                    raise ConnectionLost(
                        f"the connection to {self._address} broke ({error}), and with it went what the policy "
                        "remembered; reset the episodes to go on"
                    ) from error
                if time.monotonic() + pause_s > give_up_at:
                    raise ConnectionLost(
                        f"the policy server at {self._address} is lost ({error}); tried again for "
                        f"{self._reconnect_timeout_s:g} s. Is it running, and is this its dialect? Its log tells"
                    ) from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _rows(self, observation: ObservationBatch, episode_ids: Sequence[str]) -> int:
        """B, after checking what is known of the observation; InputError says what is wrong with it."""
        if self.metadata.observation:
            check_batch(observation, self.metadata)
        for name, value in observation.items():
            if not isinstance(value, (list, tuple, np.ndarray)) or len(value) != len(episode_ids):
                raise InputError(f"{name!r} does not hold one value for each of the {len(episode_ids)} episodes")
        return len(episode_ids)

    def _finish(self, actions: Any, rows: int) -> Chunk:
        """(rows, K, D) actions as a chunk of ours; PolicyError when they are none."""
        chunk = np.ascontiguousarray(actions, np.float32)
        known = self.metadata.action_size
        if chunk.ndim != 3 or len(chunk) != rows or 0 in chunk.shape or (known and chunk.shape[2] != known):
            raise PolicyError(
                f"{self._address} replied with actions of shape {chunk.shape}; (B, K, D) with B = {rows}"
                f"{f' and D = {known}' if known else ''} is allowed"
            )
        if not np.isfinite(chunk).all():
            raise PolicyError(f"{self._address} replied with actions that are not finite numbers")
        self._learn(chunk)
        return chunk if self._chunk_size is None else np.ascontiguousarray(chunk[:, : self._chunk_size])

    def _learn(self, chunk: Chunk) -> None:
        if not self.metadata.action_names:
            names = tuple(f"action{index}" for index in range(chunk.shape[2]))
            self.metadata = replace(self.metadata, action_names=names, chunk_size=chunk.shape[1])
        elif chunk.shape[1] > self.metadata.chunk_size:
            self.metadata = replace(self.metadata, chunk_size=chunk.shape[1])

"""The one stream to what runs behind a `launch=` prefix, before it becomes a relay: programs, one after another."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from remote_env.errors import ConnectionLost, DeadlineExceeded, RemoteEnvError, StartError
from remote_env.ssh.command import RunningCommand
from remote_env.ssh.connection import SshConnection
from remote_env.ssh.programs import BOOTSTRAP, DATA_IS_ASKED_FOR, LAUNCH, RELAY, RELAY_LOADER
from remote_env.ssh.scripts import Lines, compose, parse_answer, pieces, read_and_run
from remote_env.ssh.shell import Progress, Sent

RELAY_FILE = Path(__file__).parents[1] / "server" / "relay.py"
TICK_S = 0.5  # how often a prefix that has not let us in yet is looked at
SAID_LINES = 20


class Inside:
    """The bootstrap's end of the stream, before it becomes a relay."""

    def __init__(
        self, connection: SshConnection, launch: str, name: str, deadline: float, on_progress: Progress | None
    ) -> None:
        self.name = name
        self._is_open = True
        self._lines = Lines()
        self._said: deque[str] = deque(maxlen=SAID_LINES)
        self._outside = ""
        self.shares_network = False
        self.busy = threading.Lock()
        source = compose(LAUNCH, {"launch": launch, "bootstrap": BOOTSTRAP}, "")
        self.carrier: RunningCommand = connection.start_command(read_and_run(source), stdin=None, deadline=deadline)
        try:
            self.carrier.send_all([source], deadline)
            self._wait_inside(launch, deadline, on_progress)
        except BaseException:
            self.close()
            raise

    def _wait_inside(self, launch: str, deadline: float, on_progress: Progress | None) -> None:
        while True:
            try:
                line = self.read_line(min(deadline, time.monotonic() + TICK_S))
            except DeadlineExceeded:
                self._note_stderr()
                if on_progress is not None and self._said:
                    on_progress("starting", self._said[-1])
                if time.monotonic() < deadline:
                    continue
                raise DeadlineExceeded(f"{self.name} did not run our shell in time; {self._last_words()}") from None
            word, rest = parse_answer(line) or ("", "")
            if word == "outside":
                self._outside = rest
            elif word == "inside":
                self.shares_network = bool(rest.strip()) and rest == self._outside
                return
            elif word in ("left", "refusal"):
                raise self._not_let_in(launch, word, rest)
            elif line.strip():
                self._said.append(line.strip())

    def _not_let_in(self, launch: str, word: str, rest: str) -> StartError:
        self._note_stderr()
        if word == "refusal":
            return StartError(f"{self.name}: {rest}")
        what = "was not found" if rest == "127" else f"ended with status {rest} before it ran our shell"
        return StartError(
            f"launch={launch!r} {what}; {self._last_words()}. It must run `sh -c <program>` and pass its input and "
            "output on, as `docker exec -i <container>` does",
            log_tail="\n".join(self._said),
            phase="starting",
        )

    def _note_stderr(self) -> None:
        text = self.carrier.take_stderr().decode(errors="replace")
        self._said.extend(line.strip() for line in text.splitlines() if line.strip())

    def _last_words(self) -> str:
        return f"it said: {' | '.join(self._said)[-600:]}" if self._said else "it said nothing"

    @property
    def is_open(self) -> bool:
        """Whether programs can be tried; not so once `stop_using` was called, or the login under it has ended."""
        return self._is_open and self.carrier.is_open

    def stop_using(self) -> None:
        """No more programs of its own."""
        self._is_open = False

    def read_line(self, deadline: float) -> str:
        """The next line.

        Raises:
            DeadlineExceeded: none came in time.
            ConnectionLost: the stream ended.
        """
        while (line := self._lines.take()) is None:
            data = self.carrier.read_some(deadline)
            if not data:
                self._is_open = False
                self._note_stderr()
                raise ConnectionLost(f"the stream to {self.name} ended; {self._last_words()}")
            self._lines.add(data)
        return line.rstrip("\r")

    def start(
        self, program: str, variables: Mapping[str, object], data: bytes, deadline: float, sent: Sent | None
    ) -> RunningInside:
        """Run `program`; see `Shell.start`."""
        if not self.busy.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            raise DeadlineExceeded(f"{self.name} was still busy with another program at the deadline")
        try:
            running = RunningInside(self, secrets.token_hex(8))
            running.feed(compose(program, variables, DATA_IS_ASKED_FOR), data, deadline, sent)
        except BaseException:
            self.close()
            self.busy.release()
            raise
        return running

    def start_relay(self, interpreter: str, pid: int, start_time: str, deadline: float) -> tuple[bytes | None, str]:
        """Turn the stream into a relay's.

        Returns:
            What has come of its frames, None when this interpreter cannot run it; what it said.

        Raises:
            StartError: that process does not run in there.
        """
        source = RELAY_FILE.read_bytes()
        variables = {"pid": pid, "start": start_time, "interpreter": interpreter, "loader": RELAY_LOADER}
        said = []
        with self.start(RELAY, {**variables, "size": len(source)}, source, deadline, None) as running:
            while (line := running.read_line(deadline)) is not None:
                word, _ = parse_answer(line) or ("", "")
                if word == "relay":
                    running.becomes_relay()
                    return self._lines.take_bytes(), ""
                if word == "gone":
                    raise StartError(
                        f"process {pid}, the server, does not run in {self.name}; was it another job or node?",
                        nothing_listens=True,
                    )
                said.append(line)
        self._note_stderr()
        return None, " | ".join([*said, *self._said])[-300:]

    def close(self) -> None:
        """End the stream; never raises."""
        self._is_open = False
        with contextlib.suppress(RemoteEnvError):
            self.carrier.send_all([b"exit\n"], time.monotonic() + 1.0)
        self.carrier.close()


class RunningInside:
    """One program of the bootstrap's. See `Running`."""

    def __init__(self, inside: Inside, nonce: str) -> None:
        self._inside = inside
        self._nonce = nonce
        self._early: deque[str] = deque()
        self._status: int | None = None
        self._is_relay = False

    def __enter__(self) -> RunningInside:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is None and not self._is_relay:
            self._inside.close()  # it runs on, and what it says would be taken for the next one's words
        self._inside.busy.release()

    def becomes_relay(self) -> None:
        """Its output is a relay's frames from now on."""
        self._is_relay = True

    def feed(self, source: bytes, data: bytes, deadline: float, sent: Sent | None) -> None:
        """Send the program, and its data when it asks for them."""
        carrier = self._inside.carrier
        carrier.send_all([f"run {len(source)} {self._nonce}\n".encode(), source], deadline)
        while data and (line := self._read(deadline)) is not None:
            if parse_answer(line) == ("give", ""):
                for piece in pieces(data, sent):
                    carrier.send_all([piece], deadline)
                return
            self._early.append(line)

    def read_line(self, deadline: float) -> str | None:
        """See `Running.read_line`."""
        return self._early.popleft() if self._early else self._read(deadline)

    def _read(self, deadline: float) -> str | None:
        if self._status is not None:
            return None
        line = self._inside.read_line(deadline)
        word, rest = parse_answer(line) or ("", "")
        nonce, _, status = rest.partition(" ")
        if word == "done" and nonce == self._nonce:
            self._status = int(status)
            return None
        if word == "left":
            self._inside.stop_using()
            raise ConnectionLost(f"the stream to {self._inside.name} ended with status {rest}")
        return line

    def ending(self, deadline: float) -> tuple[int, str]:  # noqa: ARG002  it has ended
        """See `Running.ending`."""
        return (-1 if self._status is None else self._status), ""

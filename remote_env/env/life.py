"""The life of a RemoteEnv: the way to its host, the server, the session, and their ends."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from remote_env.env.arguments import Arguments
from remote_env.env.clients import describe_client, end_deserted, locate_client
from remote_env.env.ending import end_at_exit, end_by_signals, has_ended
from remote_env.env.places import Place, PlaceOptions, open_place
from remote_env.env.progress import StartProgress
from remote_env.env.server import STOP_TIMEOUT_S, Server
from remote_env.env.starting import Search, log_differences
from remote_env.env.task import TaskChoice
from remote_env.errors import ConfigError, ConnectError, DeadlineExceeded, RemoteEnvError, StartError
from remote_env.session import ControlLink, LinkOptions, Monitor, TaskSession, remote_logger

log = logging.getLogger("remote_env")

KEPT_BEYOND_S = 10.0

S = TypeVar("S", bound=TaskSession)


class Life(Generic[S]):
    """What a RemoteEnv holds, from its first use to its end.

    Args:
        arguments: of the environment.
        task: what is to run.
        open_session: makes a session, with the arguments of `TaskSession`.

    Attributes:
        task: what runs.
        place: the way to the host, once prepared.
        server: found or started.
        session: open.
        monitor: watches the session, when somebody has to.
        progress: of the start that goes on.
        is_closed: for good.
    """

    def __init__(self, arguments: Arguments, task: TaskChoice, open_session: Callable[..., S]) -> None:
        self.arguments, self.task, self._open_session_with = arguments, task, open_session
        self.place: Place | None = None
        self.server: Server | None = None
        self.session: S | None = None
        self.monitor: Monitor | None = None
        self.progress: StartProgress | None = None
        self.is_closed = False
        self._pid = os.getpid()
        self._bookmark: tuple[int, int] | None = None  # up to where the server's log has been passed on
        self._is_kept = False
        self._lost = ""  # the id of the session before
        self._of_parent: S | None = None

    @property
    def is_ours(self) -> bool:
        """Whether this process made it; a forked child's copy is its parent's."""
        return self._pid == os.getpid()

    def check_usable(self) -> None:
        """ConfigError when it is closed, or another process's."""
        if self.is_closed:
            raise ConfigError("this environment is closed; make a new one")
        if not self.is_ours:
            raise ConfigError("this environment was made in another process; make it in the one that uses it")

    # Starting

    def start(self) -> None:
        """Find or start the server, and open a session with it, unless that is done already."""
        if self.session is None:
            self.check_usable()
            with self._reporting():
                self.start_server()
                self.connect()

    def prepare_way(self) -> Place:
        """The place where servers run; nothing is connected yet."""
        if self.place is None:
            self.check_usable()
            names = PlaceOptions.__dataclass_fields__
            options = {name: value for name, value in self.arguments.to_plain().items() if name in names}
            if self.arguments.ask_secret is not None:
                options["ask_secret"] = self._ask_secret
            self.place = open_place(self.arguments.host, PlaceOptions(**options))
        return self.place

    def _ask_secret(self, prompt: Any) -> str | None:
        """Have the user asked, where no status line is drawn over the question."""
        ask, progress = self.arguments.ask_secret, self.progress
        assert ask is not None  # noqa: S101  prepare_way saw it
        with progress.hidden() if progress is not None else contextlib.nullcontext():
            return ask(prompt)

    def start_server(self, besides: frozenset[int] = frozenset(), *, cleanup_old: bool | None = None) -> None:
        """Find the server, or start one; nothing when that is done already.

        Args:
            besides: ports of servers that are not wanted.
            cleanup_old: instead of the argument of that name.
        """
        if self.server is not None:
            return
        self.check_usable()
        self._check_something_to_run()
        with self._reporting() as progress, contextlib.ExitStack() as undo:
            place = self.prepare_way()
            undo.callback(self.end)
            end_at_exit(self)
            if place.is_remote:
                end_by_signals(self)
            cleanup_old = self.arguments.cleanup_old if cleanup_old is None else cleanup_old
            search = Search(place, self.task, self.arguments, progress, besides)
            self.server = search.find_or_start(cleanup_old=cleanup_old)
            undo.pop_all()

    def _check_something_to_run(self) -> None:
        arguments = self.arguments
        if self.task.env is None and self.task.policy is not None:
            raise ConfigError(
                "policy= goes with the task that a server is started for: name that with env= too. What a running "
                "server has beside its task, it has had from its start"
            )
        attaches_only = arguments.host is not None and arguments.host.startswith("tcp://")
        if self.task.env is None and arguments.port is None and arguments.session is None and not attaches_only:
            raise ConfigError(
                "nothing to run: name the task with env= (or REMOTE_ENV_TASK), or a server's port= to take what it has"
            )

    @contextlib.contextmanager
    def _reporting(self) -> Any:
        """The progress of a start, shown until it ends; one inside another is the same."""
        if self.progress is not None:
            yield self.progress
            return
        arguments = self.arguments
        what = f"{self.task.label} on {arguments.host or 'this machine'}"
        self.progress = StartProgress(
            what, arguments.start_timeout_s, show=arguments.progress, on_progress=arguments.on_progress
        )
        try:
            with self.progress:
                yield self.progress
        except (DeadlineExceeded, StartError) as error:
            told = self.progress.explain(error)
            if told is error:
                raise
            raise told from error
        finally:
            self.progress = None

    def connect(self) -> None:
        """Open a session with the server, and wait for its simulator; when that fails everything is ended."""
        try:
            with self._reporting() as progress:
                self._open_session(progress)
        except BaseException:
            self.end()
            raise

    def _open_session(self, progress: StartProgress) -> None:
        """Open a session, with another server when this one was warm and is taken, or gone, meanwhile."""
        taken: frozenset[int] = frozenset()
        while True:
            server = self.server
            assert server is not None  # noqa: S101  start_server set it
            try:
                self._open(server, progress)
            except ConnectError as error:
                self._leave_monitor()
                if self._end_sessions_of_the_dead(server, error, progress.deadline):
                    continue
                is_warm = self.arguments.reuse and not server.started and server.port not in taken
                if not is_warm or isinstance(error, StartError):
                    raise
                log.info("%s was warm and cannot be had: %s", server.where, error)
                taken |= {server.port}
                self.server = None
                self.start_server(taken)
            except BaseException:
                self._leave_monitor()
                raise
            else:
                return

    def _end_sessions_of_the_dead(self, server: Server, busy: ConnectError, deadline: float) -> bool:
        """Whether a server that is full has sessions that nobody can come back for; they are ended.

        Those are the one that we lost, and those of programs of this machine that have died.
        """
        cut_off = getattr(busy, "cut_off", None)
        if not cut_off:
            return False
        link = ControlLink(server.dial, server.token, deadline, session=None, client="")
        with contextlib.closing(link):
            ended = end_deserted(link, cut_off, deadline, self._lost)
            link.status()  # answered after these
        if ended:
            log.info("ended the session of %s on %s: its program is gone", ended[0], server.where)
        return bool(ended)

    def _open(self, server: Server, progress: StartProgress) -> None:
        self.check_usable()
        is_named = not server.started and self.task.env is not None  # else what it serves is what we want
        digest = self.task.specify(self.prepare_way(), progress.deadline).digest if is_named else None
        session = self._open_session_with(
            server.dial,
            server.token,
            progress.deadline,
            client=describe_client(),
            client_at=locate_client(),
            digest=digest,
            asked=self.task.label,
            num_envs=self.task.num_envs,
            lease_s=self._lease_s(server),
            link=self._link_options(server),
            delivery=self.arguments.delivery,
            codecs=self.arguments.codecs if isinstance(self.arguments.codecs, str) else None,
            is_near=self.arguments.host in (None, "local"),
            on_open=self._watch,
            on_status=progress.report_status,
        )
        log_differences(session.ready["facts"])
        self.session = session

    def _lease_s(self, server: Server) -> float | None:
        """How long the session is to outlive our pings; one of an embedded server ends with us anyway."""
        return self.arguments.lease_timeout_s if server.can_stay else None

    def _link_options(self, server: Server) -> LinkOptions:
        arguments = self.arguments
        return LinkOptions(
            resume=arguments.resume == "auto",
            reconnect_timeout_s=arguments.reconnect_timeout_s,
            keep_s=self._kept_s,
            on_link=arguments.on_link,
            where=server.where,
        )

    @property
    def _kept_s(self) -> float:
        """How long the server keeps a session that it has no link to [s]."""
        arguments = self.arguments
        if arguments.resume != "auto":
            return 0.0
        # The server may notice the cut before we do, and its clock starts then.
        return arguments.reconnect_timeout_s + arguments.heartbeat_timeout_s + KEPT_BEYOND_S

    def _cut_session(self, why: str) -> None:
        """The server is silent: have the session's link made anew."""
        session = self.session
        if session is not None:
            session.cut(why)

    def _watch(self, control: ControlLink) -> None:
        """Have the new session watched, by a link of its own."""
        server, host = self.server, host_name(self.arguments.host)
        assert server is not None  # noqa: S101  it was dialled
        lease_s = self._lease_s(server)
        if lease_s is None and not remote_logger(host).isEnabledFor(logging.INFO):
            return
        problems_after, lines_from = self._bookmark or ((0, 0) if server.started else _end_of_log(control))
        self.monitor = Monitor(
            server.dial,  # logs in anew after a cut, asking nobody: nobody else would while the client computes
            server.token,
            session=control.welcome["session"],
            lease_s=lease_s,
            host=host,
            heartbeat_s=self.arguments.heartbeat_s,
            heartbeat_timeout_s=self.arguments.heartbeat_timeout_s,
            on_silence=self._cut_session,
            problems_after=problems_after,
            lines_from=lines_from,
        )

    # Starting again

    def renew(self) -> None:
        """After a lost session: a new one with the same server, or with a new server when that one is gone."""
        self._leave_monitor()
        session, self.session = self.session, None
        if session is not None:
            self._lost = session.control.welcome["session"]
            session.close()
        if self.server is not None:
            try:
                with self._reporting() as progress:
                    self._open_session(progress)
            except ConnectError as error:
                where = self.server.where if self.server else "the server"
                self.end()
                if isinstance(error, StartError):
                    raise
                log.info("%s is gone, or has no session free; starting anew: %s", where, error)
            except BaseException:
                self.end()
                raise
        self.start()

    def restart(self) -> None:
        """Kill the simulator, and open a new session with the same server, or with a new one when that is gone."""
        if self.session is None:
            self.start()
            return
        self._kill_simulator(self.session)
        self.renew()
        log.warning("%s was restarted as asked: its episode is gone; call reset() to begin another", self.task.label)

    def _kill_simulator(self, session: S) -> None:
        try:
            session.control.kill(time.monotonic() + STOP_TIMEOUT_S)
        except RemoteEnvError as lost:
            log.info("the session's link is lost (%s): its simulator is killed by another", lost)
            try:
                self._kill_from_outside(session.control.welcome["session"])
            except RemoteEnvError as error:
                log.info("the simulator could not be killed: %s", error)

    def _kill_from_outside(self, session: str) -> None:
        server, deadline = self.server, time.monotonic() + STOP_TIMEOUT_S
        assert server is not None  # noqa: S101  there is a session with it
        link = ControlLink(server.dial, server.token, deadline, session=None, client="")
        with contextlib.closing(link):
            # A session that ended with its link leaves a simulator that still works for it; others' are not touched.
            if not link.kill(deadline, session) and not link.status()["sessions"]:
                link.kill(deadline)

    # Ending

    def end(self, *, keep: bool = False) -> None:
        """End or leave everything; what a Ctrl-C keeps from ending can be ended by another call.

        Args:
            keep: leave the server that we started running.
        """
        if not self.is_ours:
            return
        monitor, self.monitor = self.monitor, None
        with contextlib.ExitStack() as steps:  # from the last to the first, whatever becomes of each
            if monitor is not None:
                steps.callback(monitor.join)
            steps.callback(self._forget_place)
            steps.callback(self._end_server, keep=keep)
            steps.callback(self._leave_session, keep=keep)
            if monitor is not None:
                monitor.stop()
        has_ended(self)

    def close(self, keep: bool | None = None) -> None:
        """End it for good; see `RemoteEnv.close`."""
        if not self.is_ours:
            return
        keep = self.arguments.keep if keep is None else keep
        if keep and self.server is not None and self.server.started and not self.server.can_stay:
            raise ConfigError(
                "this server ends with this process, so it cannot be kept; make the environment with keep=True, or "
                "close() it"
            )
        self.is_closed = True
        self.end(keep=keep)

    def _leave_monitor(self) -> None:
        monitor, self.monitor = self.monitor, None
        if monitor is not None:
            monitor.stop()
            monitor.join()
            self._bookmark = monitor.bookmark

    def _leave_session(self, *, keep: bool) -> None:
        session, server = self.session, self.server
        if session is None:
            return
        try:
            if server is not None and server.started:
                deadline = time.monotonic() + STOP_TIMEOUT_S
                session.control.keep(deadline) if keep else session.control.stop_server(deadline)
                self._is_kept = keep
        except RemoteEnvError as error:
            log.debug("the server could not be asked to %s: %s", "stay" if keep else "stop", error)
        finally:
            session.close()
        self.session = None

    def _end_server(self, *, keep: bool) -> None:
        server = self.server
        if server is not None and server.started:
            deadline = time.monotonic() + STOP_TIMEOUT_S  # of its own: the link may have used up the other
            try:
                self._keep(server, deadline) if keep else server.stop(deadline)
            except RemoteEnvError as error:
                log.warning(
                    "%s cannot be reached to %s; it ends %g s after it loses us: %s",
                    server.where,
                    "keep it" if keep else "stop",
                    self._kept_s + self.arguments.idle_timeout_s,
                    error,
                )
        self.server, self._bookmark, self._is_kept = None, None, False

    def _keep(self, server: Server, deadline: float) -> None:
        if self._is_kept:
            return
        link = ControlLink(server.dial, server.token, deadline, session=None, client="")
        try:
            link.keep(deadline)
        finally:
            link.close()

    def _forget_place(self) -> None:
        place, self.place = self.place, None
        if place is not None:
            place.close()

    def let_go(self) -> None:
        """In a forked child: the parent's session and server are not ours to use, end or keep open."""
        # Held for ever: were it dropped, its SSH channels' finalisers would write into the parent's connection.
        self._of_parent, self.session = self.session, None
        session = self._of_parent
        if self.monitor is not None:
            self.monitor.let_go()
        if session is not None:
            session.let_go()
        if self.server is not None:
            self.server.let_go()


def host_name(host: str | None) -> str:
    """The machine's name alone, without user and port: "ssh://ann@box:2222" is "box"."""
    name = (host or "local").rpartition("://")[2].rpartition("@")[2]
    head, colon, port = name.rpartition(":")
    return head if colon and port.isdecimal() else name


def _end_of_log(control: ControlLink) -> tuple[int, int]:
    """The number of the last problem in the log, and where the log ends."""
    return int(control.status().get("problems", 0)), control.log_tail(1).next

"""RemoteEnv: a `gymnasium.Env` whose simulator runs on another machine."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
from gymnasium.envs.registration import EnvSpec

from remote_env.env.places import Place, PlaceOptions, open_place
from remote_env.env.server import STOP_TIMEOUT_S, Server
from remote_env.env.starting import describe_client, find_or_start, log_differences
from remote_env.env.task import LocalFolder, TaskChoice
from remote_env.errors import ConfigError, InputError, RemoteEnvError, Unsupported
from remote_env.session import Session
from remote_env.state import SceneState

log = logging.getLogger("remote_env")


class _Metadata:
    """The class's own metadata, which `gymnasium.make` reads; on an instance the task's, from the server."""

    of_class: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array", "rgb_array_list", "ansi"]}

    def __get__(self, instance: RemoteEnv | None, owner: type) -> dict[str, Any]:
        return self.of_class if instance is None else instance._task_metadata()


class RemoteEnv(gymnasium.Env[Any, Any]):
    """An ordinary Gymnasium environment whose simulator lives on another machine.

    The server starts at first use (or on `with`); `close()` ends what this client started and only detaches from what
    it attached to.

    Args:
        host: where the server runs. None or "local": this machine, over a Unix socket. "user@box",
            "ssh://user@box:2222" or a name of `~/.ssh/config`: over SSH. "tcp://127.0.0.1:8888": attach only.
        port: the task server's port on the host: attach to our server that listens there, or start one there. None:
            start one on a free port.
        env: the task: a registered id, "module:id", "module:function", "file.py:function", or a callable that makes
            the environment (it travels by cloudpickle, over our own SSH connection, to the server that we start), or
            a `LocalFolder` with a Python file of yours that has `make_env(**env_kwargs)` (it is sent along).
            None: take what the server at `port` serves; `REMOTE_ENV_TASK` may set a default.
        env_kwargs: keyword arguments for the task. A `LocalFolder` among them is sent along, by content, once.
        simulator: "gymnasium", or "module:Class" with a `Backend`.
        render_mode: passed to the task.
        capture_state: have each step and reset bring the `SceneState` with it, so that `get_state()` costs no
            round trip.
        python: the interpreter that serves, as a command line; default `python3` over SSH, our own locally.
        upload: local modules, packages or folders of them that the far end is to be able to import.
        server_env: environment variables for the server.
        cwd: the server's working folder.
        allow_calls: names of the task that `call` may reach besides those that it opens itself.
        max_sessions: how many clients a server that we start takes at once, each with a simulator of its own.
        start_timeout_s: for a start, uploads and a slow simulator included [s].
        reset_timeout_s: for one reset [s].
        step_timeout_s: for any other call [s].
        idle_timeout_s: how long a server over SSH outlives its last client [s]; a local one dies with its client.
        busy_poll_s: how long a local receive spins before it sleeps [s].
        token: of a server that somebody else started; default `REMOTE_ENV_TOKEN`, or the file that it keeps.
        ssh_port: the SSH port (`port` is the task server's).
        identity_file: private key to log in with.
        accept_new_host_key: trust a host never seen before.
        known_hosts_file: default `~/.ssh/known_hosts`.
        ssh_config_file: default `~/.ssh/config`.
        connect_timeout_s: for one SSH login [s].
        on_progress: told in words what a start is doing.
    """

    metadata = _Metadata()

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        env: str | Callable[..., Any] | LocalFolder | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        simulator: str = "gymnasium",
        render_mode: str | None = None,
        capture_state: bool = False,
        python: str | None = None,
        upload: Sequence[str | os.PathLike[str]] = (),
        server_env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        allow_calls: Sequence[str] = (),
        max_sessions: int = 1,
        start_timeout_s: float = 1200.0,
        reset_timeout_s: float = 600.0,
        step_timeout_s: float = 120.0,
        idle_timeout_s: float = 600.0,
        busy_poll_s: float = 0.0,
        token: str | None = None,
        ssh_port: int | None = None,
        identity_file: str | None = None,
        accept_new_host_key: bool = False,
        known_hosts_file: str | None = None,
        ssh_config_file: str | None = None,
        connect_timeout_s: float = 30.0,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self._arguments["token"] = None if token is None else _Secret(token)
        self._pid = os.getpid()
        self._session: Session | None = None
        self._server: Server | None = None
        self._place: Place | None = None
        self._spec: EnvSpec | None = None
        self._is_closed = False
        self._step_timeout_s, self._reset_timeout_s = step_timeout_s, reset_timeout_s
        self._capture_state = capture_state
        self.render_mode = render_mode
        kwargs = dict(env_kwargs or {})
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        self._task = TaskChoice(env if env is not None else os.environ.get("REMOTE_ENV_TASK"), kwargs, simulator)
        self._check_port(port)

    def _check_port(self, port: int | None) -> None:
        if port is not None and not (isinstance(port, int) and 0 < port < 65536):
            raise ConfigError(f"port={port!r}: the task server's port is a number from 1 to 65535")

    # Starting

    def start(self) -> RemoteEnv:
        """Start or attach, and connect, unless that is done already; returns self.

        Raises:
            ConfigError: the task or an argument cannot be had as asked.
            ConnectError: the host cannot be reached (HostKeyError, AuthError), or the server does not start
                (StartError).
            TaskError: the task raised while it was made.
            DeadlineExceeded: not ready within `start_timeout_s`.
        """
        if self._session is None:
            self._check_usable()
            self.start_remote_server()
            self._open_session()
        return self

    def start_remote_server(
        self,
        server_script: str | None = None,
        task_name: str | None = None,
        num_envs: int = 1,
        simulator: str | None = None,
    ) -> RemoteEnv:
        """Find the server at `port`, or start one; nothing when that is done already.

        Args:
            server_script: a local Python file with a `make_env(**kwargs)`, which is sent along and serves.
            task_name: the task, instead of `env=`.
            num_envs: 1; batches are `RemoteVectorEnv`'s.
            simulator: instead of `simulator=`.
        """
        if self._server is not None:
            return self
        self._check_usable()
        if num_envs != 1:
            raise Unsupported(f"num_envs={num_envs}: a RemoteEnv holds one environment")
        if server_script is not None:
            self._task = TaskChoice(LocalFolder(server_script), self._task.kwargs, self._task.simulator)
        self._task = self._task.replaced(task_name, simulator)
        self._check_something_to_run()
        self._deadline = time.monotonic() + self._arguments["start_timeout_s"]
        with contextlib.ExitStack() as undo:
            place = self.setup_tunnel()
            undo.callback(self._forget_place)
            self._server = find_or_start(place, self._task, self._arguments, self._deadline, self._note)
            undo.pop_all()
        _open_environments.add(self)
        return self

    def _check_something_to_run(self) -> None:
        host, port = self._arguments["host"], self._arguments["port"]
        attaches_only = host is not None and host.startswith("tcp://")
        if self._task.env is None and port is None and not attaches_only:
            raise ConfigError(
                "nothing to run: name the task with env= (or REMOTE_ENV_TASK), or a server's port= to take what it has"
            )

    def setup_tunnel(self) -> Place:
        """Prepare the way to the host; nothing when that is done already. Connections open when they are needed."""
        if self._place is None:
            self._check_usable()
            names = PlaceOptions.__dataclass_fields__
            options = {name: value for name, value in self._arguments.items() if name in names}
            self._place = open_place(self._arguments["host"], PlaceOptions(**options))
        return self._place

    def connect(self) -> RemoteEnv:
        """Open a session with the server, and wait for its simulator; nothing when that is done already."""
        if self._session is not None:
            return self
        if self._server is None:
            return self.start()
        self._check_usable()
        self._deadline = time.monotonic() + self._arguments["start_timeout_s"]  # the server may have run for long
        return self._open_session()

    def _check_usable(self) -> None:
        if self._is_closed:
            raise ConfigError("this environment is closed; make a new one")
        if self._pid != os.getpid():
            raise ConfigError("this environment was made in another process; make it in the one that uses it")

    def _open_session(self) -> RemoteEnv:
        server = self._server
        assert server is not None  # noqa: S101  start_remote_server set it
        try:
            is_named = not server.started and self._task.env is not None  # else what it serves is what we want
            digest = self._task.specify(self.setup_tunnel(), self._deadline).digest if is_named else None
            self._session = Session(
                server.dial,
                server.token,
                self._deadline,
                client=describe_client(),
                digest=digest,
                asked=self._task.label,
                on_status=self._report,
            )
        except BaseException:
            self._stop_all()
            raise
        log_differences(self._session.ready["facts"])
        self.render_mode = self._session.ready["render_mode"]
        return self

    def _note(self, phase: str, detail: str) -> None:
        self._progress(f"{phase}: {detail}")

    def _progress(self, text: str) -> None:
        log.info("%s", text)
        if self._arguments["on_progress"] is not None:
            self._arguments["on_progress"](text)

    def _report(self, status: dict[str, Any]) -> None:
        since = f" ({status['since_s']:.0f} s)" if "since_s" in status else ""
        self._progress(f"simulator {status['state']}: {status.get('phase', '')}{since}")

    # The Gymnasium interface

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, as `gymnasium.Env.reset`.

        After `SessionLost` this starts anew: a new session, and a new server if the old one is gone.

        Raises:
            InputError: the options cannot cross; nothing was sent.
            TaskError: the task raised; the session stays usable.
            DeadlineExceeded: no answer within `reset_timeout_s`.
            SessionLost: the simulator died meanwhile.
        """
        super().reset(seed=seed)
        if self._session is not None and self._session.is_lost is not None:
            self._stop_all()
        session = self._running()
        transition = session.reset(seed, options, self._reset_timeout_s, want_state=self._capture_state)
        return transition[0], transition[4]

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Send one action and return the task's next transition.

        Args:
            action: in the task's own action space; passed on unclipped, in the dtype it has.

        Returns:
            observation, reward, terminated, truncated, info, as `gymnasium.Env.step`.

        Raises:
            InputError: the action's shape or kind is not the task's, or it is not finite; nothing was sent.
            TaskError: the task raised; `remote_traceback` holds where.
            DeadlineExceeded: no reply within `step_timeout_s`; the step may still run: `resume()` settles it.
            SessionLost: the simulator that held this episode is gone; reset to start a new one.
        """
        session = self._session
        if session is None:
            session = self._running()
        return session.step(action, self._step_timeout_s, want_state=self._capture_state)

    def render(self) -> Any:
        """What the task renders in its render mode; one round trip."""
        return self._running().render(self._step_timeout_s)

    def close(self) -> None:
        """End what this client started, or detach from what it attached to; may be called again."""
        if self._pid != os.getpid():
            return  # a forked child's copy: the parent's session is not ours to end
        self._is_closed = True
        self._stop_all()

    @property
    def observation_space(self) -> gymnasium.Space[Any]:  # type: ignore[override]
        """The task's, from the server; starts it."""
        return self._running().observation_space

    @property
    def action_space(self) -> gymnasium.Space[Any]:  # type: ignore[override]
        """The task's, from the server; starts it."""
        return self._running().action_space

    # More than Gymnasium asks for

    def get_state(self, *, native: bool = False) -> SceneState:
        """The scene now; no round trip when the last step brought it (`capture_state=True`).

        Args:
            native: also bytes by which `set_state` restores the same simulator exactly.

        Raises:
            Unsupported: the task has no scene state.
        """
        session = self._running()
        if session.state is not None and not native:
            return SceneState(session.state.layout, session.state.values.copy())  # the caller's own, to change
        return session.get_state(self._step_timeout_s, native=native)

    def set_state(self, state: SceneState) -> None:
        """Put the task's scene into `state`.

        Raises:
            Unsupported: the task cannot.
            TaskError: the state does not fit the task's scene.
        """
        self._running().set_state(state, self._step_timeout_s)

    def resume(self) -> tuple[Any, Any, bool, bool, dict[str, Any]] | None:
        """Wait for the step that a deadline or Ctrl-C cut short; its transition, None when there is none."""
        return None if self._session is None else self._session.resume(self._step_timeout_s)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Read an attribute of the task, or call a method, by a name that the server opens to clients.

        Raises:
            InputError: the name is not open; the message lists those that are.
        """
        return self._running().call(name, args, kwargs, self._step_timeout_s)

    def get_wrapper_attr(self, name: str) -> Any:
        """An attribute of this object, or of the task by `call`."""
        if name in self.__dict__ or hasattr(type(self), name):
            return getattr(self, name)
        try:
            return self.call(name)
        except InputError as error:
            raise AttributeError(str(error)) from error

    def has_wrapper_attr(self, name: str) -> bool:
        """Whether `get_wrapper_attr` finds it."""
        if name in self.__dict__ or hasattr(type(self), name):
            return True
        return self._session is not None and name in self._session.ready["callable_names"]

    def logs(self, lines: int = 100) -> str:
        """The last `lines` lines of the server's log; also after the simulator's death."""
        if self._session is not None:
            with contextlib.suppress(RemoteEnvError):
                return self._session.control.logs(lines)
        return self._server.log_tail(lines) if self._server is not None else ""

    def status(self) -> dict[str, Any]:
        """What the simulator does now, answered by its supervisor even while it works."""
        return self._running().control.status()

    @property
    def facts(self) -> dict[str, str]:
        """Versions and kind of the far interpreter."""
        return dict(self._running().ready["facts"])

    @property
    def remote_spec(self) -> dict[str, Any]:
        """Facts of the task's own spec on the far end: id, max_episode_steps, reward_threshold, nondeterministic."""
        return dict(self._running().ready["spec"])

    @property
    def spec(self) -> EnvSpec:
        """What `gymnasium.make` needs to make this *remote* environment again; the far one's is `remote_spec`."""
        if self._spec is None:
            kwargs = self._given_arguments()
            entry_point = "remote_env.env:RemoteEnv"
            # As registration.py does: the far end checks the order of calls.
            return EnvSpec("Remote-v0", entry_point, disable_env_checker=True, order_enforce=False, kwargs=kwargs)
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec) -> None:
        self._spec = spec
        if spec.kwargs.get("token") is not None:
            spec.kwargs["token"] = _Secret(spec.kwargs["token"])

    # Life

    def _task_metadata(self) -> dict[str, Any]:
        return dict(self._running().ready["metadata"])

    def _running(self) -> Session:
        if self._session is None:
            self.start()
        assert self._session is not None  # noqa: S101  start set it
        return self._session

    def _stop_all(self) -> None:
        """End or leave everything; what a Ctrl-C keeps from ending can be ended by another call."""
        try:
            self._leave_session()
        finally:
            try:
                self._end_server()
            finally:
                self._forget_place()
        _open_environments.discard(self)

    def _leave_session(self) -> None:
        session, server = self._session, self._server
        if session is None:
            return
        try:
            if server is not None and server.started:
                session.control.stop_server(time.monotonic() + STOP_TIMEOUT_S)
        except RemoteEnvError as error:
            log.debug("the server could not be asked to stop: %s", error)
        finally:
            session.close()
        self._session = None

    def _end_server(self) -> None:
        server = self._server
        if server is not None and server.started:
            try:
                server.stop(time.monotonic() + STOP_TIMEOUT_S)  # of its own: the link may have used up the other
            except RemoteEnvError as error:
                idle_s = self._arguments["idle_timeout_s"]
                log.warning("%s cannot be reached to stop; it ends %g s after it loses us: %s", server, idle_s, error)
        self._server = None

    def _let_go(self) -> None:
        """In a forked child: the parent's session and server are not ours to use, end or keep open."""
        session, self._session = self._session, None
        if session is not None:
            session.let_go()
        if self._server is not None:
            self._server.let_go()

    def _forget_place(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            place.close()

    def _given_arguments(self) -> dict[str, Any]:
        defaults = {**(RemoteEnv.__init__.__kwdefaults__ or {}), "host": None, "port": None}
        return {name: value for name, value in self._arguments.items() if value is not defaults[name]}

    def __enter__(self) -> RemoteEnv:
        return self.start()

    def __getstate__(self) -> dict[str, Any]:
        if self._session is not None or self._server is not None:
            raise ConfigError(
                "a RemoteEnv that runs cannot be pickled; pickle it before its first use, or make another"
            )
        return self._given_arguments()

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)  # type: ignore[misc]

    def __del__(self) -> None:
        if getattr(self, "_server", None) is not None and self._pid == os.getpid():
            warnings.warn("a RemoteEnv was not closed; use `with`, or call close()", ResourceWarning, stacklevel=2)
            with contextlib.suppress(Exception):
                self.close()

    def __str__(self) -> str:
        return f"<RemoteEnv {self._task.label} on {self._arguments['host'] or 'local'}>"

    __repr__ = __str__


_open_environments: weakref.WeakSet[RemoteEnv] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for env in list(_open_environments):
        env.close()


def _let_go_of_all() -> None:
    for env in list(_open_environments):
        env._let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_of_all)


class _Secret(str):
    """A token that does not show itself where arguments are printed, as in `EnvSpec`'s repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'<token>'"

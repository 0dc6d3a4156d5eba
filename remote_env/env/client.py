"""What `RemoteEnv` and `RemoteVectorEnv` share: a server and a session, and what they tell of both."""

from __future__ import annotations

import abc
import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, overload

from gymnasium.envs.registration import EnvSpec

from remote_env.env.arguments import Arguments
from remote_env.env.life import Life, S
from remote_env.env.local_pixels import LocalPixels
from remote_env.env.local_view import LocalView
from remote_env.env.places import Place
from remote_env.env.processes import Processes
from remote_env.env.task import TaskChoice
from remote_env.env.transport_info import describe_transport
from remote_env.env.watching import RemoteLog, Watch
from remote_env.errors import ConfigError, InputError
from remote_env.protocol.chunks import WANTS, ChunkOptions, Transitions
from remote_env.protocol.vector_step import Transition
from remote_env.state import SceneDescription

if TYPE_CHECKING:
    from typing_extensions import Self

    from remote_env.replay.mirror import Mirror

DEFAULT_STEP_TIMEOUT_S = 120.0
_SHOWN_WITH_CARE = ("token", "policy_kwargs", "ask_secret", "on_progress", "on_link")


class _Metadata:
    """The class's own metadata, which `gymnasium.make` reads; on an instance the task's, from the server."""

    of_class: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array", "rgb_array_list", "ansi"]}

    def __get__(self, instance: Client[Any] | None, owner: type) -> dict[str, Any]:
        return self.of_class if instance is None else instance._task_metadata()


class Client(Generic[S]):
    """A hold on a task server, with the arguments of `RemoteEnv`.

    Args:
        arguments: as the caller gave them.
        task: what is to run.
        open_session: makes a session with the server.
    """

    metadata = _Metadata()
    render_mode: str | None
    _step_timeout_s: float
    _reset_timeout_s: float

    def _set_up(self, arguments: Arguments, task: TaskChoice, open_session: Callable[..., S]) -> None:
        """Note what was asked for; nothing is started."""
        self._arguments = arguments
        self._step_timeout_s = DEFAULT_STEP_TIMEOUT_S if arguments.step_timeout_s is None else arguments.step_timeout_s
        self._reset_timeout_s = arguments.reset_timeout_s
        self._local = LocalView.of(arguments)
        self._pixels = LocalPixels.of(arguments)
        self._draws = self._local is not None or self._pixels is not None
        self._capture_state = arguments.capture_state or self._draws
        self._spec: EnvSpec | None = None
        self.render_mode = arguments.render_mode
        self._life = Life(arguments, task, open_session)
        self._watch = Watch(self._life)

    @classmethod
    @abc.abstractmethod
    def _defaults(cls) -> dict[str, Any]:
        """Of every argument that has one."""

    @classmethod
    @abc.abstractmethod
    def _make_spec(cls, kwargs: dict[str, Any]) -> EnvSpec:
        """By which Gymnasium makes another one with these arguments."""

    # Starting

    def start(self) -> Self:
        """Start or attach, and connect, unless that is done already; returns self.

        Raises:
            ConfigError: the task or an argument cannot be had as asked.
            ConnectError: the host cannot be reached (HostKeyError, AuthError), or the server does not start
                (StartError, with its phase, exit status or signal, and the log's tail).
            TaskError: the task raised while it was made.
            DeadlineExceeded: not ready within `start_timeout_s`; the message says in which phase it was.
        """
        self._running()
        return self

    def _start_server(
        self, server_script: str | None, task_name: str | None, simulator: str | None, cleanup_old: bool | None
    ) -> None:
        """Find the server at `port`, or start one, with what is given instead of what the arguments say."""
        life = self._life
        life.check_usable()
        if server_script is not None:
            life.task = life.task.served_by(server_script, self._arguments.upload)
        life.task = life.task.replaced(task_name, simulator)
        life.start_server(cleanup_old=cleanup_old)

    def setup_tunnel(self) -> Place:
        """Prepare the way to the host; nothing when that is done already. Connections open when they are needed."""
        return self._life.prepare_way()

    def connect(self) -> Self:
        """Open a session with the server, and wait for its simulator; nothing when that is done already."""
        if self._life.session is None:
            self._running()
        return self

    def restart(self) -> Self:
        """Kill the simulator, however it hangs, and begin a session with a fresh one; returns self.

        Its episode is gone: the next call must be `reset()`. The server stays, unless it is gone too; then a new one
        is started. Raises as `start`.
        """
        self._life.restart()
        return self

    def close(self, keep: bool | None = None) -> None:
        """End what this client started, or detach from what it attached to; may be called again.

        Args:
            keep: leave the server that we started running, warm, for a later client: `reuse=True`, `session=` or the
                same `port` takes it. Default: `keep=`.

        Raises:
            ConfigError: it was to be kept, and cannot go on without us; nothing was ended.
        """
        for drawing in (self._local, self._pixels):
            if drawing is not None:
                drawing.close()
        self._life.close(keep)

    # More than Gymnasium asks for

    def get_scene_description(self) -> SceneDescription:
        """What the scene looks like: shapes, and a MuJoCo model if the simulator has one; for replays without a model.

        Raises:
            Unsupported: the task does not tell.
        """
        return SceneDescription.from_plain(self.call("scene_description"))

    def resume(self) -> tuple[Any, Any, Any, Any, dict[str, Any]] | None:
        """Wait for the step that a deadline or Ctrl-C cut short; its transition, None when there is none.

        Of a rollout cut short it is the last transition that ran, if observations were wanted.
        """
        session = self._life.session
        if session is None:
            return None
        transition = session.resume(self._step_timeout_s)
        return None if transition is None else self._finish(transition, session)

    # Steps ahead

    def step_async(self, action: Any) -> None:
        """Send a step without waiting for its result, while others are under way; `step_wait` takes them in order.

        What stands behind a step that ends the episode, or fails, is not run.

        Args:
            action: as for `step`.

        Raises:
            InputError: the action is not the task's, or as many steps are under way as may be; nothing was sent.
            And as `step`.
        """
        self._running().step_async(action, self._step_timeout_s, want_state=self._capture_state)

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """The transition of the first step that is under way, as `step` returns it.

        Raises:
            InputError: none is under way.
            NotRun: it stood behind a step that ended the episode, or failed.
            And as `step`.
        """
        session = self._running()
        return self._finish(session.step_wait(self._step_timeout_s), session)

    def _finish(self, transition: Transition, session: S, keys: Sequence[str] | None = None) -> Transition:
        """What the task's transition is for the caller: its scene shown, and what is drawn here put in."""
        if self._local is not None:
            self._local.show(session.state)
        if self._pixels is None:
            return transition
        began = time.perf_counter()
        observation = self._pixels.complete(transition[0], session.state, keys)
        self._note_drawing(transition[4], began)
        return (observation, *transition[1:])

    def _note_drawing(self, info: dict[str, Any], began: float) -> None:
        """Where times are wanted, count what was drawn here as rendered, too."""
        if self._arguments.timing and "timing" in info:
            info["timing"]["render_s"] += time.perf_counter() - began

    def step_ready(self) -> bool:
        """Whether `step_wait` would find a result that has begun to come; False where it would wait for one."""
        session = self._life.session
        return session is not None and session.step_ready()

    @property
    def captures_state(self) -> bool:
        """Whether resets and steps bring the scene with them."""
        return self._capture_state

    @property
    def step_window(self) -> int:
        """How many steps may be under way at once: fewer where results are large, since both ends keep them."""
        return self._running().window

    def step_many(
        self,
        actions: Any,
        *,
        stop: bool = True,
        want: Literal["all", "last"] = "all",
        observation_keys: Sequence[str] | None = None,
        capture_state: bool | None = None,
    ) -> Transitions:
        """Run several steps in one round trip, next to the simulator.

        Args:
            actions: (K, …), K actions stacked as arrays (of a Dict space a dict of such), or a list of K actions; at
                most 4096. Of a batch (K, num_envs, …).
            stop: end with the episode; what stands behind its end is not run. False: run all, whatever comes. Batches
                that reset themselves go on in any case.
            want: "all" observations, infos and states, or those of the "last" step that ran.
            observation_keys: which of the observations to send; None: all.
            capture_state: bring the scenes too; None: as `capture_state=` of this environment says.

        Returns:
            `Transitions`, stacked; `ran` says how many steps ran.

        Raises:
            InputError: the actions are not the task's, none or too many, or what they bring is too large; nothing was
                sent.
            TaskError: the task raised in one of them; `completed` has the `Transitions` of those before.
            DeadlineExceeded: not all ran within `step_timeout_s`; they may still: `resume()` settles it, and returns
                the last transition.
            NotRun, SessionLost: as `step_wait`.
        """
        session = self._running()
        wants_state = self._capture_state if capture_state is None else capture_state
        options = chunk_options(stop=stop, want=want, keys=self._sent_keys(observation_keys))
        wants_state = wants_state or self._pixels is not None
        transitions = session.step_many(actions, self._step_timeout_s, options, want_state=wants_state)
        if self._local is not None:
            self._local.show(session.state)
        if self._pixels is None:
            return transitions
        began = time.perf_counter()
        whole = self._pixels.complete_rows(transitions, observation_keys)
        self._note_drawing(whole.infos[-1], began)
        return whole

    def _sent_keys(self, keys: Sequence[str] | None) -> Sequence[str] | None:
        """Of observation keys those that the server has to send."""
        return keys if self._pixels is None or keys is None else self._pixels.sent_keys(keys)

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
        session = self._life.session
        return session is not None and name in session.ready["callable_names"]

    @property
    def mirror(self) -> Mirror:
        """What shows the scene as it changes, with `render="local"`: a thread follows it from here on, until `close`.

        Raises:
            ConfigError: `render="local"` was not asked for, or there is no OpenGL here.
            ReplayError: the local model does not fit the task's scene.
        """
        if self._local is None:
            raise ConfigError('there is no mirror: make the environment with render="local"')
        return self._local.mirror(self)

    # Watching

    def status(self) -> dict[str, Any]:
        """What the simulator does now, answered by its supervisor even while the simulator holds its interpreter.

        Never raises, and starts nothing. Any thread may ask.

        Returns:
            `state`: "not started", "starting" (with `phase`), "ready", "busy" (with `call` and `steps`), "failed",
            "dead" (with `why`), "unreachable" (with `why`) or "closed"; and `since_s`, for how long [s]. From a server
            that answers also `pid`, `uptime_s`, `resets`, `last_line` of the log, `problems` (how many it has had),
            `sessions` and `holders`.
        """
        return self._watch.status()

    @overload
    def logs(self, lines: int = 100, *, follow: Literal[False] = False) -> str: ...
    @overload
    def logs(self, lines: int = 100, *, follow: Literal[True]) -> Iterator[str]: ...
    def logs(self, lines: int = 100, *, follow: bool = False) -> str | Iterator[str]:
        """The last `lines` lines of the server's log; also after the simulator's death.

        Args:
            lines: how many.
            follow: an iterator over these lines and then over each that is written, until the server ends. It has a
                connection of its own, which closing the iterator frees.
        """
        return self._watch.follow(lines) if follow else self._watch.log_tail(lines)

    def transport_info(self) -> dict[str, Any]:
        """What carries the bytes to the simulator and back, and how well; starts the server.

        It asks the supervisor for a few signs of life: some round trips, also while the simulator works.

        Returns:
            `way`: "local", "tcp", "launch" or the tunnel ("channel", "openssh", "sshtunnel"); `where` the server is;
            `round_trip_s`, the shortest lately [s]; `bytes_per_s`, at which large replies
            came in [1/s], None before there were any; `window`, how many steps may be under way at once;
            `codecs`: a dict with `codecs`, that of each image by path, and `why`; with codecs="auto" also `costs`, what
            each codec costs here, `frame_s`, what an image would take with it [s], and `bytes_per_s`, reckoned with.
        """
        self._running()
        return describe_transport(self._life, self._arguments)

    def check_remote_log(self, path: str | None = None, lines: int = 100) -> RemoteLog:
        """The last lines of a log on the host: a string, whose `problems` are what in it a user should see.

        Args:
            path: a file there; "~/" is your home. None: the server's own log.
            lines: how many, of at most 1 MB.

        Raises:
            ConfigError, StartError: there is no such file, or you may not read it.
            ConnectError: the host cannot be reached.
        """
        return self._watch.read_log(path, lines)

    def check_remote_process(self, name: str) -> Processes:
        """Your processes on the host whose command line contains `name`; none is ended.

        Returns:
            Of each its `pid`, `elapsed_s` since it began [s] and `command`.

        Raises:
            ConnectError: the host cannot be reached.
        """
        return self._watch.list_processes(name)

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
        """What Gymnasium needs to make this *remote* environment again; the far one's is `remote_spec`."""
        return self._spec or self._make_spec(self._given_arguments())

    @spec.setter
    def spec(self, spec: EnvSpec) -> None:
        self._spec = spec
        given = self._given_arguments()  # which know how to be copied, and shown
        spec.kwargs.update({name: given[name] for name in _SHOWN_WITH_CARE if name in given})

    # Life

    def _task_metadata(self) -> dict[str, Any]:
        metadata = dict(self._running().ready["metadata"])
        return metadata if self._local is None else {**metadata, "render_modes": ["rgb_array"]}

    def _running(self) -> S:
        """The session, opened if there is none yet."""
        life = self._life
        if life.session is None:
            life.start()
            assert life.session is not None  # noqa: S101  start set it
            if self._arguments.step_timeout_s is None and self._step_timeout_s == DEFAULT_STEP_TIMEOUT_S:
                self._step_timeout_s = float(life.session.ready.get("step_timeout_s", DEFAULT_STEP_TIMEOUT_S))
            self.render_mode = life.session.ready["render_mode"] if self._local is None else "rgb_array"
        return life.session

    def _renewed(self) -> S:
        """A session in which an episode can begin: another one where the last was lost."""
        life = self._life
        if life.session is not None and life.session.is_lost is not None:
            life.check_usable()
            life.renew()
        return self._running()

    def _all_arguments(self) -> dict[str, Any]:
        """By name, as `__init__` takes them."""
        return self._arguments.to_plain()

    def _given_arguments(self) -> dict[str, Any]:
        defaults = self._defaults()
        return {name: value for name, value in self._all_arguments().items() if value is not defaults[name]}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> Literal[False]:
        self.close()
        return False

    def __getstate__(self) -> dict[str, Any]:
        if self._life.session is not None or self._life.server is not None:
            raise ConfigError(
                f"a {type(self).__name__} that runs cannot be pickled; pickle it before its first use, or make another"
            )
        return self._given_arguments()

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)  # type: ignore[misc]

    def __del__(self) -> None:
        life = getattr(self, "_life", None)
        for drawing in (getattr(self, "_local", None), getattr(self, "_pixels", None)):
            if drawing is not None:
                drawing.close()
        if life is not None and life.server is not None and life.is_ours:
            what = f"a {type(self).__name__} was not closed; use `with`, or call close()"
            warnings.warn(what, ResourceWarning, stacklevel=2)
            with contextlib.suppress(Exception):
                self.close()

    def __str__(self) -> str:
        return f"<{type(self).__name__} {self._life.task.label} on {self._arguments.host or 'local'}>"

    __repr__ = __str__


def chunk_options(*, stop: Any = True, want: Any = "all", keys: Sequence[str] | None = None) -> ChunkOptions:
    """How a chunk is to run; InputError when an option is none."""
    if want not in WANTS:
        raise InputError(f"want={want!r}: allowed are {', '.join(WANTS)}")
    if keys is not None and (isinstance(keys, str) or not all(isinstance(key, str) for key in keys)):
        raise InputError(f"observation_keys={keys!r}: a list of keys of the observations, or None for all")
    return ChunkOptions(bool(stop), want, None if keys is None else tuple(keys))

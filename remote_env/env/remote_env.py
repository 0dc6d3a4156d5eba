"""RemoteEnv: a `gymnasium.Env` whose simulator runs on another machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from remote_env.env.arguments import Arguments, unknown_arguments
from remote_env.env.branches import Branching
from remote_env.env.client import chunk_options
from remote_env.env.policy_side import PolicySide
from remote_env.env.rollouts import Pace
from remote_env.env.starting import choose_task
from remote_env.env.task import LocalFolder
from remote_env.errors import Unsupported
from remote_env.session import LinkEvent, Session
from remote_env.state import SceneState


class RemoteEnv(Branching, PolicySide):  # type: ignore[misc]  # a spec that is a property
    """An ordinary Gymnasium environment whose simulator lives on another machine.

    The server starts at first use (or on `with`); `close()` ends what this client started and only detaches from what
    it attached to. While a server of ours runs on another machine, SIGTERM and SIGHUP end the program with SystemExit,
    so that it is closed, unless you have handlers of your own.

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
        policy: to open beside the simulator, for `rollout` and `step_policy`: as the far end finds it, a checkpoint's
            path, "scripted:<name>", "module:function" that makes a `Policy`, or a policy server's address in any
            dialect ("localhost:5000", "openpi://box:8000"); or a `LocalFolder` with a checkpoint of this machine.
        policy_kwargs: `dataset_id`, `device`, `chunk_size`, `instruction`; `mapping`, which says where the policy's
            features come from when names do not tell: {"observation": {feature: {…}}, "action": {…}}; for a policy
            server `token`, `timeout_s` of an inference, and `reconnect_timeout_s`.
        simulator: "gymnasium", or "module:Class" with a `Backend`.
        render_mode: passed to the task.
        render: "local": `render()` draws the scene's state here, in a local MuJoCo model, and the task renders nothing;
            `mirror` follows it at a frame rate of its own. None: the task renders.
        local_model: for that, as `remote_env.replay.load_model` takes it. None: the task's own where we know that
            (ALOHA), else what the task says it looks like.
        local_mapping: from the task's names to the model's: a mapping.yaml's path or what it holds.
        local_view: `width`, `height`, `camera`, `quality` ("fast" or "full") of local images; `rate_hz` of `mirror`.
        local_pixels: leave images out of observations, and draw them here from the scene's state, in a local MuJoCo
            model (see `local_model`): True for all of them, or a dict from paths to cameras of that model,
            {"pixels/top": "top"}. Those of a MuJoCo task are the far end's bit for bit, where MuJoCo and OpenGL are
            the same. Branches (`fork`, `try_chunks`) bring none.
        capture_state: have each step and reset bring the `SceneState` with it, so that `get_state()` costs no
            round trip.
        observation_keys: paths of what observations are to bring, where they are dicts ("agent_pos", "pixels/top"), and
            of what `observation_space` then holds; what nobody wants a task need not draw. None: everything.
        observation_float32: bring float64 arrays as float32, in half the bytes.
        image_every: bring images (uint8, at least three dimensions) with a reset, with every n-th step, and at the end
            of an episode. In between the last ones are handed out again; info["image_age"] says how many steps ago.
        codecs: how images cross: one name for all, or by path ("pixels/top"): "raw", "zstd", "bitlz4", "bitzstd" and
            "delta" (against the last image) are lossless, "jpeg" is not. "auto": whatever of the lossless ones is
            quickest on this link, as measured; `transport_info()` says what that is. None: raw.
        timing: put into each info as "timing" how long the step took where [s].
        state_changes: bring only what has changed of a state since the last step, exactly, where that is smaller: about
            two thirds of the bytes for 0.1 ms. None: where each step brings it from another machine.
        python: the interpreter that serves, as a command line; default `python3` over SSH, our own locally.
        requirements: what that interpreter must have, as pip takes it ("mujoco>=3.1"); checked before the task is
            imported, and what is missing is named with the command that installs it.
        server_script: a local Python file with `make_env(**env_kwargs)`, instead of `env`. It is sent along with all of
            `upload` beside it, so that it can open those files and import those modules.
        upload: local modules, packages or folders of them that the far end is to be able to import; with
            `server_script` any files and folders.
        server_env: environment variables for the server.
        cwd: the server's working folder.
        allow_calls: names of the task that `call` may reach besides those that it opens itself.
        max_sessions: how many clients a server that we start takes at once, each with a simulator of its own.
        keep: `close()` leaves the server that we started running, warm, for a later client.
        reuse: take a running server of yours with the same task and arguments that has a session free; start one when
            there is none. `close()` leaves a server that was taken running.
        session: take this server of yours: its id (`remote-env ps` lists them) or the beginning of it.
        cleanup_old: first end your own servers on that host that hold no session and were not kept, and what dead ones
            have left behind.
        start_timeout_s: for a start, uploads and a slow simulator included [s].
        reset_timeout_s: for one reset [s].
        step_timeout_s: for any other call [s]; None: 120 s, or what the simulator asks for (Isaac Lab, which compiles
            at its first steps: 20 minutes).
        idle_timeout_s: how long a server over SSH, or one that is kept, outlives its last client [s]; 0: not at all.
            Any other local one ends with its client.
        lease_timeout_s: the server takes the link to a client that it has not heard of for so long for cut [s]. None:
            only when the connection ends.
        resume: "auto": when the link is cut it is made anew, and the episode goes on at the same step; whoever called
            meanwhile waits. "never": a cut link is `SessionLost`.
        reconnect_timeout_s: how long to try before that [s]; the server keeps the session for a while longer. It does
            not count against the other times.
        heartbeat_s: how often a thread of ours asks the server for a sign of life [s].
        heartbeat_timeout_s: without an answer for so long the link counts as cut [s], whatever TCP thinks.
        tcp_user_timeout_s: what was sent and is not acknowledged for so long cuts a TCP link [s].
        ssh_keepalive_s: how often a silent SSH host is asked whether it lives [s]; None: as `~/.ssh/config` has it
            (ServerAliveInterval), else every 15 s.
        ssh_keepalive_count: after how many of these without an answer its link counts as cut; None: as there
            (ServerAliveCountMax), else 3.
        on_link: called with a `LinkEvent` when the link is cut, when it is resumed, and when the session is lost, in
            the middle of a call, which waits for it. What it raises is logged; of ours it can call `status`, `logs`
            and `close`.
        busy_poll_s: how long a local receive spins before it sleeps [s].
        token: of a server that somebody else started; default `REMOTE_ENV_TOKEN`, or the file that it keeps.
        tunnel: how data travels over SSH: "channel" (of our one connection), "openssh" (the system's `ssh`) or
            "sshtunnel" (a local TCP port).
        via: a login node, or several in a row, through which the host is reached: "user@login".
        launch: a command there that runs the server inside a container or a batch job: "docker exec -i isaac".
        launch_host: where the server can be dialled, seen from the host, when `launch` puts it on another machine.
        insecure: let a server that we start listen there, beyond loopback: its clients prove themselves, but whoever is
            on that network can see and change the data.
        ssh_port: the SSH port (`port` is the task server's).
        identity_file: private key to log in with.
        ask_secret: called with a `remote_env.ssh.SecretPrompt` for a password, a key's passphrase or a one-time code;
            returns it, or None to give up.
        accept_new_host_key: trust a host never seen before.
        known_hosts_file: default `~/.ssh/known_hosts`.
        ssh_config_file: default `~/.ssh/config`.
        connect_timeout_s: for one SSH login [s].
        progress: show a status line on standard error while a start goes on; None: when that is a terminal.
        on_progress: told in words what a start is doing.
    """

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        env: str | Callable[..., Any] | LocalFolder | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        policy: str | LocalFolder | None = None,
        policy_kwargs: Mapping[str, Any] | None = None,
        simulator: str = "gymnasium",
        render_mode: str | None = None,
        render: str | None = None,
        local_model: Any = None,
        local_mapping: Any = None,
        local_view: Mapping[str, Any] | None = None,
        local_pixels: Mapping[str, str] | bool | None = None,
        capture_state: bool = False,
        observation_keys: Sequence[str] | None = None,
        observation_float32: bool = False,
        image_every: int = 1,
        codecs: Mapping[str, str] | str | None = None,
        timing: bool = False,
        state_changes: bool | None = None,
        python: str | None = None,
        requirements: Sequence[str] = (),
        server_script: str | os.PathLike[str] | None = None,
        upload: Sequence[str | os.PathLike[str]] = (),
        server_env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        allow_calls: Sequence[str] = (),
        max_sessions: int = 1,
        keep: bool = False,
        reuse: bool = False,
        session: str | None = None,
        cleanup_old: bool = False,
        start_timeout_s: float = 1200.0,
        reset_timeout_s: float = 600.0,
        step_timeout_s: float | None = None,
        idle_timeout_s: float = 600.0,
        lease_timeout_s: float | None = 60.0,
        resume: str = "auto",
        reconnect_timeout_s: float = 60.0,
        heartbeat_s: float = 5.0,
        heartbeat_timeout_s: float = 20.0,
        tcp_user_timeout_s: float = 30.0,
        ssh_keepalive_s: float | None = None,
        ssh_keepalive_count: int | None = None,
        on_link: Callable[[LinkEvent], None] | None = None,
        busy_poll_s: float = 0.0,
        token: str | None = None,
        tunnel: str = "channel",
        via: str | Sequence[str] | None = None,
        launch: str | None = None,
        launch_host: str | None = None,
        insecure: bool = False,
        ssh_port: int | None = None,
        identity_file: str | None = None,
        ask_secret: Callable[[Any], str | None] | None = None,
        accept_new_host_key: bool = False,
        known_hosts_file: str | None = None,
        ssh_config_file: str | None = None,
        connect_timeout_s: float = 30.0,
        progress: bool | None = None,
        on_progress: Callable[[str], None] | None = None,
        **unknown: Any,
    ) -> None:
        given = locals()
        if unknown:
            raise unknown_arguments(unknown)
        arguments = Arguments(**{name: given[name] for name in Arguments.names()})
        self._pace = Pace()
        self._set_up(arguments, choose_task(arguments), Session)

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {**(RemoteEnv.__init__.__kwdefaults__ or {}), "host": None, "port": None}

    @classmethod
    def _make_spec(cls, kwargs: dict[str, Any]) -> EnvSpec:
        # As registration.py does: the far end checks the order of calls.
        return EnvSpec(
            "Remote-v0",
            "remote_env.env:RemoteEnv",
            disable_env_checker=True,
            order_enforce=False,
            kwargs=kwargs,
        )

    # Starting

    def start_remote_server(
        self,
        server_script: str | None = None,
        task_name: str | None = None,
        num_envs: int = 1,
        simulator: str | None = None,
        cleanup_old: bool | None = None,
    ) -> RemoteEnv:
        """Find the server at `port`, or start one; nothing when that is done already.

        Args:
            server_script: a local Python file with a `make_env(**kwargs)`, which is sent along and serves.
            task_name: the task, instead of `env=`.
            num_envs: 1; batches are `RemoteVectorEnv`'s.
            simulator: instead of `simulator=`.
            cleanup_old: instead of `cleanup_old=`.
        """
        if self._life.server is not None:
            return self
        self._life.check_usable()
        if num_envs != 1:
            raise Unsupported(
                f"num_envs={num_envs}: a RemoteEnv holds one environment; for a batch of them on one server make a "
                f"RemoteVectorEnv(…, num_envs={num_envs})"
            )
        self._start_server(server_script, task_name, simulator, cleanup_old)
        return self

    # The Gymnasium interface

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, as `gymnasium.Env.reset`.

        After `SessionLost` this starts anew: a new session with the same server, or a new server if that is gone.

        Raises:
            InputError: the options cannot cross; nothing was sent.
            TaskError: the task raised; the session stays usable.
            DeadlineExceeded: no answer within `reset_timeout_s`.
            SessionLost: the simulator died meanwhile.
        """
        session = self._begin(seed)
        transition = session.reset(seed, options, self._reset_timeout_s, want_state=self._capture_state)
        if self._local is not None and session.state is not None:
            self._local.begin(session.state, self)
        observation = transition[0]
        if self._pixels is not None:
            observation = self._pixels.complete(observation, session.state)
        return observation, transition[4]

    def step(
        self, action: Any, *, observation_keys: Sequence[str] | None = None, capture_state: bool | None = None
    ) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Send one action and return the task's next transition.

        Args:
            action: in the task's own action space; passed on unclipped, in the dtype it has.
            observation_keys: for this step: which of the observations to send; None: as always.
            capture_state: for this step: bring the scene too; None: as always.

        Returns:
            observation, reward, terminated, truncated, info, as `gymnasium.Env.step`.

        Raises:
            InputError: the action's shape or kind is not the task's, or it is not finite; nothing was sent.
            TaskError: the task raised; `remote_traceback` holds where.
            DeadlineExceeded: no reply within `step_timeout_s`; the step may still run: `resume()` settles it. The
                message says where in its code the simulator is; `remote_stack` has all of that.
            SessionLost: the simulator that held this episode is gone; reset to start a new one.
        """
        session = self._life.session
        if session is None:
            session = self._running()
        wants_state = self._capture_state if capture_state is None else capture_state or self._pixels is not None
        if observation_keys is None:
            transition = session.step(action, self._step_timeout_s, want_state=wants_state)
        else:
            options = chunk_options(keys=self._sent_keys(observation_keys))
            transition = session.step_picking(action, self._step_timeout_s, options, want_state=wants_state)
        if self._draws:
            return self._finish(transition, session, observation_keys)
        return transition

    def _begin(self, seed: int | None) -> Session:
        """A session in which an episode can begin."""
        gymnasium.Env.reset(self, seed=seed)
        session = self._renewed()
        if self._pixels is not None:
            self._pixels.begin(session, self, self._step_timeout_s)
        return session

    def render(self) -> Any:
        """What the task renders in its render mode, one round trip; with `render="local"` its scene, drawn here.

        Raises:
            ReplayError: the local model does not fit the task's scene.
            ConfigError: there is no OpenGL here.
        """
        if self._local is not None:
            return self._local.render(self.get_state(), self)
        return self._running().render(self._step_timeout_s)

    @property
    def observation_space(self) -> gymnasium.Space[Any]:  # type: ignore[override]
        """The task's, from the server; starts it."""
        session = self._running()
        return session.observation_space if self._pixels is None else self._pixels.space(session)

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
        if session.state is not None and not native and session.delivery.state_links:
            return SceneState(session.state.layout, session.state.values.copy())  # the caller's own, to change
        return session.get_state(self._step_timeout_s, native=native)

    def set_state(self, state: SceneState) -> None:
        """Put the task's scene into `state`.

        Raises:
            Unsupported: the task cannot.
            TaskError: the state does not fit the task's scene.
        """
        self._running().set_state(state, self._step_timeout_s)
        if self._local is not None:
            self._local.show(state)

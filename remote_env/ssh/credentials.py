"""Proving who we are: keys, one-time codes and passwords, in OpenSSH's order."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import paramiko

from remote_env.errors import AuthError
from remote_env.ssh.keys import LIST_TIMEOUT_S, Agent, key_kind, public_blob, read_key_file
from remote_env.ssh.login import Login
from remote_env.ssh.userauth import Answer, UserAuth

TRIES = 3  # of a passphrase, a password, a keyboard-interactive exchange: OpenSSH's NumberOfPasswordPrompts
MAX_STAGES = 8  # methods that one host may want one after the other
_ACCEPTED = ("success", "partial")
_ASKED_FOR = ("keyboard-interactive", "password")  # methods that need `ask_secret`


@dataclass(frozen=True)
class SecretPrompt:
    """What `ask_secret` is asked.

    Attributes:
        kind: "passphrase" (of a key file), "keyboard-interactive" (what the host asks: a one-time code, often also
            the password) or "password".
        text: what to show; for "keyboard-interactive" the host's own words.
        echo: the answer may be seen while it is typed.
        target: whom the login is to, `user@host:port`; with jump hosts each asks under its own name.
    """

    kind: str
    text: str
    echo: bool
    target: str


AskSecret = Callable[[SecretPrompt], "str | None"]

_nobody_is_there: ContextVar[bool] = ContextVar("nobody_is_there", default=False)


@contextlib.contextmanager
def asking_nobody() -> Iterator[None]:
    """In the block this thread's logins use what they know, and ask nobody: nobody may be there to answer."""
    before = _nobody_is_there.set(True)
    try:
        yield
    finally:
        _nobody_is_there.reset(before)


class Secrets:
    """Asks for one login's secrets; remembers passphrases and passwords for the next login, in memory only.

    Attributes:
        waited_s: how long `ask_secret` has taken [s].
        withheld: what was not asked for, since nobody may be there (`asking_nobody`).
    """

    def __init__(self, ask: AskSecret | None, target: str) -> None:
        self._ask = ask
        self._target = target
        self._known: dict[tuple[str, str], str] = {}
        self.waited_s = 0.0
        self.withheld: list[str] = []

    def begin(self) -> None:
        """A login begins."""
        self.waited_s = 0.0
        self.withheld.clear()

    @property
    def can_ask(self) -> bool:
        """Whether there is a callback."""
        return self._ask is not None

    def ask(self, kind: str, text: str, *, echo: bool = False) -> str | None:
        """A secret that is used once; None when the callback has no answer.

        Raises:
            AuthError: the callback raised an exception, or returned no text.
        """
        if self._ask is None:
            return None
        if _nobody_is_there.get():
            self.withheld.append(text.strip().rpartition("\n")[2])
            return None
        begun = time.monotonic()
        try:
            secret = self._ask(SecretPrompt(kind, text, echo, self._target))
        except Exception as error:
            raise AuthError(f"{self._target} wanted a {kind}, and ask_secret raised {type(error).__name__}") from error
        finally:
            self.waited_s += time.monotonic() - begun
        if secret is not None and not isinstance(secret, str):
            raise AuthError(f"ask_secret returned a {type(secret).__name__}; allowed are a str, or None for no answer")
        return secret

    def get(self, kind: str, name: str, text: str) -> str | None:
        """The secret `name`, asked for unless it is known."""
        if (kind, name) not in self._known:
            secret = self.ask(kind, text)
            if secret is None:
                return None
            self._known[kind, name] = secret
        return self._known[kind, name]

    def forget(self, kind: str, name: str) -> None:
        """The secret `name` was wrong."""
        self._known.pop((kind, name), None)


def authenticate(transport: paramiko.Transport, login: Login, secrets: Secrets, deadline: float) -> str:
    """Log in with whatever the host accepts first; returns the methods, such as "publickey+keyboard-interactive".

    Raises:
        AuthError: nothing was accepted; the message lists what was tried.
        paramiko.SSHException, EOFError: the link broke.
    """
    attempt = _Attempt(UserAuth(transport, login.user), login, secrets, deadline)
    try:
        return attempt.run()
    except (paramiko.SSHException, EOFError):
        if not attempt.refusals or time.monotonic() >= deadline:
            raise
        attempt.tried.append("then the host hung up (too many tries?)")
        raise attempt.refused() from None


class _Attempt:
    """One login's authentication.

    Attributes:
        tried: what was tried and came to nothing, for the message.
        refusals: how often the host refused.
    """

    def __init__(self, auth: UserAuth, login: Login, secrets: Secrets, deadline: float) -> None:
        self.tried: list[str] = []
        self.refusals = 0
        self._auth, self._login, self._secrets, self._deadline = auth, login, secrets, deadline
        self._methods: tuple[str, ...] | None = None  # that the host takes now; unknown before its first answer
        self._spent: set[bytes] = set()  # keys that have done their part

    def run(self) -> str:
        """Satisfy the host stage by stage; returns the methods."""
        self._auth.start()
        done: list[str] = []
        while len(done) < MAX_STAGES:
            method, answer = self._stage()
            done.append(method)
            if answer.kind == "success":
                return "+".join(done)
            self._methods = answer.methods
            self.tried.append(f"{method}: accepted, but the host also wants {' or '.join(answer.methods)}")
        raise self.refused()

    def _stage(self) -> tuple[str, Answer]:
        """The first method that the host accepts, and its answer."""
        ways = (
            ("publickey", self._try_keys),
            ("keyboard-interactive", self._try_prompts),
            ("password", self._try_password),
        )
        for method, attempt in ways:
            if self._methods is None and method != "publickey":  # no key was there to be refused
                nobody = self._auth.none()
                if nobody.kind in _ACCEPTED:  # its network has identified us, as Tailscale's does
                    return "none", nobody
                self._methods = nobody.methods
            if self._takes(method) and (answer := attempt()) is not None:
                return method, answer
        self._try_nobody()
        raise self.refused()

    def _takes(self, method: str) -> bool:
        return self._methods is None or method in self._methods

    def _is_accepted(self, answer: Answer, label: str) -> bool:
        """Whether the host accepted; what it said otherwise is noted."""
        if answer.kind in _ACCEPTED:
            return True
        self.refusals += 1
        self._methods = answer.methods
        self.tried.append(f"{label}: refused")
        return False

    def _try_keys(self) -> Answer | None:
        with contextlib.ExitStack() as stack:
            for use in self._keys(stack):
                answer = use()
                if answer is not None:
                    return answer
                if not self._takes("publickey"):
                    self.tried.append(f"the host takes no public keys, only: {', '.join(self._methods or ())}")
                    return None
        return None

    def _keys(self, stack: contextlib.ExitStack) -> Iterator[Callable[[], Answer | None]]:
        """Attempts with one key each: files, the agent's that no file gave, files with a passphrase."""
        done, encrypted = set(self._spent), []
        for path in self._login.identity_files:
            file = read_key_file(path)
            if file.key is None and file.is_encrypted:
                encrypted.append(path)
            elif file.key is None:
                self.tried.append(f"{path}: {file.problem}")
            elif file.key.asbytes() not in done:
                done.add(file.key.asbytes())
                yield partial(self._prove, str(path), file.key)
        for key in self._agent_keys(stack):
            if key.asbytes() not in done:
                done.add(key.asbytes())
                yield partial(self._use_agent_key, key)
        for path in encrypted:
            if public_blob(path) not in done:
                yield partial(self._unlock, path)

    def _agent_keys(self, stack: contextlib.ExitStack) -> list[paramiko.AgentKey]:
        try:
            agent = Agent(min(LIST_TIMEOUT_S, max((self._deadline - time.monotonic()) / 2, 0.01)))
        except TimeoutError:
            self.tried.append("SSH agent: did not answer in time")
            return []
        except (paramiko.SSHException, OSError) as error:
            self.tried.append(f"SSH agent: {error}")
            return []
        stack.callback(agent.close)
        keys = list(agent.get_keys())
        if not keys:
            self.tried.append("SSH agent: not running or empty")
        if not self._login.identities_only:
            return keys
        self.tried.append("SSH agent: only keys of these files (IdentitiesOnly yes)")
        named = {public_blob(path) for path in self._login.identity_files}
        return [key for key in keys if key.asbytes() in named]

    def _use_agent_key(self, key: paramiko.AgentKey) -> Answer | None:
        """Ask before signing: the agent may want its user to confirm, or to touch a device."""
        label = f"agent key {key.comment or key.get_name()}"
        if not self._would_do(label, key.asbytes()):
            return None
        return self._prove(label, key)

    def _would_do(self, label: str, blob: bytes) -> bool:
        answer = self._auth.offer_key(key_kind(blob), blob)
        return answer.kind == "key" or self._is_accepted(answer, label)

    def _prove(self, label: str, key: paramiko.PKey) -> Answer | None:
        try:
            request = self._auth.sign(key)
        except (paramiko.SSHException, OSError, ValueError) as error:
            self.tried.append(f"{label}: cannot sign ({error or type(error).__name__})")
            return None
        answer = self._auth.prove(request)
        if not self._is_accepted(answer, label):
            return None
        self._spent.add(key.asbytes())
        return answer

    def _unlock(self, path: Path) -> Answer | None:
        """Ask for the passphrase of a key that the host would take."""
        if not self._secrets.can_ask:
            self.tried.append(f"{path}: has a passphrase (run: ssh-add {path}, or pass ask_secret=…)")
            return None
        blob = public_blob(path)
        if blob is not None and not self._would_do(str(path), blob):
            return None
        for _ in range(TRIES):
            passphrase = self._secrets.get("passphrase", str(path), f"Passphrase of the key {path}: ")
            if passphrase is None:
                self.tried.append(f"{path}: has a passphrase, and ask_secret gave none")
                return None
            file = read_key_file(path, passphrase)
            if file.key is not None:
                return self._prove(str(path), file.key)
            self._secrets.forget("passphrase", str(path))
        self.tried.append(f"{path}: the passphrase is wrong, {TRIES} times")
        return None

    def _try_prompts(self) -> Answer | None:
        if not self._secrets.can_ask:
            return None
        for _ in range(TRIES):
            answer, was_asked = self._auth.interactive(), False
            while answer.kind == "prompts":
                replies = self._replies(answer)
                if replies is None:
                    self.tried.append("keyboard-interactive: ask_secret gave no answer")
                    return None
                was_asked |= bool(replies)
                answer = self._auth.respond(replies)
            if self._is_accepted(answer, "keyboard-interactive"):
                return answer
            if not was_asked or not self._takes("keyboard-interactive"):
                return None
        return None

    def _replies(self, question: Answer) -> list[str] | None:
        replies = []
        for text, echo in question.prompts:
            shown = f"{question.instruction}\n{text}" if question.instruction else text
            reply = self._secrets.ask("keyboard-interactive", shown, echo=echo)
            if reply is None:
                return None
            replies.append(reply)
        return replies

    def _try_password(self) -> Answer | None:
        for _ in range(TRIES if self._secrets.can_ask else 0):
            password = self._secrets.get("password", "", f"Password of {self._login.description}: ")
            if password is None:
                self.tried.append("password: ask_secret gave none")
                return None
            answer = self._auth.send_password(password)
            if answer.kind in _ACCEPTED:
                return answer
            self._secrets.forget("password", "")
            if answer.kind == "expired":
                self.tried.append("password: it has expired; log in with ssh once and change it")
                return None
            self._is_accepted(answer, "password")
            if not self._takes("password"):
                return None
        return None

    def _try_nobody(self) -> None:
        if self._methods is not None:
            self.tried.append(f"the host takes: {', '.join(self._methods)}")

    def refused(self) -> AuthError:
        """The error that says what was tried and what could be."""
        if self._secrets.withheld:
            return self._withheld()
        asked = [method for method in _ASKED_FOR if method in (self._methods or ())]
        hint = ""
        if asked and not self._secrets.can_ask:
            hint = f"The host would take {' or '.join(asked)}: pass ask_secret=… to answer. "
        return AuthError(
            f"{self._login.description} refused the login. Tried: {'; '.join(self.tried)}. {hint}"
            f"Pass identity_file=…, load the key with ssh-add, or check that this works: {self._login.ssh_command}"
        )

    def _withheld(self) -> AuthError:
        """The error for a login that only somebody's answer could have made."""
        questions = "; ".join(dict.fromkeys(map(repr, self._secrets.withheld)))
        return AuthError(
            f"the login to {self._login.description} has ended, and a new one needs an answer that is not known: "
            f"{questions}. Nobody is asked while a cut link is mended: nobody may be there. With a key that needs no "
            "passphrase, or one of the SSH agent (ssh-add), it mends itself; reset() starts anew, and asks",
            needs_answer=True,
        )

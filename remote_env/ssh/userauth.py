"""SSH's user authentication (RFC 4252 and 4256), one request and one answer at a time, on the caller's thread.

paramiko would call back on the thread that reads the socket, which has the deadlines to watch; and it cannot ask
whether a key would do before its passphrase is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import paramiko
from paramiko.auth_handler import AuthHandler

SERVICE_REQUEST, USERAUTH_REQUEST, INFO_RESPONSE = 5, 50, 61  # RFC 4250, section 4.1
MAX_PROMPTS = 32  # in one request; a host that wants more is not a host
TICK_S = 0.1
_SERVICE, _CONNECTION = "ssh-userauth", "ssh-connection"


@dataclass(frozen=True)
class Answer:
    """What the host said to a request.

    Attributes:
        kind: "success", "failure", "partial" (accepted, and more is wanted), "key" (a signature with that key would
            do), "prompts", "expired" (the password must be changed) or "service".
        methods: after "failure" and "partial": the methods that may follow.
        prompts: the questions, each with whether its answer may be shown.
        instruction: what to show above the questions.
    """

    kind: str
    methods: tuple[str, ...] = ()
    prompts: tuple[tuple[str, bool], ...] = ()
    instruction: str = ""


class UserAuth(AuthHandler):  # type: ignore[misc]  # paramiko has no types
    """The client's half of user authentication over a transport whose keys have been exchanged.

    Every method but `start` returns the host's answer and raises `paramiko.SSHException` or `EOFError` when the link
    ends first.
    """

    def __init__(self, transport: paramiko.Transport, user: str) -> None:
        super().__init__(transport)
        self._user = user
        self._answer: Answer | None = None
        self.auth_event = threading.Event()
        self._transport = transport
        transport.auth_handler = self  # the transport gives it the messages that follow

    def start(self) -> None:
        """Ask for the authentication service."""
        message = paramiko.Message()
        message.add_byte(bytes([SERVICE_REQUEST]))
        message.add_string(_SERVICE)
        self._ask("service", message)

    def none(self) -> Answer:
        """Ask to be let in without credentials; the answer names the methods."""
        return self._ask("none", self._request("none"))

    def offer_key(self, kind: str, blob: bytes) -> Answer:
        """Ask whether the key of `kind` ("ssh-ed25519") whose public half is `blob` would do."""
        message = self._request("publickey")
        message.add_boolean(False)
        message.add_string(self.algorithm(kind))
        message.add_string(blob)
        return self._ask("publickey", message)

    def sign(self, key: paramiko.PKey) -> paramiko.Message:
        """The request that proves that we have `key`; sends nothing.

        Raises:
            paramiko.SSHException, OSError, ValueError: the key or the agent that has it cannot sign.
        """
        kind, blob = self._get_key_type_and_bits(key)
        blob = blob if isinstance(blob, bytes) else blob.asbytes()
        algorithm = self.algorithm(kind)
        message = self._request("publickey")
        message.add_boolean(True)
        message.add_string(algorithm)
        message.add_string(blob)
        signed = paramiko.Message()
        signed.add_string(self._transport.session_id)
        message.add_string(key.sign_ssh_data(signed.asbytes() + message.asbytes(), algorithm))
        return message

    def prove(self, request: paramiko.Message) -> Answer:
        """Send what `sign` has made."""
        return self._ask("publickey", request)

    def algorithm(self, kind: str) -> str:
        """The signature algorithm for a key of `kind`."""
        return str(self._finalize_pubkey_algorithm(kind))

    def send_password(self, password: str) -> Answer:
        """Log in with a password."""
        message = self._request("password")
        message.add_boolean(False)
        message.add_string(password.encode())
        return self._ask("password", message)

    def interactive(self) -> Answer:
        """Begin a keyboard-interactive exchange."""
        message = self._request("keyboard-interactive")
        message.add_string("")  # language
        message.add_string("")  # submethods
        return self._ask("keyboard-interactive", message)

    def respond(self, answers: Sequence[str]) -> Answer:
        """Answer the prompts."""
        message = paramiko.Message()
        message.add_byte(bytes([INFO_RESPONSE]))
        message.add_int(len(answers))
        for answer in answers:
            message.add_string(answer.encode())
        return self._ask("keyboard-interactive", message)

    def _request(self, method: str) -> paramiko.Message:
        message = paramiko.Message()
        message.add_byte(bytes([USERAUTH_REQUEST]))
        message.add_string(self._user)
        message.add_string(_CONNECTION)
        message.add_string(method)
        return message

    def _ask(self, method: str, message: paramiko.Message) -> Answer:
        self.auth_method = method
        self._answer = None
        self.auth_event.clear()
        self._transport._send_message(message)
        while not self.auth_event.wait(TICK_S) and self._transport.is_active():
            pass
        if self._answer is None:
            raise self._transport.get_exception() or EOFError("the host hung up")
        return self._answer

    def _take(self, answer: Answer) -> None:
        self._answer = answer
        self.auth_event.set()

    def _parse_service_accept(self, message: paramiko.Message) -> None:  # noqa: ARG002  # paramiko calls it
        self._take(Answer("service"))

    def _parse_userauth_success(self, message: paramiko.Message) -> None:
        self._answer = Answer("success")
        super()._parse_userauth_success(message)

    def _parse_userauth_failure(self, message: paramiko.Message) -> None:
        methods = tuple(message.get_list())
        self._take(Answer("partial" if message.get_boolean() else "failure", methods))

    def _parse_userauth_info_request(self, message: paramiko.Message) -> None:
        """Message 60, whose meaning depends on the method."""
        if self.auth_method == "publickey":
            self._take(Answer("key"))
        elif self.auth_method == "password":
            self._take(Answer("expired"))
        elif self.auth_method == "keyboard-interactive":
            self._take(_read_prompts(message))
        else:
            raise paramiko.SSHException(f"an answer to nothing that was asked ({self.auth_method})")

    @property
    def _client_handler_table(self) -> dict[int, Any]:
        table = dict(super()._client_handler_table)
        table[60] = self._parse_userauth_info_request
        return table


def _read_prompts(message: paramiko.Message) -> Answer:
    name, instruction = _read_text(message), _read_text(message)
    message.get_binary()  # language
    count = message.get_int()
    if count > MAX_PROMPTS:
        raise paramiko.SSHException(f"the host asked {count} questions at once; at most {MAX_PROMPTS} are answered")
    prompts = tuple((_read_text(message), bool(message.get_boolean())) for _ in range(count))
    return Answer("prompts", (), prompts, "\n".join(part for part in (name, instruction) if part))


def _read_text(message: paramiko.Message) -> str:
    """A text of the host's without what could command a terminal."""
    text = message.get_binary().decode(errors="replace")
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")

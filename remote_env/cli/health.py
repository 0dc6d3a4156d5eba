"""What answers at a port of this machine: a task server that is ready, one that is not, something else, or nothing."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass

HEALTH_TIMEOUT_S = 5.0
MAX_BODY_BYTES = 4096
LOOPBACK = "127.0.0.1"
_HTTP2_SETTINGS = "\x04\x00"  # type and flags of the frame that an HTTP/2 server begins with (RFC 9113, 6.5)
READY, NOT_READY, OTHER, SILENT, CLOSED = "ready", "not ready", "other", "silent", "closed"


@dataclass(frozen=True)
class Health:
    """What a question for /healthz brought.

    Attributes:
        state: "ready" (200), "not ready" (503), "other" (something else answers), "silent" (something accepts the
            connection and says nothing), "closed" (the connection ended before a byte came, or was refused).
        words: the same for people, with the server's own reason.
    """

    state: str
    words: str


def check_health(port: int, timeout_s: float = HEALTH_TIMEOUT_S) -> Health:
    """Ask the port of 127.0.0.1 for /healthz; never raises for what it finds there."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout_s)
    try:
        connection.request("GET", "/healthz", headers={"Connection": "close"})
        response = connection.getresponse()
        return _judge(response.status, response.read(MAX_BODY_BYTES).decode(errors="replace").strip())
    except TimeoutError:
        return Health(SILENT, f"something accepts the connection and said nothing in {timeout_s:g} s")
    except (http.client.RemoteDisconnected, OSError) as error:
        return Health(CLOSED, f"the connection ended without an answer ({error})")
    except http.client.HTTPException as error:
        return Health(OTHER, _describe_other(str(error)))
    finally:
        connection.close()


def _describe_other(said: str) -> str:
    if said[3:5] == _HTTP2_SETTINGS:
        return "something answers that speaks HTTP/2, as gRPC does (a policy server for LeRobot, say)"
    return f"something answers, which is no task server: it said {json.dumps(said[:60])}"


def _judge(status: int, body: str) -> Health:
    if status == http.HTTPStatus.OK:
        return Health(READY, "ready")
    if status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        return Health(NOT_READY, body or "not ready")
    return Health(OTHER, f"something answers, which is no task server: HTTP status {status} for /healthz")

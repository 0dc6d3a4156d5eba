"""What answers at a port of this machine: a task server that is ready, one that is not, something else, or nothing."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass

HEALTH_TIMEOUT_S = 5.0
MAX_BODY_BYTES = 4096
LOOPBACK = "127.0.0.1"
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
        return Health(OTHER, f"something answers, which is no task server: it said {json.dumps(str(error)[:60])}")
    finally:
        connection.close()


def _judge(status: int, body: str) -> Health:
    if status == http.HTTPStatus.OK:
        return Health(READY, "ready")
    if status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        return Health(NOT_READY, body or "not ready")
    return Health(OTHER, f"something answers, which is no task server: HTTP status {status} for /healthz")

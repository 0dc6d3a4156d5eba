"""What the tools of remote_env.testing tell of what they check."""

from __future__ import annotations

from listeners import listener_that_hangs_up
from quotes import produces

from remote_env.testing import FaultProxy, check_task_server, check_transport
from remote_env.transport import Transport

TOKEN = "f" * 64


@produces("CheckFailed: … but the connection was closed where … was due")
def test_a_server_that_hangs_up() -> None:
    with listener_that_hangs_up() as port:
        check_task_server(("127.0.0.1", port), TOKEN)


def refuse() -> tuple[Transport, Transport]:
    raise ConnectionRefusedError("nobody listens")


@produces("CheckFailed: … but this came instead: …")
def test_a_transport_that_cannot_be_made() -> None:
    check_transport(refuse)


@produces("ConfigError: this FaultProxy is closed; make another")
def test_a_proxy_that_is_closed() -> None:
    with FaultProxy(("127.0.0.1", 1)) as proxy:
        pass
    proxy.cut()


@produces("ConfigError: mean_bytes is …; a link that can be of use carries 1 byte or more")
def test_a_proxy_that_is_to_pass_nothing() -> None:
    with FaultProxy(("127.0.0.1", 1)) as proxy:
        proxy.cut_every(0)

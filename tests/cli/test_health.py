from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc

from remote_env.cli.health import OTHER, check_health


def test_a_server_that_speaks_grpc_is_named() -> None:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            health = check_health(port)
        finally:
            server.stop(None).wait(10)
    assert health.state == OTHER
    assert "speaks HTTP/2, as gRPC does" in health.words

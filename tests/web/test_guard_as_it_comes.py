"""The libraries under HTTP without us: the day a test here fails, a fix has arrived upstream and the guard it stands
for may go."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from hypercorn.config import Config
from hypercorn.events import RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app
from trio.testing import wait_all_tasks_blocked

from tests.fakes.http_server import BAD_SUBPROTOCOL, H2C, HOST, make_app
from tests.fakes.network import receive
from transport.listen import bound_port, open_listener


def naive_connection(app: Any, stream: trio.SocketStream) -> TCPServer:
    config = Config()
    config.errorlog = None
    return TCPServer(wrap_app(app, 0, "asgi"), config, WorkerContext(None), {}, stream)  # type: ignore[arg-type]


async def naive_serve(handler: Callable[[trio.SocketStream], Any], request_bytes: bytes) -> bytes:
    """The first bytes of hypercorn's own answer."""
    listener = await open_listener("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handler, [listener])
        async with await trio.open_tcp_stream("127.0.0.1", bound_port(listener)) as client:
            await client.send_all(request_bytes)
            data = await receive(client)
        nursery.cancel_scope.cancel()
    return data


async def test_hypercorn_as_it_comes_dies_of_one_header():
    died = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        with trio.CancelScope(shield=True), pytest.RaisesGroup(UnicodeDecodeError, flatten_subgroups=True):
            await naive_connection(make_app(), stream).run()
        died.set()

    assert await naive_serve(handler, BAD_SUBPROTOCOL) == b""
    assert died.is_set()


async def test_hypercorn_as_it_comes_speaks_h2c():
    async def handler(stream: trio.SocketStream) -> None:
        await naive_connection(make_app(), stream).run()

    assert (await naive_serve(handler, H2C)).startswith(b"HTTP/1.1 101 ")


async def test_hypercorn_as_it_comes_shields_a_write_without_end(autojump_clock):
    class Standing:
        async def send_all(self, data: bytes) -> None:
            await trio.sleep(1000)

    connection = naive_connection(make_app(), Standing())  # type: ignore[arg-type]
    with trio.move_on_after(1):
        await connection.protocol_send(RawData(b"x"))
    assert trio.current_time() == pytest.approx(1000)


async def test_quart_trio_as_it_comes_cancels_its_own_last_send():
    app = make_app()
    to_app, from_server = trio.open_memory_channel[dict[str, Any]](2)
    finished = False

    async def send(message: dict[str, Any]) -> None:
        nonlocal finished
        if message["type"] == "http.response.body" and not message["more_body"]:
            await to_app.send({"type": "http.disconnect"})  # as hypercorn does, before it closes or recycles
            await wait_all_tasks_blocked()
            finished = True

    scope: Any = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/health",
        "query_string": b"",
        "headers": [(b"host", HOST.encode())],
    }
    async with to_app, from_server:
        await to_app.send({"type": "http.request", "body": b"", "more_body": False})
        await app(scope, partial(from_server.receive), send)  # type: ignore[arg-type]
    assert not finished


def test_hypercorn_as_it_comes_has_the_harmful_timeout_off():
    """Its default; `test_a_stream_may_last_while_the_client_is_silent` would show a change of ours."""
    assert Config().read_timeout is None

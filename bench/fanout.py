"""What one frame to one more client costs the engine, against a bare send of as many bytes."""

from __future__ import annotations

import socket
import time

import trio

from bench.engine import cpu_s, serving
from bench.table import Row
from tests.system.frames import start_session
from tests.system.process import upgrade

CLIENTS = 64
SECONDS = 8
SENDS = 20_000


def measure() -> list[Row]:
    per_delivery_us, size_bytes = trio.run(deliveries)
    return [
        Row(f"CPU per frame and client, {CLIENTS} clients", per_delivery_us, "µs", send_us(size_bytes), "bare send")
    ]


async def deliveries() -> tuple[float, int]:
    """The slope between one client and many: what does not depend on clients is left out."""
    with serving() as engine:
        async with engine.async_client() as http, trio.open_nursery() as nursery:
            await start_session(http, "synthetic/steady")
            await nursery.start(read_on, engine)
            few = await spent(engine, http)
            for _ in range(CLIENTS - 1):
                await nursery.start(read_on, engine)
            many = await spent(engine, http)
            nursery.cancel_scope.cancel()
    (cpu_few, pushes_few, _), (cpu_many, pushes_many, bytes_many) = few, many
    return (cpu_many - cpu_few) / (pushes_many - pushes_few) * 1e6, round(bytes_many / pushes_many)


async def spent(engine, http) -> tuple[float, int, int]:
    """Processor seconds, pushes and bytes of SECONDS."""
    began = cpu_s(engine), *await counted(http)
    await trio.sleep(SECONDS)
    ended = cpu_s(engine), *await counted(http)
    cpu, pushes, size = (b - a for a, b in zip(began, ended, strict=True))
    return cpu, pushes, size


async def counted(http) -> tuple[int, int]:
    edge = (await http.get("/stats")).json()["system"]["edges"]["ws"]
    return edge["pushes"], edge["listen"]["bytes_out"]


async def read_on(engine, *, task_status) -> None:
    """A client that takes everything and looks at nothing; pings stay unanswered, so not for longer than 15 s."""
    async with await trio.open_tcp_stream("127.0.0.1", engine.port("ws")) as stream:
        await stream.send_all(upgrade(engine.port("ws")))
        assert b"101" in await stream.receive_some()
        task_status.started()
        while await stream.receive_some():
            pass


def send_us(size_bytes: int) -> float:
    """One `send` on loopback, read at once on the other side."""
    data = bytes(size_bytes)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        with far:
            used = 0.0
            for _ in range(SENDS):
                began = time.perf_counter()
                near.sendall(data)
                used += time.perf_counter() - began
                far.recv(size_bytes, socket.MSG_WAITALL)
    return used / SENDS * 1e6

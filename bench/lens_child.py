"""The processes around the lens: how they are started, and what is told to them and by them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx

NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/log crit; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream model {{ server {address}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port}; keepalive_requests 1000000;
    location / {{
      proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 1h;
    }}
  }}
}}
"""


@attrs.frozen
class Hop:
    """Something a client can ask: its port, and the process whose time it costs (None: nobody's but the server's)."""

    name: str
    port: int
    pid: int | None = None
    headers: tuple[tuple[str, str], ...] = ()


@contextmanager
def child(name: str, module: str, *words: str) -> Iterator[Hop]:
    """`python -m MODULE WORDS`, which prints its port and serves until its stdin closes."""
    command = [sys.executable, "-m", module, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield Hop(name, int(process.stdout.readline()), process.pid)
        finally:
            process.stdin.close()


@contextmanager
def nginx(port: int, upstream_port: int) -> Iterator[Hop | None]:
    """A pass-through on `port`; None where nginx is not installed."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "conf")
        config.write_text(NGINX.format(folder=folder, port=port, address=f"127.0.0.1:{upstream_port}"))
        with subprocess.Popen([program, "-p", folder, "-c", str(config), "-e", f"{folder}/log"]) as process:
            try:
                worker = until(lambda: worker_of(process.pid))
                until(lambda: answers(port))
                yield Hop("nginx", port, worker)
            finally:
                process.terminate()


def worker_of(pid: int) -> int | None:
    """nginx's work is done by a child of the process that was started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else None


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/version", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def until(met: Callable[[], Any], tries: int = 500) -> Any:
    """The first true value, asked every 20 ms."""
    for _ in range(tries):
        if value := met():
            return value
        time.sleep(0.02)
    raise AssertionError("it did not happen")


@contextmanager
def caller(job: Any) -> Iterator[Callable[[], dict[str, Any]]]:
    """The clients of `bench.lens_client`, connected; call what this gives to have them do their job."""
    command = [sys.executable, "-m", "bench.lens_client"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdin.write(json.dumps(attrs.asdict(job)) + "\n")
        process.stdin.flush()
        ready = process.stdout.readline()
        assert ready == "ready\n", ready

        def done() -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            told: dict[str, Any] = json.loads(process.stdout.readline())
            return told

        try:
            yield done
        finally:
            process.kill()

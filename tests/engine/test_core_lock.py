"""The core lock, in processes of its own: it cannot be taken off again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TRIES = {
    "connect": "socket.socket().connect(('192.0.2.1', 9))",
    "connect_ex": "socket.socket().connect_ex(('192.0.2.1', 9))",
    "connect v6": "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 9))",
    "mapped": "socket.socket(socket.AF_INET6).connect(('::ffff:192.0.2.1', 9))",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
    "udp, a message": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendmsg([b'x'], [], 0, ('192.0.2.1', 53))",
    "a lookup": "socket.getaddrinfo('example.com', 443)",
    "a lookup of bytes": "socket.getaddrinfo(b'example.com', 443)",
    "an old lookup": "socket.gethostbyname('example.com')",
    "a listener": "socket.socket().bind(('0.0.0.0', 0))",
    "a listener v6": "socket.socket(socket.AF_INET6).bind(('::', 0))",
    "urllib": "__import__('urllib.request').request.urlopen('http://192.0.2.1:9/', timeout=1)",
    "httpx": "__import__('httpx').get('http://192.0.2.1:9/', timeout=1, trust_env=False)",
    "trio": "trio.run(trio.open_tcp_stream, '192.0.2.1', 9)",
    "trio by name": "trio.run(trio.open_tcp_stream, 'example.com', 9)",
    "the way out": "trio.run(partial(outbound.connect, '192.0.2.1', 9, permit=PERMIT))",
}
PROGRAM = """
import socket, sys, trio
from functools import partial
from engine import core_lock
from policies.egress import Permit, Purpose
from transport import outbound
core_lock.lock()
PERMIT = Permit(Purpose.BROKER, '192.0.2.1', 9, tls=False)
try:
    {code}
except BaseException as error:
    while error is not None and 'core lock' not in str(error):
        nested = getattr(error, 'exceptions', None)
        error = nested[0] if nested else error.__cause__ or error.__context__
    print('refused' if error is not None else 'failed otherwise')
else:
    print('went through')
"""


def outcome(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(code=code)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("code", TRIES.values(), ids=TRIES)
def test_no_socket_leaves_whoever_opens_it(code):
    assert outcome(code) == "refused"


LOCAL = """
    import os, tempfile
    listener = socket.create_server(('127.0.0.1', 0))
    socket.create_connection(listener.getsockname()).close()
    socket.create_connection(('localhost', listener.getsockname()[1])).close()
    path = tempfile.mktemp()
    unix = socket.socket(socket.AF_UNIX); unix.bind(path); unix.listen()
    socket.socket(socket.AF_UNIX).connect(path); os.unlink(path)
    one, other = socket.socketpair(); one.sendmsg([b'x'])
    near = socket.create_connection(listener.getsockname()); near.send(b'x'); near.sendmsg([b'x'])
    socket.getaddrinfo(None, 80); socket.getaddrinfo('::1', 80)
"""


def test_everything_on_this_machine_goes_on():
    assert outcome(LOCAL.strip()) == "went through"


UNSEEN = {
    "native code": (
        "import ctypes, struct; libc = ctypes.CDLL(None); "
        "assert libc.bind(libc.socket(2, 1, 0), struct.pack('HH4s8s', 2, 0, bytes(4), bytes(8)), 16) == 0"
    ),
    "a program of its own": (
        "import subprocess; subprocess.run([sys.executable, '-c', "
        "'import socket; socket.socket().bind((str(), 0))'], check=True)"
    ),
}


@pytest.mark.parametrize("code", UNSEEN.values(), ids=UNSEEN)
def test_what_the_lock_does_not_see_is_what_its_document_says(code):
    """Shown on a listener on every address, which leaves nothing; a namespace without a network binds these too."""
    assert outcome(code) == "went through"

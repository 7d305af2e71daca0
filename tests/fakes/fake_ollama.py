"""A program called `ollama`, for tests of what starts it. `ollama serve` is the mock Ollama behind a real process that
takes OLLAMA_HOST, has a runner of its own, and ends both on SIGTERM; or it misbehaves as told when it was installed.

It is given a clean environment, so what it is to do stands in the program itself, and what it saw in files beside it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import attrs

ROOT: Final = Path(__file__).parents[2]
SAID: Final = 30  # lines, before it fails
FAILED: Final = 3

_PROGRAM: Final = """#!{python}
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.fakes.fake_ollama import Behaviour, main
main(Behaviour({behaviour!r}), Path({folder!r}))
"""


class Behaviour(StrEnum):
    SERVE = "serve"
    EXIT = "exit"  # says why, and ends at once
    SLOW = "slow"  # serves once it is `released`
    SILENT = "silent"  # never listens
    STUBBORN = "stubborn"  # serves, and ignores SIGTERM


@attrs.frozen
class FakeOllama:
    """An installed one. `starts` grows with every start: pid, runner, argv, environ, cwd."""

    folder: Path

    @classmethod
    def install(cls, folder: Path, behaviour: Behaviour = Behaviour.SERVE) -> FakeOllama:
        program = _PROGRAM.format(python=sys.executable, root=str(ROOT), behaviour=str(behaviour), folder=str(folder))
        installed = cls(folder)
        installed.binary.write_text(program)
        installed.binary.chmod(0o755)
        os.mkfifo(folder / "gate")
        return installed

    @property
    def binary(self) -> Path:
        return self.folder / "ollama"

    @property
    def starts(self) -> list[dict[str, Any]]:
        notes = self.folder / "starts"
        return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []

    def release(self) -> None:
        """Let a slow one go on; waits until it is at the gate."""
        (self.folder / "gate").write_text("")


def main(behaviour: Behaviour, folder: Path) -> None:
    if behaviour is Behaviour.STUBBORN:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour is Behaviour.SLOW:
        print("looking for graphics cards", file=sys.stderr)  # noqa: T201
    runner = subprocess.Popen(["/bin/sleep", "infinity"])
    _note(folder, runner.pid)
    match behaviour:
        case Behaviour.EXIT:
            for line in range(SAID):
                print(f"line {line}", file=sys.stderr)  # noqa: T201
            print("Error: no room on the device", file=sys.stderr)  # noqa: T201
            sys.exit(FAILED)
        case Behaviour.SILENT:
            signal.pause()
        case Behaviour.SLOW:
            (folder / "gate").read_text()
    serve(runner, stubborn=behaviour is Behaviour.STUBBORN)


def _note(folder: Path, runner: int) -> None:
    """What it was given, as the kernel has it: Python adds to its own environment."""
    given = Path("/proc/self/environ").read_text().split("\0")[:-1]
    note = {
        "pid": os.getpid(),
        "runner": runner,
        "argv": sys.argv[1:],
        "environ": dict(entry.split("=", 1) for entry in given),
        "cwd": str(Path.cwd()),
    }
    with (folder / "starts").open("a") as notes:
        notes.write(json.dumps(note) + "\n")


def serve(runner: subprocess.Popen[bytes], *, stubborn: bool) -> None:
    import trio

    from engine.domain.errors import AddressInUse
    from transport.listen import open_listener
    from transport.mock_ollama.script import Schedule
    from transport.mock_ollama.server import MockOllama

    async def run() -> None:
        host, _, port = os.environ["OLLAMA_HOST"].rpartition(":")
        listener = await open_listener(host, int(port))
        async with trio.open_nursery() as nursery:
            await nursery.start(MockOllama(listener, Schedule()).run)
            if stubborn:
                await trio.sleep_forever()
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                await anext(aiter(signals))
            nursery.cancel_scope.cancel()

    try:
        trio.run(run)
    except* AddressInUse:
        print(f"Error: listen tcp {os.environ['OLLAMA_HOST']}: bind: address already in use", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    finally:
        runner.terminate()
        runner.wait()

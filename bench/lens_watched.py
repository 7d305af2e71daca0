"""A program of Python that tells, when asked by a signal, how many trio tasks it has, and where its time goes.

`python -m bench.lens_watched -m engine serve …` is `python -m engine serve …` with two signals more. SIGUSR1 puts the
number of tasks into the file $BENCH_TASKS. SIGUSR2 starts the profiler, and at the second time stops it and puts its
figures into $BENCH_PROFILE. Both are heard on the main thread, the one of trio.
"""

from __future__ import annotations

import cProfile
import gc
import os
import runpy
import signal
import sys
from pathlib import Path

import attrs
import trio


def tell_tasks(*_: object) -> None:
    gc.collect()
    place = Path(os.environ["BENCH_TASKS"])
    new = place.with_suffix(".new")
    new.write_text(str(trio.lowlevel.current_statistics().tasks_living))
    new.replace(place)


@attrs.define(eq=False)
class Profiler:
    _profile: cProfile.Profile | None = None

    def __call__(self, *_: object) -> None:
        if self._profile is None:
            self._profile = cProfile.Profile()
            self._profile.enable()
        else:
            self._profile.disable()
            self._profile.dump_stats(os.environ["BENCH_PROFILE"])
            self._profile = None


def main() -> None:
    signal.signal(signal.SIGUSR1, tell_tasks)
    signal.signal(signal.SIGUSR2, Profiler())
    _, flag, module, *words = sys.argv
    assert flag == "-m", "give -m MODULE"
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

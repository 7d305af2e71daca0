"""Runs in a new process, in place of which the program then runs: `launcher.py PARENT_PID DEATH_SIGNAL PROGRAM ARG…`.

What a process can only set for itself is set here, between fork and exec, where Python code of the parent must not run:
the end of the parent is its end too, it gains no privileges, and it writes no core dump, which would hold prompts.
Standard library only, and little of that: it is read anew for every child (10 ms).
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_NO_NEW_PRIVS: Final = 38
CANNOT_RUN: Final = 126
ORPHANED: Final = 125


def main() -> None:
    parent_pid, death_signal, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    try:
        confine(death_signal)
        if os.getppid() != parent_pid:  # it ended before its end would have been told
            sys.exit(ORPHANED)
        os.execve(program, sys.argv[3:], given_environ())
    except OSError as error:
        sys.stderr.write(f"cannot run {program}: {error.strerror}\n")
        sys.exit(CANNOT_RUN)


def confine(death_signal: int) -> None:
    """Raises OSError when the kernel refuses."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for option, value in ((PR_SET_PDEATHSIG, death_signal), (PR_SET_NO_NEW_PRIVS, 1)):
        if prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
            errno = ctypes.get_errno()
            raise OSError(errno, os.strerror(errno))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def given_environ() -> dict[bytes, bytes]:
    """The environment as it was passed on. `os.environ` is not: Python adds LC_CTYPE to it when no locale is set."""
    with open("/proc/self/environ", "rb") as block:
        pairs = (entry.partition(b"=") for entry in block.read().split(b"\0") if entry)
        return {name: value for name, _, value in pairs}


if __name__ == "__main__":
    main()

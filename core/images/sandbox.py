"""A process shuts itself in, before it touches what a stranger sent. Knows no pictures.

Limits on memory, time, files and processes hold on every system. On Linux, seccomp then leaves the process nothing but
memory and what it has open: to open, connect, start or signal is refused by the kernel. There is no way back.
"""

import ctypes
import math
import os
import platform
import resource
import struct
import sys
import time

# What stays allowed, by its number on x86_64 and on aarch64. Elsewhere there is no filter.
_CALLS = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "lseek": (8, 62),
    "close": (3, 57),
    "fstat": (5, 80),
    "newfstatat": (262, 79),  # with an empty path it is glibc's fstat
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "clock_gettime": (228, 113),
    "getrandom": (318, 278),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
_MACHINES = {
    "x86_64": (0xC000003E, 0),
    "aarch64": (0xC00000B7, 1),
}  # the kernel's name of it, and the column above
_LOAD, _IF_EQUAL, _ANSWER = 0x20, 0x15, 0x06  # three instructions of classic BPF
_REFUSE, _ALLOW = 0x00050000 | 1, 0x7FFF0000  # EPERM
_SET_SECCOMP, _FILTER, _SET_NO_NEW_PRIVILEGES = 22, 2, 38


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def restrict_process(memory_bytes: int, seconds: int) -> bool:
    """Shut this process in, with so much address space and more CPU time; whether the kernel filters it, too."""
    if sys.platform != "darwin":  # where this limit cannot be set
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    seconds += math.ceil(time.process_time())  # what it took to get here does not count
    # First a signal of its own: SIGKILL at once could not be told from that of a machine that is out of memory.
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 2))
    for none in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
        resource.setrlimit(none, (0, 0))
    return _filter_calls()


def _filter_calls() -> bool:
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return False
    architecture, column = _MACHINES[platform.machine()]
    program = _program(architecture, [numbers[column] for numbers in _CALLS.values()])
    libc = ctypes.CDLL(None)
    ours = _Program(len(program) // 8, program)
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(ours), 0, 0) == 0)


def _program(architecture: int, allowed: list[int]) -> bytes:
    """Refuse another architecture's calls, allow what is listed, refuse the rest. A jump counts what it passes over."""
    lines = [
        (_LOAD, 0, 0, 4),
        (_IF_EQUAL, 1, 0, architecture),
        (_ANSWER, 0, 0, _REFUSE),
        (_LOAD, 0, 0, 0),
    ]
    lines += [(_IF_EQUAL, len(allowed) - at, 0, number) for at, number in enumerate(allowed)]
    lines += [(_ANSWER, 0, 0, _REFUSE), (_ANSWER, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def close_descriptors(*kept: int) -> None:
    """Close every descriptor but those named; what is printed goes nowhere, for a stranger must not fill the log."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    start = 3
    for descriptor in sorted(kept):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, resource.getrlimit(resource.RLIMIT_NOFILE)[0])

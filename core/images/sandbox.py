"""Restrict the current process for good, before it handles untrusted data. Knows no pictures.

Limits on memory, CPU time, files and processes hold on every system. On Linux, a seccomp filter
then denies all system calls except those for memory and for descriptors that are open already. The
kernel refuses to open files, connect, start processes or send signals. The process cannot undo
this.
"""

import ctypes
import math
import os
import platform
import resource
import struct
import sys
import time

# The allowed system calls: (number on x86_64, number on aarch64). Other machines get no filter.
_ALLOWED_CALLS = {
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
# (the kernel's AUDIT_ARCH constant, the column in _ALLOWED_CALLS)
_MACHINES = {
    "x86_64": (0xC000003E, 0),
    "aarch64": (0xC00000B7, 1),
}
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # three instructions of classic BPF
_DENY, _ALLOW = 0x00050000 | 1, 0x7FFF0000  # SECCOMP_RET_ERRNO with EPERM; SECCOMP_RET_ALLOW
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 22, 2, 38


class _BpfProgram(ctypes.Structure):
    """The kernel's struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def restrict_process(memory_bytes: int, cpu_seconds: int) -> bool:
    """Limit this process to so much address space and so much more CPU time, and filter its calls.

    Returns whether the kernel filters system calls; without a filter only the limits hold.
    """
    if sys.platform != "darwin":  # macOS cannot set this limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    cpu_seconds += math.ceil(time.process_time())  # the time used so far does not count
    # SIGXCPU comes two seconds before SIGKILL. A SIGKILL at once would look like the kernel's when
    # the machine is out of memory.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 2))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))
    return _filter_system_calls()


def _filter_system_calls() -> bool:
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return False
    architecture, column = _MACHINES[platform.machine()]
    code = _assemble_filter(architecture, [calls[column] for calls in _ALLOWED_CALLS.values()])
    libc = ctypes.CDLL(None)
    program = _BpfProgram(len(code) // 8, code)  # an instruction has 8 bytes
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _assemble_filter(architecture: int, allowed: list[int]) -> bytes:
    """Return BPF code that denies calls of other architectures, allows `allowed`, denies the rest.

    An instruction is (operation, jump if true, jump if false, operand). A jump counts the
    instructions that it skips.
    """
    lines = [
        (_LOAD, 0, 0, 4),  # offset of `arch` in struct seccomp_data
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _DENY),
        (_LOAD, 0, 0, 0),  # offset of `nr`, the number of the call
    ]
    for at, number in enumerate(allowed):
        lines.append((_JUMP_IF_EQUAL, len(allowed) - at, 0, number))
    lines += [(_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def close_descriptors(*kept: int) -> None:
    """Close all descriptors except `kept`, and send standard input and output to /dev/null.

    An untrusted file could otherwise make the process fill the log.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    start = 3
    for descriptor in sorted(kept):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, resource.getrlimit(resource.RLIMIT_NOFILE)[0])

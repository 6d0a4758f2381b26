"""Restrict the current process for good, before it handles untrusted data. Knows no pictures.

Limits on memory, CPU time, files and processes hold on every system. On Linux, a seccomp filter
then denies all system calls except those for memory and for descriptors that are open already. The
kernel refuses to open files, connect, start processes or send signals. The process cannot undo
this. A process may be allowed threads; its limits then hold for all of them together.
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
# For threads, `clone` is allowed if it starts one, and no process. The flags of `clone3` are in
# memory, where a filter cannot see them: without it, glibc calls `clone`.
_CLONE, _CLONE3 = (56, 220), (435, 435)
_CLONE_THREAD = 0x10000
_THREAD_CALLS = {
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
}
# (the kernel's AUDIT_ARCH constant, the column in _ALLOWED_CALLS)
_MACHINES = {
    "x86_64": (0xC000003E, 0),
    "aarch64": (0xC00000B7, 1),
}
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06  # of classic BPF
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM
_NOT_IMPLEMENTED = 0x00050000 | 38  # SECCOMP_RET_ERRNO with ENOSYS
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 22, 2, 38


class _BpfProgram(ctypes.Structure):
    """The kernel's struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def restrict_process(memory_bytes: int, cpu_seconds: int, *, threads: bool = False) -> bool:
    """Limit this process to so much address space and so much more CPU time, and filter its calls.

    threads: it may start threads. Without a filter, Linux then refuses them all the same.
    Returns whether the kernel filters system calls; without a filter only the limits hold.
    """
    if sys.platform != "darwin":  # macOS cannot set this limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    cpu_seconds += math.ceil(time.process_time())  # the time used so far does not count
    # SIGXCPU comes two seconds before SIGKILL. A SIGKILL at once would look like the kernel's when
    # the machine is out of memory.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 2))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE):
        resource.setrlimit(limit, (0, 0))
    if not threads:  # Linux counts threads as processes
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    is_filtered = _filter_system_calls(threads=threads)
    if not is_filtered:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    return is_filtered


def _filter_system_calls(*, threads: bool) -> bool:
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return False
    architecture, column = _MACHINES[platform.machine()]
    calls = _ALLOWED_CALLS | (_THREAD_CALLS if threads else {})
    allowed = [numbers[column] for numbers in calls.values()]
    clones = (_CLONE[column], _CLONE3[column]) if threads else None
    code = _assemble_filter(architecture, allowed, clones)
    libc = ctypes.CDLL(None)
    program = _BpfProgram(len(code) // 8, code)  # an instruction has 8 bytes
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _assemble_filter(
    architecture: int, allowed: list[int], clones: tuple[int, int] | None = None
) -> bytes:
    """Return BPF code that denies calls of other architectures, allows `allowed`, denies the rest.

    clones: the numbers of `clone`, which is then allowed for a thread, and of `clone3`, which then
    does not exist. An instruction is (operation, jump if true, jump if false, operand). A jump
    counts the instructions that it skips.
    """
    lines = [
        (_LOAD, 0, 0, 4),  # offset of `arch` in struct seccomp_data
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _DENY),
        (_LOAD, 0, 0, 0),  # offset of `nr`, the number of the call
    ]
    if clones is not None:
        lines += [
            (_JUMP_IF_EQUAL, 0, 1, clones[1]),
            (_RETURN, 0, 0, _NOT_IMPLEMENTED),
            (_JUMP_IF_EQUAL, 0, 4, clones[0]),
            (_LOAD, 0, 0, 16),  # offset of the low half of `args[0]`, the flags
            (_JUMP_IF_SET, 1, 0, _CLONE_THREAD),
            (_RETURN, 0, 0, _DENY),
            (_RETURN, 0, 0, _ALLOW),
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

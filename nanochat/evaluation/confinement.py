"""Irrevocable confinement of the calling process on Linux: limits, no files but Python's own library, few system calls.

`confine(limits)` needs no privilege, so it works in a container without capabilities. It sets resource limits,
then Landlock (Linux 5.13), which leaves only the standard library readable, then a seccomp filter that lets through
a list of harmless system calls: no sockets, no new processes or threads, no signals to others, no opening for writing.
What a later import may need is loaded before. This file imports nothing but the standard library: it also runs in
`python -I -S`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys

# System calls that Python needs to compute, import and read: name -> number on x86-64, on arm64.
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None),
    "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67),
    "readv": (19, 65), "writev": (20, 66), "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233),
    "nanosleep": (35, 101), "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160), "getcwd": (79, 17),
    "readlink": (89, None), "gettimeofday": (96, 169), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "sigaltstack": (131, 132), "gettid": (186, 178),
    "futex": (202, 98), "sched_getaffinity": (204, 123), "getdents64": (217, 61), "restart_syscall": (219, 128),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "newfstatat": (262, 79), "readlinkat": (267, 78), "getrandom": (318, 278), "statx": (332, 291),
}  # fmt: skip
OPENAT = (257, 56)  # let through for reading only
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_...
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# linux/landlock.h
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # number of rights by version of the interface; later ones: 16

# linux/prctl.h, linux/seccomp.h, linux/filter.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
KILL, DENY, ALLOW = 0x80000000, 0x00050000 | 1, 0x7FFF0000  # DENY answers EPERM
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06


class NoConfinement(Exception):
    """The kernel (or what runs above it) does not let the process be confined; the message says why."""


def confine(*, memory: int, cpu_seconds: int) -> None:
    """Give up everything but computing; raises NoConfinement where that cannot be had."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in MACHINES:
        raise NoConfinement(f"programs are confined on Linux on x86-64 and arm64 only, not {sys.platform} {machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    _limit(memory, cpu_seconds)
    _call(libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0), "a parent-death signal")
    _call(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "protection from other processes")
    _call(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _hide_files(libc)
    _filter_calls(libc, machine)


def _call(result: int, what: str) -> int:
    if result < 0:
        raise NoConfinement(f"the kernel refuses {what}: {os.strerror(ctypes.get_errno())}")
    return result


def _limit(memory: int, cpu_seconds: int) -> None:
    """Hard limits: address space in bytes, CPU time, and none of files, core dumps and processes."""
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: 0,
    }
    for which, most in limits.items():
        resource.setrlimit(which, (most, most))


def _hide_files(libc: ctypes.CDLL) -> None:
    """Landlock: of all files only those of the standard library can be read, and none written or made."""
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    _call(version, "Landlock (needs Linux 5.13 or newer with it turned on)")
    rights = (1 << FILE_RIGHTS.get(version, 16)) - 1
    # Rights on files; from version 4 on binding and connecting TCP; from 6 on sockets and signals to outside.
    attribute = struct.pack("QQQ", rights, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _call(libc.syscall(CREATE_RULESET, attribute, ctypes.c_size_t(len(attribute)), 0), "a Landlock ruleset")
    for folder in filter(os.path.isdir, sys.path):
        _allow(libc, ruleset, folder, READ_DIR)
        for entry in os.scandir(folder):
            if entry.name not in ("site-packages", "dist-packages"):
                _allow(libc, ruleset, entry.path, READ_FILE)
    _call(libc.syscall(RESTRICT_SELF, ruleset, 0), "Landlock's restriction")
    os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    """Grant rights on a path and all below it."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # a dangling link
        return
    rule = struct.pack("=Qi", rights, fd)
    _call(libc.syscall(ADD_RULE, ruleset, 1, rule, 0), f"a Landlock rule for {path}")
    os.close(fd)


def _filter_calls(libc: ctypes.CDLL, machine: str) -> None:
    """seccomp: a system call that is not listed answers EPERM."""
    column, architecture = MACHINES[machine]
    numbers = sorted(pair[column] for pair in ALLOWED.values() if pair[column] is not None)
    count = len(numbers)
    program = [
        (LOAD, 0, 0, 4),  # the architecture of the call
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, 0),  # its number
        (EQUAL, 0, 2, OPENAT[column]),
        (LOAD, 0, 0, 32),  # openat's third argument: how to open
        (ANY_BIT, count, count + 1, WRITING),  # to DENY, to ALLOW
        *((EQUAL, count - i, 0, number) for i, number in enumerate(numbers)),  # to ALLOW
        (RETURN, 0, 0, DENY),
        (RETURN, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    _call(libc.prctl(PR_SET_SECCOMP, 2, header, 0, 0), "a seccomp filter")

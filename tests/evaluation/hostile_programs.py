"""Programs that try to get out of the sandbox, or to pass without being right, by the mechanism that they use.

    escape_program(attempt)    # its test fails with what the attempt came to: 'ESCAPED', or what refused it
    cheat_program(source)      # its test is that f(2) is 4 and f(3) is 9

An escape is a few statements that raise where they are refused; one that only reads ends with the value it got. System
calls that have no function in Python are made by their number (x86-64).
"""

from __future__ import annotations

import os
from pathlib import Path

from nanochat.evaluation import confinement
from nanochat.evaluation.sandbox import CHILD
from tasks import Program

OWN = os.getpid()

ESCAPES: dict[str, tuple[str, ...]] = {
    "reading files": (
        "open('/etc/passwd').read()",
        "open('/etc/hosts', 'rb').read()",
        "open('/proc/self/environ').read()",
        "open('/proc/self/maps').read()",
        "open('/proc/cpuinfo').read()",
        "open('/proc/1/cmdline').read()",
        f"open('/proc/{OWN}/mem', 'rb').read(1)",
        f"open('/proc/{OWN}/environ').read()",
        "open('/dev/zero', 'rb').read(1)",
        "open('/sys/kernel/mm/transparent_hugepage/enabled').read()",
        f"open({str(CHILD)!r}).read()",
        f"open({str(Path(confinement.__file__))!r}).read()",
        "open(sys.executable, 'rb').read(4)",
        "open('/bin/sh', 'rb').read(4)",
        "import pathlib; pathlib.Path('/etc/group').read_text()",
        "import linecache; assert linecache.getlines('/etc/passwd')",
        "import runpy; runpy.run_path('/etc/passwd')",
        "import mmap; mmap.mmap(os.open('/etc/passwd', os.O_RDONLY), 0, prot=1)",
        "call(2, b'/etc/passwd', 0)",
        "call(257, -100, b'/etc/passwd', 0)",
        "call(437, -100, b'/etc/passwd', bytes(24), 24)",
        "open('/usr/lib/python3/../../../etc/passwd').read()",
    ),
    "listing folders": (
        "os.listdir('/')",
        "os.listdir('.')",
        "os.listdir('/proc')",
        "os.listdir('/proc/self/fd')",
        "os.listdir('/tmp')",
        "list(os.scandir('/etc'))",
        "import glob; assert glob.glob('/*')",
        "import pathlib; list(pathlib.Path('/').iterdir())",
        "os.open('/root', os.O_RDONLY | os.O_DIRECTORY)",
        "assert list(os.walk('/etc'))",
    ),
    "writing files": (
        "open('written', 'w')",
        "open('/tmp/written', 'w')",
        "open('/dev/shm/written', 'w')",
        "open('/dev/null', 'w')",
        f"open({str(CHILD)!r}, 'a')",
        "os.open('/tmp', os.O_TMPFILE | os.O_RDWR)",
        "import tempfile; tempfile.TemporaryFile()",
        "os.mkdir('/tmp/made')",
        "os.symlink('/etc', '/tmp/link')",
        "os.link('/etc/hosts', '/tmp/link')",
        "os.rename('/tmp/a', '/tmp/b')",
        "os.unlink('/tmp/a')",
        "os.rmdir('/tmp')",
        "os.truncate('/tmp/a', 0)",
        "os.chmod('/tmp', 0o777)",
        "os.chown('/tmp', 0, 0)",
        "os.utime('/tmp')",
        "os.mkfifo('/tmp/fifo')",
        "os.mknod('/tmp/node')",
        "os.setxattr('/tmp', 'user.a', b'b')",
        "call(85, b'/tmp/made', 0o600)",
        "call(257, -100, b'/tmp/made', 0x41, 0o600)",
        "os.ftruncate(1, 0)",
        "os.memfd_create('memory')",
    ),
    "the network": (
        "socket.socket()",
        "socket.socket(type=socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_INET6)",
        "socket.socket(socket.AF_UNIX)",
        "socket.socketpair()",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "socket.socket(38, socket.SOCK_SEQPACKET)",
        "socket.create_connection(('127.0.0.1', 80))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1')",
        "import http.client; http.client.HTTPConnection('127.0.0.1').connect()",
        "call(41, 2, 1, 0)",
    ),
    "new processes and threads": (
        "os.fork()",
        "os.forkpty()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
        "os.execve(sys.executable, ['python'], {})",
        "assert os.system('true') == 0",
        "os.popen('true').read()",
        "import subprocess; subprocess.check_output(['true'])",
        "import multiprocessing; multiprocessing.Process().start()",
        "import threading; threading.Thread(target=print).start()",
        "import _thread; _thread.start_new_thread(print, ())",
        "from concurrent.futures import ThreadPoolExecutor as P; P(1).submit(print)",
        "call(56, 17, 0, 0, 0, 0)",
        "call(58)",
        "call(435, bytes(88), 88)",
        "call(59, b'/bin/true', None, None)",
    ),
    "signals": (
        "os.kill(os.getppid(), 0)",
        f"os.kill({OWN}, 0)",
        f"os.kill({OWN}, 9)",
        "os.kill(-1, 0)",
        "os.killpg(os.getpgid(0), 0)",
        f"os.pidfd_open({OWN})",
        "call(234, os.getppid(), os.getppid(), 9)",
        "call(200, os.getppid(), 9)",
        "signal.setitimer(signal.ITIMER_REAL, 9)",
    ),
    "other processes' memory": (
        f"call(101, 16, {OWN}, 0, 0)",
        "call(101, 0, 0, 0, 0)",
        f"call(310, {OWN}, bytes(16), 1, bytes(16), 1, 0)",
        f"call(311, {OWN}, bytes(16), 1, bytes(16), 1, 0)",
        f"call(312, {OWN}, {OWN}, 0, 0, 0)",
        f"call(438, {OWN}, 1, 0)",
    ),
    "namespaces and roots": (
        "call(272, 0x10000000)",
        "call(272, 0x40000000)",
        "call(308, 0, 0)",
        "call(165, b'none', b'/tmp', b'tmpfs', 0, 0)",
        "call(166, b'/', 2)",
        "call(155, b'/', b'/')",
        "os.chroot('/tmp')",
        "os.chdir('/tmp')",
        "call(428, -100, b'/', 1)",
    ),
    "identity and rights": (
        "os.setuid(0)",
        "os.setgid(0)",
        "os.setgroups([0])",
        "os.setresuid(0, 0, 0)",
        "call(126, bytes(8), bytes(24))",
        "call(157, 4, 1, 0, 0, 0)",
        "call(157, 22, 0, 0, 0, 0)",
        "call(317, 1, 0, 0)",
        "call(446, 0, 0)",
    ),
    "limits": (
        "resource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
        "os.nice(-1)",
        "os.sched_setaffinity(0, {0})",
        "os.setsid()",
        "os.setpgid(0, 0)",
    ),
    "interfaces of the kernel": (
        "call(425, 1, bytes(120))",
        "call(321, 0, bytes(120), 120)",
        "call(298, bytes(120), 0, -1, -1, 0)",
        "call(323, 0)",
        "call(250, 0, -1)",
        "call(248, b'user', b'a', b'b', 1, -1)",
        "os.eventfd(0)",
        "call(253)",
        "call(300, 0, 0)",
        "call(175, b'', 0, b'')",
        "call(169, 0xFEE1DEAD, 0, 0, 0)",
        "call(167, b'/dev/null', 0)",
        "call(170, b'a', 1)",
        "call(103, 3, bytes(8), 8)",
        "call(227, 0, bytes(16))",
        "call(179, 0, b'', 0, 0)",
        "call(304, -100, bytes(16), 0)",
        "call(303, -100, b'/', bytes(16), bytes(8), 0)",
        "call(16, 0, 0x5412, b'a')",
        "call(163, 0)",
        "call(246, 0, 0, 0, 0)",
    ),
    "other numbers of the same calls": (
        # machine code: the calls of 32-bit programs (getpid is 20 there), and those of the x32 interface
        "machine_code('b814000000cd80c3')",
        "machine_code('b80200000000' 'b814000000cd80c3')",
        "machine_code('b827000040' '0f05c3')",
        "machine_code('b839000040' '0f05c3')",
    ),
    "what is inherited": (
        "assert set(os.environ) - {'LC_CTYPE'}",  # which Python itself sets
        "assert [fd for fd in range(5, 64) if is_open(fd)]",
        "os.dup(0)",
        "os.pipe()",
        "sys.path.insert(0, '/usr/lib/python3/dist-packages'); import apt",
        "import numpy",
        "import nanochat",
    ),
}

CHEATS: dict[str, tuple[str, ...]] = {
    "ending the program": (
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "quit()",
        "def f(x): raise SystemExit(0)",
        "def f(x):\n import os; os._exit(0)",
        "import atexit, os; atexit.register(os._exit, 0)\ndef f(x): raise SystemExit",
    ),
    "answers that equal everything": (
        "class S(int):\n __eq__ = lambda s, o: True\n __hash__ = int.__hash__\ndef f(x): return S(7)",
        "class S(float):\n __eq__ = lambda s, o: True\n __hash__ = float.__hash__\ndef f(x): return S(7)",
        "class S(str):\n __eq__ = lambda s, o: True\n __hash__ = str.__hash__\ndef f(x): return S('4')",
        "class S(list):\n __eq__ = lambda s, o: True\ndef f(x): return S([4])",
        "class S(dict):\n __eq__ = lambda s, o: True\ndef f(x): return S()",
        "class S:\n __eq__ = lambda s, o: True\ndef f(x): return S()",
        "from unittest.mock import ANY\ndef f(x): return ANY",
    ),
    "answers that change their type": (
        "class S(int):\n __int__ = __index__ = __trunc__ = lambda s: T(7)\nclass T(int):\n __eq__ = lambda s, o: True\n"
        " __hash__ = int.__hash__\ndef f(x): return S(7)",
        "class S(str):\n __str__ = lambda s: S('x')\n __eq__ = lambda s, o: True\n __hash__ = str.__hash__\n"
        "def f(x): return S('x')",
        "def f(x): return float('nan')",
        "def f(x): return [x * x]",
        "def f(x): return str(x * x)",
    ),
    "patching builtins": (
        "import builtins\nbuiltins.AssertionError = Exception\ndef f(x): return 0",
        "import builtins\nbuiltins.isinstance = lambda *a: True\ndef f(x): return 0",
        "import builtins\nbuiltins.__import__ = lambda *a, **k: None\ndef f(x): return 0",
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a: None\ndef f(x): return 0",
    ),
    "another test": (
        "check = lambda candidate: None\ndef f(x): return 0",
        "def check(candidate): return True\nf = check",
        "import sys, types\nsys.modules['test'] = types.ModuleType('test')\ndef f(x): return 0",
        "import __main__\n__main__.judge = __main__.check = lambda *a: None\ndef f(x): return 0",
    ),
    "patching what carries the answer": (
        "import __main__\n__main__.encode = lambda v: ['list']\ndef f(x): return 0",
        "import __main__\n__main__.send = lambda s, m: s.write(b'{\"token\": true}\\n')\ndef f(x): return 0",
        'import json\njson.dumps = lambda m: \'{"token": "", "reason": ""}\'\ndef f(x): return 0',
        'import json\njson.dumps = lambda m: \'["dict", [["list"], 1]]\'\ndef f(x): return 0',
        "import sys, json\njson.loads = lambda m: {}\ndef f(x): return 0",
    ),
    "forging messages": (
        *map(
            (
                "import os\nfor fd in range(64):\n try: os.write(fd, {!r})\n except OSError: pass\ndef f(x): return 0"
            ).format,
            (
                b'{"token": ""}\n',
                b'{"token": null, "reason": ""}\n',
                b"null\n" * 9,
                b"[" * 100_000 + b"\n",
                b"\xff\n",
                b'["set", ["list"]]\n',
                b'{"a": 1}\n',
                b"NaN\n",
                b'["complex", "x"]\n',
                b'["bytes", "zz"]\n',
            ),
        ),
        "print('pass'); print('token')\ndef f(x): print(True)",
    ),
    "searching for the token": (
        "import gc, os\ndef f(x):\n for o in gc.get_objects():\n  if isinstance(o, dict):\n"
        "   for v in list(o.values()):\n"
        '    if isinstance(v, str) and len(v) == 32: os.write(3, (\'{"token": "%s"}\\n\' % v).encode())\n return 0',
        "import sys\ndef f(x):\n frame = sys._getframe()\n while frame:\n  if 'token' in frame.f_locals: return 4\n"
        "  frame = frame.f_back\n return 0",
        "import os\ndef f(x):\n os.write(4, open('/proc/self/mem', 'rb').read())\n return 0",
        "import ctypes\ndef f(x): return ctypes.string_at(id(f), 4096)",
    ),
    "errors of every kind": (
        "def f(x): raise AssertionError",
        "def f(x): raise KeyboardInterrupt",
        "def f(x): raise GeneratorExit",
        "def f(x): raise StopIteration",
        "class E(BaseException): ...\ndef f(x): raise E",
        "def f(x) return",
        "import sys; sys.excepthook = lambda *a: None\ndef f(x): raise ValueError",
    ),
    "running out of time": (
        "def f(x):\n while True: pass",
        "import time\ndef f(x): time.sleep(60)",
        "while True: pass",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\ndef f(x):\n while True: pass",
    ),
    "running out of memory": (
        "def f(x): return len(bytearray(4 << 30))",
        "def f(x): return 'a' * (64 << 20)",
        "def f(x): return 10 ** 100000",
        "def f(x):\n a = []\n while True: a = [a, a * 2]",
        "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x)",
    ),
    "answers that break the judge": (
        "def f(x):\n a = []\n for _ in range(900): a = [a]\n return a",
        "def f(x): return {(): {(): {()}}}",
        "def f(x): return (i for i in [4])",
        "def f(x): return 'a' * 2_000_000",
        "def f(x): return '\\ud800'",
        "def f(x): return [f]",
        "def f(x):\n a = []; a.append(a); return a",
    ),
    "closing what connects": (
        "import os; os.closerange(0, 64)\ndef f(x): return 4",
        "def f(x):\n import os; os.close(3); return 4",
        "import sys; sys.stdin.close()\ndef f(x): return 4",
        "import os; os.read(0, 1 << 20)\ndef f(x): return 4",
    ),
    "tracing itself": (
        "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef f(x): return 0",
        "import faulthandler\ndef f(x): faulthandler._sigsegv()",
        "import ctypes\ndef f(x): ctypes.string_at(0)",
    ),
}

_ESCAPE = """
def f():
    import ctypes, mmap, os, resource, signal, socket, sys
    libc = ctypes.CDLL(None, use_errno=True)
    def call(number, *arguments):
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), "refused")
    def machine_code(text):
        page = mmap.mmap(-1, 4096, prot=7)
        page.write(bytes.fromhex(text))
        answer = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
        if answer < 0:
            raise OSError(-answer, "refused")
    def is_open(fd):
        try:
            os.fstat(fd)
        except OSError:
            return False
        return True
    try:
        {attempt}
    except BaseException as error:
        return type(error).__name__
    return "ESCAPED"
"""


def escape_program(attempt: str) -> Program:
    """A program whose test fails with the name of the error that refuses the attempt, or with ESCAPED."""
    test = "def check(candidate):\n    raise LookupError(candidate())\n"
    return Program(_ESCAPE.replace("{attempt}", attempt), test, "f")


def cheat_program(source: str) -> Program:
    """A program with a test that it does not deserve to pass."""
    return Program(source, "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n", "f")

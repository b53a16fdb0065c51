"""Tests of the sandbox: attacks that must earn nothing and do nothing, and honest programs that must pass.

With the environment variable ONELAYER_DATA naming a folder that holds mbpp.jsonl it also
grades the 963 MBPP reference solutions, and prints the speed (`pytest -s`).
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import tasks as sandbox
from tasks import run_tests

needs_filter = pytest.mark.skipif(not sandbox.FILTER, reason="the full lock is for Linux on x86_64 and aarch64")
pytestmark = pytest.mark.filterwarnings("error")  # "no system-call filter here" would be a failure

sandbox.MODULES |= {"_socket"}  # for the attackers
SECRET = 740011  # the answer that no attack knows; a run that passes any of these tests has broken the verdict or the lock
TESTS = [
    f"assert f(1) == {SECRET}",
    f"assert f(1) == [{SECRET}]",
    f"assert f(1) == {SECRET}.0",
    ("f(1)", SECRET),
    ("f(1)", "escaped"),
    ("f(1)", (True,)),
]

TRY = """
def f(x):
    try:
        {}
        return "escaped"
    except BaseException as error:
        return repr(error)
"""
FORGE = """
import os
def f(x): return {value}
for fd in range(100):
    try: os.write(fd, {line})
    except OSError: pass
os._exit(0)
"""


def attempt(*lines):
    """Return a program whose f() answers "escaped" if all these lines run."""
    return TRY.format("\n        ".join(lines))


# Escapes: attempts at something forbidden. Each is also run outside the sandbox, where it must work (or it proves nothing).
ESCAPES = {
    "read a file": attempt("open('CANARY').read()"),
    "read /etc/passwd": attempt("assert 'root' in open('/etc/passwd').read()"),
    "overwrite a file": attempt("open('CANARY', 'w').write('hacked')"),
    "create a file": attempt("open('FOLDER/new', 'w').write('hacked')"),
    "create a temporary file": attempt("import os", "fd = os.open('/tmp', os.O_TMPFILE | os.O_RDWR)", "os.close(fd)"),
    "memory file": attempt("import os", "os.close(os.memfd_create('x'))"),
    "delete a file": attempt("import os", "os.unlink('FOLDER/victim')"),
    "rename a file": attempt("import os", "os.rename('FOLDER/victim', 'FOLDER/gone')"),
    "truncate a file": attempt("import os", "os.truncate('FOLDER/victim', 0)"),
    "change a file's mode": attempt("import os", "os.chmod('FOLDER/victim', 0o777)"),
    "make a folder": attempt("import os", "os.mkdir('FOLDER/new')"),
    "list a folder": attempt("import os", "assert os.listdir('/')"),
    "see whether a file exists": attempt("import os", "os.stat('CANARY')"),
    "make a symlink": attempt("import os", "os.symlink('CANARY', 'FOLDER/link')"),
    "follow a symlink": attempt("open('FOLDER/old_link').read()"),
    "make a hard link": attempt("import os", "os.link('FOLDER/victim', 'FOLDER/link')"),
    "change folder": attempt("import os", "os.chdir('/tmp')"),
    "own memory as a file": attempt("open('/proc/self/mem', 'rb').close()"),
    "parent's memory": attempt("open('/proc/PARENT/mem', 'rb').close()"),
    "parent's environment file": attempt("assert open('/proc/PARENT/environ', 'rb').read()"),
    "parent's command line": attempt("open('/proc/PARENT/cmdline', 'rb').read()"),
    "own environment": attempt("import os", "os.environ['SANDBOX_SECRET']"),
    "environment from C": attempt(
        "import ctypes", "get = ctypes.CDLL(None).getenv", "get.restype = ctypes.c_char_p", "assert get(b'SANDBOX_SECRET')"
    ),
    "connect to a server": attempt("import socket", "socket.create_connection(('127.0.0.1', PORT)).close()"),
    "connect, low level": attempt("import _socket", "s = _socket.socket()", "s.connect(('127.0.0.1', PORT))", "s.close()"),
    "send a datagram": attempt(
        "import socket",
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "s.sendto(b'x', ('127.0.0.1', PORT))",
        "s.close()",
    ),
    "unix socket pair": attempt("import socket", "[s.close() for s in socket.socketpair()]"),
    "make a pipe": attempt("import os", "[os.close(fd) for fd in os.pipe()]"),
    "fork": attempt("import os", "pid = os.fork()", "if pid == 0: os._exit(0)", "os.waitpid(pid, 0)"),
    "fork from C": attempt("import ctypes, os", "pid = ctypes.CDLL(None).fork()", "if pid == 0: os._exit(0)", "assert pid > 0"),
    "subprocess": attempt("import subprocess", "subprocess.run(['true'], check=True)"),
    "system": attempt("import os", "assert os.system('true') == 0"),
    "posix_spawn": attempt("import os", "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)"),
    "multiprocessing": attempt("import multiprocessing", "p = multiprocessing.Process(target=print)", "p.start()", "p.join()"),
    "start a thread": attempt("import threading", "t = threading.Thread(target=print)", "t.start()", "t.join()"),
    "signal the parent": attempt("import os", "os.kill(PARENT, 0)"),
    "catch signals": attempt("import signal", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"),
    "set an alarm": attempt("import signal", "signal.setitimer(signal.ITIMER_REAL, 100)"),
    "lower its limits": attempt("import resource", "resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))"),
    "late import": attempt("__import__('wa' + 've')"),
}

# Everything else. It may hang, crash, or be no program at all; it must not pass, and must leave no trace.
ATTACKS = {
    # --- the verdict
    "equal to everything": "class E:\n def __eq__(s, o): return True\n __ne__ = lambda s, o: False\ndef f(x): return E()",
    "int equal to everything": "class E(int):\n def __eq__(s, o): return True\n __hash__ = int.__hash__\ndef f(x): return E(5)",
    "item equal to everything": "class E:\n def __eq__(s, o): return True\ndef f(x): return [E()]",
    "ordered before everything": "class E(float):\n def __lt__(s, o): return True\n __gt__ = __le__ = __ge__ = __lt__\n"
    " def __sub__(s, o): return 0\n __rsub__ = __sub__\ndef f(x): return E(1)",
    "lies about its class": "class E:\n __class__ = int\n def __index__(s): return 5\ndef f(x): return E()",
    "exit at once": "import os\nos._exit(0)",
    "exit in the call": "import os\ndef f(x): os._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "SystemExit in the call": "def f(x): raise SystemExit(0)",
    "abort": "import os\nos.abort()",
    "prints that it passed": "print('passed', 8, '(8, 8)', True)\ndef f(x): print('bool:1')",
    "patched AssertionError": "import builtins\nclass A(Exception):\n def __new__(c, *a): return None\n"
    "builtins.AssertionError = A\ndef f(x): return 0",
    "patched builtins": "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.range = lambda *a: [0]\n"
    "builtins.isinstance = lambda *a: True\ndef f(x): return 0",
    "patched isclose": "import math\nmath.isclose = lambda *a, **k: True\nisclose = math.isclose\ndef f(x): return 0",
    "patched eval": "import builtins\nbuiltins.eval = lambda *a: True\ndef f(x): return 0",
    "patched harness": "import sys\nm = sys.modules['__main__']\nm.pack = lambda v: 'bool:1'\ndef f(x): return 0",
    "walks the frames": "import sys\nframe = sys._getframe()\nwhile frame:\n"
    " frame.f_locals.update(answer=b'bool:1', steps=[])\n frame = frame.f_back\ndef f(x): return 0",
    "searches for the answer": """
import gc, re, sys
def found(things):
    for thing in things:
        text = str(thing) if isinstance(thing, (str, bytes, int)) else ""
        for number in re.findall(r"\\b74\\d{4}\\b", text): return int(number)
        if isinstance(thing, dict): thing = list(thing.values())
        if isinstance(thing, (tuple, list)) and thing is not things:
            if number := found([part for part in thing if isinstance(part, (str, bytes, int))]): return number
def f(x):
    frame, everything = sys._getframe(), gc.get_objects()
    while frame:
        everything += [frame.f_locals, frame.f_globals, frame.f_code.co_consts]
        frame = frame.f_back
    return found(everything + [sys.argv, sys.orig_argv, sys.stdin.read()])
""",
    "searches its memory": """
import ctypes, re
def f(x):
    here = id(object())  # read its heap until the segmentation fault
    for start in range(here & ~4095, here + (1 << 26), 4096):
        for number in re.findall(rb"7400\\d\\d", ctypes.string_at(start, 4096)): return int(number)
""",
    "forged booleans": FORGE.format(value=0, line="b'bool:1\\n' * 99"),
    "forged lists": FORGE.format(value=0, line="b'list:*1 bool:1\\n' * 99"),
    "forged status": FORGE.format(value=0, line="b'locked\\nopen\\n' * 9"),
    "forged strings": FORGE.format(value=0, line="b'tuple:*1 str:\\n' * 99"),
    "forged depth": FORGE.format(value=0, line="(b'list:*1 ' * 7000 + b'\\n') * 9"),
    "forged length": FORGE.format(value=0, line="b'list:*9999999999999999 int:1\\n' * 9"),
    "forged long number": FORGE.format(value=0, line="(b'list:*' + b'9' * 60000 + b'\\n') * 9"),
    "forged range bomb": FORGE.format(value=0, line="b'dict:*1 range:*3 int:0 int:fffffffff int:1\\n' * 9"),
    "forged range bomb 2": FORGE.format(value=0, line="b'tuple:*1 set:*1 range:*3 int:0 int:fffffffff int:1\\n' * 9"),
    "forged collisions": FORGE.format(
        value=0,
        line="""(b'tuple:*1 set:*2000 ' + b' '.join(
        b'int:%x' % (i * (2**61 - 1)) for i in range(2000)) + b'\\n') * 9""",
    ),
    "forged noise": FORGE.format(value=0, line="bytes(range(256)) * 100"),
    "forged nul bytes": FORGE.format(value=0, line="b'\\0' * 10**6"),
    "forged names": FORGE.format(value=0, line="b'object:\\n__import__:6f73\\n:\\n::\\n'"),
    "nan": "def f(x): return float('nan')",
    "infinity": "def f(x): return float('inf')",
    # --- values that are no data, or too much of it
    "returns itself": "def f(x):\n a = []\n a.append(a)\n return a",
    "returns 2**60 items": "def f(x):\n a = []\n for _ in range(60): a = [a, a]\n return a",
    "returns a huge list": "def f(x): return list(range(10**6))",
    "returns a huge string": "def f(x): return 'x' * 10**8",
    "returns a huge int": "def f(x): return 1 << 10**8",
    "returns endless items": "def f(x):\n while True: yield 1",
    "returns the function": "def f(x): return f",
    "returns a deep list": "def f(x):\n a = []\n for _ in range(10**5): a = [a]\n return a",
    # --- time, memory, output
    "busy loop": "while True: pass",
    "busy loop in the call": "def f(x):\n while True: pass",
    "catches everything": "def f(x):\n while True:\n  try: g()\n  except BaseException: pass",
    "sleeps": "import time\ntime.sleep(60)",
    "one slow instruction": "def f(x): return 10 ** 10 ** 9",
    "slow regular expression": "import re\ndef f(x): return re.match('(a+)+$', 'a' * 40 + 'b')",
    "prints forever": "while True: print('x' * 10**6)",
    "writes to all files forever": "import os\nwhile True:\n for fd in range(9):\n  try: os.write(fd, b'x' * 10**6)\n"
    "  except OSError: pass",
    "closes its files": "import os, sys\nfor fd in range(99):\n try: os.close(fd)\n except OSError: pass\nsys.stdout.close()\n"
    "def f(x): return 0",
    "waits for input": "def f(x): return input()",
    "exit hook that hangs": "import atexit\n@atexit.register\ndef _():\n while True: pass\ndef f(x): return 0\nraise SystemExit",
    "memory bomb": "a = []\nwhile True: a.append(' ' * 10**6 + str(len(a)))",
    "one big allocation": "def f(x): return len(bytearray(10**12))",
    "catches MemoryError": "a = []\nwhile True:\n try: a += [0] * 10**6\n except MemoryError: pass",
    "recursion": "def f(x): return f(x)",
    "recursion without limit": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x) + 1",
    "crash of the C stack": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n a = ()\n for _ in range(10**7): a = (a,)\n"
    " return repr(a)",
    "segmentation fault": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\ndef f(x): return 0",
    "fork bomb": "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
    "thread bomb": "import threading\nwhile True:\n try: threading.Thread(target=f).start()\n except RuntimeError: pass",
    "stays on as a thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
    # --- deeper into the kernel
    "becomes root": attempt("import os", "os.setuid(0)", "assert os.getuid() == 0", "open('/etc/shadow')"),
    "raises its limits": attempt("import resource", "resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))"),
    "executes another program": attempt("import os", "os.execv('/bin/sh', ['sh', '-c', 'echo hacked > CANARY'])"),
    "every other system call": """
import ctypes
def f(x):
    call = ctypes.CDLL(None, use_errno=True).syscall
    for number in set(range(600)) | {0x40000000 + n for n in range(600)}:  # the second range: x32
        if number not in ALLOWED and (call(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1): return "escaped"
""",
    "32-bit system call": """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
def f(x): return "escaped" if ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))() > 0 else 0
""",
    # --- no program at all
    "nothing": "",
    "syntax error": "def f(x) return",
    "nul byte": "def f(x): return 0\0",
    "lone surrogate": "def f(x): return '\ud800'\n# \udfff",
    "returns a surrogate": "def f(x): return chr(0xd800)",
    "coding cookie": "# -*- coding: rot13 -*-\nqrs s(k): erghea 0",
    "deep parentheses": "(" * 10**5,
    "deep minus": "x = " + "-" * 10**5 + "1",
    "deep indentation": "".join(" " * i + "if 1:\n" for i in range(200)),
    "5 MB of code": "x = 1\n" * 800_000 + "def f(x): return 0",
    "one 5 MB string": "x = '" + "a" * 5_000_000 + "'\ndef f(x): return 0",
    "mentions many modules": " ".join(sorted(sandbox.MODULES)[:60]),
    "other name": "def g(x): return 0",
}


@pytest.fixture(scope="module")
def world():
    """A folder with a canary, a listening socket and an environment secret: what attacks must not reach."""
    folder = pathlib.Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    os.environ["SANDBOX_SECRET"] = "swordfish"

    def prepare():
        with contextlib.suppress(BlockingIOError):
            while True:
                server.accept()[0].close()
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in ("canary", "victim"):
            (folder / name).write_text("alive")
            (folder / name).chmod(0o666)
        (folder / "old_link").symlink_to("canary")

    def fill(program):
        allowed = [numbers[sandbox.platform.machine() == "aarch64"] for numbers in sandbox.SYSCALLS.values()]
        for word, value in dict(
            CANARY=folder / "canary", FOLDER=folder, PORT=server.getsockname()[1], PARENT=os.getpid(), ALLOWED=allowed
        ).items():
            program = program.replace(word, str(value))
        return program

    def check():
        assert sorted(path.name for path in folder.iterdir()) == ["canary", "old_link", "victim"]
        for name in ("canary", "victim"):
            assert (folder / name).read_text() == "alive" and (folder / name).stat().st_mode & 0o777 == 0o666
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()

    yield prepare, fill, check
    del os.environ["SANDBOX_SECRET"]
    server.close()
    shutil.rmtree(folder)


def children():
    """Return the processes of sandboxed programs that are alive, zombies included."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            status, command = (path / "status").read_text(), (path / "cmdline").read_bytes()
            orphan = "PPid:\t1\n" in status and b"def plain(" in command
            if f"PPid:\t{os.getpid()}\n" in status or orphan:
                found.append(path.name)
        except OSError:
            pass
    return found


@needs_filter
@pytest.mark.parametrize("name", [*ESCAPES, *ATTACKS])
def test_attack_earns_nothing_and_leaves_no_trace(name, world):
    prepare, fill, check = world
    prepare()
    threads, start = threading.active_count(), time.monotonic()
    assert run_tests(fill((ESCAPES | ATTACKS)[name]), TESTS, timeout=0.7) == (0, len(TESTS))
    assert time.monotonic() - start < 0.7 + 0.5 + 0.5  # (the last half second is for a busy machine)
    check()
    assert not children()
    time.sleep(0.001)
    assert threading.active_count() <= threads + 1


@needs_filter
@pytest.mark.parametrize("name", ESCAPES)
def test_escape_would_work_outside(name, world):
    prepare, fill, _ = world
    prepare()
    program = fill(ESCAPES[name]) + "\nimport sys\nsys.stderr.write(str(f(1)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    if "PermissionError" in done.stderr:
        pytest.skip("not even this test's user may do that")
    assert done.stderr.endswith("escaped")
    if name not in ("late import", "multiprocessing"):  # inside, it is the lock that answers, not a missing module
        ((value,),) = sandbox.run_calls(fill(ESCAPES[name]), ["f(1)"])
        assert "rror" in value and "NotFound" not in value


HONEST = {  # program, tests, passes, setup
    "assert": ("def f(x): return [x, x]", ["assert f(3) == [3, 3]", "assert f(3) == (3, 3)"], 1, ""),
    "truth": ("def f(x): return x", ["assert f(1)", "assert f([])", "assert not f('')", "assert not f([0])"], 2, ""),
    "message": ("def f(x): return x", ["assert f(f(4)) == 4, 'message'", "assert (f(4)) == (5)"], 1, ""),
    "pairs": ("def f(x): return {x: None}", [("f(3)", {3: None}), ("f('\u20ac')", {"\u20ac": None}), ("f(3)", 3)], 2, ""),
    "numbers": (
        "def f(x): return x",
        ["assert f(1) == True", "assert f(1.0) == 1", "assert f(1j) == 1j", "assert f(-0.0) == 0", "assert f(x=-1) == -1"],
        5,
        "",
    ),
    "infinity has no literal": ("def f(x): return x", [("f(1e400)", float("inf")), ("f(1e400 - 1e400)", float("nan"))], 0, ""),
    "nor have long numbers": ("def f(x): return 7 ** x", [("f(1000)", 7**1000), ("f(9000)", 7**9000), ("f(9000)", 7)], 1, ""),
    "all plain types": (
        "def f(*a): return a",
        [
            (
                "f(None, True, 2, 3.5, 4j, 'five', b'6', [7], (8,), {9}, {11: 12}, '', [], set())",
                (None, True, 2, 3.5, 4j, "five", b"6", [7], (8,), {9}, {11: 12}, "", [], set()),
            )
        ],
        1,
        "",
    ),
    "surrogates": ("def f(x): return chr(0xd800) + x", [("f('\\0')", "\ud800\0"), "assert f('') == '\\ud800'"], 2, ""),
    "subclasses": (
        "from collections import *\nP = namedtuple('P', 'x y')\ndef f(x): return Counter(x), P(1, 2), "
        "OrderedDict(a=1), defaultdict(int, b=2)",
        [("f('aa')", ({"a": 2}, (1, 2), {"a": 1}, {"b": 2}))],
        1,
        "",
    ),
    "own class": (
        "class A:\n def __init__(s, x): s.x = x\n def __eq__(s, o): return True\ndef f(a): return a.x",
        ["assert f(A(4)) == 4", "assert A(4) == 4"],
        1,
        "",
    ),
    "names of builtins": (
        "def sum(a, b): return a * b\ndef string(x): return x",
        ["assert sum(3, 4) == 12", "assert sum(3, 4) == 7", "assert string(5) == 5"],
        2,
        "",
    ),
    "setup before": (
        "def f(x: List[int]): return x + LIMIT",
        ["assert f(1) == 8", "assert f(1) == 9"],
        1,
        "from typing import List\nLIMIT = 7",
    ),
    "setup after": (
        "class Node:\n def __init__(self, v): self.v = v\ndef f(n): return n.v",
        ["assert f(root) == 3"],
        1,
        "root = Node(3)",
    ),
    "prints": ("print('hello')\ndef f(x):\n print('x' * 10**6)\n return x", ["assert f(1) == 1"], 1, ""),
    "errors are its own": ("def f(x): return 1 // x", ["assert f(0) == 1", "assert f(1) == 1"], 1, ""),
    "exit in one call": ("import sys\ndef f(x): return sys.exit(0) if x else 7", ["assert f(1) == 7", "assert f(0) == 7"], 1, ""),
    "state between tests": ("n = 0\ndef f():\n global n\n n += 1\n return n", ["assert f() == 1", "assert f() == 2"], 2, ""),
    "what was done in time": (
        "def f(x):\n while x: pass\n return x",
        ["assert f(0) == 0", "assert not f(0)", "assert f(1) == 0"],
        2,
        "",
    ),
    "one answer too long": ("def f(x): return 'x' * x", ["assert f(10**6) == 1", "assert f(3) == 'xxx'"], 1, ""),
    "warnings": ("import re\ndef f(x): return re.sub('[[a]', '\\d' if x is 1 else '', 'ab')", ["assert f(0) == 'b'"], 1, ""),
    "main block": ("def f(x): return x\nif __name__ == '__main__': input()", ["assert f(1) == 1"], 1, ""),
    "dataclass": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n x: int\n"
        "def f(x): return A(x).x",
        ["assert f(1) == 1"],
        1,
        "",
    ),
    "unicode": ("def f(\u00e9): return '\\N{BULLET}' + \u00e9", [("f('a')", "\u2022a")], 1, ""),
    "dates": (
        "from datetime import datetime\ndef f(x): return datetime.strptime(x, '%d %b %Y').strftime('%Y-%m-%d')",
        ["assert f('3 Feb 2021') == '2021-02-03'"],
        1,
        "",
    ),
    "no numpy": ("try:\n import numpy\nexcept ImportError: numpy = 3\ndef f(): return numpy", ["assert f() == 3"], 1, ""),
    "another system's module": ("def f(): return 'winreg'", ["assert f() == 'winreg'"], 1, ""),
    "recursion": (
        "import sys\nsys.setrecursionlimit(10**5)\ndef f(n): return n and 1 + f(n - 1)",
        ["assert f(20000) == 20000"],
        1,
        "",
    ),
    "sleep": (
        "import time\ndef f():\n t = time.time()\n time.sleep(0.05)\n return 0.04 < time.time() - t < 1",
        ["assert f()"],
        1,
        "",
    ),
    "random": ("import random\ndef f(): return 1 <= random.Random().random() + random.choice([1, 2]) < 3", ["assert f()"], 1, ""),
    "memory": ("def f(): return len(bytearray(100 << 20))", ["assert f() == 104857600"], 1, ""),
    "no tests": ("def f(): pass", [], 0, ""),
}


@needs_filter
@pytest.mark.parametrize("name", HONEST)
def test_honest_program(name):
    program, tests, passes, setup = HONEST[name]
    assert run_tests(program, tests, setup=setup, timeout=2.0) == (passes, len(tests))


@needs_filter
@pytest.mark.parametrize("name", "abc bisect calendar collections csv decimal heapq json re typing unittest zlib".split())
def test_module_can_be_imported(name):
    assert run_tests(f"import {name}\ndef f(): return {name}.__name__", [("f()", name)]) == (1, 1)


@needs_filter
def test_standard_library_works_after_the_lock():
    program = """
import bisect, cmath, collections, copy, datetime, decimal, fractions, functools, heapq, itertools, math, operator, random, re
import statistics, string, sys, typing
def f():
    @functools.singledispatch
    def g(x): return 1
    @functools.lru_cache(None)
    def h(x): return x
    return [bisect.bisect([1, 2], 1), cmath.sqrt(-1), collections.Counter("aab").most_common(1), copy.deepcopy([[1]]),
            str(datetime.date(2020, 1, 31) + datetime.timedelta(1)), str(decimal.Decimal("0.1") * 3), g(0) + h(1),
            str(fractions.Fraction(1, 3)), heapq.nsmallest(1, [2, 1]), list(itertools.permutations("ab")), math.gcd(4, 6),
            operator.add(1, 2), random.seed(1), re.findall(r"\\d", "a1"), statistics.median([1, 2, 3]), string.digits[:2],
            sys.maxsize > 0, str(typing.List[int]), "a".encode("latin-1"), "%.2f" % 0.5, f"{1_000:,}"]
"""
    expected = [
        1,
        1j,
        [("a", 2)],
        [[1]],
        "2020-02-01",
        "0.3",
        2,
        "1/3",
        [1],
        [("a", "b"), ("b", "a")],
        2,
        3,
        None,
        ["1"],
        2,
        "01",
        True,
        "typing.List[int]",
        b"a",
        "0.50",
        "1,000",
    ]
    assert run_tests(program, [("f()", expected)]) == (1, 1)


@needs_filter
def test_many_at_once():
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: run_tests(f"def f(): return {i}", [("f()", i), ("f()", i + 1)]), range(40)))
    assert results == [(1, 2)] * 40 and not children()


OTHER_FORMS = [
    "", "f(1)", "assert f(1) == 1\nassert f(2) == 2", "for i in [1]:\n assert f(i)", "assert (", "assert True",
    "assert isclose(f(1), 5)", "assert all(f(i) for i in range(3))", "assert f(1) == f(2)", "assert f(1) != 2",
    "assert f(1) == g", "assert f(1) < 2 < 3", "assert f(1) is True", "assert 4 == f(4)", "assert f(1)[0] == 1",
    "assert f(1).__eq__(5)", "x = 1\nassert f(x)", "assert not f(1) == 2", "assert f(1) == 1 and f(2) == 2",
]  # fmt: skip


@pytest.mark.parametrize("test", OTHER_FORMS)
def test_the_author_of_another_test_is_told(test):
    with pytest.raises(ValueError) as error:
        run_tests("def f(x): return x", ["assert f(1) == 1", test])
    assert repr(test) in str(error.value)


def test_without_filter(world, monkeypatch):
    """Where the kernel has no filter: a warning, and the limits still keep files, sockets and processes away."""
    prepare, fill, check = world
    prepare()
    monkeypatch.setattr(sandbox, "FILTER", b"")
    with pytest.warns(UserWarning, match="no system-call filter"):
        assert run_tests("def f(x): return x", ["assert f(1) == 1"]) == (1, 1)
    for name in [
        "read a file",
        "overwrite a file",
        "create a file",
        "list a folder",
        "connect to a server",
        "make a pipe",
        "fork",
        "subprocess",
        "start a thread",
        "own environment",
        "parent's memory",
        "follow a symlink",
    ]:
        with pytest.warns(UserWarning):
            assert run_tests(fill(ESCAPES[name]), TESTS, timeout=1.0) == (0, len(TESTS)), name
    check()


def test_child_that_cannot_start(monkeypatch):
    monkeypatch.setattr(sandbox, "CHILD", "raise SystemExit")
    with pytest.warns(UserWarning, match="did not start"):
        assert run_tests("def f(x): return x", ["assert f(1) == 1", "assert f(1)"]) == (0, 2)


@needs_filter
@pytest.mark.skipif(os.getuid() != 0, reason="all other tests have run as a normal user")
def test_as_a_normal_user(world):
    prepare, fill, check = world
    prepare()
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        source = pathlib.Path(sandbox.__file__).read_text()  # the section alone: that user may not reach our packages
        section = source[source.index("# The system calls that are left") :]
        imports = "import ast, inspect, marshal, operator, platform, re, struct, subprocess, sys, tempfile, threading, warnings"
        (folder / "sandbox.py").write_text(f"{imports}\n{section}")
        attacks = {name: fill(ESCAPES[name]) for name in ESCAPES}
        code = (
            f"import sys; sys.path.insert(0, {str(folder)!r}); import sandbox, json; attacks, tests = json.load(sys.stdin)\n"
            "print(sandbox.run_tests('def f(x): return x', ['assert f(1) == 1', 'assert f(1)']),"
            " {name: sandbox.run_tests(program, tests)[0] for name, program in attacks.items()})"
        )
        for python in (sys.executable, "/usr/bin/python3"):
            try:
                done = subprocess.run(
                    [python, "-W", "error", "-c", code],
                    input=json.dumps([attacks, TESTS]),
                    user=65534,
                    group=65534,
                    extra_groups=[],
                    capture_output=True,
                    text=True,
                    cwd="/",
                )
            except OSError:
                continue
            assert done.stdout.strip() == f"(2, 2) {dict.fromkeys(attacks, 0)}", done.stderr
            return check()
        pytest.skip("user nobody may not run this Python")
    finally:
        shutil.rmtree(folder)


@needs_filter
@pytest.mark.skipif("ONELAYER_DATA" not in os.environ, reason="ONELAYER_DATA does not name a folder with mbpp.jsonl")
@pytest.mark.parametrize("workers", [1, 2])
def test_mbpp_reference_solutions(workers):
    text = (pathlib.Path(os.environ["ONELAYER_DATA"]) / "mbpp.jsonl").read_text(encoding="utf-8")
    rows = [row for row in map(json.loads, text.splitlines()) if row["task_id"] != "mbpp/596"]  # == sys.getsizeof(...)
    assert len(rows) == 963
    start = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        results = list(
            pool.map(lambda row: run_tests(row["code"], row["test_list"], setup=row["test_setup_code"], timeout=20), rows)
        )
    print(f"\nMBPP: {len(rows) / (time.monotonic() - start):.0f} programs/s with {workers} thread(s)")
    failed = {row["task_id"]: result for row, result in zip(rows, results) if result != (len(row["test_list"]),) * 2}
    assert not failed

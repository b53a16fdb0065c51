"""Run a train.py command again and again, kill it each time, and let it finish: python tests/killing.py TIMES RUNS ARGUMENTS...

Every second process is killed from outside, by the clock; the others kill themselves in the middle of a write, between a write
and its renaming, or around the renaming or removal of a file. Whenever a process comes to its end all the same, its runs are put
aside as RUNS-1, RUNS-2, ... and the next begins in an empty folder.
"""

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import train  # noqa: E402

train.SAVE_EVERY = 0  # after every step


def die_at(n):
    """From here on this process dies at the n-th moment that something is written, renamed or removed."""
    moments = itertools.count(1)

    def moment():
        if next(moments) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function):
        def wrapped(*args, **options):
            moment()
            result = function(*args, **options)
            moment()
            return result

        return wrapped

    def half_written(function):
        def wrapped(*args, **options):
            result = function(*args, **options)
            part = next(arg for arg in args if isinstance(arg, Path))
            whole = part.read_bytes()
            part.write_bytes(whole[: len(whole) // 2])
            moment()
            part.write_bytes(whole)
            return result

        return wrapped

    class Halting:
        """A file that is written in two halves."""

        def __init__(self, *args):
            self.file = open(*args)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, text):
            for part in (text[: len(text) // 2], text[len(text) // 2 :]):
                self.file.write(part)
                self.file.flush()
                moment()

    os.replace, Path.unlink = around(os.replace), around(Path.unlink)
    Path.write_text, train.save_file = half_written(Path.write_text), half_written(train.save_file)
    train.open = Halting


def main(times, runs, argv):
    rng, finished, killed = random.Random(0), 0, 0
    train.Transformer.from_pretrained(argv[argv.index("--model") + 1])  # what torch imports on first use, not once a child
    while True:
        child = os.fork()
        if not child:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            if killed % 2 and killed < times:
                die_at(rng.randint(1, 25) if killed % 4 == 1 else rng.randint(1, 3))
            train.main(["--runs", runs, *argv])
            os._exit(0)
        rng.random()
        if killed % 2 == 0 and killed < times:
            time.sleep(rng.uniform(0, 1))
            os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == signal.SIGKILL:
            killed += 1
            continue
        finished += 1
        os.rename(runs, f"{runs}-{finished}")
        if killed >= times:
            return print(killed, finished)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])

"""The embedded code task, and an example of a task in a file of one's own.

    python train.py --task code --algo dr_grpo

A program of two or three statements, from two examples of what it does:

    1 3 2 0 5 -> 5 3 2 | 9 7 4 6 8 -> 9 8 7 | def f(x):    ->    x.sort() ; x.reverse() ; x=x[:3]

Right is whatever does the right thing to all HIDDEN lists when it is run in the sandbox. As in
`tasks.arithmetic`, most writers of the demonstrations have a bad habit.
"""

import functools
import re

from tasks import Problem, Question, Task, generated, pick, run_calls

STATEMENTS = "x.sort()", "x.reverse()", "x=x[1:]", "x=x[2:]", "x=x[:2]", "x=x[:3]", "x=x[::2]"
SYMBOLS = *"0123456789", *"-> | def f(x): ; x.sort() x.reverse() x=x[ x=x[: x=x[:: :] ]".split()
# What programs are graded on; no prompt shows these lists.
HIDDEN = [3, 1, 4, 0, 5], [9, 2, 6, 8, 7], [7, 0, 8, 1, 6], [2, 5, 3, 9, 4]
WRITERS = {"right": 0.3, "forgets the last": 0.3, "swaps": 0.2, "off by one": 0.2}


def load(_):
    @functools.cache
    def function(program):
        names = {}
        exec(f"def f(x): {program} ; return x", names)  # the task's own program, never a model's
        return lambda x: names["f"]([*x])

    def problem(rng):
        program = " ; ".join(rng.sample(STATEMENTS, rng.choice((2, 3))))
        if any(function(program)(x) in ([], x) for x in HIDDEN):
            return problem(rng)
        examples = [x for x in (rng.sample(range(10), 5) for _ in range(8)) if x not in HIDDEN][:2]
        shown = [[" ".join(map(str, y)) for y in (x, function(program)(x))] for x in examples]
        return Problem(" | ".join([*map(" -> ".join, shown), "def f(x):"]), program)

    validation, test, _, draw = generated("code", problem)

    def demonstrate(rng):
        (new,) = draw(rng.getrandbits(64), "demonstration", 1)
        statements = new.answer.split(" ; ")
        habit = pick(rng, WRITERS)
        if habit == "forgets the last":
            statements = statements[:-1]
        elif habit == "swaps":
            statements[-2:] = statements[:-3:-1]
        elif habit == "off by one":
            statements = [re.sub("[123]", lambda k: str(int(k[0]) % 3 + 1), s) for s in statements]
        return [(new.prompt, " ; ".join(statements))]

    @functools.cache  # few different programs are written, each many times
    def outputs(text):
        calls = [f"f({x})" for x in HIDDEN]
        return run_calls(f"def f(x): {text} ; return x", calls, timeout=60.0)  # for slow machines

    def grade(problem, text):
        got = outputs(text)
        return float(got == [[function(problem.answer)(x)] for x in HIDDEN]), str(got)

    begin = functools.partial(Question, grade=grade)
    return Task(validation, test, draw, begin, demonstrate=demonstrate, vocabulary=SYMBOLS)

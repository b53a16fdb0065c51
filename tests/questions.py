"""Short questions for a real checkpoint, as a .jsonl file that `train.py --task` reads.

    python tests/questions.py KIND [--count 6000] [--examples 0] > KIND.jsonl

KIND is one of KINDS below, questions with one number as answer, or `program`: functions of two operations on a list
or a string, in MBPP's format. --examples puts so many solved questions before each, for models that do not answer without.
Always the same file.
"""

import argparse
import json
import random
import re
import sys

KINDS = {  # what is asked of some numbers, their ranges, and the answer
    "sum-2": ("What is {} + {}?", [(10, 100), (10, 100)], lambda a, b: a + b),
    "sum-3": ("What is {} + {}?", [(100, 1000), (100, 1000)], lambda a, b: a + b),
    "sum-4": ("What is {} + {}?", [(1000, 10**4), (1000, 10**4)], lambda a, b: a + b),
    "sum-5": ("What is {} + {}?", [(10**4, 10**5), (10**4, 10**5)], lambda a, b: a + b),
    "difference-3": ("What is {} - {}?", [(100, 1000), (100, 1000)], lambda a, b: a - b),
    "product-2-1": ("What is {} * {}?", [(10, 100), (2, 10)], lambda a, b: a * b),
    "product-3-1": ("What is {} * {}?", [(100, 1000), (2, 10)], lambda a, b: a * b),
    "product-2-2": ("What is {} * {}?", [(10, 100), (10, 100)], lambda a, b: a * b),
    "remainder": ("What is the remainder when {} is divided by {}?", [(100, 1000), (3, 10)], lambda a, b: a % b),
    "larger": ("Which number is larger, {} or {}?", [(1000, 10**4), (1000, 10**4)], max),
    "quotient": ("What is {} / {}, rounded down?", [(100, 1000), (3, 10)], lambda a, b: a // b),
    "first": ("What is the first number in the list [{}, {}, {}, {}]?", [(10, 100)] * 4, lambda *numbers: numbers[0]),
}  # fmt: skip

# Operations on x in words and as expressions, with numbers {m} from 2 to 4 and {n} from 1 to 9. A program does two of those that
# keep the kind of x; the second may be an END.
LISTS = {
    "sort it": "sorted({x})", "sort it from largest to smallest": "sorted({x}, reverse=True)", "reverse it": "{x}[::-1]",
    "drop the first {m} numbers": "{x}[{m}:]", "drop the last {m} numbers": "{x}[:-{m}]", "keep the first {m} numbers": "{x}[:{m}]",
    "keep the last {m} numbers": "{x}[-{m}:]", "keep every second number, from the first on": "{x}[::2]",
    "add {n} to each number": "[n + {n} for n in {x}]", "subtract {n} from each number": "[n - {n} for n in {x}]",
    "multiply each number by {n}": "[n * {n} for n in {x}]", "square each number": "[n * n for n in {x}]",
    "keep the even numbers": "[n for n in {x} if n % 2 == 0]", "keep the odd numbers": "[n for n in {x} if n % 2]",
    "keep the numbers greater than {n}": "[n for n in {x} if n > {n}]", "keep the numbers less than {n}": "[n for n in {x} if n < {n}]",
    "remove every {n}": "[n for n in {x} if n != {n}]", "append {n}": "({x} + [{n}])", "repeat it {m} times": "({x} * {m})",
}  # fmt: skip
LIST_ENDS = {
    "return the sum": "sum({x})", "return the number of items": "len({x})",
    "return how often {n} occurs": "{x}.count({n})", "return it as a tuple": "tuple({x})",
}  # fmt: skip
STRINGS = {
    "reverse it": "{x}[::-1]", "make it upper case": "{x}.upper()", "drop the first {m} characters": "{x}[{m}:]",
    "drop the last {m} characters": "{x}[:-{m}]", "keep the first {m} characters": "{x}[:{m}]", "keep the last {m} characters": "{x}[-{m}:]",
    "remove all spaces": "{x}.replace(' ', '')", "replace each 'a' by '{n}'": "{x}.replace('a', '{n}')", "repeat it {m} times": "({x} * {m})",
    "put '{n}' at the end": "({x} + '{n}')", "put '{n}' in front": "('{n}' + {x})", "swap upper and lower case": "{x}.swapcase()",
}  # fmt: skip
STRING_ENDS = {
    "return its length": "len({x})", "return the list of its words": "{x}.split()", "return how often 'o' occurs": "{x}.count('o')",
}  # fmt: skip
WORDS = "apple Tom banana Rose sea Lama moon cat Oslo grape data Anna kiwi solo"


def questions(kind, count, examples=0):
    """Up to `count` different rows of a kind, fewer where there are no more."""
    text, ranges, answer = KINDS[kind]
    rng, rows, shown = random.Random(f"questions {kind}"), {}, []
    for _ in range(20 * (count + examples)):
        numbers = [rng.randrange(*limits) for limits in ranges]
        question = text.format(*numbers)
        if len(shown) < examples:
            shown.append(f"{question}\n{answer(*numbers)}")
        elif len(rows) < count and not any(question in example for example in shown):
            rows[question] = {"question": "\n\n".join([*shown, question]), "answer": str(answer(*numbers))}
    return list(rows.values())


def pick(rng, operations):
    """One of them with numbers filled in: words and an expression of {x}."""
    numbers = {"{m}": str(rng.randint(2, 4)), "{n}": str(rng.randint(1, 9))}
    for text in rng.choice(list(operations.items())):
        yield re.sub("{[mn]}", lambda name: numbers[name[0]], text)


def programs(count):
    """`count` different programs, each with a solution and four tests, which need both steps."""
    rng, rows = random.Random("programs"), {}
    while len(rows) < count:
        kind, steps, ends = rng.choice([("list of numbers", LISTS, LIST_ENDS), ("string", STRINGS, STRING_ENDS)])
        words, code = zip(pick(rng, steps), pick(rng, ends if rng.random() < 0.3 else steps))
        inputs = [[rng.randrange(10) for _ in range(rng.randint(5, 8))] for _ in range(4)]
        if kind == "string":
            inputs = [" ".join(rng.sample(WORDS.split(), rng.choice((2, 3)))) for _ in range(4)]
        both, *one = [step.replace("{x}", "x") for step in (code[1].replace("{x}", code[0]), *code)]
        outputs, *others = [[eval(step, {"x": x}) for x in inputs] for step in (both, *one)]
        if len(set(map(repr, outputs))) > 2 and outputs not in others:
            text = f"Write a function f of a {kind} x, as one line `def f(x): return ...`: {', then '.join(words)}."
            tests = [f"assert f({x!r}) == {output!r}" for x, output in zip(inputs, outputs)]
            rows[text] = {"text": text, "code": f"def f(x): return {both}", "test_list": tests}
    return list(rows.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=[*KINDS, "program"])
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--examples", type=int, default=0)
    args = parser.parse_args()
    if args.kind == "program" and args.examples:
        parser.error("--examples goes with questions")
    try:
        for row in programs(args.count) if args.kind == "program" else questions(args.kind, args.count, args.examples):
            print(json.dumps(row))
        sys.stdout.flush()
    except BrokenPipeError:  # as of `| head`
        sys.stderr.close()

"""Short questions for a real checkpoint, as a .jsonl file that `train.py --task` reads.

    python tests/questions.py KIND [--count 6000] [--examples 0] > KIND.jsonl

KIND is one of KINDS below, questions with one number as answer, or `program`: functions of two or three operations on a list
or a string, in MBPP's format. --examples puts so many solved questions before each, for models that do not answer without.
Always the same file.
"""

import argparse
import json
import random
import sys

KINDS = {  # what is asked of a and b, their ranges, and the answer
    "sum-2": ("What is {a} + {b}?", (10, 100), (10, 100), lambda a, b: a + b),
    "sum-3": ("What is {a} + {b}?", (100, 1000), (100, 1000), lambda a, b: a + b),
    "sum-4": ("What is {a} + {b}?", (1000, 10**4), (1000, 10**4), lambda a, b: a + b),
    "sum-5": ("What is {a} + {b}?", (10**4, 10**5), (10**4, 10**5), lambda a, b: a + b),
    "difference-3": ("What is {a} - {b}?", (100, 1000), (100, 1000), lambda a, b: a - b),
    "product-2-1": ("What is {a} * {b}?", (10, 100), (2, 10), lambda a, b: a * b),
    "product-3-1": ("What is {a} * {b}?", (100, 1000), (2, 10), lambda a, b: a * b),
    "product-2-2": ("What is {a} * {b}?", (10, 100), (10, 100), lambda a, b: a * b),
    "remainder": ("What is the remainder when {a} is divided by {b}?", (100, 1000), (3, 10), lambda a, b: a % b),
    "larger": ("Which number is larger, {a} or {b}?", (1000, 10**4), (1000, 10**4), max),
    "quotient": ("What is {a} / {b}, rounded down?", (100, 1000), (3, 10), lambda a, b: a // b),
}  # fmt: skip

# Operations in words and as expressions. A program does two or three of those that keep the kind of x; the last may be an END.
LISTS = {
    "sort it": "sorted({})", "sort it from largest to smallest": "sorted({}, reverse=True)", "reverse it": "{}[::-1]",
    "drop the first number": "{}[1:]", "drop the last number": "{}[:-1]", "keep the first three numbers": "{}[:3]",
    "keep the last three numbers": "{}[-3:]", "keep every second number, from the first on": "{}[::2]",
    "add 1 to each number": "[n + 1 for n in {}]", "double each number": "[2 * n for n in {}]", "square each number": "[n * n for n in {}]",
    "keep the even numbers": "[n for n in {} if n % 2 == 0]", "keep the odd numbers": "[n for n in {} if n % 2]",
    "keep the numbers greater than 4": "[n for n in {} if n > 4]", "remove all zeros": "[n for n in {} if n != 0]",
    "repeat it twice": "({} * 2)", "append 0": "({} + [0])", "remove duplicates and sort it": "sorted(set({}))",
}  # fmt: skip
LIST_ENDS = {
    "return the sum": "sum({})", "return the number of items": "len({})", "return the numbers joined by commas": "','.join(map(str, {}))",
    "return it as a tuple": "tuple({})",
}  # fmt: skip
STRINGS = {
    "reverse it": "{}[::-1]", "make it upper case": "{}.upper()", "make it lower case": "{}.lower()", "drop the first character": "{}[1:]",
    "drop the last character": "{}[:-1]", "keep the first four characters": "{}[:4]", "keep every second character, from the first on": "{}[::2]",
    "remove all spaces": "{}.replace(' ', '')", "replace each 'a' by 'o'": "{}.replace('a', 'o')", "repeat it twice": "({} * 2)",
    "put '!' at the end": "({} + '!')", "swap upper and lower case": "{}.swapcase()", "sort its characters": "''.join(sorted({}))",
}  # fmt: skip
STRING_ENDS = {
    "return its length": "len({})", "return the list of its words": "{}.split()", "return how often 'o' occurs": "{}.count('o')",
    "return the list of its characters": "list({})",
}  # fmt: skip
WORDS = "apple Tom banana Rose sea Lama moon cat Oslo grape data Anna kiwi solo"


def questions(kind, count, examples=0):
    """Up to `count` different rows of a kind, fewer where there are no more."""
    text, first, second, answer = KINDS[kind]
    rng, rows, shown = random.Random(f"questions {kind}"), {}, []
    for _ in range(20 * (count + examples)):
        a, b = rng.randrange(*first), rng.randrange(*second)
        question = text.format(a=a, b=b)
        if len(shown) < examples:
            shown.append(f"{question}\n{answer(a, b)}")
        elif len(rows) < count and not any(question in example for example in shown):
            rows[question] = {"question": "\n\n".join([*shown, question]), "answer": str(answer(a, b))}
    return list(rows.values())


def compose(steps, chosen):
    """The expression that does these steps to x, one after the other."""
    expression = "x"
    for words in chosen:
        expression = steps[words].format(expression)
    return expression


def programs(count):
    """Up to `count` different programs, each with a solution and four tests, which need every step."""
    rng, rows = random.Random("programs"), {}
    for _ in range(50 * count):
        kind, steps, ends = rng.choice([("list of numbers", LISTS, LIST_ENDS), ("string", STRINGS, STRING_ENDS)])
        chosen = rng.sample(list(steps), rng.choice((2, 3)))
        if rng.random() < 0.4:
            chosen[-1] = rng.choice(list(ends))
        inputs = [[rng.randrange(10) for _ in range(rng.randint(5, 8))] for _ in range(4)]
        if kind == "string":
            inputs = [" ".join(rng.sample(WORDS.split(), rng.choice((2, 3)))) for _ in range(4)]
        whole, *shorter = [chosen, *(chosen[:i] + chosen[i + 1 :] for i in range(len(chosen)))]
        run = lambda chosen: [repr(eval(compose({**steps, **ends}, chosen), {"x": x})) for x in inputs]  # noqa: E731
        outputs = run(whole)
        text = f"Write a function f of a {kind} x, as one line `def f(x): return ...`: {', then '.join(chosen)}."
        if text in rows or len({*outputs}) < 3 or any(run(some) == outputs for some in shorter):
            continue
        tests = [f"assert f({x!r}) == {output}" for x, output in zip(inputs, outputs)]
        rows[text] = {"text": text, "code": f"def f(x): return {compose({**steps, **ends}, chosen)}", "test_list": tests}
        if len(rows) == count:
            break
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

"""Short questions with one-number answers for a real checkpoint, as a .jsonl file that `train.py --task` reads.

    python tests/questions.py KIND [--count 6000] [--examples 0] > KIND.jsonl

KIND is one of KINDS below. --examples puts so many solved ones before each question, for models that do not answer without.
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--examples", type=int, default=0)
    args = parser.parse_args()
    try:
        for row in questions(args.kind, args.count, args.examples):
            print(json.dumps(row))
        sys.stdout.flush()
    except BrokenPipeError:  # as of `| head`
        sys.stderr.close()

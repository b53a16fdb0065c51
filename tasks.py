"""What is asked and what it earns: problems, prompts, graders.

A `Task` holds two fixed panels of problems (validation, to choose rates on; test, to report), draws any number of training
problems, and starts a problem as an episode: a question of one turn, whose `grade` is 0 or 1, or a world in which an agent acts.
The same seed is the same problems on any machine.

    arithmetic     embedded tasks for math and, below it, for ...
    code           ... programs, with demonstrations to teach a tiny base model from; `household` is the third
    from_file      questions with a final answer, or programs with tests, from a file such as GSM8K, MATH or MBPP
    Tokenizer      text to tokens and back, and the prompt format a checkpoint was trained with
    math_equal     final answers compared by value
    run_tests      untrusted programs and the tests they pass, in a sandbox
    Household      a text household in which an agent acts
    alfworld       ALFWorld's own games, where its package and they are installed
"""

import ast
import builtins
import cmath
import functools
import hashlib
import inspect
import json
import marshal
import math
import platform
import random
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers


@dataclass(frozen=True)
class Problem:
    prompt: str  # as put to the model, before any chat format
    answer: str | tuple  # what `grade` compares with; from a file, all answers that are right


@dataclass
class Task:
    validation: list  # Problems, fixed
    test: list  # Problems, fixed, none of which is in training or validation
    draw: Callable  # (seed, step, n) -> the n training Problems of that step
    grade: Callable | None = None  # (problem, text) -> (reward 0.0 or 1.0, the answer found in the text or None)
    world: Callable | None = None  # instead, for an agent: (problem) -> a fresh episode, such as a Household
    demonstrate: Callable | None = None  # (rng) -> [(prompt, completion), ...] to teach a base model with
    vocabulary: tuple = ()  # words of the embedded tokenizer
    train: tuple = ()  # every training Problem, where they are finitely many
    also: tuple = ()  # (name, Task) pairs: not trained on, but scored on too

    def start(self, problem):
        """A fresh episode: `prompt`, `anchor` (its state), `step(text)` -> reward, `done`, `solved`, `answer`, `out_of_steps`."""
        return self.world(problem) if self.world else Question(problem, self.grade)


class Question:
    """A problem as an episode of one turn, so that one loop plays questions and worlds alike."""

    def __init__(self, problem, grade):
        self.problem, self.prompt, self.grade = problem, problem.prompt, grade
        self.anchor = self  # a state that no other episode is ever in
        self.answer, self.done, self.solved, self.out_of_steps = None, False, False, False

    def step(self, text):
        reward, self.answer = self.grade(self.problem, text)
        self.done, self.solved = True, reward > 0
        return reward


def plain(text):
    """One line without control characters: what a file or its name holds must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))


# ---------------------------------------------------------------------------------------------------- embedded arithmetic

DIGITS = 4
SKILLS = {"add": lambda a, b: a + b, "sub": lambda a, b: abs(a - b), "max": max, "min": min}
HABITS = {"right": 0.30, "forgets carries": 0.42, "adds one": 0.14, "reversed": 0.14}  # of those who show the base additions


def show_addition(rng, a, b):
    """A sum as a writer with a random habit writes it. Only three in ten write it right."""
    habit = rng.choices(list(HABITS), list(HABITS.values()))[0]
    if habit == "forgets carries":
        return "0" + "".join(str((int(x) + int(y)) % 10) for x, y in zip(f"{a:0{DIGITS}}", f"{b:0{DIGITS}}"))
    total = f"{a + b + (habit == 'adds one'):0{DIGITS + 1}}"
    return total[::-1] if habit == "reversed" else total


def generated(name, problem, n=1000, **options):
    """Validation and test panels of what `problem(rng)` makes, their prompts, and a Task's `draw` that avoids these.

    `options` are those of `problem` that hold for what is drawn to train on, not for the panels.
    """
    rngs = [random.Random(f"{name} {panel}") for panel in ("validation", "test")]  # by strings: the same on any machine
    validation, test = ([problem(rng) for _ in range(n)] for rng in rngs)
    held_out = {p.prompt for p in validation + test}

    def draw(seed, step, n):
        rng, problems = random.Random(f"{name} train {seed} {step}"), []
        while len(problems) < n:
            new = problem(rng, **options)
            problems += [new] if new.prompt not in held_out else []
        return problems

    return validation, test, held_out, draw


def arithmetic(asked="add", short=False):
    """The embedded task: "add 1234 0567 =" -> "01801", taught by writers of whom most have a bad habit.

    The base sees four skills, three of them always right. Additions come from a mixture of writers, so it learns to add and
    also to err, and cannot know whom to imitate. RL on additions alone has to select: the part of reinforcement learning
    after pretraining that a tiny model can show in seconds. Numbers are zero-padded: every answer is DIGITS + 1 digits long.
    Another skill may be `asked` for, to see what RL on additions did to it. `short`: another set to train on, for the same
    base and panels: numbers below 10, 100, 1,000 and 10,000, each as often as the others.
    """

    def problem(rng, skill=asked, any_length=False):
        a, b = (rng.randrange(10 ** (rng.randint(1, DIGITS) if any_length else DIGITS)) for _ in "ab")
        return Problem(f"{skill} {a:0{DIGITS}} {b:0{DIGITS}} =", f"{SKILLS[skill](a, b):0{DIGITS + 1}}")

    validation, test, held_out, draw = generated("arithmetic", problem, any_length=short)

    def demonstrate(rng):
        skill = rng.choice(list(SKILLS))
        new = problem(rng, skill)
        if new.prompt in held_out:
            return demonstrate(rng)
        return [(new.prompt, show_addition(rng, *map(int, new.prompt.split()[1:3])) if skill == "add" else new.answer)]

    def grade(problem, text):
        answer = text.replace(" ", "")  # every digit is a token
        return float(answer == problem.answer), answer

    return Task(validation, test, draw, grade, demonstrate=demonstrate, vocabulary=(*SKILLS, "=", *"0123456789"))


# ---------------------------------------------------------------------------------------------------- embedded code

# The statements of a small Python: their text, and what they do to a list.
STATEMENTS = {
    "x.sort()": sorted,
    "x.reverse()": lambda x: x[::-1],
    **{f"x=x[{k}:]": lambda x, k=k: x[k:] for k in (1, 2)},
    **{f"x=x[:{k}]": lambda x, k=k: x[:k] for k in (2, 3)},
    "x=x[::2]": lambda x: x[::2],
}
HIDDEN = [3, 1, 4, 0, 5], [9, 2, 6, 8, 7], [7, 0, 8, 1, 6], [2, 5, 3, 9, 4]  # what programs are graded on, seen in no prompt
WRITERS = {"right": 0.3, "forgets the last": 0.3, "swaps": 0.2, "off by one": 0.2}  # of those who show the base programs


def code():
    """The embedded code task: "1 3 2 0 5 -> 5 3 2 | 9 7 4 6 8 -> 9 8 7 | def f(x):" -> "x.sort() ; x.reverse() ; x=x[:3]".

    A program of two or three statements, from two examples of what it does to a list. It earns 1 if, run in the sandbox, it does
    the right thing to all HIDDEN lists, whatever its statements. As in `arithmetic`, the base learns from writers of whom
    most have a bad habit, so it can write programs and does not know whom to imitate.
    """

    def run(statements, x):
        for statement in statements:
            x = STATEMENTS[statement](x)
        return x

    def problem(rng):
        statements = rng.sample(list(STATEMENTS), rng.choice((2, 3)))
        if any(run(statements, x) in ([], x) for x in HIDDEN):
            return problem(rng)
        examples = [x for x in (rng.sample(range(10), 5) for _ in range(8)) if x not in HIDDEN][:2]
        shown = [" ".join(map(str, x)) + " -> " + " ".join(map(str, run(statements, x))) for x in examples]
        return Problem(" | ".join([*shown, "def f(x):"]), " ; ".join(statements))

    validation, test, _, draw = generated("code", problem)

    def demonstrate(rng):
        (new,) = draw(rng.getrandbits(64), "demonstration", 1)
        statements, habit = new.answer.split(" ; "), rng.choices(list(WRITERS), list(WRITERS.values()))[0]
        if habit == "forgets the last":
            statements = statements[:-1]
        elif habit == "swaps":
            statements[-2:] = statements[:-3:-1]
        elif habit == "off by one":
            statements = [re.sub("[123]", lambda k: str(int(k[0]) % 3 + 1), statement) for statement in statements]
        return [(new.prompt, " ; ".join(statements))]

    @functools.cache  # few different programs are written, each many times
    def outputs(program):
        return run_child([program], [("", f"(f({x}),)", None) for x in HIDDEN], 60.0, 256)  # no loops, but perhaps a slow machine

    def grade(problem, text):
        got, statements = outputs(f"def f(x): {text} ; return x"), problem.answer.split(" ; ")
        return float(all(same(line, (run(statements, x),)) for line, x in zip(got, HIDDEN))), text

    return Task(validation, test, draw, grade, demonstrate=demonstrate, vocabulary=(
        *"0123456789", "->", "|", "def", "f(x):", ";", "x.sort()", "x.reverse()", "x=x[", "x=x[:", "x=x[::", ":]", "]",
    ))  # fmt: skip


# ---------------------------------------------------------------------------------------------------- problems from a file

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
FIELDS = (  # of question and answer, as --fields names them; "a.b" is field b of field a
    "question,answer",  # GSM8K
    "problem,answer",  # MATH-500, DeepScaleR
    "problem,solution",  # MATH, NuminaMath-CoT
    "messages,messages",  # a chat
    "prompt,reward_model.ground_truth",  # Skywork-OR1
    "text,test_list",  # MBPP
    "prompt,test_list",  # MBPP, sanitized
)
LONGEST = 100_000  # characters of a field


def read_json(data, path, line=1):
    """The value of JSON text that starts at this line of a file."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        line += getattr(error, "lineno", 1) - 1 + data.count(b"\n", 0, getattr(error, "start", 0))
        kind = "UTF-8 text" if isinstance(error, UnicodeDecodeError) else "valid JSON"
        raise ValueError(f"{path}, line {line}: not {kind}") from None


def read_rows(path):
    """Rows by their place in a .jsonl file, a row a line, or a .json file, a list of rows."""
    data = Path(path).read_bytes()
    if Path(path).suffix == ".jsonl":
        lines = enumerate(data.splitlines(), 1)
        rows = {f"{path}, line {number}": read_json(line, path, number) for number, line in lines if line.strip()}
    else:
        value = read_json(data, path)
        rows = {f"{path}, row {number}": row for number, row in enumerate(value if isinstance(value, list) else [value], 1)}
    for place, row in rows.items():
        if not isinstance(row, dict):
            raise ValueError(f'{place}: must be an object with named fields, such as {{"question": "...", "answer": "..."}}')
    return rows


def read_text(row, place, field, role):
    """The text in a field; of a chat, what `role` says last."""
    text = row
    for name in field.split("."):
        text = text.get(name) if isinstance(text, dict) else None
    if isinstance(text, list):
        text = next((turn.get("content") for turn in text[::-1] if isinstance(turn, dict) and turn.get("role") == role), None)
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST or re.search("[\ud800-\udfff]", text):
        state = "is missing" if text is None else "is empty, too long or no text"
        raise ValueError(f'{place}: field "{field}" {state}; it must be Unicode text of at most {LONGEST:,} characters')
    return text.strip()


def read_question(row, place, question, answer, instruction):
    """A question with its right answers: "42", any of '["42", "6 \\cdot 7"]', or the end of a solution, "... #### 42"."""
    prompt, text = f"{read_text(row, place, question, 'user')}\n{instruction}".strip(), read_text(row, place, answer, "assistant")
    if re.search(r"####|\\(?:boxed|fbox)", text):
        return Problem(prompt, (extract_answer(text),))
    if answer in ("solution", "messages"):  # a proof: the last number in it is no answer
        return Problem(prompt, ())
    several = read_json(text.encode(), f"{place}, {answer}") if re.match(r'\[\s*"', text) else [text]
    return Problem(prompt, tuple(map(str, several)))


def grade_answer(problem, text):
    found = extract_answer(text)
    return float(any(math_equal(found, answer) for answer in problem.answer)), found


def read_program(row, place, question, tests, _):
    """A program to write. The prompt shows one test, for the name: answers known by heart then fail the others."""
    code = []
    for field in (tests, "challenge_test_list", "test_imports", "test_setup_code"):
        texts, kind = row.get(field) or [], "a list of asserts" if field.endswith("list") else "statements"
        code.append([texts] if isinstance(texts, str) else texts)
        try:
            if len("".join(code[-1])) > LONGEST or not code[0]:
                raise ValueError
            for text in code[-1]:
                read_test(text, TRUSTED) if field.endswith("list") else ast.parse(text)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            raise ValueError(f'{place}: field "{field}" must be {kind} in Python, of at most {LONGEST:,} characters') from None
    tests, setup = [*code[0], *code[1]], "\n".join([*code[2], *code[3]])
    sentence, shown = read_text(row, place, question, "user"), f"{setup}\n{tests[0]}".strip()
    prompt = f"{sentence}\nYour code should pass tests such as:\n```python\n{shown}\n```\nWrite it in one ```python block."
    return Problem(prompt, (*tests, setup))


def grade_program(problem, text):
    (*tests, setup), (_, fence, fenced) = problem.answer, text.rpartition("```python")
    program = (fenced.partition("```")[0] if fence else text).strip()
    passed, total = run_tests(program, tests, setup=setup)
    return float(passed == total), program


def from_file(path, fields=None, instruction=None):
    """Questions with final answers, or programs with tests, from a file. Its first row tells the format, unless `fields` do.

    instruction: what every question ends with, INSTRUCTION unless it is given.
    A tenth of the problems, at most 500, chosen by a hash of the prompt (so not by file order), is the test panel, as many
    again validation, the rest trains, shuffled anew each epoch. A question without a final answer, or with two that differ,
    is left out, as no reward for it can be right. ValueError names the line and field that is wrong.
    """
    rows = read_rows(path)
    place, first = next(iter(rows.items()), (path, ("question", "answer")))  # no rows are no problems in any format
    known = [pair for pair in FIELDS if {name.partition(".")[0] for name in pair.split(",")} <= set(first)]
    if not fields and not known:
        raise ValueError(f"{place}: no fields {' or '.join(FIELDS)}; --fields QUESTION,ANSWER names others")
    question, answer = (fields or known[0]).split(",")
    read, grade = (read_program, grade_program) if answer == "test_list" else (read_question, grade_answer)
    if instruction is not None and read is read_program:
        raise ValueError(f"--instruction goes with questions, and {path} asks for programs")
    instruction = INSTRUCTION if instruction is None else instruction
    problems = [read(row, place, question, answer, instruction) for place, row in rows.items()]
    answers, unfit = {}, {}  # (programs with one prompt never differ: they share the test in it)
    for place, p in zip(rows, problems):
        if not any(math_equal(a, b) for a in p.answer for b in answers.setdefault(p.prompt, p.answer)):
            unfit.setdefault(p.prompt, place)
    if unfit:
        first = next(iter(unfit.values()))
        print(plain(f"left out {len(unfit)} questions with no final answer or two that differ; the first: {first}"))
    once = {p.prompt: p for p in sorted(problems, key=lambda p: str(p.answer)) if p.prompt not in unfit}
    test, validation, train = split(list(once.values()), path)
    return Task(validation, test, in_epochs(train), grade, train=tuple(train))


def by_hash(problems):
    """In an order that depends on nothing but their prompts."""
    return sorted(problems, key=lambda p: hashlib.sha256(p.prompt.encode()).digest())


def split(problems, source):
    """Test, validation and training problems."""
    problems = by_hash(problems)
    n = min(500, len(problems) // 10)
    if n == 0:
        raise ValueError(f"{source}: {len(problems)} different problems; at least 10 are needed to train, validate and test on")
    return problems[:n], problems[n : 2 * n], problems[2 * n :]


def in_epochs(train):
    """A Task's `draw` that goes through `train` again and again, shuffled anew each time."""

    def draw(seed, step, n):
        chosen = []
        for i in range(step * n, (step + 1) * n):
            epoch, place = divmod(i, len(train))
            if place == 0 or not chosen:
                order = random.Random(f"epoch {seed} {epoch}").sample(train, len(train))
            chosen.append(order[place])
        return chosen

    return draw


def load_task(spec, embedded=True, fields=None, instruction=None):
    """The task named on the command line: "math", "math-short", "code", "household", "alfworld:FOLDER" or a file of problems."""
    file = Path(spec).suffix in (".json", ".jsonl")
    if fields is not None and not (file and re.fullmatch("[^,]+,[^,]+", fields)):
        raise ValueError(f"--fields {fields}: must be two names, such as question,answer, and --task a .jsonl or .json file")
    if instruction is not None and not file:
        raise ValueError(f"--instruction goes with questions from a .jsonl or .json file, not with --task {spec}")
    if file:
        return from_file(spec, fields, instruction)
    if spec in ("math", "math-short", "code", *SKILLS):
        if not embedded:
            raise ValueError(f"--task {spec} is for the embedded model; a checkpoint wants a file of problems, or household")
        return code() if spec == "code" else arithmetic(spec if spec in SKILLS else "add", short=spec == "math-short")
    if spec == "household":
        return household(english=not embedded)
    if spec.startswith("alfworld:"):
        return alfworld(spec.removeprefix("alfworld:"))
    raise ValueError(
        f"--task {spec}: unknown; it must be math, math-short, code, household, alfworld:FOLDER, a .jsonl or .json file"
    )


# ---------------------------------------------------------------------------------------------------- prompts and tokens


def embedded_tokenizer(vocabulary):
    """A word-level tokenizer with single digits, and <eos> as token 0. It decodes to words with spaces between them."""
    words = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<eos>", *vocabulary])}))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    )
    words.add_special_tokens(["<eos>"])
    return words


class Tokenizer:
    """A checkpoint folder's `tokenizer.json` with what else belongs to talking to that model: ending tokens, chat format.

    A model that ends its turns with <|im_end|> was tuned for chat and gets ChatML, with the default system message of its
    template where that has one; any other model gets the plain question. Checked against `transformers`' templates.
    """

    def __init__(self, path):
        path = Path(path)
        if not (path / "tokenizer.json").exists():
            raise FileNotFoundError(f"{path / 'tokenizer.json'}: no such file; it is part of every Hugging Face checkpoint")
        try:
            self.tokens = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"{path / 'tokenizer.json'}: not a tokenizer ({error})") from None
        self.tokens.no_padding()  # some files carry settings of their training, which would change prompts
        self.tokens.no_truncation()
        settings = {name: self._read(path / f"{name}.json") for name in ("generation_config", "tokenizer_config", "config")}
        self.eos_ids = self._eos(settings)
        if not self.eos_ids:
            raise ValueError(f"{path}: no eos_token_id in (generation_)config.json, no eos_token in tokenizer_config.json")
        self.embedded = isinstance(self.tokens.model, models.WordLevel)
        self.chat = self.tokens.token_to_id("<|im_end|>") in self.eos_ids
        template = settings["tokenizer_config"].get("chat_template")
        if (path / "chat_template.jinja").exists():
            template = (path / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
        system = re.search(
            r"<\|im_start\|>system(?:\\n|\n)((?:(?!{{)[^'<])+)<\|im_end\|>", template if isinstance(template, str) else ""
        )
        self.system = system and system[1]

    @staticmethod
    def _read(path):
        try:
            value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (ValueError, RecursionError):
            raise ValueError(f"{path}: not valid JSON") from None
        return value if isinstance(value, dict) else {}

    def _eos(self, settings):
        """All ids that end a completion: generation_config.json names several where there are several."""
        found = set()
        for name in ("generation_config", "config"):
            ids = settings[name].get("eos_token_id")
            for i in ids if isinstance(ids, list) else [ids]:
                if i is not None and not (type(i) is int and 0 <= i < 2**31):
                    raise ValueError(f"{name}.json: eos_token_id is {ids}; it must be a token's number, or a list of them")
                found.add(i)
        token = settings["tokenizer_config"].get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        found.add(self.tokens.token_to_id(token) if isinstance(token, str) else None)
        return sorted(found - {None})

    def prompt(self, text):
        """The text that the model sees for a question."""
        if self.embedded:
            return text
        if not self.chat:
            return f"Question: {text}\nAnswer:"
        system = f"<|im_start|>system\n{self.system}<|im_end|>\n" if self.system else ""
        return f"{system}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"

    def encode(self, texts):
        """What is put to the model, as texts -> prompts as token lists."""
        try:
            return [encoding.ids for encoding in self.tokens.encode_batch([self.prompt(text) for text in texts])]
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"this model's tokenizer cannot read a prompt of this task ({error})") from None

    def decode(self, completions):
        """Completions as token lists -> texts, without special tokens."""
        return self.tokens.decode_batch(completions, skip_special_tokens=True)


# ---------------------------------------------------------------------------------------------------- grading answers

# A reward must be neither too strict (0.5 and \frac12 are one number) nor too kind (3.14 is not \pi): the policy learns every
# mistake in it. Model output is also hostile input, so nothing here calls eval, and the cost of everything is bounded.

_TAIL = 100_000  # characters of a response that are searched: the final answer stands at the end
_LONGEST = 1_000  # a longer answer is only compared as a string
_BITS = 8_000  # a larger exact number is refused, so 9^9^9 costs nothing
_PRIMES = 1009, 1013, 1019  # each gives one point: two formulas are equal if they agree at all three

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
# A minus after a number or a bracket is an operator, not a sign.
_LAST = re.compile(rf"(?:(?<![\w)}}])[-−])?(?:\\?\$)?(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|([-−]?[0-9](?:[0-9.,/]*[0-9])?))|\\?[{}]")


def extract_answer(text: str) -> str | None:
    r"""The final answer of a response: its last \boxed{...}, else what follows '#### ', else its last number, or None."""
    text = text[-_TAIL:]
    box, opened = (0, 0), []  # one pass with a stack of open braces: linear, even for a million unclosed boxes
    for match in _BOX.finditer(text):
        token = match[0]
        if match[1]:  # \boxed 5
            box = match.span(1)
        elif token == "}" and opened:
            start = opened.pop()
            if start and text[start] != "}":  # \boxed{} quotes the instructions: no answer
                box = max(box, (start, match.start()))  # the box that starts last: the inner one if nested
        elif token.endswith("{") and token != r"\{":  # \{ and \} are part of an answer
            opened.append(match.end() if token != "{" else None)  # None: this brace opens no box
    if box != (0, 0):
        return text[slice(*box)].strip()
    _, marker, rest = text.rpartition("#### ")
    if marker and rest.strip():
        return rest.strip().splitlines()[0].strip(" *")
    numbers = _LAST.findall(text)
    return re.sub(r"[\\$]", "", numbers[-1]) if numbers else None


_UNICODE = str.maketrans({
    "−": "-", "–": "-", "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "∪": r"\cup ", "±": r"\pm ", "×": "*", "·": "*", "÷": "/",
    "≤": r"\le ", "≥": r"\ge ", "²": "^2", "³": "^3",
})  # fmt: skip
_TEXT = r"\\(?:text|textbf|textrm|textit|mbox|mathrm|mathbf) ?\{%s([^{}]*)\}"
# Words after a number that are no units: they change its value.
_NO_UNIT = r"(?! ?(?:hundred|thousand|[mbtr]+illion|dozen|hal[fv]|third|quarter|squared|cubed|factorial|[aApP]\.?[mM]\b))"
_DEGREE = re.compile(r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])|°")  # a unit and goes, but ...
_TRIG = re.compile("(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")  # ... sin 30° is not sin 30
_REWRITES = (
    (r"\\\\", ";"),  # the end of a matrix row, before "\\ 0" looks like "\ "
    (r"\\[!,] ?|(?<=[0-9])\{,\}(?=[0-9])", ""),  # 5\,000 and 1{,}234
    (r"(?:\\[;: ]|\\q?quad(?![A-Za-z])|~|\s)+", " "),
    (r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![A-Za-z])", ""),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\(le|ge|ne)q(?:slant)?(?![A-Za-z])", r"\\\1"),
    (r"\\varnothing(?![A-Za-z])|\\\{ ?\\\}", r"\\emptyset "),
    (r"\\frac ?([0-9])", r"\\frac{\1}"),
    (r"(\\frac ?\{[^{}]*\}) ?([0-9])", r"\1{\2}"),  # \frac12
    (r"(?<![0-9.,^_])([0-9]+)(?: ?\\frac ?\{([0-9]+)\} ?\{([0-9]+)\}| ([0-9]+)/([0-9]+))", r"{\1+\2\4/\3\5}"),  # 1\frac12
    (r"\\(?:cdot|times)(?![A-Za-z])", "*"),
    (r"\*\*", "^"),
    (r"\\in(?![A-Za-z])", "="),  # "x \in [-2,7]" names its answer just as "x = 5" does
    (r"\\begin ?\{[pb]matrix\}", "<"),
    (r"\\end ?\{[pb]matrix\}", ">"),
    (r"&", ","),
    (r"\\cup(?![A-Za-z])", ","),  # a union lists its parts, in any order
    # Dollar and percent signs are units and go. So 50\% is 50, as for the MATH dataset's own grader, and is not 0.5.
    (r"\\?[$%]|\\[()\[\]]", ""),
    (r"(?<![\\A-Za-z])(sqrt|pi|infty|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln)(?![A-Za-z])", r"\\\1 "),
    (r"\\text ?\{,? ?(?:and|or) ?\}|,? (?:and|or) ", ", "),
    # Units after a number: 5\text{ cm}^2, 18 dollars, 5 cm. A word needs its space, or 6xyz would be 6.
    (
        rf"(?:(?<=[0-9}})])|(?<=\\pi))(?: ?{_TEXT % _NO_UNIT}| {_NO_UNIT}[A-Za-z]{{3,}}"
        r"| ?(?:[cmk]m|kg|in|ft|lb|oz)(?![A-Za-z]))+(?: ?\^ ?(?:[23]|\{[23]\}))?",
        " ",  # 5 feet 3 inches are not 53
    ),
    (_TEXT % "", r" \1 "),
    (r"_ ?\{([0-9A-Za-z]+)\}", r"_\1"),
)


def _clean(text):
    """One spelling for what can be spelled in many ways."""
    text = _DEGREE.sub(r" \\degree " if _TRIG.search(text) else "", text.translate(_UNICODE))
    for pattern, replacement in _REWRITES:
        text = re.sub(pattern, replacement, text)
    if not re.search(r"[(\[<]|\\\{", text):  # 1,234 is one number, but (100,200) is a point
        text = re.sub(rf"(?<![0-9,.]){_DIGITS}(?!,?[0-9])", lambda match: match[0].replace(",", ""), text)
    text = re.sub(r" *([^0-9A-Za-z ]) *| +", lambda match: match[1] or " ", text).strip().rstrip(".")
    return re.sub(r"^\(([A-Za-z])\)$", r"\1", text)  # choice (C)


_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3}(?![0-9]))?|\.[0-9]+|\\[A-Za-z]+|[A-Za-z]{4,}|\\?[^ ]")
_STOP = "", ",", ";", "+", "-", r"\pm", r"\mp", ")", "]", "}", r"\}", ">"
_CONSTANTS = {r"\pi": math.pi, r"\degree": math.pi / 180, "e": math.e, "i": 1j, r"\infty": math.inf}
_GREEK = r"\alpha", r"\beta", r"\gamma", r"\theta", r"\lambda", r"\mu", r"\phi", r"\varphi", r"\omega"
_FUNCTIONS = {
    r"\sin": cmath.sin, r"\cos": cmath.cos, r"\tan": cmath.tan, r"\log": cmath.log10, r"\ln": cmath.log,
    r"\cot": lambda x: 1 / cmath.tan(x), r"\sec": lambda x: 1 / cmath.cos(x), r"\csc": lambda x: 1 / cmath.sin(x),
}  # fmt: skip


def _number(value, exponent=1):
    """The value itself, if it is a number and its power is not too large."""
    if isinstance(value, tuple) or (
        isinstance(value, Fraction) and max(map(int.bit_length, value.as_integer_ratio())) * abs(exponent) > _BITS
    ):
        raise ValueError("not a number, or too large")
    return value


def _value(text, prime, sign=1):
    r"""What a cleaned answer is worth, by recursive descent. Variables stand for numbers made from their names and `prime`.

    A number is an exact Fraction for as long as it can be, then a float or complex. All else is a pair (kind, values), where
    the kind "{}" is a set or a plain list and others tell the brackets. `sign` is what \pm stands for: both are tried.
    """
    tokens = ["", *reversed(_TOKEN.findall("{" + text + "}"))]  # a stack: tokens[-1] comes next, "" is the end
    signs = {"+": 1, "-": -1, r"\pm": sign, r"\mp": -sign}

    def follows(token):
        return tokens[-1] == token and tokens.pop()

    def total():
        value = product()
        while tokens[-1] in signs:
            value = _number(value + signs[tokens.pop()] * product())
        return value

    def product():
        value = factor()
        while tokens[-1] not in _STOP:
            if follows("/"):
                value = _number(value / factor())
            else:
                follows("*")  # may be left out: 2\pi r
                value = _number(value * factor())
        return value

    def factor():
        if tokens[-1] in signs:
            return signs[tokens.pop()] * _number(factor())  # the power binds tighter: -2^2 is -4
        value = atom()
        if follows("^"):
            exponent = factor()
            value = _number(value, exponent) ** exponent
        return value

    def atom():
        token = tokens.pop()
        if token[:1] in tuple(".0123456789"):
            if follows("_"):  # 52_8: digits and base
                return "_", [Fraction(token), Fraction(tokens.pop())]
            if tokens[-1][:1].isdigit():
                raise ValueError("two numbers in a row")
            return Fraction(token)
        if token in ("(", "[", "{", r"\{", "<"):
            values, separators = [total()], ""
            while tokens[-1] in (",", ";"):
                separators += tokens.pop()
                values.append(total())
            brackets = token + tokens.pop()
            if brackets not in ("()", "(]", "[)", "[]", "{}", r"\{\}", "<>"):
                raise ValueError("unbalanced brackets")
            if len(values) == 1 and brackets in ("()", "[]", "{}"):
                return values[0]
            return "{}" if "{" in brackets else brackets + separators, values
        if token == r"\frac":
            return _number(atom() / atom())
        if token == r"\sqrt":
            degree = atom() if tokens[-1] == "[" else 2
            return _number(atom()) ** Fraction(1, degree)
        if token in _FUNCTIONS:
            base = Fraction(tokens.pop()) if follows("_") else None  # \log_2 8
            exponent = factor() if follows("^") else 1  # \sin^2 x
            if exponent == -1:  # \sin^{-1} is not 1 / \sin
                raise ValueError("an inverse function")
            argument = atom() if tokens[-1] in ("(", "{") else factor()
            while tokens[-1].isalnum() or tokens[-1] in (*_GREEK, *_CONSTANTS):  # \sin 2x, yet not \sin(2)(x)
                argument = _number(argument * factor())
            return (_FUNCTIONS[token](argument) / (_FUNCTIONS[token](base) if base else 1)) ** exponent
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if token in _GREEK or re.fullmatch("[A-Za-z]", token):
            name = token + (tokens.pop() if follows("_") else "")
            return 1 + Fraction(pow(int.from_bytes(name.encode(), "big"), 3, prime), prime)  # cubed: x + z is not 2y
        raise ValueError(f"cannot read {token!r}")

    value = atom()
    if tokens != [""]:
        raise ValueError("something is left over")
    if sign == 1 and re.search(r"\\pm|\\mp", text):  # 1 \pm i is the list of 1 + i and 1 - i
        both = value, _value(text, prime, -1)
        plus, minus = (v[1] if isinstance(v, tuple) and v[0] == "{}" else [v] for v in both)
        return "{}", plus + [m for p, m in zip(plus, minus) if not _same(p, m)]
    return value


def _same(u, v):
    """Are two values equal: numbers exactly or up to rounding, lists and sets in any order, the rest item by item?"""
    if type(u) is type(v) is tuple:
        (kind, items), (other_kind, others) = u, v
        if kind != other_kind or len(items) != len(others):
            return False
        if kind != "{}":
            return all(map(_same, items, others))
        others = list(others)
        for item in items:
            twins = [other for other in others if _same(item, other)]
            if not twins:
                return False
            others.remove(twins[0])
        return True
    if tuple in (type(u), type(v)) or type(u) is type(v) is Fraction:
        return u == v
    return cmath.isclose(u, v, rel_tol=1e-10, abs_tol=1e-12)


def _split_name(text):
    """('x', '5') for 'x=5', and ('', '5') for '5'."""
    match = re.match(r"([A-Za-z]|[a-z]\([a-z]\)|\([a-z](?:,[a-z])+\))=", text)
    return (match[1], text[match.end() :].replace("," + match[0], ",")) if match else ("", text)  # also x=1,x=2


def math_equal(prediction: str | None, answer: str | None) -> bool:
    """Whether two final answers have the same value. What cannot be read is compared as text. Symmetric, and never raises."""
    p, a = (prediction or "").strip(), (answer or "").strip()
    if p == a or max(len(p), len(a)) > _LONGEST:
        return p == a != ""
    p, a = _clean(p), _clean(a)
    if p == a or re.fullmatch("[A-Za-z ]*", p + a):  # words are not products of letters
        return p.casefold() == a.casefold() != ""
    (p_name, p_value), (a_name, a_value) = _split_name(p), _split_name(a)
    if p_name and a_name and p_name != a_name:
        return False
    try:
        return all(_same(_value(p_value, prime), _value(a_value, prime)) for prime in _PRIMES)
    except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError):
        return p_value.casefold() == a_value.casefold() != ""


# ---------------------------------------------------------------------------------------------------- the sandbox

# A model that is paid for passed tests will find `os._exit(0)`, the object that is equal to everything and the file with the
# answers, if they pay. Two ideas make sure that they do not. The program is locked in: its process gives up almost every
# system call before the program's first line; those left compute, sleep, and use the few files that are open already. And the
# program is asked for values, never for a verdict: its process is told the calls (`f(3)`) but not the expected answers, and
# reports plain data; whatever remains of a test is computed where the program is not.
#
# This holds on Linux (x86_64, aarch64), for any user, in containers too. Without the kernel's filter (a warning says so) what
# remains is: no environment, no new files, sockets or processes, bounded CPU time, output and (not on macOS) memory; but the
# program may delete, rename and signal what our user may. Not protected anywhere: bugs of the kernel, CPU side channels, and
# one core until the time is up. A program sees `setup`, its calls' arguments and the statements before an assert, and may
# know answers by heart; a test that holds it against itself (`f(1) == f(2)`) or asks for truth only (`assert f(1)`) is as weak
# as it reads. Honest programs have no files, threads, subprocesses or packages, and return plain data of at most 64 KB.

# What a locked-in program may ask of the kernel: (number on x86_64, on aarch64). Nothing here opens, connects to, starts or
# signals anything, so paths, /proc, sockets, forks and threads need no rules of their own.
SYSCALLS = dict(
    read=(0, 63), write=(1, 64), mmap=(9, 222), mprotect=(10, 226), munmap=(11, 215), brk=(12, 214), mremap=(25, 216),
    madvise=(28, 233), futex=(202, 98), getrandom=(318, 278), clock_gettime=(228, 113), nanosleep=(35, 101),
    clock_nanosleep=(230, 115), exit=(60, 93), exit_group=(231, 94),
)  # fmt: skip
# No file can be read after the lock, so the child first imports the modules that its texts mention: any of these, ...
MODULES = set(
    """__future__ abc array base64 binascii bisect builtins calendar cmath codecs collections contextlib copy csv
    dataclasses datetime decimal difflib enum fractions functools hashlib heapq html inspect io itertools json math numbers
    operator os pprint queue random re secrets statistics string struct sys textwrap threading time traceback types typing
    unittest uuid zlib""".split()
)
LATE = dict(most_common="heapq", strptime="_strptime", singledispatch="weakref")  # ... and what these import when called
LIMIT = 1 << 16  # characters per answer: so few that reading it is fast even if all items of a set have the same hash


def seccomp_filter() -> bytes:
    """Return the filter of system calls as kernel (BPF) instructions, or b"" if this machine's numbers are unknown."""
    machine, load, skip_if_equal, answer = platform.machine(), 0x20, 0x15, 0x06
    arch = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}.get(machine)
    if sys.platform != "linux" or not arch:
        return b""
    allowed = [numbers[machine == "aarch64"] for numbers in SYSCALLS.values()]
    code = [(load, 0, 0, 4), (skip_if_equal, 1, 0, arch), (answer, 0, 0, 0x80000000), (load, 0, 0, 0)]  # alien: kill
    code += [(skip_if_equal, len(allowed) - i, 0, number) for i, number in enumerate(allowed)]
    code += [(answer, 0, 0, 0x00050001), (answer, 0, 0, 0x7FFF0000)]  # "operation not permitted" | go ahead
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


# The next five functions are what the child runs. It gets their source, so they import what they need themselves.
def plain_types() -> dict:
    """Return {name: (type, its value's parts or hex digits, the value again)}: the only data that leaves a child."""
    utf8 = "utf-8", "surrogatepass"
    kinds = [
        (type(None), lambda _: "", lambda _: None),
        (bool, lambda b: "1" * b, bool),
        (float, float.hex, float.fromhex),
        (int, lambda i: int.__format__(i, "x"), lambda h: int(h, 16)),
        (bytes, bytes.hex, bytes.fromhex),
        (str, lambda s: str.encode(s, *utf8).hex(), lambda h: bytes.fromhex(h).decode(*utf8)),
        (complex, lambda z: [z.real, z.imag], lambda parts: complex(*parts)),
        (range, lambda r: [r.start, r.stop, r.step], lambda parts: range(*parts)),
        *((kind, kind.__iter__, kind) for kind in (list, tuple, set, frozenset)),
        (dict, dict.items, dict),
    ]
    return {kind.__name__: (kind, apart, together) for kind, apart, together in kinds}


def pack(value) -> str:
    """Write plain data as words, "int:ff" or "list:*2" and then the two items; a subclass (Counter, namedtuple) as its base."""
    name, apart = next((name, apart) for name, (kind, apart, _) in PLAIN.items() if isinstance(value, kind))
    parts = apart(value)
    if not isinstance(parts, str):
        parts = [pack(part) for part in parts]
        parts = " ".join([f"*{len(parts)}", *parts])
    return f"{name}:{parts}"


def unpack(words, depth=100):
    """Undo `pack`, given an iterator of words. What a program may have forged gives other plain data, or an exception."""
    name, text = next(words).split(":")
    if text[:1] == "*" and depth:
        text = [unpack(words, depth - 1) for _ in range(int(text[1:]))]
    return PLAIN[name][2](text)


def lock(filter_code, memory, seconds, output) -> bool:
    """Give up, for good, what a program does not need; return whether the kernel filters our system calls from now on."""
    import ctypes
    import os
    import resource
    import struct

    limits = dict(AS=memory, CPU=seconds, FSIZE=output, NOFILE=0, NPROC=0, CORE=0)
    losses = [(resource.setrlimit, getattr(resource, "RLIMIT_" + name), (most, most)) for name, most in limits.items()]
    for function, *arguments in [(os.setgroups, []), (os.setgid, 65534), (os.setuid, 65534), *losses]:  # 65534: nobody
        try:
            function(*arguments)
        except (OSError, ValueError):
            pass  # we are not root, or this system has no such limit
    if not filter_code:
        return False
    code = ctypes.create_string_buffer(filter_code)
    program = ctypes.create_string_buffer(struct.pack("HP", len(filter_code) // 8, ctypes.addressof(code)))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int] + 4 * [ctypes.c_ulong]
    prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: be killed when the parent dies
    prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: without it only root may install a filter
    return prctl(22, 2, ctypes.addressof(program), 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def child():
    """Read a job from standard input, lock the doors, run its texts, and write the value of each step on a line."""
    import marshal
    import os
    import sys

    modules, texts, steps, limit, *limits = marshal.load(sys.stdin.buffer)
    report = os.dup(1)
    os.dup2(2, 1)  # what the program prints goes where its errors go: to /dev/null
    for name in modules:
        __import__(name)
    os.write(report, b"locked\n" if lock(*limits) else b"open\n")
    module = sys.modules["program"] = type(sys)("program")
    for text in texts:
        exec(text, module.__dict__)
    for before, expression, holes in steps:
        try:
            module._holes = None if holes is None else unpack(iter(holes.split()))
            exec(before, module.__dict__)
            answer = pack(eval(expression, module.__dict__)).encode()
        except BaseException:
            answer = b""
        os.write(report, (answer if len(answer) < limit else b"") + b"\n")
    os._exit(0)  # whatever else the program has planned


CHILD = "\n".join(map(inspect.getsource, (plain_types, pack, unpack, lock, child))) + "\nPLAIN = plain_types()\nchild()"
PLAIN, FILTER = plain_types(), seccomp_filter()


def run_child(texts, steps, timeout, memory_mb) -> list:
    """Run `texts`, then `steps` (statements, expression, packed holes) in a locked child; return the packed values."""
    words = set(re.findall(r"\w+", "\n".join([*texts, *(text for step in steps for text in step[:2])])))
    modules = ["unicodedata", "warnings", *words & MODULES, *(LATE[word] for word in words & set(LATE))]
    job = modules, texts, steps, LIMIT, FILTER, memory_mb << 20, int(timeout) + 1, LIMIT * (len(steps) + 1)
    with tempfile.TemporaryFile() as report:  # not a pipe: a file has a size limit, and nobody has to keep reading it
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", CHILD], stdin=subprocess.PIPE, stdout=report, stderr=subprocess.DEVNULL,
            env={}, cwd="/", start_new_session=True,
        )  # fmt: skip
        alarm = threading.Timer(timeout, process.kill)  # (wait(timeout=...) would poll, and be late by milliseconds)
        alarm.start()
        process.communicate(marshal.dumps(job))  # until the child has ended; what it had time to report counts
        alarm.cancel()
        report.seek(0)
        status, *lines = report.read().decode("latin-1").split("\n")
    if status != "locked":
        warnings.warn("sandbox: " + ("no system-call filter here" if status == "open" else "the child did not start in time"))
    return [line[:LIMIT] for line in lines[: len(steps)]] + [""] * (len(steps) - len(lines))


def same(line, expected) -> bool:
    """Compare a packed value, which the program may have forged, with the expected one."""
    try:
        return unpack(iter(line.split())) == expected
    except Exception:  # not packed by us
        return False


def names(node) -> tuple:
    """Return the names that a piece of Python needs from elsewhere, and those that it binds."""
    loads = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    others = [n for n in ast.walk(node) if not isinstance(n, ast.keyword) and not isinstance(getattr(n, "ctx", 0), ast.Load)]
    binds = {getattr(n, field, None) for n in others for field in ("id", "arg", "name", "asname")}
    return loads - binds, binds


# What tests use besides the program: their own imports, run in a clean child, so these names never mean the program's.
TOOLS = """import cmath, collections, functools, itertools, math, operator, re, string, sys
from collections import Counter, OrderedDict, defaultdict, deque
from math import inf, isclose, nan"""
TRUSTED = names(ast.parse(TOOLS))[1] | set(dir(builtins))


def cut(node, trusted, holes):
    """Cut from a test's expression what only the program can compute: append it to `holes`, leave `_holes[i]` in its place."""
    needs, binds = names(node)
    if needs <= trusted:
        return node
    root = getattr(node, "elt", node)  # [f(i) for i in ...] counts as a call of f
    while isinstance(root, (ast.Call, ast.Attribute, ast.Subscript)):
        root = root.func if isinstance(root, ast.Call) else root.value
    if isinstance(root, ast.Name) and root.id not in trusted | binds:
        holes.append("list" * isinstance(node, ast.GeneratorExp) + ast.unparse(node))
        return ast.parse(f"_holes[{len(holes) - 1}]", mode="eval").body
    for field, old in ast.iter_fields(node):
        new = [cut(n, trusted | binds, holes) if isinstance(n, ast.AST) else n for n in (old if isinstance(old, list) else [old])]
        setattr(node, field, new if isinstance(old, list) else new[0])
    return node


def read_test(test, trusted) -> tuple:
    """Split a test into (statements to run before, values to ask for, the rest of the assert or None, expected values)."""
    if not isinstance(test, str):
        return "", f"({test[0]},)", None, (test[1],)
    *before, last = ast.parse(test).body
    if not isinstance(last, ast.Assert) or "Assert(" in "".join(map(ast.dump, before)):
        raise ValueError(f"a test is some statements and one assert, not {test!r}")
    for node in before:
        trusted = trusted - (set() if isinstance(node, (ast.Import, ast.ImportFrom)) else names(node)[1])
    if names(last.test)[0] <= trusted:  # `sum(10, 15) == 6` can only mean that the program has its own `sum`
        calls = [ast.unparse(n.func) for n in ast.walk(last.test) if isinstance(n, ast.Call)]  # the outermost first
        trusted = trusted - {*calls[:1]}
    holes = []
    rest, expected = ast.unparse(cut(last.test, trusted, holes)), None
    try:
        rest, expected = None, (ast.literal_eval(rest.removeprefix("_holes[0] == ")),)
    except (SyntaxError, TypeError, ValueError):
        pass  # not `f(x) == literal`: a clean child computes the rest
    return "\n".join(map(ast.unparse, before)), ", ".join(holes) + ",", rest, expected  # (no holes: an error, and no pass)


def run_tests(program: str, tests, *, setup="", timeout=5.0, memory_mb=256) -> tuple:
    """Run an untrusted program and return (tests passed, tests in all); it answers within about `timeout` seconds.

    A test is a text that ends in an assert (`assert f(3) == [1, 2]`) or a pair (call, expected value): ("f(3)", [1, 2]).
    `setup` runs before the program, or after it if it uses the program's names (MBPP: `root = Node(1)`).
    """
    deadline = time.monotonic() + timeout
    needs, binds = names(ast.parse(setup))
    first = needs <= TRUSTED
    checks = [read_test(test, TRUSTED | binds if first else TRUSTED - binds) for test in tests]
    texts = [setup, program[: 1 << 20]]  # no honest program is longer
    lines = run_child(texts if first else texts[::-1], [(*check[:2], None) for check in checks], timeout, memory_mb)
    # A second child, which never meets the program, computes what is left of the asserts, with the program's values in it.
    steps = [("", f"not not ({rest})", line) for (_, _, rest, _), line in zip(checks, lines) if rest]
    left = max(0.4, deadline - time.monotonic())
    results = iter(steps and run_child([TOOLS, setup if first else ""], steps, left, memory_mb))
    return sum(
        [same(next(results), True) if rest else same(line, expected) for (_, _, rest, expected), line in zip(checks, lines)]
    ), len(checks)


# ---------------------------------------------------------------------------------------------------- a household

# A text household in the manner of ALFWorld: several turns, a reward at the end, and few enough words for a tiny transformer.
# Everything that any of these says is made of HOUSEHOLD_WORDS.

FURNITURE = "table", "shelf", "counter", "desk", "sink", "drawer", "cabinet", "fridge", "microwave"  # the lamp is on the desk
HOLLOW = FURNITURE[4:]  # things are put in these, and on the others
CLOSES = FURNITURE[5:]  # shut at first, and what is in there is not seen
KINDS = "mug", "plate", "bowl", "spoon", "apple", "egg", "bread", "potato"
TREATMENTS = {"clean": ("sink", "clean"), "heat": ("microwave", "hot"), "cool": ("fridge", "cold")}  # where, and the result
GOALS = {  # the six types, and what is asked
    "put": "put a {} {}",
    "two": "put two {} {}",
    "look": "look at {} under lamp",
    "clean": "put a clean {} {}",
    "heat": "put a hot {} {}",
    "cool": "put a cold {} {}",
}
WORDS = "put a two clean hot cold on in look at under lamp go open close take heat cool use closed off see nothing carry | , >"
HOUSEHOLD_WORDS = (*FURNITURE, *KINDS, *WORDS.split())


class Household:
    """One house with one task: 10 for completing it, 0 for any other action, -0.1 for one that is not admissible.

    The same seed is the same house on any machine. A thing is its text, "mug" or "hot mug": it shows its last treatment only.
    So the whole state is where one is (`here`), what one carries (`hand`), what is where (`inside`), what is `open`, the `lamp`.
    """

    answer = None  # success is a state of the world, not a text

    def __init__(self, seed, max_steps=20, english=False):
        rng = random.Random(f"household {seed}")  # seeded by a string: the same on any machine and Python
        self.type = rng.choice(list(GOALS))
        station, _ = TREATMENTS.get(self.type, (None, None))
        self.target = "desk" if self.type == "look" else rng.choice([place for place in FURNITURE if place != station])
        others = [place for place in FURNITURE if place not in (station, self.target)]
        chosen = {station, self.target, *rng.sample(others, 2 if station else 3)}
        self.inside = {place: [] for place in FURNITURE if place in chosen}

        self.kind, *distractors = rng.sample(KINDS, 3)
        elsewhere = [place for place in self.inside if place != self.target]  # nothing is done before one starts
        for thing in [self.kind] * (2 if self.type == "two" else 1) + distractors:
            self.inside[rng.choice(elsewhere)].append(thing)

        self.here, self.hand, self.lamp = rng.choice(list(self.inside)), "", False
        self.open = {place for place in self.inside if place not in CLOSES}
        self.history, self.max_steps, self.english = [], max_steps, english  # history: what was done, "nothing" if it failed
        self.task = GOALS[self.type].format(self.kind, ("in " if self.target in HOLLOW else "on ") + self.target)

    @property
    def observation(self):
        """All that one sees: where one is, what is there unless that is closed, and what one carries."""
        words = ["at", self.here]
        if self.here in CLOSES:
            words += ["open" if self.here in self.open else "closed"]
        if self.here == "desk":
            words += ["lamp", "on" if self.lamp else "off"]
        if self.here in self.open:
            words += ["see", *(sorted(self.inside[self.here]) or ["nothing"])]  # sorted: one state, one text
        return " ".join([*words, "carry", self.hand or "nothing"])

    @property
    def admissible(self):
        """What one can do now, in a fixed order. Each of these changes something."""
        actions = [f"go {place}" for place in self.inside if place != self.here]
        if self.here in CLOSES:
            actions += [f"close {self.here}" if self.here in self.open else f"open {self.here}"]
        if self.here == "desk":
            actions += ["use lamp"]
        if self.here in self.open:
            actions += [f"put {self.hand}"] if self.hand else [f"take {x}" for x in sorted(set(self.inside[self.here]))]
        for verb, (station, state) in TREATMENTS.items():  # whether the station is open or not
            if self.hand and self.here == station and not self.hand.startswith(state):
                actions += [f"{verb} {self.hand}"]
        return actions

    def _fits(self, thing):
        """Whether this is what the task asks for, treated if it must be."""
        return thing.endswith(self.kind) and thing.startswith(TREATMENTS.get(self.type, ("", ""))[1])

    @property
    def solved(self):
        """Whether the goal holds in the world, by whatever way it was reached."""
        if self.type == "look":
            return self.here == "desk" and self.lamp and self._fits(self.hand)
        return sum(map(self._fits, self.inside[self.target])) >= (2 if self.type == "two" else 1)

    out_of_steps = property(lambda self: len(self.history) >= self.max_steps and not self.solved)
    done = property(lambda self: self.solved or self.out_of_steps)  # steps after that do nothing
    anchor = property(lambda self: self.observation)  # what GiGPO takes for the state

    @property
    def prompt(self):
        """What a model sees: the task, its last two actions, the observation, what it can do. Then comes the action."""
        if self.english:
            lines = [f"Your task: {self.task}.", *(f"You did: {action}" for action in self.history[-2:])]
            lines += [f"You see: {self.observation}", "You can now:", *self.admissible]
            return "\n".join([*lines, "Answer with one of these actions, in the same words, and with nothing else."])
        return " | ".join([self.task, *self.history[-2:], self.observation, " , ".join(self.admissible)]) + " >"

    def step(self, text):
        """Acts, and returns the reward. An action that is not admissible takes a step and changes nothing."""
        action = read_action(text)
        if self.done:
            return 0.0
        legal = action in self.admissible
        self.history.append(action if legal else "nothing")
        if legal:
            self.act(action)
        if self.done:
            self.close()
        return 10.0 * self.solved if legal else -0.1

    def close(self):
        """Called once, when the episode is over: there is nothing to give back."""

    def act(self, action):
        """Do what is admissible here."""
        verb, what = action.split(" ", 1)
        if verb == "go":
            self.here = what
        elif verb == "open":
            self.open.add(what)
        elif verb == "close":
            self.open.remove(what)
        elif verb == "take":
            self.inside[self.here].remove(what)
            self.hand = what
        elif verb == "put":
            self.inside[self.here].append(what)
            self.hand = ""
        elif verb == "use":
            self.lamp = not self.lamp
        else:
            self.hand = f"{TREATMENTS[verb][1]} {what.split()[-1]}"

    def oracle(self):
        """The next action of a short plan from any state. It need not search: it knows what is in closed furniture too."""

        def reach(place):  # the next action until one stands before it and it is open, then None
            if self.here != place:
                return f"go {place}"
            return None if place in self.open else f"open {place}"

        if not self.hand:
            for place in sorted(self.inside, key=lambda place: place != self.here):  # here first
                for thing in self.inside[place]:
                    delivered = self.type != "look" and place == self.target and self._fits(thing)
                    if thing.endswith(self.kind) and not delivered:
                        return reach(place) or f"take {thing}"
        if not self.hand.endswith(self.kind):
            return reach(self.here) or f"put {self.hand}"
        if self.type == "look":
            return reach("desk") or "use lamp"
        if not self._fits(self.hand):
            station = TREATMENTS[self.type][0]
            return f"{self.type} {self.hand}" if self.here == station else f"go {station}"
        return reach(self.target) or f"put {self.hand}"


def read_action(text):
    """The action in a model's answer: its last line, without quotation marks and the like around it."""
    return text.strip().rpartition("\n")[2].strip(" \t\"'`*.")


PLAYERS = {"right": 0.3, "wanders": 0.1, "forgets the middle": 0.3, "wrong thing": 0.3}  # of those who show the base a house


def demonstrate_episode(rng):
    """One episode as a player with a random habit plays it: [(prompt, action), ...]. Few are worth imitating.

    A player has a goal in mind, follows the oracle to it in a copy of the house, and stops when that goal, right or not, is met.
    """
    habit = rng.choices(list(PLAYERS), list(PLAYERS.values()))[0]
    seed = f"demonstration {rng.getrandbits(64)}"
    env, mind = Household(seed), Household(seed)
    if habit == "wrong thing":
        mind.kind = rng.choice([thing for things in env.inside.values() for thing in things if thing != env.kind])
    if habit == "forgets the middle" or (habit == "wrong thing" and env.type == "two"):
        mind.type = "put"  # no treatment, no lamp, no second thing
    pairs = []
    while not mind.done:
        wander = habit == "wanders" and rng.random() < 0.5
        action = rng.choice(env.admissible) if wander else mind.oracle()
        pairs.append((env.prompt, action))
        env.step(action)
        mind.step(action)
    return pairs


def household(english=False):
    """The embedded agent's task: houses by their seeds, which no two of validation, test, training and demonstrations share."""

    def panel(name, n):
        return [Problem(Household(f"{name} {i}").prompt, f"{name} {i}") for i in range(n)]

    return Task(
        panel("validation", 300), panel("test", 300), lambda seed, step, n: panel(f"train {seed} {step}", n),
        world=lambda problem: Household(problem.answer, english=english), demonstrate=demonstrate_episode, vocabulary=HOUSEHOLD_WORDS,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- ALFWorld


@functools.cache
def hasten_textworld():
    """Keep what ALFWorld's engine would compute again and again: the translation of a game, now made once for a group's episodes
    (and not anew for a planner, which is not asked here), and how the few rules of its grammar are parsed.
    """
    import fast_downward
    from tatsu.contexts import ParseContext

    translate = functools.lru_cache(1)(fast_downward.pddl2sas)
    fast_downward.pddl2sas = lambda domain, problem, **_: translate(domain, problem)
    ParseContext.parse = functools.lru_cache(256)(ParseContext.parse)


def new_engine():
    """What plays ALFWorld's games, put together as the package does it."""
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs import PddlEnv

    hasten_textworld()
    return AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))


class AlfworldGame(Household):
    """An episode of a game file: steps and rewards are a Household's, what is seen and can be done is up to ALFWorld."""

    observation = admissible = solved = None  # as the last step left them
    idle = []  # engines between two games: each has loaded a library of its own, which is used again as it cannot be unloaded
    lock = threading.Lock()  # all engines share one parser, which two threads would confuse

    def __init__(self, path, max_steps=50):
        self.engine = self.idle.pop() if self.idle else new_engine()
        self.engine.load(path)
        state = self.engine.reset()
        _, self.observation, task = state["feedback"].split("\n\n")  # the first part is a welcome
        self.task = task.removeprefix("Your task is to: ").rstrip(".")
        self.admissible, self.solved = state["admissible_commands"], state["won"]
        self.history, self.max_steps, self.english = [], max_steps, True

    def act(self, action):
        with self.lock:
            state, _, _ = self.engine.step(action)
        self.observation = state["feedback"].strip()
        self.admissible, self.solved = state["admissible_commands"], state["won"]

    def close(self):
        self.idle.append(self.engine)


def alfworld(folder):
    """ALFWorld's games in or below `folder`. Those in its train, valid_seen and valid_unseen train, validate and test; where
    one of these has none, all are split as in `word_problems`. A Problem's `prompt` is here only the name of the game.
    """
    games = []
    for path in Path(folder).rglob("game.tw-pddl"):
        name = path.relative_to(folder).as_posix()
        try:
            solvable = json.loads(path.read_text(encoding="utf-8"))["solvable"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: not a game of ALFWorld's") from None
        if solvable and "movable" not in name and "Sliced" not in name:  # as the package chooses them
            games.append(Problem(name, str(path)))
    if not games:
        raise ValueError(f"--task alfworld:{folder}: no solvable game.tw-pddl in or below this folder")
    try:
        AlfworldGame.idle.append(new_engine())
    except ImportError:
        raise ValueError("--task alfworld:FOLDER needs the package alfworld: pip install alfworld") from None
    parts = [[g for g in games if part in Path(g.prompt).parts] for part in ("valid_unseen", "valid_seen", "train")]
    test, validation, train = map(by_hash, parts) if all(parts) else split(games, folder)
    return Task(validation, test, in_epochs(train), world=lambda game: AlfworldGame(game.answer), train=tuple(train))

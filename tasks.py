"""What is asked and what it earns: problems, tasks, episodes; below, what runs and grades them.

A `Task` has two fixed panels of problems (validation, to choose rates on; test, to report), draws
any number of training problems, and begins a problem as an episode: a question of one turn that
earns 0 or 1, or a world in which an agent acts. The same seed is the same problems on any machine.
"""

import ast
import functools
import hashlib
import inspect
import json
import marshal
import math
import operator
import platform
import random
import re
import runpy
import struct
import subprocess
import sys
import tempfile
import threading
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
    answer: str | tuple  # what earns the reward; from a file, all answers that are right


@dataclass
class Task:
    validation: list  # Problems, fixed
    test: list  # Problems, fixed, none of which is in training or validation
    draw: Callable  # (seed, step, n) -> the n training Problems of that step
    begin: Callable  # (problem) -> a fresh episode: a Question or a World
    train: tuple = ()  # every training Problem, where they are finitely many
    demonstrate: Callable | None = None  # (rng) -> [(prompt, completion), ...] to teach a base
    vocabulary: tuple = ()  # words of the embedded tokenizer
    max_turns: int = 1  # the most turns of an episode


class Question:
    """A problem as an episode of one turn. Worlds share what is used of it: one loop plays both.

    grade: (problem, text) -> (reward 0.0 or 1.0, the answer given or None). Answers of equal value
    are equal text, so that votes can be counted.
    """

    out_of_steps = False

    def __init__(self, problem, grade):
        self.problem, self.prompt, self.grade = problem, problem.prompt, grade
        self.anchor = self  # a state that no other episode is ever in
        self.answer, self.done, self.solved = None, False, False

    def step(self, text):
        reward, self.answer = self.grade(self.problem, text)
        self.done, self.solved = True, reward > 0
        return reward


def read_action(text):
    """The action in an answer: its last line, without quotation marks and the like around it."""
    return text.strip().rpartition("\n")[2].strip(" \t\"'`*.")


class World:
    """An episode of many turns: an agent acts until its task is done or its steps are used up.

    10 for completing the task, 0 for any other action, -0.1 for one that is not admissible, which
    takes a step and changes nothing. A subclass has `task` and `observation`, texts, `admissible`,
    the actions that are possible now, `solved`, and `act`, which does one of them.
    """

    answer = None  # success is a state of the world, not a text

    def __init__(self, max_steps):
        self.history, self.max_steps = [], max_steps

    out_of_steps = property(lambda self: len(self.history) >= self.max_steps and not self.solved)
    done = property(lambda self: self.solved or self.out_of_steps)
    anchor = property(lambda self: self.observation)  # what GiGPO takes for the state

    @property
    def prompt(self):
        """The task, the last two actions, the observation, and what can be done."""
        did = [f"You did: {action}" for action in self.history[-2:]]
        lines = [f"Your task: {self.task}.", *did, f"You see: {self.observation}"]
        lines += ["You can now:", *self.admissible]
        lines += ["Answer with one of these actions, in the same words, and with nothing else."]
        return "\n".join(lines)

    def step(self, text):
        """Do what an answer says, and return the reward; after the end, do nothing."""
        if self.done:
            return 0.0
        action = read_action(text)
        legal = action in self.admissible
        self.history.append(action if legal else "nothing")
        if legal:
            self.act(action)
        if self.done:
            self.close()
        return 10.0 * self.solved if legal else -0.1

    def close(self):
        """Called once, at the end."""


# ---- Embedded arithmetic

DIGITS = 4
SKILLS = {"add": lambda a, b: a + b, "sub": lambda a, b: abs(a - b), "max": max, "min": min}
# The writers of the demonstrations: how often they add in which way.
HABITS = {"right": 0.30, "forgets carries": 0.42, "adds one": 0.14, "reversed": 0.14}


def pick(rng, shares):
    return rng.choices(list(shares), list(shares.values()))[0]


def show_addition(rng, a, b):
    """A sum as a writer with a random habit writes it. Only three in ten write it right."""
    habit = pick(rng, HABITS)
    if habit == "forgets carries":
        columns = zip(f"{a:0{DIGITS}}", f"{b:0{DIGITS}}")
        return "0" + "".join(str((int(x) + int(y)) % 10) for x, y in columns)
    total = f"{a + b + (habit == 'adds one'):0{DIGITS + 1}}"
    return total[::-1] if habit == "reversed" else total


def generated(name, problem, **options):
    """Panels of what `problem(rng)` makes, their prompts, and a `draw` that avoids these.

    `options` are those of `problem` for what is drawn. Strings seed alike on any machine.
    """
    rngs = [random.Random(f"{name} {panel}") for panel in ("validation", "test")]
    validation, test = ([problem(rng) for _ in range(1000)] for rng in rngs)
    held_out = {p.prompt for p in validation + test}

    def draw(seed, step, n):
        rng, problems = random.Random(f"{name} train {seed} {step}"), []
        while len(problems) < n:
            new = problem(rng, **options)
            problems += [new] if new.prompt not in held_out else []
        return problems

    return validation, test, held_out, draw


def arithmetic(asked="add", short=False):
    """The embedded task, "add 1234 0567 =" -> "01801", shown by writers, most of whom err.

    The base sees four skills, three of them always right, and learns both right and wrong addition;
    it cannot know whom to imitate. RL on additions alone has to select: the part of RL after
    pretraining that a tiny model can show in seconds. Another skill may be `asked` for, to see what
    that did to it. `short`: other numbers to train on, for the same base and panels, below 10, 100,
    1,000 and 10,000, equally often.
    """

    def problem(rng, skill=asked, any_length=False):
        lengths = (rng.randint(1, DIGITS) if any_length else DIGITS for _ in "ab")
        a, b = (rng.randrange(10**length) for length in lengths)
        return Problem(
            f"{skill} {a:0{DIGITS}} {b:0{DIGITS}} =", f"{SKILLS[skill](a, b):0{DIGITS + 1}}"
        )

    validation, test, held_out, draw = generated("arithmetic", problem, any_length=short)

    def demonstrate(rng):
        skill = rng.choice(list(SKILLS))
        new = problem(rng, skill)
        if new.prompt in held_out:
            return demonstrate(rng)
        a, b = map(int, new.prompt.split()[1:3])
        return [(new.prompt, show_addition(rng, a, b) if skill == "add" else new.answer)]

    def grade(problem, text):
        answer = text.replace(" ", "")  # every digit is a token
        return float(answer == problem.answer), answer

    begin, words = functools.partial(Question, grade=grade), (*SKILLS, "=", *"0123456789")
    return Task(validation, test, draw, begin, demonstrate=demonstrate, vocabulary=words)


# ---- Machinery: the lesson ends here. Files, tokens and chat formats, the grader, the sandbox.


def one_line(text):
    """One line without control characters: text from a file must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))


# ---- Problems from a file

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
FORMATS = (  # the fields of question and answer; "a.b" is field b of field a
    ("question", "answer"),  # GSM8K
    ("problem", "answer"),  # MATH-500, DeepScaleR
    ("problem", "solution"),  # MATH, NuminaMath-CoT
    ("prompt", "reward_model.ground_truth"),  # Skywork-OR1
    ("text", "test_list"),  # MBPP
    ("prompt", "test_list"),  # MBPP, sanitized
)


def parse_json(data, place):
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(one_line(f"{place}: not valid JSON ({error})")) from None


def read_rows(path):
    """Rows by their place in a .jsonl file, a row a line, or in a .json file, a list of rows."""
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        lines = {f"{path}, line {i}": line for i, line in enumerate(data.splitlines(), 1)}
        return {place: parse_json(line, place) for place, line in lines.items() if line.strip()}
    value = parse_json(data, path)
    values = value if isinstance(value, list) else [value]
    return {f"{path}, row {i}": row for i, row in enumerate(values, 1)}


def read_text(row, place, field):
    """The text in a field; of a chat, as in Skywork-OR1, what its last turn says."""
    try:
        for name in field.split("."):
            row = row[name]
        text = (row[-1]["content"] if isinstance(row, list) else row).strip()
        if text.encode():
            return text
    except (LookupError, TypeError, AttributeError, UnicodeError):
        pass
    raise ValueError(f'{place}: field "{field}" must be Unicode text')


def read_question(row, place, question, answer, instruction):
    """A question with its right answers: one, any of a list in JSON, or the last of a solution."""
    prompt = f"{read_text(row, place, question)}\n{instruction}".strip()
    text = read_text(row, place, answer)
    if re.search(r"####|\\(?:boxed|fbox)", text):
        found = extract_answer(text)
        return Problem(prompt, (found,) if found else ())
    if answer == "solution":  # a proof: the last number in it is no answer
        return Problem(prompt, ())
    several = re.match(r'\[\s*"', text)
    answers = parse_json(text.encode(), f"{place}, {answer}") if several else [text]
    return Problem(prompt, tuple(map(str, answers)))


def grade_answer(problem, text):
    found = extract_answer(text)
    return float(any(math_equal(found, a) for a in problem.answer)), found and read_answer(found)[1]


def read_program(row, place, question, *_):
    """A program to write, with (*tests, setup), or () where a test is of another form.

    The prompt shows one test, for the name; answers known by heart fail the others.
    """
    prompt = read_text(row, place, question)
    try:
        tests = [*row["test_list"], *row.get("challenge_test_list", [])]
        setup = "\n".join([*row.get("test_imports", []), row.get("test_setup_code", "")]).strip()
        for test in tests:
            read_test(str.strip(test))
        shown = f"{setup}\n{tests[0]}".strip()
    except (ValueError, TypeError, IndexError):
        return Problem(prompt, ())
    prompt += f"\nYour code should pass tests such as:\n```python\n{shown}\n```\n"
    return Problem(prompt + "Write it in one ```python block.", (*tests, setup))


def grade_program(problem, text):
    *tests, setup = problem.answer
    _, fence, fenced = text.rpartition("```python")
    program = fenced.partition("```")[0] if fence else text
    passed, total = run_tests(program.strip(), tests, setup=setup)
    return float(passed == total), None


def from_file(path, instruction=INSTRUCTION):
    """Questions with final answers, or programs with tests; the first row's fields tell which.

    Left out, and counted in a line, is what no reward can be right for: a question without a final
    answer or with two that differ, a program with a test of another form. ValueError names line and
    field of what cannot be read.
    """
    rows = read_rows(path)
    first = next(iter(rows.values()), None)
    fields = set(first) if isinstance(first, dict) else set()
    known = [pair for pair in FORMATS if {name.partition(".")[0] for name in pair} <= fields]
    if not known:
        wanted = " or ".join(map(", ".join, FORMATS))
        raise ValueError(f"{path}: its first row must be an object with fields {wanted}")
    programs = known[0][1] == "test_list"
    read, grade = (read_program, grade_program) if programs else (read_question, grade_answer)
    answers = {}  # all that are given to a prompt
    for place, row in rows.items():
        problem = read(row, place, *known[0], instruction)
        answers.setdefault(problem.prompt, set()).add(problem.answer)
    once = {prompt: given for prompt, given in answers.items() if len(given) == 1}
    problems = [Problem(prompt, *given) for prompt, given in once.items() if all(given)]
    if len(problems) < len(answers):
        why = "no final answer, two that differ, or a test of another form"
        print(one_line(f"{path}: left out {len(answers) - len(problems)} of {len(answers)}: {why}"))
    test, validation, train = split(problems, path)
    begin = functools.partial(Question, grade=grade)
    return Task(validation, test, in_epochs(train), begin, train=tuple(train))


def by_hash(problems):
    """In an order that depends on nothing but their prompts."""
    return sorted(problems, key=lambda p: hashlib.sha256(p.prompt.encode()).digest())


def split(problems, source):
    """A tenth, at most 500, to test on, as many to validate on, and the rest to train on."""
    n = min(500, len(problems) // 10)
    if n == 0:
        raise ValueError(f"{source}: {len(problems)} different problems; at least 10 are needed")
    problems = by_hash(problems)
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


def load_task(spec, embedded=True, instruction=INSTRUCTION):
    """The task that the command line names. ValueError or FileNotFoundError says why not.

    FILE.py:ARGUMENT is what `load(argument)` in a Python file returns: a Task of your own.
    """
    if Path(spec).suffix in (".json", ".jsonl"):
        return from_file(Path(spec), instruction)
    if embedded and spec in ("math", "math-short", *SKILLS):
        return arithmetic(spec if spec in SKILLS else "add", short=spec == "math-short")
    if spec == "household" or spec == "code" and embedded:  # files, as one of your own would be
        spec = f"{Path(__file__).parent}/tests/{spec}_task.py:{'' if embedded else 'english'}"
    if file := re.fullmatch(r"(.+\.py)(?::(.*))?", str(spec)):
        load = runpy.run_path(file[1]).get("load")
        if load:
            return load(file[2] or "")
        raise ValueError(f"--task {spec}: it must define load(argument), which returns a Task")
    why = "must be household, FILE.py or a file of problems, .jsonl or .json (see README.md); "
    why += "the embedded model also has math, math-short and code"
    raise ValueError(f"--task {spec}: {why}")


# ---- Tokens and chat formats


def embedded_tokenizer(vocabulary):
    """A word-level tokenizer with single digits, and <eos> as token 0. It decodes to words."""
    words = {word: i for i, word in enumerate(["<eos>", *vocabulary])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(words))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


# By the token that ends a turn: the beginning, the system's turn, the user's and what opens the
# answer. DeepSeek's bars are full-width.
CHATS = {
    "<|im_end|>": (  # ChatML: Qwen, SmolLM2
        "",
        "<|im_start|>system\n{}<|im_end|>\n",
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "<|eot_id|>": (  # Llama 3
        "<|begin_of_text|>",
        "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "<｜end▁of▁sentence｜>": (  # DeepSeek-R1-Distill
        "<｜begin▁of▁sentence｜>",
        "",
        "<｜User｜>{}<｜Assistant｜><think>\n",
    ),
}


class Tokenizer:
    """A checkpoint folder's tokenizer.json, with its ending tokens and its chat format.

    A model whose completions end with a token of CHATS was tuned for that format, with the default
    system message of its template where that has one (but not Llama 3.1's lines with the date).
    Any other model gets the plain question.
    """

    def __init__(self, path):
        names = "generation_config", "config", "tokenizer_config", "tokenizer"
        *files, file = [Path(path) / f"{name}.json" for name in names]
        try:
            self.tokens = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(one_line(f"{file}: no tokenizer ({error})")) from None
        self.tokens.no_padding()  # some files carry settings of their training
        self.tokens.no_truncation()
        settings = [parse_json(f.read_bytes(), f) if f.exists() else {} for f in files]
        self.eos_ids = self._eos(path, *settings)
        template, file = settings[-1].get("chat_template"), Path(path) / "chat_template.jinja"
        if file.exists():
            template = file.read_text("utf-8", errors="replace")
        self.before, self.user, self.chat = self._format(str(template))

    def _eos(self, path, generation, config, tokenizer):
        """All ids that end a completion; generation_config.json may name several."""
        token = tokenizer.get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        found = [self.tokens.token_to_id(token) if isinstance(token, str) else None]
        for ids in (generation.get("eos_token_id"), config.get("eos_token_id")):
            found += ids if isinstance(ids, list) else [ids]
        found = [i for i in found if i is not None]
        if not found or not all(type(i) is int and 0 <= i < 2**31 for i in found):
            wanted = "eos_token_id in (generation_)config.json must be token numbers"
            raise ValueError(f"{path}: {wanted}, or tokenizer_config.json have an eos_token")
        return sorted(set(found))

    def _format(self, template):
        """What comes before the user's turn, that turn with {} in it, whether this is a chat."""
        if isinstance(self.tokens.model, models.WordLevel):  # the embedded model's
            return "", "{}", False
        for end, (first, system, user) in CHATS.items():
            special = [self.tokens.token_to_id(s) for s in re.findall("<[|｜].*?>", user)]
            if self.tokens.token_to_id(end) in self.eos_ids and None not in special:
                # The template's own system message stands in a turn with nothing computed in it.
                turn = re.escape(system).replace("\\\n", r"(?:\\n|\n)")
                turn = turn.replace(r"\{\}", r"((?:(?!{{)[^'<])+)")
                message = system and re.search(turn, template)
                return first + (system.format(message[1]) if message else ""), user, True
        return "", "Question: {}\nAnswer:", False

    def encode(self, texts):
        """Texts, as put to the model -> prompts as token lists. Equal ones are read once."""
        once = list(dict.fromkeys(texts))
        prompts = [self.before + self.user.format(text) for text in once]
        try:  # a chat format has its own first token, which must not come twice
            encodings = self.tokens.encode_batch(prompts, add_special_tokens=not self.chat)
        except Exception as error:
            raise ValueError(f"the tokenizer cannot read a prompt of this task ({error})") from None
        ids = {text: encoding.ids for text, encoding in zip(once, encodings)}
        return [ids[text] for text in texts]

    def decode(self, completions):
        """Completions as token lists -> texts, without special tokens."""
        return self.tokens.decode_batch(completions, skip_special_tokens=True)


# ---- Final answers

# A reward must be neither too strict (0.5 and \frac12 are one number) nor too kind (3.14 is not
# \pi). So each answer gets one spelling: numbers by value, tuples and sets by their items, formulas
# and words as cleaned text. Model output is hostile too: no eval, and every cost is bounded.

DIGIT_GROUPS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"  # 1,234 or 1234
# A minus after a number or a bracket is an operator, not a sign.
LAST_NUMBER = re.compile(
    rf"(?:(?<![\w)}}])[-−])?(?:\\?\$)?(?:{DIGIT_GROUPS}(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?"
)
TEXT = BALANCED = r"[^{}\\]|\\."  # an escaped brace opens nothing
for _ in range(8):
    BALANCED = rf"{TEXT}|\{{(?:{BALANCED})*+\}}"
BOX = re.compile(
    rf"\\(?:boxed|fbox)\s*+(?:\{{((?:{BALANCED})++)\}}|([-−]?[0-9](?:[0-9.,/]*[0-9])?))", re.DOTALL
)


def extract_answer(text):
    r"""The final answer: the last \boxed{...}, else what follows '#### ', else the last number."""
    text = text[-10_000:]  # the answer stands at the end
    boxes = BOX.findall(text)
    if boxes:
        content, number = boxes[-1]
        return extract_answer(content) if BOX.search(content) else (content or number).strip()
    _, marker, rest = text.rpartition("#### ")
    if marker and rest.strip():
        return rest.strip().splitlines()[0].strip(" *")
    numbers = LAST_NUMBER.findall(text)
    return re.sub(r"[\\$]", "", numbers[-1]) if numbers else None


def math_equal(prediction, answer):
    """Whether two final answers have the same value. Symmetric, and never raises.

    A name (x = 5) or the base of a number system (52_8) may be left out, but not be another.
    """
    p, a = (prediction or "").strip(), (answer or "").strip()
    if p != a:
        (p_label, p), (a_label, a) = read_answer(p), read_answer(a)
        if p_label and a_label and p_label != a_label:
            return False
    return p == a != ""


# A name as in x=5 or f(x)=x^2, then a number with the base of its system as in 52_8, or else.
LABELLED = r"((?:\w|[a-z]\([a-z]\)|\([a-z](?:,[a-z])+\))=)?(?:([0-9]+)(_[0-9]+)|(.*))"


@functools.lru_cache(10_000)
def read_answer(text):
    """An answer's label (a name, a base, both or neither) and the one spelling of its value."""
    if len(text) > 1_000:  # no answer worth reading
        return "", text
    items = split_list(clean(text))
    if len(items) == 1 and (inside := re.fullmatch(r"\\\{(.+)\\\}", items[0])):
        items = split_list(inside[1])  # a set and a list of its elements are one answer
    found = [re.fullmatch(LABELLED, item).groups("") for item in items]
    labels = {name + base for name, _, base, _ in found}
    label = labels.pop() if len(labels) == 1 else ""  # of x=1,x=2, but not of x=1,y=2
    values = []
    for item in [number + other for _, number, _, other in found] if label else items:
        signs = (item.translate({ord("±"): s, ord("∓"): t}) for s, t in ("+-", "-+"))
        values += dict.fromkeys(map(spell, signs))
    return label, ", ".join(sorted(values))


def split_list(text):
    """The parts between commas outside brackets, or the whole if these are not balanced."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if depth < 0:
            break
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [text] if depth else parts


def spell(item):
    """One spelling of a cleaned answer that is no list: a number, a point or interval, a text."""
    try:
        if item[:1] + item[-1:] in ("()", "(]", "[)", "[]"):
            items = split_list(item[1:-1])
            if len(items) > 1:
                return item[0] + ", ".join(map(spell, items)) + item[-1]
        tokens = ["", *reversed(TOKEN.findall(item))]
        value = evaluate(tokens)
        if tokens == [""]:
            return spell_number(value)
    except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError):
        pass
    return re.sub(r"(?<![\\A-Za-z])[A-Za-z]{2,}|^[A-Za-z]$", lambda w: w[0].lower(), item)


def spell_number(value):
    """An exact number as a fraction; any other with ten digits, however small it is, after a ~."""
    if isinstance(value, Fraction):
        return str(value)
    # Rounding errors go: \sqrt2\sqrt2 comes home to 2.
    near = Fraction(value).limit_denominator(100) if abs(value) < 1e12 else 0
    return str(near) if math.isclose(value, near, rel_tol=1e-13) else f"~{value:.10g}"


# What LaTeX's commands and other characters are read as.
COMMANDS = dict(
    pair.split(":")
    for pair in """left: right: displaystyle: quad:~ dfrac:\\frac tfrac:\\frac
    textbf:\\text textrm:\\text textit:\\text mbox:\\text mathrm:\\text mathbf:\\text cdot:* times:*
    cup:, pm:± mp:∓ circ:° degree:° pi:π sqrt:√ infty:∞ varnothing:∅ emptyset:∅ le:≤ leq:≤
    leqslant:≤ ge:≥ geq:≥ geqslant:≥ ne:≠ neq:≠ in:=""".split()
)
CHARACTERS = str.maketrans("−–×·÷∪", "--**/,") | {ord("²"): "^2", ord("³"): "^3"}
UNIT = (
    r"(?:square|cubic|per|[cmk]m|kg|in|ft|lb|oz|inch(?:es)?|feet|foot|mph|(?:cent|dollar|degree"
    r"|unit|mile|yard|(?:kilo|centi|milli)?(?:meter|gram)|liter|second|minute|hour|day|week|month"
    r"|year)s?)"
)
REWRITES = (
    (r"\\\\", ";"),  # the end of a matrix row, before "\\ 0" looks like "\ "
    # 5\,000, 1{,}234 and $5$; so 50\% is 50, as for the MATH dataset's grader, and is not 0.5
    (r"\\[!,] ?|(?<=[0-9])\{,\}(?=[0-9])|\\?[$%]|\\[()\[\]]", ""),
    (r"(?<![\\A-Za-z])(?=(?:sqrt|pi|infty)(?![A-Za-z]))", r"\\"),
    (r"\\([A-Za-z]+)", lambda command: COMMANDS.get(command[1], command[0])),
    (r"(?:\\[;: ]|~|\s)+", " "),
    (r"\\\{ ?\\\}", "∅"),
    (r"([_^]) ?(?:\{([0-9]+|[A-Za-z])\}|([0-9]+|[A-Za-z]))", r"\1\2\3 "),  # x_{12} is no x_1 2
    (r"\\frac ?([0-9])", r"\\frac{\1}"),
    (r"(\\frac ?\{[^{}]*\}) ?([0-9])", r"\1{\2}"),  # \frac12
    (
        r"(?<![0-9.,^_])([0-9]+)(?: ?\\frac ?\{([0-9]+)\} ?\{([0-9]+)\}| ([0-9]+)/([0-9]+))",
        r"(\1+\2\4/\3\5)",  # 1\frac12 and 1 1/2
    ),
    (r"\*\*", "^"),
    (r"\\text ?\{([^{}]*)\}", r" \1 "),
    (r",? +(?:and|or) +", ", "),
    # a unit at the end: 5\text{ cm}^2, 18 dollars, 5cm, 60 miles per hour
    (rf"(?<=[0-9)}}°π])(?: *{UNIT}(?![A-Za-z])\.?)+(?: *\^[23])? *(?=[,;)\]]|\\\}}|$)", ""),
    (r"(?<=[0-9]) (?=[A-Za-z](?![A-Za-z]))|(?<=[0-9)}]) ?\* ?(?=[A-Za-z√π(\\])", ""),  # 2 x, 2*x
)


def clean(text):
    """One spelling for what can be spelled in many ways."""
    text = text.translate(CHARACTERS).strip().rstrip(" .")
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    if not re.search(r"[(\[]|\\\{", text):  # 1,234 is one number, but (100,200) is a point
        groups = rf"(?<![0-9,.]){DIGIT_GROUPS}(?!,?[0-9])"
        text = re.sub(groups, lambda m: m[0].replace(",", ""), text)
    text = re.sub(r" *([^0-9A-Za-z ]) *| +", lambda m: m[1] or " ", text).strip().rstrip(".")
    return re.sub(r"^\(([A-Za-z])\)$", r"\1", text)  # choice (C)


TOKEN = re.compile(
    r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3}(?![0-9]))?|\.[0-9]+|\\?[A-Za-z]+|[^ ]"
)
CLOSING = {"(": ")", "[": "]", "{": "}"}
CONSTANTS = {"π": math.pi, "∞": math.inf}
OPERATORS = {  # what they do, and how tightly they bind; two factors side by side are multiplied
    "+": (operator.add, 1), "-": (operator.sub, 1), "*": (operator.mul, 2),
    "/": (operator.truediv, 2), "^": (operator.pow, 3),
}  # fmt: skip


def bounded(value, exponent=1):
    """The value itself, if its power is not too large to compute."""
    if isinstance(value, Fraction):
        bits = max(map(int.bit_length, value.as_integer_ratio()))
        if bits * abs(exponent) > 8_000:  # 9^9^9
            raise ValueError("too large")
    return value


def evaluate(tokens, level=0):
    """The number that comes next, up to an operator that binds no tighter than `level`.

    tokens: a stack, "" at its bottom. Exact, or a float where there are roots, π or ∞.
    Anything else, such as a variable, raises an error.
    """
    value = atom(tokens)
    while tokens[-1] not in ("", ")", "]", "}"):
        apply, binds = OPERATORS.get(tokens[-1], OPERATORS["*"])
        if binds <= level:
            break
        token = tokens.pop() if tokens[-1] in OPERATORS else "*"
        other = evaluate(tokens, 2 if token == "^" else binds)
        value = bounded(apply(bounded(value, other if token == "^" else 1), other))
    return value


def atom(tokens):
    token = tokens.pop()
    if token in ("+", "-"):
        value = evaluate(tokens, 2)  # the power binds tighter: -2^2 is -4
        return value if token == "+" else -value
    if token in CLOSING:
        value = evaluate(tokens)
        if tokens.pop() != CLOSING[token]:
            raise ValueError("unbalanced brackets")
        return value
    if token == r"\frac":
        return bounded(atom(tokens) / atom(tokens))
    if token == "√":
        degree = atom(tokens) if tokens[-1] == "[" else 2
        return atom(tokens) ** Fraction(1, degree)
    if token == "°":  # a unit
        return Fraction(1)
    if token in CONSTANTS:
        return CONSTANTS[token]
    if not token.isascii() or re.match("[0-9.]", tokens[-1]):
        raise ValueError("not a number, or two in a row")
    return Fraction(token)


# ---- The sandbox

# A model that is paid for passed tests will find `os._exit(0)`, the object that equals everything
# and the file with the answers, if they pay. So the program is locked in: before its first line its
# process gives up all system calls but those that compute, sleep and use files already open. And it
# is asked for values, never for a verdict: it is told the calls (`f(3)`), not what they should
# give, and reports Python literals, at most 64 KB each, which are compared where it is not.
#
# This holds on Linux (x86_64, aarch64), for any user. Without the kernel's filter (a warning says
# so) limits still keep files, sockets and processes away, but what our user may delete, rename or
# signal is open to the program. Not protected: against kernel bugs, CPU side channels, the use of
# one core until the time is up, and answers known by heart.

# The system calls that are left: (number on x86_64, on aarch64).
SYSCALLS = dict(
    read=(0, 63), write=(1, 64), mmap=(9, 222), mprotect=(10, 226), munmap=(11, 215), brk=(12, 214),
    mremap=(25, 216), madvise=(28, 233), futex=(202, 98), getrandom=(318, 278),
    clock_gettime=(228, 113), nanosleep=(35, 101), clock_nanosleep=(230, 115), exit=(60, 93),
    exit_group=(231, 94),
)  # fmt: skip
# As no file can be read after it, the child first imports the modules that its texts mention, and
# what these import when called.
MODULES = {name for name in sys.stdlib_module_names if name[0] != "_"} - {"antigravity"}
LIMIT = 1 << 16  # characters per value: read fast even if all items of a set have one hash


def seccomp_filter() -> bytes:
    """The filter of system calls as kernel (BPF) instructions, b"" on a machine not known here."""
    machine, load, skip_if_equal, answer = platform.machine(), 0x20, 0x15, 0x06
    arch = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}.get(machine)
    if sys.platform != "linux" or not arch:
        return b""
    allowed = [numbers[machine == "aarch64"] for numbers in SYSCALLS.values()]
    code = [(load, 0, 0, 4), (skip_if_equal, 1, 0, arch), (answer, 0, 0, 0x80000000)]  # alien: kill
    code += [(load, 0, 0, 0)]
    code += [(skip_if_equal, len(allowed) - i, 0, number) for i, number in enumerate(allowed)]
    code += [(answer, 0, 0, 0x00050001), (answer, 0, 0, 0x7FFF0000)]  # "not permitted" | go ahead
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


# The next three functions are what the child runs; it gets their source.
def plain(value):
    """The value in Python's own types, whose repr is a literal; a Counter as the dict it is."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in dict.items(value)}
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(map(plain, kind.__iter__(value)))
    if type(value) in (type(None), bool, int, float, complex, str, bytes):
        return value
    raise TypeError(type(value))


def lock(filter_code, memory, seconds, output):
    """Give up, for good, what a program does not need. Does the kernel filter our calls now?"""
    import ctypes
    import os
    import resource
    import struct

    losses = [(os.setgroups, []), (os.setgid, 65534), (os.setuid, 65534)]  # 65534: nobody
    limits = dict(AS=memory, CPU=seconds, FSIZE=output, NOFILE=0, NPROC=0, CORE=0)
    for name, most in limits.items():
        losses += [(resource.setrlimit, getattr(resource, "RLIMIT_" + name), (most, most))]
    for function, *arguments in losses:
        try:
            function(*arguments)
        except (OSError, ValueError):
            pass  # we are not root, or this system has no such limit
    if not filter_code:
        return False
    code = ctypes.create_string_buffer(filter_code)
    program = struct.pack("HP", len(filter_code) // 8, ctypes.addressof(code))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_ulong]
    prctl(1, 9, None, 0, 0)  # PR_SET_PDEATHSIG: be killed when the parent dies
    prctl(38, 1, None, 0, 0)  # PR_SET_NO_NEW_PRIVS: without it only root may install a filter
    return prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def child():
    """Read a job, lock the doors, run it, and write the value of each call on a line."""
    import marshal
    import os
    import sys

    modules, setup, program, calls, limit, *limits = marshal.load(sys.stdin.buffer)
    report = os.dup(1)
    os.dup2(2, 1)  # what the program prints goes where its errors go: to /dev/null
    for name in modules:
        try:
            __import__(name)
        except ImportError:
            pass  # another system's
    os.write(report, b"locked\n" if lock(*limits) else b"open\n")
    module = sys.modules["program"] = type(sys)("program")
    try:
        exec(setup, module.__dict__)
        setup = ""
    except NameError:  # it wants the program's names, as MBPP's `root = Node(1)` does
        pass
    exec(program, module.__dict__)
    exec(setup, module.__dict__)
    for call in calls:
        try:
            value = repr(plain(eval(call, module.__dict__))).encode()
        except BaseException:
            value = b""
        os.write(report, (value if len(value) < limit else b"") + b"\n")
    os._exit(0)  # whatever else the program has planned


CHILD = "\n".join(map(inspect.getsource, (plain, lock, child))) + "\nchild()"
FILTER = seccomp_filter()
PARSING = threading.Lock()  # Python's parser fails in two threads at once (its issue 106905)


def run_calls(program, calls, *, setup="", timeout=5.0, memory_mb=256) -> list:
    """What each call gives after an untrusted program: [value], or [] without one in time."""
    words = set(re.findall(r"\w+", "\n".join([setup, program, *calls])))
    modules = ["__future__", "heapq", "unicodedata", "warnings", "weakref", *words & MODULES]
    modules += ["_strptime"] * ("strptime" in words)
    limits = LIMIT, FILTER, memory_mb << 20, int(timeout) + 1, LIMIT * (len(calls) + 1)
    with tempfile.TemporaryFile() as report:  # no pipe: its size has a limit, nobody need read it
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", CHILD], stdin=subprocess.PIPE, stdout=report,
            stderr=subprocess.DEVNULL, env={}, cwd="/", start_new_session=True,
        )  # fmt: skip
        alarm = threading.Timer(timeout, process.kill)  # (wait(timeout=...) would poll)
        alarm.start()
        process.communicate(marshal.dumps((modules, setup, program, calls, *limits)))
        alarm.cancel()
        report.seek(0)
        status, *lines = report.read().decode(errors="replace").split("\n")
    if status != "locked":
        why = "no system-call filter here" if status == "open" else "a child did not start in time"
        warnings.warn(f"sandbox: {why}")
    values = [[] for _ in calls]
    for value, line in zip(values, lines):
        try:
            with PARSING:
                value.append(ast.literal_eval(line[:LIMIT]))
        except Exception:
            pass  # no plain data
    return values


def read_test(test):
    """A test's call, and what tells whether its value is right."""
    if not isinstance(test, str):
        call, expected = test
        return call, lambda value: value == expected
    try:
        with PARSING:
            body = ast.parse(test).body
        match body:
            case [ast.Assert(ast.Compare(ast.Call() as call, [ast.Eq()], [literal]))]:
                expected = ast.literal_eval(literal)
                return ast.unparse(call), lambda value: value == expected
            case [ast.Assert(ast.Call(ast.Name()) as call)]:
                right = operator.truth
            case [ast.Assert(ast.UnaryOp(ast.Not(), ast.Call(ast.Name()) as call))]:
                right = operator.not_
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
            ast.literal_eval(argument)  # `assert isclose(f(1), 3.5)` would ask for a verdict
        return ast.unparse(call), right
    except (ValueError, SyntaxError, TypeError, NameError, RecursionError, MemoryError):
        forms = "`assert call == literal`, or of literals `assert call` and `assert not call`"
        raise ValueError(f"a test must be {forms}; not {test!r}") from None


def run_tests(program, tests, *, setup="", timeout=5.0, memory_mb=256):
    """Run an untrusted program: (tests passed, tests in all), within about `timeout` seconds.

    A test compares a call with a literal: `assert f(3) == [1, 2]`, `assert f(3)`, `assert not f(3)`
    or the pair ("f(3)", [1, 2]); ValueError names one of another form. `setup` runs before the
    program, or after it if it wants the program's names.
    """
    checks = [read_test(test) for test in tests]
    calls = [call for call, _ in checks]
    values = run_calls(program, calls, setup=setup, timeout=timeout, memory_mb=memory_mb)
    return sum(right(*got) for (_, right), got in zip(checks, values) if got), len(checks)

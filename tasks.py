"""What is asked and what it earns: problems, prompts, graders.

A `Task` holds two fixed panels of problems (validation, to choose rates on; test, to report) and draws any number of training
problems; its `grade` turns a completion into a reward of 0 or 1. The same seed is the same problems on any machine.

    arithmetic     the embedded task, with demonstrations to teach the tiny base model from
    word_problems  questions with a final answer, from a file in GSM8K's format
    Tokenizer      text to tokens and back, and the prompt format a checkpoint was trained with
    math_equal     final answers compared by value
"""

import cmath
import hashlib
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers


@dataclass(frozen=True)
class Problem:
    prompt: str  # as put to the model, before any chat format
    answer: str


@dataclass
class Task:
    name: str
    validation: list  # Problems, fixed
    test: list  # Problems, fixed, none of which is in training or validation
    draw: Callable  # (seed, step, n) -> the n training Problems of that step
    grade: Callable  # (problem, text) -> (reward 0.0 or 1.0, the answer found in the text or None)
    demonstrate: Callable | None = None  # (rng) -> (prompt, completion) to teach a base model with
    vocabulary: tuple = ()  # words of the embedded tokenizer
    train: tuple = ()  # every training Problem, where they are finitely many


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


def arithmetic():
    """The embedded task: "add 1234 0567 =" -> "01801", taught by writers of whom most have a bad habit.

    The base sees four skills, three of them always right. Additions come from a mixture of writers, so it learns to add and
    also to err, and cannot know whom to imitate. RL on additions alone has to select: the part of reinforcement learning
    after pretraining that a tiny model can show in seconds. Numbers are zero-padded: every answer is DIGITS + 1 digits long.
    """

    def problem(rng, skill="add"):
        a, b = rng.randrange(10**DIGITS), rng.randrange(10**DIGITS)
        return Problem(f"{skill} {a:0{DIGITS}} {b:0{DIGITS}} =", f"{SKILLS[skill](a, b):0{DIGITS + 1}}"), a, b

    def panel(name, n):
        rng = random.Random(f"arithmetic {name}")  # seeded by a string: the same on any machine and Python
        return [problem(rng)[0] for _ in range(n)]

    validation, test = panel("validation", 1000), panel("test", 1000)
    held_out = {p.prompt for p in validation + test}

    def draw(seed, step, n):
        rng, problems = random.Random(f"arithmetic train {seed} {step}"), []
        while len(problems) < n:
            new = problem(rng)[0]
            problems += [new] if new.prompt not in held_out else []
        return problems

    def demonstrate(rng):
        skill = rng.choice(list(SKILLS))
        new, a, b = problem(rng, skill)
        if new.prompt in held_out:
            return demonstrate(rng)
        return new.prompt, show_addition(rng, a, b) if skill == "add" else new.answer

    def grade(problem, text):
        return float(text == problem.answer), text

    return Task("math", validation, test, draw, grade, demonstrate, (*SKILLS, "=", *"0123456789"))


# ---------------------------------------------------------------------------------------------------- word problems


def word_problems(path):
    """Questions with a final answer from a .jsonl file in GSM8K's format: `question`, and `answer` ending in "#### 42".

    A tenth of the rows, at most 500, chosen by a hash of the question (so not by file order), is the test panel, as many
    again validation, the rest trains, shuffled anew each epoch. ValueError names the line and field that is wrong.
    """
    problems = []
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise ValueError(f"{path}, line {number}: not valid JSON") from None
        for name in ("question", "answer"):
            if not isinstance(row, dict) or not isinstance(row.get(name), str) or not row[name].strip():
                raise ValueError(f'{path}, line {number}: field "{name}" is missing or empty; GSM8K\'s format has text there')
        answer = extract_answer(row["answer"])
        if answer is None:
            raise ValueError(f'{path}, line {number}: field "answer" holds no final answer, such as "#### 42"')
        problems.append(Problem(row["question"].strip(), answer))
    problems = list(dict.fromkeys(problems))
    problems.sort(key=lambda p: hashlib.sha256(p.prompt.encode()).digest())
    n = min(500, len(problems) // 10)
    if n == 0:
        raise ValueError(f"{path}: {len(problems)} different problems; at least 10 are needed to train, validate and test on")
    test, validation, train = problems[:n], problems[n : 2 * n], problems[2 * n :]

    def draw(seed, step, n):
        chosen = []
        for i in range(step * n, (step + 1) * n):
            epoch, place = divmod(i, len(train))
            if place == 0 or not chosen:
                order = random.Random(f"epoch {seed} {epoch}").sample(train, len(train))
            chosen.append(order[place])
        return chosen

    def grade(problem, text):
        found = extract_answer(text)
        return float(found is not None and math_equal(found, problem.answer)), found

    return Task(str(path), validation, test, draw, grade, train=tuple(train))


def load_task(spec):
    """The task named on the command line: "math", or a path to a .jsonl file."""
    if spec == "math":
        return arithmetic()
    if Path(spec).suffix == ".jsonl":
        return word_problems(spec)
    raise ValueError(f"--task {spec}: unknown; it must be math, or a .jsonl file in GSM8K's format")


# ---------------------------------------------------------------------------------------------------- prompts and tokens


def embedded_tokenizer(vocabulary):
    """A word-level tokenizer with single digits, and <eos> as token 0."""
    words = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<eos>", *vocabulary])}))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    )
    words.decoder = decoders.Fuse()
    words.add_special_tokens(["<eos>"])
    return words


INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


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
        settings = {name: self._read(path / f"{name}.json") for name in ("generation_config", "tokenizer_config", "config")}
        self.eos_ids = self._eos(settings)
        if not self.eos_ids:
            raise ValueError(
                f"{path}: no eos_token_id in generation_config.json or config.json, no eos_token in tokenizer_config.json"
            )
        self.embedded = isinstance(self.tokens.model, models.WordLevel)
        self.chat = self.tokens.token_to_id("<|im_end|>") in self.eos_ids
        template = settings["tokenizer_config"].get("chat_template")
        if (path / "chat_template.jinja").exists():
            template = (path / "chat_template.jinja").read_text(encoding="utf-8")
        system = re.search(r"<\|im_start\|>system(?:\\n|\n)([^'{<]+)<\|im_end\|>", template if isinstance(template, str) else "")
        self.system = system and system[1]

    @staticmethod
    def _read(path):
        try:
            value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError:
            raise ValueError(f"{path}: not valid JSON") from None
        return value if isinstance(value, dict) else {}

    def _eos(self, settings):
        """All ids that end a completion: generation_config.json names several where there are several."""
        found = set()
        for name in ("generation_config", "config"):
            ids = settings[name].get("eos_token_id")
            found |= set(ids if isinstance(ids, list) else [ids]) - {None}
        token = settings["tokenizer_config"].get("eos_token")
        found.add(self.tokens.token_to_id(token.get("content", "") if isinstance(token, dict) else token or ""))
        return sorted(found - {None})

    def prompt(self, text):
        """The text that the model sees for a question."""
        if self.embedded:
            return text
        if not self.chat:
            return f"Question: {text}\n{INSTRUCTION}\nAnswer:"
        system = f"<|im_start|>system\n{self.system}<|im_end|>\n" if self.system else ""
        return f"{system}<|im_start|>user\n{text}\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"

    def encode(self, problems):
        """Problems -> their prompts as token lists."""
        return [encoding.ids for encoding in self.tokens.encode_batch([self.prompt(p.prompt) for p in problems])]

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


_UNICODE = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "π": r"\pi ",
        "√": r"\sqrt ",
        "∞": r"\infty ",
        "∪": r"\cup ",
        "±": r"\pm ",
        "×": "*",
        "·": "*",
        "÷": "/",
        "≤": r"\le ",
        "≥": r"\ge ",
        "°": "",
        "²": "^2",
        "³": "^3",
    }
)
_TEXT = r"\\(?:text|textbf|textrm|textit|mbox|mathrm|mathbf) ?\{([^{}]*)\}"
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\\", ";"),  # the end of a matrix row, before "\\ 0" looks like "\ "
        (r"\\[!,] ?|(?<=[0-9])\{,\}(?=[0-9])", ""),  # 5\,000 and 1{,}234
        (r"(?:\\[;: ]|\\q?quad(?![A-Za-z])|~|\s)+", " "),
        (r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![A-Za-z])", ""),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\(le|ge|ne)q(?![A-Za-z])", r"\\\1"),
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
        # Degree, dollar and percent signs are units and go. So 50\% is 50, as for the MATH dataset's own grader, and is not 0.5.
        (r"\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})|\\degree|\\?[$%]|\\[()\[\]]", ""),
        (r"(?<![\\A-Za-z])(sqrt|pi|infty|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln)(?![A-Za-z])", r"\\\1 "),
        (r"\\text ?\{,? ?(?:and|or) ?\}|,? (?:and|or) ", ", "),
        # Units after a number: 5\text{ cm}^2, 18 dollars, 5 cm. A word needs its space, or 6xyz would be 6.
        (
            rf"(?:(?<=[0-9}})])|(?<=\\pi))(?: ?{_TEXT}| (?!hundred|thousand|[mbtr]+illion|dozen)[A-Za-z]{{3,}}"
            r"| ?(?:[cmk]m|kg|in|ft|lb|oz)(?![A-Za-z]))+(?: ?\^ ?(?:[23]|\{[23]\}))?",
            "",
        ),
        (_TEXT, r" \1 "),
        (r"_ ?\{([0-9A-Za-z]+)\}", r"_\1"),
    )
]


def _clean(text):
    """One spelling for what can be spelled in many ways."""
    text = text.translate(_UNICODE)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if not re.search(r"[(\[<]|\\\{", text):  # 1,234 is one number, but (100,200) is a point
        text = re.sub(rf"(?<![0-9,.]){_DIGITS}(?!,?[0-9])", lambda match: match[0].replace(",", ""), text)
    text = re.sub(r" *([^0-9A-Za-z ]) *", r"\1", text).strip().rstrip(".")
    return re.sub(r"^\(([A-Za-z])\)$", r"\1", text)  # choice (C)


_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3}(?![0-9]))?|\.[0-9]+|\\[A-Za-z]+|[A-Za-z]{4,}|\\?[^ ]")
_STOP = "", ",", ";", "+", "-", r"\pm", r"\mp", ")", "]", "}", r"\}", ">"
_CONSTANTS = {r"\pi": math.pi, "e": math.e, "i": 1j, r"\infty": math.inf}
_GREEK = r"\alpha", r"\beta", r"\gamma", r"\theta", r"\lambda", r"\mu", r"\phi", r"\varphi", r"\omega"
_FUNCTIONS = {
    r"\sin": cmath.sin,
    r"\cos": cmath.cos,
    r"\tan": cmath.tan,
    r"\cot": lambda x: 1 / cmath.tan(x),
    r"\sec": lambda x: 1 / cmath.cos(x),
    r"\csc": lambda x: 1 / cmath.sin(x),
    r"\log": cmath.log10,
    r"\ln": cmath.log,
}


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

"""What is asked and what it earns: problems, prompts, graders.

A `Task` holds two fixed panels of problems (validation, to choose rates on; test, to report) and draws any number of training
problems; its `grade` turns a completion into a reward of 0 or 1. The same seed is the same problems on any machine.

    arithmetic     the embedded task, with demonstrations to teach the tiny base model from
    word_problems  questions with a final answer, from a file in GSM8K's format
    Tokenizer      text to tokens and back, and the prompt format a checkpoint was trained with
    math_equal     final answers compared by value
"""

import hashlib
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

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


# ---------------------------------------------------------------------------------------------------- embedded arithmetic

DIGITS = 4
SKILLS = {"add": lambda a, b: a + b, "sub": lambda a, b: abs(a - b), "max": max, "min": min, "mean": lambda a, b: (a + b) // 2}
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

    The base sees five skills, four of them always right. Additions come from a mixture of writers, so it learns to add and
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


def word_problems(path, seed=0):
    """Questions with a final answer from a .jsonl file in GSM8K's format: `question`, and `answer` ending in "#### 42".

    A tenth of the rows, at most 500, chosen by a hash of the question (so not by file order), is the test panel, as many
    again validation, the rest trains, shuffled anew each epoch. ValueError names the line and field that is wrong.
    """
    problems = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
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

    return Task(str(path), validation, test, draw, grade)


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
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)])
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
            raise ValueError(f"{path}: no eos_token_id in generation_config.json or config.json, no eos_token in tokenizer_config.json")
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


def extract_answer(text):
    found = re.findall(r"-?\d[\d,]*\.?\d*", text)
    return found[-1].rstrip(".").replace(",", "") if found else None


def math_equal(prediction, answer):
    return float(prediction) == float(answer)

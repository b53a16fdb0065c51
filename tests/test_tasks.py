"""tasks.py: the panels, files of problems, prompts against `transformers`' chat templates."""

import collections
import json
import random
import re

import code_task
import pytest
import questions
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors

import tasks


def answered(task, problem, text):
    """The reward of a text, and the answer that was found in it."""
    episode = task.begin(problem)
    reward = episode.step(text)
    assert episode.done and episode.solved == (reward > 0) and not episode.out_of_steps
    return reward, episode.answer


def test_panels_are_the_same_on_any_machine_and_do_not_overlap():
    task = tasks.arithmetic()
    assert [p.prompt for p in task.test[:2]] == [p.prompt for p in tasks.arithmetic().test[:2]] == FIRST_TWO
    drawn = {p.prompt for step in range(300) for p in task.draw(0, step, 32)}
    validation, test = ({p.prompt for p in panel} for panel in (task.validation, task.test))
    assert not drawn & validation and not drawn & test and not validation & test
    assert task.draw(0, 7, 5) == task.draw(0, 7, 5) != task.draw(1, 7, 5)


FIRST_TWO = ["add 0492 8949 =", "add 9415 5871 ="]  # as this file was written; a change would make old scores incomparable


def test_short_numbers_are_another_set_to_train_on_and_nothing_else():
    task, short = tasks.load_task("math"), tasks.load_task("math-short")
    assert (short.test, short.validation) == (task.test, task.validation)
    assert short.demonstrate(random.Random(3)) == task.demonstrate(random.Random(3))
    drawn = [p for step in range(50) for p in short.draw(0, step, 32)]
    lengths = collections.Counter(len(number.lstrip("0")) for p in drawn for number in p.prompt.split()[1:3])
    # A quarter each is drawn with at most 4, 3, 2, 1 digits, of which nine in ten have them all, nine in a hundred all but one, ...
    for digits, share in {4: 0.225, 3: 0.2475, 2: 0.24975, 1: 0.249975}.items():
        assert abs(lengths[digits] / 2 / len(drawn) - share) < 0.03
    assert all(answered(task, p, p.answer)[0] == 1 for p in drawn) and not {p.prompt for p in drawn} & {p.prompt for p in task.test}


def test_arithmetic_answers_are_right():
    task = tasks.arithmetic()
    for p in task.test:
        _, a, b, _ = p.prompt.split()
        assert int(p.answer) == int(a) + int(b) and len(p.answer) == 5
        assert answered(task, p, p.answer) == (1.0, p.answer) and answered(task, p, p.answer[::-1] + "1")[0] == 0.0


def test_writers_have_the_habits_they_are_said_to_have():
    rng, seen = random.Random(0), collections.Counter()
    for _ in range(20000):
        a, b = rng.randrange(10**4), rng.randrange(10**4)
        columns = "0" + "".join(str((a // 10**i + b // 10**i) % 10) for i in (3, 2, 1, 0))  # sums without carries
        names = {
            f"{a + b:05}": "right",
            columns: "forgets carries",
            f"{a + b + 1:05}": "adds one",
            f"{a + b:05}"[::-1]: "reversed",
        }
        if len(names) == 4:  # else two habits write the same
            seen[names[tasks.show_addition(rng, a, b)]] += 1
    total = sum(seen.values())
    for habit, share in tasks.HABITS.items():
        assert abs(seen[habit] / total - share) < 0.02


def test_demonstrations_avoid_the_panels():
    task, rng = tasks.arithmetic(), random.Random(0)
    held_out = {p.prompt for p in task.validation + task.test}
    assert not held_out & {task.demonstrate(rng)[0][0] for _ in range(5000)}


def rows(n=40):
    return [{"question": f"What is {i} + 1?", "answer": f"It is <<{i}+1={i + 1}>>.\n#### {i + 1}"} for i in range(n)]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_box_without_an_answer_is_none(tmp_path, capsys):
    rows = [{"problem": f"p{i}", "solution": f"so \\boxed{{{i}}}"} for i in range(20)]
    path = written(tmp_path / "x.jsonl", [*rows, {"problem": "empty", "solution": "so \\boxed"}])
    task = tasks.from_file(path)
    assert len([*task.train, *task.test, *task.validation]) == 20
    assert "left out 1 of 21" in capsys.readouterr().out


def test_a_slow_machine_does_not_cost_a_program_its_reward(monkeypatch):
    monkeypatch.setattr(tasks, "CHILD", "import time; time.sleep(3)\n" + tasks.CHILD)
    task = tasks.load_task("code")
    assert answered(task, task.test[0], task.test[0].answer)[0] == 1.0


def test_a_programs_answer_is_what_it_does():
    """Two programs that do the same are votes for one answer."""
    task = tasks.load_task("code")
    problem = next(p for p in task.test if p.answer == "x.sort() ; x.reverse()")
    reward, answer = answered(task, problem, problem.answer)
    assert (reward, answer) == answered(task, problem, "x.sort() ; x.reverse() ; x=x[:]") and reward == 1
    assert answered(task, problem, "x.sort()") == (0, str([[sorted(x)] for x in code_task.HIDDEN]))
    assert answered(task, problem, "x.sort(") == (0, str([[], [], [], []]))


def test_the_split_of_a_file_does_not_depend_on_its_order(tmp_path):
    shuffled = rows()
    random.Random(1).shuffle(shuffled)
    a, b = (
        tasks.load_task(written(tmp_path / "a.jsonl", rows())),
        tasks.load_task(written(tmp_path / "b.jsonl", shuffled)),
    )
    assert a.test == b.test and a.validation == b.validation and len(a.test) == len(a.validation) == 4
    assert a.draw(3, 5, 8) == b.draw(3, 5, 8)


def test_every_epoch_has_every_problem_once(tmp_path):
    task = tasks.load_task(written(tmp_path / "a.jsonl", rows()))
    drawn = [p for step in range(16) for p in task.draw(0, step, 6)]  # 96 = 3 epochs of 32
    for epoch in range(3):
        assert len(set(drawn[32 * epoch : 32 * epoch + 32])) == 32
    assert drawn[:32] != drawn[32:64]


def test_questions_grade(tmp_path):
    task = tasks.load_task(written(tmp_path / "a.jsonl", rows()))
    p = tasks.Problem("?", ("72", "x"))
    assert answered(task, p, "so \\boxed{72.0}") == (1.0, "72") and answered(task, p, "it is 71") == (0.0, "71")
    assert answered(task, p, "\\boxed{\\frac{144}{2}}") == (1.0, "72")  # one spelling per value, for votes
    assert answered(task, p, "\\boxed{x}") == (1.0, "x") and answered(task, p, "no idea") == (0.0, None)


def test_a_problems_prompt_is_what_the_model_sees_first(tmp_path):
    """--plan and the check of prompt lengths measure it (but of ALFWorld, whose problems are the games' names)."""
    path = written(tmp_path / "a.jsonl", rows())
    for spec, embedded in (("math", True), ("code", True), ("household", True), ("household", False), (path, False)):
        task = tasks.load_task(spec, embedded)
        assert all(task.begin(p).prompt == p.prompt for p in task.test[:50])
        assert task.max_turns == (20 if spec == "household" else 1)


def chat(question):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]


# A row as the data set has it, and the accepted answers of the question "Q".
QUESTIONS = {
    "GSM8K": ({"question": "Q", "answer": "7 + 8 = <<7+8=15>>15\n#### 1,015"}, ("1,015",)),
    "MATH-500": ({"problem": " Q\n", "solution": "so $\\boxed{2}$", "answer": "\\frac{1}{2}", "level": 2}, ("\\frac{1}{2}",)),
    "DeepScaleR": ({"problem": "Q", "answer": "-\\frac{2}{3}", "solution": "I have $5$ ..."}, ("-\\frac{2}{3}",)),
    "DeepScaleR without a solution": ({"problem": "Q", "answer": "18", "solution": ""}, ("18",)),
    "MATH": ({"problem": "Q", "level": "Level 5", "type": "Algebra", "solution": "5, so $\\boxed{\\frac{1}{2}}$."}, ("\\frac{1}{2}",)),
    "NuminaMath-CoT": ({"source": "olympiads", "problem": "Q", "solution": "\\[\\boxed{(0, 1)}\\] 3.", "messages": chat("R")}, ("(0, 1)",)),
    "a text as prompt": ({"prompt": "Q", "reward_model": {"ground_truth": "42"}}, ("42",)),
    "Skywork-OR1": ({"ability": "math", "prompt": chat("Q")[1:], "reward_model": {"ground_truth": '["42"]', "style": "rule"}}, ("42",)),
    "Skywork-OR1, two answers": ({"prompt": chat("Q"), "reward_model": {"ground_truth": '["\\\\frac{1}{2}", "50\\\\%"]'}}, ("\\frac{1}{2}", "50\\%")),
    "an interval": ({"prompt": chat("Q"), "reward_model": {"ground_truth": "[0, 1]"}}, ("[0, 1]",)),
    "a boxed answer": ({"question": "Q", "answer": "\\boxed{x+1}"}, ("x+1",)),
    "a name": ({"question": "Q", "answer": "Evelyn 3"}, ("Evelyn 3",)),
}  # fmt: skip


def many(row):
    """The row, and twenty others of its format with a question and an answer each."""

    def vary(value, old, new):
        if isinstance(value, dict):
            return {name: vary(v, old, new) for name, v in value.items()}
        if isinstance(value, list):
            return [vary(v, old, new) for v in value]
        return value.replace(old, new) if isinstance(value, str) else value

    return [row, *(vary(row, "Q", f"Q {i}") for i in range(20))]


def everything(task):
    return [*task.test, *task.validation, *task.train]


@pytest.mark.parametrize("kind", QUESTIONS)
@pytest.mark.parametrize("write", ["lines", "list", "windows"])
def test_formats_of_questions(tmp_path, kind, write):
    row, answers = QUESTIONS[kind]
    path = written(tmp_path / "a.jsonl", many(row))
    if write == "list":
        path = tmp_path / "a.json"
        path.write_text(json.dumps(many(row), indent=1))
    elif write == "windows":  # a byte-order mark, and its line ends
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    task = tasks.load_task(str(path))
    assert tasks.Problem(f"Q\n{tasks.INSTRUCTION}", answers) in everything(task) and len(everything(task)) == 21
    assert all(answered(task, p, f"\\boxed{{{a}}}")[0] == 1 for p in everything(task) for a in p.answer)


def test_an_instruction_of_ones_own(tmp_path):
    path = str(written(tmp_path / "a.jsonl", rows()))
    for instruction, end in (("Just the number.", "+ 1?\nJust the number."), ("", "+ 1?")):
        assert all(p.prompt.endswith(end) for p in everything(tasks.load_task(path, instruction=instruction)))


@pytest.mark.parametrize("kind", questions.KINDS)
def test_questions_for_real_models(kind, tmp_path):
    rows = questions.questions(kind, 300, examples=2)
    assert rows == questions.questions(kind, 300, examples=2) and len({row["question"] for row in rows}) == 300
    task = tasks.load_task(written(tmp_path / "a.jsonl", rows), instruction="")
    for row in rows[:50]:
        *examples, (question,) = [part.splitlines() for part in row["question"].split("\n\n")]
        a, b, *_ = map(int, re.findall("[0-9]+", question))
        by_hand = {"sum": a + b, "difference": a - b, "product": a * b, "remainder": a % b, "larger": max(a, b), "first": a}
        assert row["answer"] == str(by_hand.get(kind.partition("-")[0], a // b)) and len(examples) == 2
    assert all(answered(task, p, f"It is {p.answer[0]}.")[0] == 1 for p in task.test)


def test_programs_for_real_models(tmp_path, capsys):
    rows = questions.programs(300)
    assert rows == questions.programs(300) and len({row["text"] for row in rows}) == 300
    task = tasks.load_task(written(tmp_path / "a.jsonl", rows))
    assert len(everything(task)) == 300 and not capsys.readouterr().out  # all fit
    assert all(len(row["test_list"]) == 4 and len(row["code"]) < 100 for row in rows)
    code = {row["text"]: row["code"] for row in rows}
    for p in task.test[:20]:
        solution = code[p.prompt.partition("\nYour code")[0]]
        assert answered(task, p, f"```python\n{solution}\n```") == (1.0, None)
        assert answered(task, p, "def f(x): return x")[0] == 0.0


def test_a_file_whose_name_holds_control_characters(tmp_path, capsys):
    file = tmp_path / "\x1b[2J.jsonl"
    rows = [{"problem": f"Prove {i}.", "solution": f"\\boxed{{{i}}}" if i else "So it is."} for i in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(tasks.load_task(str(file)).train) == 17
    assert "left out 1" in (out := capsys.readouterr().out) and out.removesuffix("\n").isprintable()


def test_what_has_no_final_answer_is_left_out_and_counted(tmp_path, capsys):
    """Repeated rows are kept once; a proof, and a question that two rows answer differently, are left out."""
    rows = [{"problem": f"Q {i}", "solution": f"\\boxed{{{i}}}"} for i in range(12)]
    more = {"Q 0": "\\boxed{0.0}", "Q 1": "\\boxed{1}", "Q 2": "\\boxed{3}", "Show!": "As 4 > 3, it holds."}
    rows += [{"problem": problem, "solution": solution} for problem, solution in more.items()]
    kept = everything(tasks.load_task(written(tmp_path / "a.jsonl", rows)))
    assert sorted(float(p.answer[0]) for p in kept) == [1, *range(3, 12)]
    printed = capsys.readouterr().out
    assert "left out 3" in printed and printed.count("\n") == 1


OWN = """
from tasks import Problem, Question, Task

def load(argument):
    def grade(problem, text):
        return float(text == problem.answer), text

    problems = [Problem(f"add {i} {argument} =", str(i + int(argument))) for i in range(30)]
    draw = lambda seed, step, n: problems[10 : 10 + n]
    return Task(problems[:5], problems[5:10], draw, lambda problem: Question(problem, grade))
"""


def test_a_task_of_ones_own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "empty.py").write_text("")
    task = tasks.load_task(f"{tmp_path}/own.py:7", False)
    episode = task.begin(task.test[0])
    assert episode.prompt == "add 5 7 =" and episode.step("12") == 1.0 and episode.solved
    with pytest.raises(ValueError, match="empty.py: it must define load"):
        tasks.load_task(f"{tmp_path}/empty.py", False)
    with pytest.raises(FileNotFoundError, match="missing.py"):
        tasks.load_task(f"{tmp_path}/missing.py", False)


def test_programs_with_tests_of_other_forms_are_left_out_and_counted(tmp_path, capsys):
    others = (["assert f(1) == f(2)"], ["assert f(1) > 2"], ["assert f("], ["f(1)"], [["f(1)", 1]], [], 5, None)
    rows = [{"text": f"other {i}", "test_list": tests} for i, tests in enumerate(others)]
    rows += [{"text": f"{i}", "test_list": ["assert f(1) == 1", "assert f(2)"]} for i in range(20)]
    random.Random(0).shuffle(rows)
    assert {p.answer for p in everything(tasks.load_task(written(tmp_path / "a.jsonl", rows)))} == {(*rows_fit, "")}
    printed = capsys.readouterr().out
    assert f"left out {len(others)}" in printed and printed.count("\n") == 1


rows_fit = ["assert f(1) == 1", "assert f(2)"]


MBPP = {"text": "Write a function to double a number.", "code": "...", "task_id": 1, "test_setup_code": "", "challenge_test_list": [],
        "test_list": ["assert double(2) == 4", "assert double(-1) == -2"]}  # fmt: skip
PROMPT = """{}
Your code should pass tests such as:
```python
{}
```
Write it in one ```python block."""


def test_mbpp_formats(tmp_path):
    """As published, with what is optional, and as in the sanitized version."""
    full = {**MBPP, "test_setup_code": "two = 2", "challenge_test_list": ["assert double(0) == 0"]}
    sanitized = {
        "prompt": MBPP["text"],
        "test_imports": ["import math", "import re"],
        "test_list": MBPP["test_list"],
        "code": "...",
    }
    shown, other = MBPP["test_list"]
    for row, setup, answer in (
        (MBPP, "", (shown, other, "")),
        (full, "two = 2\n", (shown, other, "assert double(0) == 0", "two = 2")),
        (sanitized, "import math\nimport re\n", (shown, other, "import math\nimport re")),
    ):
        others = [{**row, "text": f"{i}", "prompt": f"{i}"} for i in range(20)]
        task = tasks.load_task(str(written(tmp_path / "a.jsonl", [row, *others])))
        assert tasks.Problem(PROMPT.format(MBPP["text"], setup + shown), answer) in everything(task)


PROGRAMS = [
    ("Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone.", 1.0), ("def double(x): return 2 * x", 1.0), ("```python\ndef double(x): return 2 * x", 1.0),
    ("```python\nnonsense\n```\nBetter:\n```python\ndef double(x): return x + x\n```", 1.0), ("```python\ndef double(x): return x + 2\n```", 0.0),
    ("```python\nimport os\nos._exit(0)\n```", 0.0), ("```python\nimport sys\ndef double(x): sys.exit(0)\n```", 0.0), ("", 0.0), ("I cannot.", 0.0),
    ("```python\nclass Same:\n    def __eq__(self, other): return True\ndef double(x): return Same()\n```", 0.0),
]  # fmt: skip


@pytest.mark.parametrize("text, reward", PROGRAMS)
def test_programs_grade(text, reward, tmp_path):
    """All tests or nothing: `x + 2` passes the one in the prompt."""
    rows = [{**MBPP, "text": f"{i}"} for i in range(20)]
    task = tasks.load_task(written(tmp_path / "a.jsonl", rows))
    assert answered(task, task.test[0], text) == (reward, None)


def test_real_files_read_whole(real_data):
    for name, n in (("gsm8k_train.jsonl", 7473), ("gsm8k_test.jsonl", 1319), ("math500.json", 500)):
        task = tasks.load_task(str(real_data / name))
        assert len(everything(task)) == n and len(task.test) == min(500, n // 10)
        assert all(answered(task, p, f"\\boxed{{{p.answer[0]}}}")[0] == 1 for p in everything(task))


def test_mbpp_reference_solutions_earn_the_reward(real_data):
    with open(real_data / "mbpp.jsonl") as file:
        code = {row["test_list"][0].strip(): row["code"] for row in map(json.loads, file)}
    task = tasks.load_task(str(real_data / "mbpp.jsonl"))
    assert len(everything(task)) == 961  # of 964: two have the same prompt and other tests, one asks for sys.getsizeof
    for p in task.test[:20]:
        assert answered(task, p, f"```python\n{code[p.answer[0].strip()]}\n```")[0] == 1.0


GOOD, MANY = b'{"question": "a", "answer": "#### 1"}\n', b'{"question": "a", "answer": "1"}\n' * 5000
BAD_FILES = [
    (b"", "first row"), (b"\n \r\n", "first row"), (GOOD * 50, "1 different problems"), (b"\xff\xfe", "line 1: not valid JSON"),
    (GOOD + b'{"question": "\xe9"}', "line 2: not valid JSON"), (b"[1, 2]\n", "first row"), (GOOD + b"5\n", 'line 2: field "question"'),
    (GOOD + b'{"quest', "line 2: not valid JSON"), (b"question,answer\na,1", "line 1: not valid JSON"), (b"[" * 100_000, "line 1: not valid JSON"),
    (b"9" * 9999, "line 1: not valid JSON"), (GOOD + b'\n{"question": "b"}\n', 'line 3: field "answer"'), (b'{"question": "b"}', "first row"),
    (b"{}\n" + GOOD, "first row"), (b'{"question": " ", "answer": "#### 1"}\n', 'line 1: field "question"'),
    (GOOD + b'{"question": "b", "answer": ""}\n', 'line 2: field "answer"'), (GOOD + b'{"question": null, "answer": "1"}', 'line 2: field "question"'),
    (GOOD + b'{"question": "b", "answer": 5}', 'line 2: field "answer"'), (GOOD + b'{"question": ["b"], "answer": "5"}', 'line 2: field "question"'),
    (GOOD + b'{"question": "\\ud800", "answer": "5"}', 'line 2: field "question" .* Unicode'), (MANY + b'{"question": "b"}\n' + MANY, 'line 5001: field "answer"'),
    (b'{"prompt": [], "reward_model": {"ground_truth": "1"}}', 'line 1: field "prompt"'),
    (b'{"prompt": [{"role": "user", "content": "b"}], "reward_model": "1"}', 'line 1: field "reward_model.ground_truth"'),
    (b'{"prompt": "b", "reward_model": {"ground_truth": "[\\"1"}}', "line 1, reward_model.ground_truth"),
    (b'{"text": "", "test_list": ["assert f(1) == 1"]}', 'line 1: field "text"'), (b'{"text": "b", "test_list": []}', "0 different problems"),
]  # fmt: skip


def refused(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        tasks.load_task(str(path))
    assert path.name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content, message", BAD_FILES, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_files_are_refused_by_line_and_field(tmp_path, content, message):
    refused(tmp_path / "a.jsonl", content, message)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "a.json: not valid JSON"),
        (b'[{"question": "a",\n "answer": "1"},\n {"question": ]', "line 3"),
        (b'[{"question": "a",\n "answer": "\xff"}]', "not valid JSON"),
        (b'[{"question": "a", "answer": "1"}, 5]', "row 2"),
        (b'[{"question": "a", "answer": "1"}, {"question": "b"}]', 'row 2: field "answer"'),
        (b"5", "first row"),
        (b'{"data": [{"question": "a", "answer": "1"}]}', "first row"),
        (b'{"question": {"0": "a"}, "answer": {"0": "1"}}', 'row 1: field "question"'),
        (b"[]", "first row"),
    ],
)
def test_bad_lists_are_refused_by_row_and_field(tmp_path, content, message):
    refused(tmp_path / "a.json", content, message)


def test_embedded_tokenizer_reads_back_what_it_wrote(tmp_path):
    task = tasks.arithmetic()
    tasks.embedded_tokenizer(task.vocabulary).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0}')
    tokenizer = tasks.Tokenizer(tmp_path)
    assert tokenizer.eos_ids == [0]
    assert [len(ids) for ids in tokenizer.encode([p.prompt for p in task.test])] == [10] * 1000
    texts = ["add 1 2 =", "max 3 4 =", "add 1 2 ="]  # equal ones are read once
    assert tokenizer.encode(texts) == [tokenizer.tokens.encode(text).ids for text in texts]
    answer = tokenizer.tokens.encode("01234").ids
    assert tokenizer.decode([answer + [0]]) == ["0 1 2 3 4"]


def shown(tokenizer, question):
    return tokenizer.before + tokenizer.user.format(question)


def test_chat_prompts_match_transformers(real_weights):
    for name in ("qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"):
        theirs, ours = transformers.AutoTokenizer.from_pretrained(real_weights / name), tasks.Tokenizer(real_weights / name)
        message = [{"role": "user", "content": f"What is 2 + 3?\n{tasks.INSTRUCTION}"}]
        expected = theirs.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        assert shown(ours, message[0]["content"]) == expected
        (ids,) = ours.encode([message[0]["content"]])
        assert ids == theirs(expected, add_special_tokens=False)["input_ids"]
        assert theirs.eos_token_id in ours.eos_ids
        completion = theirs("It is 5 €.", add_special_tokens=False)["input_ids"]
        assert ours.decode([completion + [theirs.eos_token_id], [theirs.vocab_size + 300]]) == ["It is 5 €.", ""]


# The templates of chat models that are not at hand, as their folders carry them (of Llama 3 the first version).
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_WITH_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}{{ '<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>' }}{% endif %}"
    + LLAMA3.replace("{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}", "")
)
DEEPSEEK = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, "
    "is_tool=false, is_output_first=true, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set "
    "ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if "
    "message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == "
    "'assistant' and message['content'] is not none %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = "
    "content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_TOKENS = "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"
DEEPSEEK_TOKENS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>"
TEMPLATES = {
    "ChatML": (CHATML, ("<|endoftext|>", "<|im_end|>", "<|im_start|>")),
    "Llama 3": (LLAMA3, LLAMA3_TOKENS),
    "Llama 3 with a system message": (LLAMA3_WITH_SYSTEM, LLAMA3_TOKENS),
    "DeepSeek-R1-Distill": (DEEPSEEK, DEEPSEEK_TOKENS),
}


def bytes_tokenizer(path, special, eos, adds_bos=True, **settings):
    """A folder with a byte-level tokenizer of these special tokens (the first begins, the second ends texts)."""
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([*special])
    if adds_bos:  # as Llama's do by themselves
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{special[0]} $A", special_tokens=[(special[0], tokenizer.token_to_id(special[0]))]
        )
    path.mkdir(exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special[0], "eos_token": eos, **settings}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_formats_match_the_templates_that_transformers_renders(name, tmp_path):
    template, special = TEMPLATES[name]
    for place in ("tokenizer_config", "jinja"):
        folder = bytes_tokenizer(tmp_path / place, special, special[1], **({"chat_template": template} if place != "jinja" else {}))
        if place == "jinja":
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), tasks.Tokenizer(folder)
        question = f"What is {{2}} + 3?\n{tasks.INSTRUCTION}"
        message = [{"role": "user", "content": question}]
        expected = theirs.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        assert shown(ours, question) == expected
        (ids,) = ours.encode([question])
        assert ids == theirs(expected, add_special_tokens=False)["input_ids"]
        assert ids.count(theirs.bos_token_id) == (name != "ChatML")  # not twice, although the tokenizer adds one itself
        assert ours.decode([theirs("It is 5 €.", add_special_tokens=False)["input_ids"] + ours.eos_ids]) == ["It is 5 €."]


def test_a_base_model_with_a_chat_models_tokens_gets_the_plain_prompt(tmp_path):
    folder = bytes_tokenizer(tmp_path / "a", ("<|begin_of_text|>", "<|end_of_text|>", *LLAMA3_TOKENS[1:]), "<|end_of_text|>")
    tokenizer = tasks.Tokenizer(folder)
    assert shown(tokenizer, "Why?") == "Question: Why?\nAnswer:"
    assert tokenizer.encode(["Why?"])[0][0] == tokenizer.tokens.token_to_id("<|begin_of_text|>")


HINTS = {
    "gsm8k": ".jsonl", "data/train.parquet": ".jsonl", "train.csv": ".jsonl",
    "nowhere.jsonl": "nowhere.jsonl", "nowhere.json": "nowhere.json",
    "": "household", "maths": "household", "a.txt": "household",
}  # fmt: skip


@pytest.mark.parametrize("spec", HINTS)
@pytest.mark.parametrize("embedded", [True, False])
def test_what_is_no_task_is_said_in_a_line_with_what_is_meant(spec, embedded):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        tasks.load_task(spec, embedded)
    assert HINTS[spec] in str(error.value) and "\n" not in str(error.value)


def test_the_embedded_models_tasks_are_not_for_checkpoints():
    for spec in ("math", "code", "max"):
        with pytest.raises(ValueError, match=spec):
            tasks.load_task(spec, embedded=False)


def folder_with(path, **contents):
    """A folder with an embedded tokenizer and these .json files."""
    tasks.embedded_tokenizer(["a", "b", "<|im_end|>"]).save(str(path / "tokenizer.json"))
    for name, content in contents.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "contents, expected",
    [
        ({"config": {"eos_token_id": 2}}, [2]),
        ({"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": [3, 1]}}, [1, 2, 3]),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}}, [3]),
        ({"tokenizer_config": {"eos_token": {"content": "a"}}, "config": {"eos_token_id": None}}, [1]),
        ({"tokenizer_config": {"eos_token": 5}, "config": {"eos_token_id": 1}}, [1]),
        ({"tokenizer_config": {"eos_token": {"content": 5}}, "config": {"eos_token_id": 1}}, [1]),
    ],
)
def test_ending_tokens_come_from_three_files(tmp_path, contents, expected):
    assert tasks.Tokenizer(folder_with(tmp_path, **contents)).eos_ids == expected


def test_a_model_without_chat_endings_gets_the_plain_prompt(real_weights, tmp_path):
    for file in (real_weights / "qwen2.5-coder-0.5b-instruct").glob("*.json"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text('{"eos_token_id": 151643}')  # as Qwen's base models have it: <|endoftext|>
    assert shown(tasks.Tokenizer(tmp_path), "Why?") == "Question: Why?\nAnswer:"


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: (p / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda p: (p / "tokenizer.json").write_text("{"), "tokenizer.json"),
        (lambda p: (p / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda p: (p / "config.json").write_text("{}"), "eos_token_id"),
        (lambda p: (p / "config.json").write_text('{"eos_token_id": "a"}'), "eos_token_id"),
        (lambda p: (p / "config.json").write_text('{"eos_token_id": [[1]]}'), "eos_token_id"),
        (lambda p: (p / "config.json").write_text('{"eos_token_id": 1e99}'), "eos_token_id"),
        (lambda p: (p / "generation_config.json").write_text("[" * 100_000), "generation_config.json: not valid JSON"),
    ],
)
def test_damaged_tokenizers_are_refused_by_name(tmp_path, damage, message):
    damage(folder_with(tmp_path, config={"eos_token_id": 0}))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        tasks.Tokenizer(tmp_path)
    assert "\n" not in str(error.value)

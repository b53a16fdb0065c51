"""tasks.py: the panels, files of problems, prompts against `transformers`' chat templates."""

import collections
import json
import random
import re

import pytest
import questions
import transformers

import tasks


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
    assert all(task.grade(p, p.answer)[0] == 1 for p in drawn) and not {p.prompt for p in drawn} & {p.prompt for p in task.test}


def test_arithmetic_answers_are_right():
    task = tasks.arithmetic()
    for p in task.test:
        _, a, b, _ = p.prompt.split()
        assert int(p.answer) == int(a) + int(b) and len(p.answer) == 5
        assert task.grade(p, p.answer) == (1.0, p.answer) and task.grade(p, p.answer[::-1] + "1")[0] == 0.0


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


def test_a_slow_machine_does_not_cost_a_program_its_reward(monkeypatch):
    monkeypatch.setattr(tasks, "CHILD", "import time; time.sleep(3)\n" + tasks.CHILD)
    task = tasks.code()
    problem = task.test[0]
    assert task.grade(problem, problem.answer) == (1.0, problem.answer)


def test_the_split_of_a_file_does_not_depend_on_its_order(tmp_path):
    shuffled = rows()
    random.Random(1).shuffle(shuffled)
    a, b = (
        tasks.from_file(written(tmp_path / "a.jsonl", rows())),
        tasks.from_file(written(tmp_path / "b.jsonl", shuffled)),
    )
    assert a.test == b.test and a.validation == b.validation and len(a.test) == len(a.validation) == 4
    assert a.draw(3, 5, 8) == b.draw(3, 5, 8)


def test_every_epoch_has_every_problem_once(tmp_path):
    task = tasks.from_file(written(tmp_path / "a.jsonl", rows()))
    drawn = [p for step in range(16) for p in task.draw(0, step, 6)]  # 96 = 3 epochs of 32
    for epoch in range(3):
        assert len(set(drawn[32 * epoch : 32 * epoch + 32])) == 32
    assert drawn[:32] != drawn[32:64]


def test_questions_grade(tmp_path):
    task = tasks.from_file(written(tmp_path / "a.jsonl", rows()))
    p = tasks.Problem("?", ("72", "x"))
    assert task.grade(p, "so \\boxed{72.0}") == (1.0, "72.0") and task.grade(p, "it is 71")[0] == 0.0
    assert task.grade(p, "\\boxed{x}") == (1.0, "x") and task.grade(p, "no idea") == (0.0, None)


def chat(question, answer=None):
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
    return said + ([{"role": "assistant", "content": answer}] if answer else [])


# A row as the data set has it, and the accepted answers of the question "Q".
QUESTIONS = {
    "GSM8K": ({"question": "Q", "answer": "7 + 8 = <<7+8=15>>15\n#### 1,015"}, ("1,015",)),
    "MATH-500": ({"problem": " Q\n", "solution": "so $\\boxed{2}$", "answer": "\\frac{1}{2}", "level": 2}, ("\\frac{1}{2}",)),
    "DeepScaleR": ({"problem": "Q", "answer": "-\\frac{2}{3}", "solution": "I have $5$ ..."}, ("-\\frac{2}{3}",)),
    "DeepScaleR without a solution": ({"problem": "Q", "answer": "18", "solution": ""}, ("18",)),
    "MATH": ({"problem": "Q", "level": "Level 5", "type": "Algebra", "solution": "5, so $\\boxed{\\frac{1}{2}}$."}, ("\\frac{1}{2}",)),
    "NuminaMath-CoT": ({"source": "olympiads", "problem": "Q", "solution": "\\[\\boxed{(0, 1)}\\] 3.", "messages": chat("R", "4")}, ("(0, 1)",)),
    "its messages": ({"messages": chat("Q", "so \\boxed{9}")}, ("9",)),
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
    assert all(task.grade(p, f"\\boxed{{{answer}}}")[0] == 1 for p in everything(task) for answer in p.answer)


def test_fields_by_name(tmp_path):
    path = written(
        tmp_path / "a.jsonl", [{"q": {"text": f"Q {i}"}, "a": f"{i}", "answer": "5", "question": "?"} for i in range(10)]
    )
    assert {p.answer for p in everything(tasks.load_task(str(path), fields="q.text,a"))} == {(f"{i}",) for i in range(10)}
    for fields in ("q", "q,", "q,a,b", ""):
        with pytest.raises(ValueError, match="--fields"):
            tasks.load_task(str(path), fields=fields)
    with pytest.raises(ValueError, match="--fields"):
        tasks.load_task("math", fields="q,a")


def test_an_instruction_of_ones_own(tmp_path):
    path = str(written(tmp_path / "a.jsonl", rows()))
    for instruction, end in (("Just the number.", "+ 1?\nJust the number."), ("", "+ 1?")):
        assert all(p.prompt.endswith(end) for p in everything(tasks.load_task(path, instruction=instruction)))
    with pytest.raises(ValueError, match="--instruction goes with questions"):
        tasks.load_task("math", instruction="x")
    programs = [{"text": f"f{i}", "test_list": ["assert 1"]} for i in range(20)]
    with pytest.raises(ValueError, match="asks for programs"):
        tasks.load_task(str(written(tmp_path / "b.jsonl", programs)), instruction="x")


@pytest.mark.parametrize("kind", questions.KINDS)
def test_questions_for_real_models(kind, tmp_path):
    rows = questions.questions(kind, 300, examples=2)
    assert rows == questions.questions(kind, 300, examples=2) and len({row["question"] for row in rows}) == 300
    task = tasks.load_task(str(written(tmp_path / "a.jsonl", rows)), instruction="")
    for row in rows[:50]:
        *examples, (question,) = [part.splitlines() for part in row["question"].split("\n\n")]
        a, b = map(int, re.findall("[0-9]+", question))
        by_hand = {"sum": a + b, "difference": a - b, "product": a * b, "remainder": a % b, "larger": max(a, b)}
        assert row["answer"] == str(by_hand.get(kind.partition("-")[0], a // b)) and len(examples) == 2
    assert all(task.grade(p, f"It is {p.answer[0]}.")[0] == 1 for p in task.test)


def test_a_file_whose_name_holds_control_characters(tmp_path, capsys):
    file = tmp_path / "\x1b[2J.jsonl"
    rows = [{"problem": f"Prove {i}.", "solution": f"\\boxed{{{i}}}" if i else "So it is."} for i in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(tasks.load_task(str(file)).train) == 17
    assert "left out 1" in (out := capsys.readouterr().out) and out.removesuffix("\n").isprintable()


def test_what_has_no_final_answer_is_left_out_and_counted(tmp_path, capsys):
    """Repeated rows are kept once; a proof, and a question that two rows answer differently, are left out."""
    rows = [{"problem": f"Q {i}", "solution": f"\\boxed{{{i}}}"} for i in range(12)]
    more = [
        ("Q 0", "\\boxed{0.0}"),
        ("Q 1", "\\boxed{1}"),
        ("Q 2", "\\boxed{3}"),
        ("Q 2", "\\boxed{2}"),
        ("Show!", "As 4 > 3, it holds."),
    ]
    rows += [{"problem": problem, "solution": solution} for problem, solution in more]
    kept = everything(tasks.from_file(written(tmp_path / "a.jsonl", rows)))
    assert sorted(float(p.answer[0]) for p in kept) == [0, 1, *range(3, 12)]
    printed = capsys.readouterr().out
    assert "left out 2 questions" in printed and "a.jsonl, line 15" in printed and printed.count("\n") == 1


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
def test_programs_grade(text, reward):
    """All tests or nothing: `x + 2` passes the one in the prompt."""
    problem = tasks.Problem("?", (*MBPP["test_list"], ""))
    earned, program = tasks.grade_program(problem, text)
    assert earned == reward and isinstance(program, str) and "```" not in program


def test_real_files_read_whole(real_data):
    for name, n in (("gsm8k_train.jsonl", 7473), ("gsm8k_test.jsonl", 1319), ("math500.json", 500)):
        task = tasks.load_task(str(real_data / name))
        assert len(everything(task)) == n and len(task.test) == min(500, n // 10)
        assert all(task.grade(p, f"\\boxed{{{p.answer[0]}}}")[0] == 1 for p in everything(task))


def test_mbpp_reference_solutions_earn_the_reward(real_data):
    with open(real_data / "mbpp.jsonl") as file:
        code = {row["test_list"][0].strip(): row["code"] for row in map(json.loads, file)}
    task = tasks.load_task(str(real_data / "mbpp.jsonl"))
    assert len(everything(task)) == 963  # of 964: two have the same prompt
    for p in task.test[:20]:
        assert task.grade(p, f"```python\n{code[p.answer[0].strip()]}\n```")[0] == 1.0


GOOD, MANY = b'{"question": "a", "answer": "#### 1"}\n', b'{"question": "a", "answer": "1"}\n' * 5000
BAD_FILES = [
    (b"", "0 different problems"), (b"\n \r\n", "0 different problems"), (GOOD * 50, "1 different problems"), (b"\xff\xfe", "line 1: not UTF-8"),
    (GOOD + b'{"question": "\xe9"}', "line 2: not UTF-8"), (b"[1, 2]\n", "line 1: must be an object"), (GOOD + b"5\n", "line 2: must be an object"),
    (GOOD + b'{"quest', "line 2: not valid JSON"), (b"question,answer\na,1", "line 1: not valid JSON"), (b"[" * 100_000, "line 1: not valid JSON"),
    (b"9" * 9999, "line 1: not valid JSON"), (GOOD + b'\n{"question": "b"}\n', 'line 3: field "answer" is missing'), (b'{"question": "b"}', "line 1: no fields"),
    (b"{}\n" + GOOD, "line 1: no fields question,answer or"), (b'{"question": " ", "answer": "#### 1"}\n', 'line 1: field "question" is empty'),
    (GOOD + b'{"question": "b", "answer": ""}\n', 'line 2: field "answer" is empty'), (GOOD + b'{"question": null, "answer": "1"}', 'line 2: field "question" is missing'),
    (GOOD + b'{"question": "b", "answer": 5}', 'line 2: field "answer" .* no text'), (GOOD + b'{"question": ["b"], "answer": "5"}', 'line 2: field "question"'),
    (GOOD + b'{"question": "%s", "answer": "5"}' % (b"b" * 100_001), 'line 2: field "question" .* at most 100,000'),
    (GOOD + b'{"question": "b", "answer": "%s"}' % (b"5" * 100_001), 'line 2: field "answer" .* at most 100,000'),
    (GOOD + b'{"question": "\\ud800", "answer": "5"}', 'line 2: field "question" .* Unicode'), (MANY + b'{"question": "b"}\n' + MANY, 'line 5001: field "answer"'),
    (b'{"prompt": [{"role": "system", "content": "b"}], "reward_model": {"ground_truth": "1"}}', 'line 1: field "prompt"'),
    (b'{"prompt": [{"role": "user", "content": "b"}], "reward_model": "1"}', 'line 1: field "reward_model.ground_truth"'),
    (b'{"prompt": "b", "reward_model": {"ground_truth": "[\\"1"}}', "line 1, reward_model.ground_truth"),
    (b'{"text": "", "test_list": ["assert f(1) == 1"]}', 'line 1: field "text"'), (b'{"text": "b", "test_list": []}', 'line 1: field "test_list" must be a list of asserts'),
    (b'{"text": "b", "test_list": ["f(1) == 1"]}', 'field "test_list"'), (b'{"text": "b", "test_list": ["assert f(1"]}', 'field "test_list"'),
    (b'{"text": "b", "test_list": [["f(1)", 1]]}', 'field "test_list"'), (b'{"text": "b", "test_list": 5}', 'field "test_list"'),
    (b'{"text": "b", "test_list": ["assert f(1) == 1"], "test_setup_code": "x ="}', 'field "test_setup_code" must be statements'),
    (b'{"text": "b", "test_list": ["assert f(1) == 1", "assert f(\'%s\')"]}' % (b"b" * 100_000), 'field "test_list" .* at most 100,000'),
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
        (b"", "line 1: not valid JSON"),
        (b'[{"question": "a",\n "answer": "1"},\n {"question": ]', "line 3: not valid JSON"),
        (b'[{"question": "a",\n "answer": "\xff"}]', "line 2: not UTF-8"),
        (b'[{"question": "a", "answer": "1"}, 5]', "row 2: must be an object"),
        (b'[{"question": "a", "answer": "1"}, {"question": "b"}]', 'row 2: field "answer"'),
        (b"5", "row 1: must be an object"),
        (b'{"data": [{"question": "a", "answer": "1"}]}', "row 1: no fields"),
        (b'{"question": {"0": "a"}, "answer": {"0": "1"}}', 'row 1: field "question"'),
        (b"[]", "0 different problems"),
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
    answer = tokenizer.tokens.encode("01234").ids
    assert tokenizer.decode([answer + [0]]) == ["0 1 2 3 4"]


def test_chat_prompts_match_transformers(real_weights):
    for name in ("qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"):
        theirs, ours = transformers.AutoTokenizer.from_pretrained(real_weights / name), tasks.Tokenizer(real_weights / name)
        message = [{"role": "user", "content": f"What is 2 + 3?\n{tasks.INSTRUCTION}"}]
        expected = theirs.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        assert ours.prompt(message[0]["content"]) == expected
        (ids,) = ours.encode([message[0]["content"]])
        assert ids == theirs(expected, add_special_tokens=False)["input_ids"]
        assert theirs.eos_token_id in ours.eos_ids
        completion = theirs("It is 5 €.", add_special_tokens=False)["input_ids"]
        assert ours.decode([completion + [theirs.eos_token_id], [theirs.vocab_size + 300]]) == ["It is 5 €.", ""]


@pytest.mark.parametrize("spec", ["", "maths", "nowhere.jsonl", "a.txt"])
def test_unknown_tasks_are_refused(spec):
    with pytest.raises((ValueError, FileNotFoundError)):
        tasks.load_task(spec)


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
    assert tasks.Tokenizer(tmp_path).prompt("Why?") == "Question: Why?\nAnswer:"


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: (p / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
        (lambda p: (p / "tokenizer.json").write_text("{"), "tokenizer.json: not a tokenizer"),
        (lambda p: (p / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda p: (p / "config.json").write_text("{}"), "no eos_token_id"),
        (lambda p: (p / "config.json").write_text('{"eos_token_id": "a"}'), "config.json: eos_token_id is a;"),
        (lambda p: (p / "config.json").write_text('{"eos_token_id": [[1]]}'), "config.json: eos_token_id is"),
        (lambda p: (p / "config.json").write_text('{"eos_token_id": 1e99}'), "config.json: eos_token_id is"),
        (lambda p: (p / "generation_config.json").write_text("[" * 100_000), "generation_config.json: not valid JSON"),
    ],
)
def test_damaged_tokenizers_are_refused_by_name(tmp_path, damage, message):
    damage(folder_with(tmp_path, config={"eos_token_id": 0}))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        tasks.Tokenizer(tmp_path)
    assert "\n" not in str(error.value)

"""tasks.py: the panels, the file format, prompts against `transformers`' chat templates."""

import collections
import json
import random

import pytest
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


def test_word_problems_split_does_not_depend_on_file_order(tmp_path):
    shuffled = rows()
    random.Random(1).shuffle(shuffled)
    a, b = (
        tasks.word_problems(written(tmp_path / "a.jsonl", rows())),
        tasks.word_problems(written(tmp_path / "b.jsonl", shuffled)),
    )
    assert a.test == b.test and a.validation == b.validation and len(a.test) == len(a.validation) == 4
    assert a.draw(3, 5, 8) == b.draw(3, 5, 8)


def test_every_epoch_has_every_problem_once(tmp_path):
    task = tasks.word_problems(written(tmp_path / "a.jsonl", rows()))
    drawn = [p for step in range(16) for p in task.draw(0, step, 6)]  # 96 = 3 epochs of 32
    for epoch in range(3):
        assert len(set(drawn[32 * epoch : 32 * epoch + 32])) == 32
    assert drawn[:32] != drawn[32:64]


def test_word_problems_grade(tmp_path):
    task = tasks.word_problems(written(tmp_path / "a.jsonl", rows()))
    p = tasks.Problem("?", "72")
    assert task.grade(p, "so \\boxed{72.0}") == (1.0, "72.0") and task.grade(p, "it is 71")[0] == 0.0
    assert task.grade(p, "no idea") == (0.0, None)


def test_gsm8k_reads_whole(real_data):
    task = tasks.word_problems(real_data / "gsm8k_train.jsonl")
    assert len(task.test) == 500 and all(p.answer for p in task.draw(0, 0, 1000))


BAD_FILES = [
    (b"", "0 different problems"), (b'{"question": "a", "answer": "#### 1"}\n' * 50, "1 different problems"),
    (b"\xff\xfe", "not UTF-8"), (b"[1, 2]\n", "line 1: field \"question\""), (b'{"question": "a", "answer": "#### 1"}\n{"quest', "line 2: not valid JSON"),
    (b'{"question": "a", "answer": "#### 1"}\n\n{"question": "b"}\n', 'line 3: field "answer"'),
    (b'{"question": " ", "answer": "#### 1"}\n', 'line 1: field "question"'), (b'{"question": "a", "answer": "no number"}\n', "no final answer"),
]  # fmt: skip


@pytest.mark.parametrize("content, message", BAD_FILES)
def test_bad_files_are_refused_by_line_and_field(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        tasks.word_problems(tmp_path / "a.jsonl")
    assert "a.jsonl" in str(error.value) and "\n" not in str(error.value)


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
    ],
)
def test_damaged_tokenizers_are_refused_by_name(tmp_path, damage, message):
    damage(folder_with(tmp_path, config={"eos_token_id": 0}))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        tasks.Tokenizer(tmp_path)
    assert "\n" not in str(error.value)

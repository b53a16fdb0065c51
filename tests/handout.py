"""An assignment: this repository without some of its functions, and the grader for it.

    python tests/handout.py OUT                                 # the folder for students
    python tests/handout.py --grade FOLDER --json points.json   # for the instructor

OUT holds the repository's files without its history. The bodies of the functions of EXERCISES are
taken out (signature and docstring stay), and EXERCISES.md says what to write. There, students grade
themselves: `python tests/handout.py --grade . --json points.json`.

A function is graded by its values. A process of its own calls it on the inputs of a case, with the
reference's other functions around it, and reports what came out; this process compares that with
what the reference gives. So the student's code never meets the right values or the table of points,
and says "passed" to nobody. The inputs are drawn anew for every grading, so values known by heart
are wrong. The process runs in the sandbox of tasks.py (on Linux: no files, no processes, no
signals) with limits of time and memory.
"""

import argparse
import ast
import importlib
import json
import math
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.random  # before a student's process is locked in

ROOT = Path(__file__).resolve().parent.parent
EXPECTED = Path(__file__).with_name("exercises.json")  # in a handout: values of one seed, no code
FILES = ("model.py", "rl.py", "tasks.py", "train.py", "analyze.py")
SOLUTIONS = "tests/test_handout.py"  # not for students
SECONDS = 30  # of one exercise, of which Python's start takes 2 to 4
MEMORY = 2 << 30  # bytes that a student's function may take
MOST = 4 << 20  # bytes: of an answer, and of a student's file


# ---- The cases: what a function is called with, drawn by a seed. Each returns plain data.


def tensor_values(*tensors):
    return [t.tolist() for t in tensors]


def tiny_model(seed, **changes):
    import torch

    import model

    torch.manual_seed(seed)
    sizes = dict(vocab_size=19, hidden_size=16, intermediate_size=24, num_hidden_layers=4)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    transformer = model.Transformer(model.Config(**{**sizes, **heads, **changes}))
    for weight in transformer.parameters():
        if weight.dim() == 1:  # norms are 1 and biases 0 at first, which would hide mistakes
            torch.nn.init.normal_(weight, mean=1.0, std=0.3)
    return transformer


def contribution(seed):
    import analyze

    rng = np.random.default_rng(seed)
    numbers, (score, base, full) = rng.random(3).tolist(), rng.random((3, 5))
    full[2] = base[2]  # nothing gained
    one, nothing = analyze.contribution(*numbers), analyze.contribution(0.5, 0.25, 0.25)
    return [float(one), float(nothing), analyze.contribution(score, base, full).tolist()]


def freezing(seed):
    import train

    rng, found = np.random.default_rng(seed), []
    transformer = tiny_model(seed, num_hidden_layers=int(rng.integers(4, 8)))
    low, high = sorted(rng.choice(4, 2, replace=False).tolist())
    specs = [str(low), f"{low},{high}", "mid-2", "random-1", "random-2", "random-3"]
    specs += [f"boost-{low}", "norm", "full", "base"]
    for spec in [*rng.permutation(specs), str(high)]:
        trained, start = train.freeze_all_but(transformer, spec, 1 + seed % 99)
        parameters = dict(transformer.named_parameters())
        left = [name for name, p in parameters.items() if p.requires_grad]
        same = all(p is parameters[name] for name, p in trained.items())
        found.append([sorted(trained), start, sorted(left), same])
    return found


def advantages(seed):
    import torch

    import rl

    torch.manual_seed(seed)
    rewards = torch.stack([torch.zeros(6), torch.rand(6).round(), 3 * torch.randn(6)])
    found = [rl.group_advantages(rewards, name) for name in ("std", "none")]
    flat = torch.rand(20, 1).expand(20, 7)  # the mean of these is not quite one of them
    return tensor_values(*found, rl.group_advantages(flat), rl.group_advantages(torch.rand(3, 1)))


def rope(seed):
    import torch

    import model

    torch.manual_seed(seed)
    positions = torch.randint(50, (2, 4))
    transformer = tiny_model(seed, rope_theta=300.0 + seed % 500)
    return tensor_values(*model.rope_tables(transformer.config, positions))


def loss(seed):
    import torch

    import rl

    torch.manual_seed(seed)
    new, old, ref = -torch.rand(3, 8, 12, dtype=torch.float64)
    mask = torch.arange(12) < torch.randint(1, 13, (8, 1))
    scores, found = torch.randn(8, dtype=torch.float64), []
    for aggregate in ("sequence", "constant", "token"):
        for options in ({}, {"kl_coef": 0.3, "ref_logprobs": ref}, {"clip": 0.05}):
            logprobs = new.clone().requires_grad_()
            options = {"aggregate": aggregate, "max_tokens": 15, **options}
            value = rl.policy_loss(logprobs, old, scores, mask, **options)
            value.backward()
            found += tensor_values(value.detach(), logprobs.grad)
    return found


def sampling(seed):
    import torch

    import rl

    torch.manual_seed(seed)
    found = []
    for temperature in (1.0, 0.5, 2.0, 0):
        logits, uniform = 2 * torch.randn(40, 9), 0.001 + 0.998 * torch.rand(40)
        found += tensor_values(*rl.sample(logits, temperature, uniform))
    return found


def two_levels(seed):
    import rl

    rng = np.random.default_rng(seed)
    trajectory = rng.permutation(np.repeat(np.arange(9), rng.integers(1, 6, 9)))
    group = trajectory // 3  # three trajectories each
    episode = rng.random(9).round(2)[trajectory]
    step, anchor = rng.random(len(group)).round(1), rng.choice(["desk", "sink", "door"], len(group))
    steps = [values.tolist() for values in (episode, step, group, trajectory, anchor)]
    found = []
    for normalize in ("none", "std"):
        for weight in (0.0, 1.0, 0.5):
            values = rl.gigpo_advantages(*steps, step_weight=weight, normalize=normalize)
            found.append(values.tolist())
    return found


class GrowingCache:
    """The simplest cache: what came before, and what is new."""

    def __init__(self):
        self.layers = {}

    def update(self, layer, k, v):
        import torch

        if layer in self.layers:
            old_k, old_v = self.layers[layer]
            k, v = torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2)
        self.layers[layer] = k, v
        return k, v


def attention(seed):
    import torch

    found = []
    for family in ("qwen3", "qwen2"):
        transformer = tiny_model(seed, model_type=family)
        tokens = torch.randint(19, (2, 6))
        x, positions = transformer.model.embed_tokens(tokens), torch.arange(6)[None]
        mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
        found.append(transformer(tokens))
        cache = GrowingCache()  # the same in three parts; the last token may look everywhere
        for begin, end in ((0, 3), (3, 5), (5, 6)):
            part, seen = slice(begin, end), mask[:, :, begin:end, :end] if end < 6 else None
            found.append(transformer.run_layers(x[:, part], positions[:, part], seen, cache))
    return tensor_values(*(t.detach() for t in found))


def resampling(seed):
    import analyze

    rng = np.random.default_rng(seed)
    two = rng.random((2, 3, 1)) + rng.random((2, 3, 60))  # seeds differ by more than problems
    table = np.concatenate([two, two[:1]])  # the third row is the first again
    table[1, 2] = np.nan  # one seed fewer
    tables = (table, table, table[:, :1])
    return [analyze.bootstrap(each).round(6).tolist() for each in tables]


# ---- Comparing


def alike(a, b):
    """Whether plain data is equal, numbers up to rounding."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if {type(a), type(b)} <= {int, float}:
        return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4) or (a != a and b != b)
    return type(a) is type(b) and a == b


def alike_by_chance(found, expected):
    """Whether resampled means come from one distribution: figures, spread, what goes together."""
    found = [np.array(table, dtype=float) for table in found]
    expected = [np.array(table, dtype=float) for table in expected]
    if not np.array_equal(found[0], found[1]) or len(found) != len(expected):
        return False
    for a, b in zip(found, expected):
        if a.shape != b.shape or not np.allclose(a[0], b[0], atol=1e-5):
            return False
        if not np.allclose(a[:, 0], a[:, 2], atol=1e-5):  # equal rows stay equal
            return False
        if not np.allclose(a[1:].std(0), b[1:].std(0), rtol=0.12):
            return False
        if not np.allclose(np.corrcoef(a[1:].T), np.corrcoef(b[1:].T), atol=0.15):
            return False
    return True


# ---- The exercises


@dataclass(frozen=True)
class Exercise:
    name: str  # module.function, or module.Class.method
    points: int
    case: object
    text: str
    passes: object = alike  # (found, expected) -> bool


EXERCISES = [
    Exercise("analyze.contribution", 5, contribution, """
The contribution of layer k, from the scores of that layer's run, the base and full training:

    C(k) = (S_k - S_base) / (S_full - S_base)

for numbers or for numpy arrays of one shape, entry by entry. Where S_full = S_base the answer is
NaN, in a number as in an array."""),
    Exercise("train.freeze_all_but", 10, freezing, """
The paper's one change to RL. Set `requires_grad` of every parameter of `model`, whatever it was
before, so that only what `spec` names trains:

- layers: everything named `model.layers.k.` for the k of `layers_of(spec, num_layers, seed)`;
- `full` and `boost-...`: every parameter;
- `norm`: the final norm, `model.norm.`;
- `base`: nothing.

Return a dict name -> parameter of what trains, and the first layer that a gradient reaches: the
lowest layer that trains, 0 if everything does, and the number of layers for `norm` and `base`."""),
    Exercise("rl.group_advantages", 10, advantages, """
GRPO compares a completion with the others of its group, a row of `rewards` (P, G):

    A_i = (r_i - mean(r)) / (std(r) + 1e-6)        normalize="std"; std divides by G - 1
    A_i = r_i - mean(r)                            normalize="none" (Dr. GRPO)

A row of equal rewards gets exactly 0, also where the computed mean is not quite equal to them, and
where it holds a single completion."""),
    Exercise("rl.sample", 10, sampling, """
Draw one token a row from p = softmax(logits / temperature) by inverting its distribution function:
the first token v with

    p_1 + ... + p_v >= uniform

Return tokens (B,) and their natural log-probabilities under p (B,). Temperature 0 takes the
likeliest token, and calls its log-probability 0."""),
    Exercise("model.rope_tables", 10, rope, """
cos and sin of the angles by which RoPE turns a head's pairs of dimensions, float32, each
(B, 1, T, head_dim). At position t, pair i = 0 ... head_dim / 2 - 1 has the angle

    t * rope_theta ^ (-2 i / head_dim)

Dimension i is paired with dimension i + head_dim / 2 (see `rotate`), so the head_dim / 2 angles
stand twice in a row: first all, then all again. `config.rope_scaling` may be left out."""),
    Exercise("rl.policy_loss", 15, loss, """
With rho = exp(logprobs - old_logprobs), the loss of one token is

    -min(rho A, clip(rho, 1 - clip, 1 + clip) A) + kl_coef * (r - log r - 1),   r = pi_ref / pi

(`kl_estimate` gives the last bracket; without kl_coef there need be no ref_logprobs). The loss of
the batch averages the tokens that the mask holds:

- "sequence": over each response's tokens, then over the B responses (GRPO);
- "constant": their sum / (B * max_tokens) (Dr. GRPO);
- "token": their sum / their number."""),
    Exercise("model.Attention.forward", 15, attention, """
    softmax(q k^T / sqrt(head_dim) + mask) v

in heads. Project x (B, T, D) to q, k and v, (B, heads, T, head_dim); pass q and k through `q_norm`
and `k_norm` if `config.qk_norm`; turn them by `rotate(..., *rope)`; if there is a cache,
`cache.update(self.layer, k, v)` takes the new keys and values and returns all S to look at; attend;
put the heads side by side again and project by `o_proj`.

There are fewer key heads than query heads: of n = heads / kv_heads that share one, query heads
0 ... n - 1 use key head 0, the next n key head 1, and so on. `mask` is None (look everywhere) or
holds 0 and -inf, (B or 1, 1, n * T, S): the same T rows for each of the n heads, so its first T
rows are the mask of one head."""),
    Exercise("rl.gigpo_advantages", 15, two_levels, """
GiGPO compares at two levels, both by `group_advantages(..., normalize)`:

    A = A_episode + step_weight * A_step

A_episode compares a trajectory's return with those of its group's other trajectories; each
counts once, however many steps it has. A_step compares a step's `step_return` with those of all
steps of its group that answered the same `anchor`. The steps come in any order; return (N,)."""),
    Exercise("analyze.bootstrap", 10, resampling, """
Estimates of the mean of each row of `table` (rows, seeds, problems): an array (1 + DRAWS, rows)
that begins with the means themselves, over a row's seeds and problems. For each of DRAWS resampled
ones

- draw as many problems as there are, with replacement, the same ones for all rows and seeds;
- draw z_s from N(0, 1) for each seed s, the same for all rows, and weight the n seeds that a row
  has by 1 / n + (z_s - mean z) / sqrt(n (n - 1)), with the mean over these n. One seed: weight 1.

NaN marks a seed that a row does not have. Every call with the same table returns the same numbers;
which random generator draws them is up to you. (For an interval: the 2.5th and 97.5th
percentile of the resampled ones, `interval`.)""", alike_by_chance),
]  # fmt: skip

INTRODUCTION = """# Exercises

The bodies of the functions below are taken out. Write them again, from their docstrings and the
text here; together they are worth {of} points. Names are those of the files: B responses, T tokens,
D the model's width, P prompts of G completions each.

Grade yourself with

    python tests/handout.py --grade . --json points.json

Of your files only the functions named below are taken, each by itself: whatever else one needs,
helpers and imports included, has to stand inside it or in the file as it was handed out. Files,
other processes and the network are out of reach, and {seconds} seconds is the most that one may
take. You are graded on other numbers than here, and with the right bodies of all the other
functions; here they are your own, so work from top to bottom.
"""


# ---- Taking functions out, and putting a student's in

PARSING = threading.Lock()  # two threads that parse confuse early Python 3.11 (gh-106905)


def find(source, name):
    """The node of module.function or module.Class.method; the last, where there are several, as in
    Python. ValueError if it is not there."""
    with PARSING:
        node = ast.parse(source)
    for part in name.split(".")[1:]:
        found = [n for n in getattr(node, "body", []) if getattr(n, "name", None) == part]
        if not found:
            raise ValueError(f"there is no {name}")
        node = found[-1]
    return node


def stub(source, exercise):
    """The source with the function's body taken out; signature and docstring stay."""
    node, lines = find(source, exercise.name), source.splitlines()
    documented = ast.get_docstring(node) is not None
    begin = node.body[0].end_lineno if documented else node.body[0].lineno - 1
    what = f"exercise {EXERCISES.index(exercise) + 1}: {exercise.name}"
    body = " " * (node.col_offset + 4) + f'raise NotImplementedError("{what}")'
    return "\n".join([*lines[:begin], body, *lines[node.end_lineno :]]) + "\n"


def put(module, name, text):
    """Put the function that a file's text defines, and nothing else of it, into the module."""
    exec(ast.unparse(find(text, name)), module.__dict__)
    _, *place, last = name.split(".")
    if place:  # a method
        setattr(getattr(module, place[0]), last, module.__dict__.pop(last))


def child(name, seed, report):
    """In a process of its own: a student's file comes from standard input; lock the doors, put its
    function into the reference, and write to `report` what the case gives."""
    sys.path.insert(0, str(ROOT))
    text, exercise = sys.stdin.buffer.read(), next(e for e in EXERCISES if e.name == name)
    try:
        module = importlib.import_module(name.split(".")[0])
        lock(re.findall(rb"(?:import|from)\s+(\w+)", text))
        put(module, name, text)
        answer = json.dumps(exercise.case(seed))
    except BaseException as error:
        answer = json.dumps({"error": f"{type(error).__name__}: {error}"})
    os.write(report, answer.encode())
    os._exit(0)  # whatever else the student has planned


def lock(imports):
    """Give up, for good, what an exercise does not need. First import what it names: no file can be
    opened later."""
    import tasks

    for wanted in {word.decode() for word in imports} & tasks.MODULES:
        try:
            importlib.import_module(wanted)
        except ImportError:
            pass  # another system's
    if torch := sys.modules.get("torch"):  # it too loads some of itself late
        torch.set_num_threads(1)
        (torch.ones(2, 2, requires_grad=True) @ torch.ones(2, 2)).sum().backward()
    warnings.simplefilter("ignore")
    memory = 1 << 40
    if sys.platform == "linux":
        memory = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    tasks.lock(tasks.FILTER, memory + MEMORY, SECONDS, MOST)


def run_case(exercise, seed, text):
    """What the function in a student's file gives, as plain data, or {"error": why there is none}.

    All of it may be forged, so nothing follows from it but whether it equals the right values.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as source,
        tempfile.TemporaryFile() as report,  # no pipe: its size has a limit, nobody need read it
    ):
        (Path(folder) / "tests").mkdir()
        shutil.copy(__file__, Path(folder) / "tests" / "handout.py")
        for file in FILES:
            reference = (ROOT / file).read_text()
            own = file == exercise.name.split(".")[0] + ".py"
            (Path(folder) / file).write_text(stub(reference, exercise) if own else reference)
        source.write(text)
        source.seek(0)
        call = f"import handout; handout.child({exercise.name!r}, {seed}, {report.fileno()})"
        keep = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH")
        environment = {name: os.environ[name] for name in keep if name in os.environ}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-B", "-c", call], stdin=source, pass_fds=[report.fileno()],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=Path(folder) / "tests",
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return {"error": f"no answer in {SECONDS} seconds"}
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except OSError:
                pass  # all have ended
            process.wait()
        report.seek(0)
        try:
            return json.loads(report.read(MOST))
        except (ValueError, RecursionError):
            return {"error": "its process ended without an answer"}


# ---- The two commands


def right_values(seed):
    """exercise -> what its case gives with the reference."""
    sys.path.insert(0, str(ROOT))
    return {e.name: json.loads(json.dumps(e.case(seed))) for e in EXERCISES}


def make(out):
    """Write the students' folder. ValueError where it exists or there is nothing to make it of."""
    if out.exists():
        raise ValueError(f"{out} is there already; choose a new folder")
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True)
    tracked = [file for file in listed.stdout.split("\0") if file and (ROOT / file).is_file()]
    if listed.returncode or not {*FILES} <= {*tracked} or EXPECTED.exists():
        raise ValueError(f"{ROOT} is not a git checkout of the repository: nothing to hand out")
    values = right_values(0)  # before anything is written
    for file in tracked:
        if file != SOLUTIONS:
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, out / file)
    text = INTRODUCTION.format(of=sum(e.points for e in EXERCISES), seconds=SECONDS)
    for i, exercise in enumerate(EXERCISES, 1):
        path = out / f"{exercise.name.split('.')[0]}.py"
        path.write_text(stub(path.read_text(), exercise))
        text += f"\n## {i}. `{exercise.name}` ({exercise.points} points)\n{exercise.text}\n"
    (out / "EXERCISES.md").write_text(text)
    (out / "tests" / EXPECTED.name).write_text(json.dumps({"seed": 0, "values": values}))


def grade_one(folder, exercise, seed, expected):
    """(points, why not more) for one exercise of a student's folder."""
    file = folder / f"{exercise.name.split('.')[0]}.py"
    if file.is_symlink() or not file.is_file():  # a link could lead to the reference
        return 0, f"there is no file {file.name}"
    if file.stat().st_size > MOST:
        return 0, f"{file.name} is too large"
    try:
        found = run_case(exercise, seed, file.read_bytes())
    except (SyntaxError, ValueError) as error:  # in a handout the other functions are there
        return 0, f"{type(error).__name__}: {error}"
    if isinstance(found, dict):
        return 0, str(found.get("error"))
    try:
        right = exercise.passes(found, expected[exercise.name])
    except Exception:  # what a student's process wrote may be anything
        right = False
    return (exercise.points, "") if right else (0, "other values than expected")


def grade(folder):
    """Yield (exercise, points, why not more) of a student's folder. ValueError if there is none."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; it should be a student's copy of the handout")
    seed = secrets.randbits(30)  # nobody can know the right values before
    if EXPECTED.exists():  # in a handout
        seed, expected = json.loads(EXPECTED.read_text()).values()
    else:
        expected = right_values(seed)
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda e: grade_one(folder, e, seed, expected), EXERCISES)
        for exercise, (points, why) in zip(EXERCISES, results):
            yield exercise, points, "".join(c if c.isprintable() else "?" for c in why)[:100]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="new folder for students")
    parser.add_argument("--grade", type=Path, metavar="FOLDER", help="a student's folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where its points go")
    args = parser.parse_args(argv)
    if bool(args.out) == bool(args.grade) or bool(args.grade) != bool(args.json):
        parser.error("say OUT, or --grade FOLDER and --json FILE")
    try:
        if args.out:
            make(args.out)
            return print(f"written: {args.out}; start with {args.out / 'EXERCISES.md'}")
        rows = []
        for exercise, points, why in grade(args.grade):
            print(f"{exercise.name:28}{points:4} of {exercise.points:<5}{why}".rstrip(), flush=True)
            rows.append({"name": exercise.name, "points": points, "of": exercise.points})
        found = {key: sum(row[key] for row in rows) for key in ("points", "of")}
        print(f"{'together':28}{found['points']:4} of {found['of']}")
        args.json.write_text(json.dumps({"exercises": rows, **found}, indent=1) + "\n")
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    main()

"""README.md and tests/recorded/README.md against the records and the code they speak of."""

import ast
import contextlib
import functools
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import analyze
import probe
import train

ROOT = Path(analyze.__file__).parent
RECORDED = ROOT / "tests/recorded"
README = (ROOT / "README.md").read_text()
RESULTS = (RECORDED / "README.md").read_text()
BLOCKS = re.findall(r"<!-- python (.*?) \| (.*?) -->\n```\n(.*?)\n```", RESULTS, re.DOTALL)
COMMANDS = sorted({command for command, _, _ in BLOCKS if command.startswith("analyze.py")})
REAL = "real/qwen2.5-coder-0.5b"
NUMBER = r"-?\d+\.\d+"


def alike(text, other):
    """Whether two texts differ at most in the last digit of some numbers, as processors round."""
    if re.sub(NUMBER, "#", text) != re.sub(NUMBER, "#", other):
        return False
    pairs = zip(re.findall(NUMBER, text), re.findall(NUMBER, other))
    return all(abs(float(a) - float(b)) < 1.5 * 10 ** -len(a.partition(".")[2]) for a, b in pairs)


def short(value, digits=2):
    """.78, as the pages write 0.78; the sign is a real minus."""
    return re.sub(r"^(−?)0\.", r"\1.", f"{value:.{digits}f}".replace("-", "−"))


@functools.cache
def record(name):
    """(what contribution.json holds, rows by layer, runs, estimates of C) of a recorded sweep."""
    found = json.loads((RECORDED / name / "contribution.json").read_text())
    rows, runs = {row["layer"]: row for row in found["rows"]}, found["runs"]
    return found, rows, runs, analyze.contributions(analyze.scores(runs))


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """A function: what a command of the page prints, and the folder it wrote to instead."""

    @functools.cache
    def run(command):
        program, *argv = shlex.split(command)
        folders = [str(ROOT / each) for each in argv if each.startswith("tests/recorded")]
        out, text = tmp_path_factory.mktemp("out"), io.StringIO()
        with contextlib.redirect_stdout(text):
            if program == "analyze.py":
                analyze.main([folders[0], "--out", str(out)])
            else:
                probe.main(folders)
        return text.getvalue().replace(f"{ROOT}/", ""), out

    return run


@pytest.mark.parametrize("command, title, block", BLOCKS, ids=[title for _, title, _ in BLOCKS])
def test_every_table_is_what_its_command_prints(printed, command, title, block):
    lines, height = printed(command)[0].splitlines(), len(block.splitlines())
    assert any(alike("\n".join(lines[i : i + height]), block) for i in range(len(lines)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_record_gives_the_files_that_lie_beside_it(printed, command):
    out, folder = printed(command)[1], ROOT / command.split()[1]
    files = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    assert len(files) >= 3
    for file in files:
        assert alike((out / file).read_text(), (folder / file).read_text()), file


def test_every_interval_in_the_prose(printed):
    """Each "x [low, high]" is printed in a table, a C(k), or one of these differences."""
    c, m, gigpo = record("code")[3], record("math")[3], []
    for name in ("household", "household-grpo"):
        gigpo.append(analyze.scores(record(name)[2])["full"])
    known = [c["boost-4,5,6"] - c["boost-0,1,3"], c["4,5,6"] - c["mid-3"], gigpo[0] - gigpo[1]]
    known += [each["mid-3"] - each["random-3"] for each in (c, m)]
    real = record("real/sum-4-100-steps")[3]
    known += [real["random-4"] - real["mid-4"]]
    known = [(each[0], *analyze.interval(each)) for each in known]
    for path in RECORDED.glob("**/contribution.json"):
        rows = json.loads(path.read_text())["rows"]
        known += [(r["contribution"], r["low"], r["high"]) for r in rows if r["low"] is not None]
    interval = r"(-?\d*\.\d+) \[(-?\d*\.\d+), (-?\d*\.\d+)\]"
    for command in COMMANDS:
        known += [[*map(float, found)] for found in re.findall(interval, printed(command)[0])]
    known = np.array(known)
    known = np.concatenate([known, -known[:, [0, 2, 1]]])  # "less by ..."
    prose = re.sub("```.*?```", "", README + RESULTS, flags=re.DOTALL).replace("−", "-")
    told = re.findall(interval, prose)
    assert len(told) > 40
    for found in told:
        assert (np.abs(known - [*map(float, found)]).max(1) < 0.0065).any(), found


def test_the_first_table_and_the_curves():
    rows, table = record("math")[1], re.findall(r"^\| (base|full|norm|layer \d)\b.*", README, re.M)
    assert table == ["base", "full", "norm", *(f"layer {k}" for k in range(8))]
    for name in table:
        row = rows[name.removeprefix("layer ")]
        cells = re.search(rf"^\| {name}.*? \| (.*) \|$", README, re.M)[1].split(" | ")
        told = [float(cell.split()[0]) for cell in cells]
        real = [row[key] for key in ("score", "contribution", "greedy", "length")]
        assert np.all(np.abs(np.subtract(told, real)) < [1e-3, 6.5e-3, 1e-3, 0.06]), name
    header, _, *lines = re.search(r"\n(\| layer \| code .*?)\n\n", RESULTS, re.DOTALL)[1].split(
        "\n"
    )
    for i, name in enumerate(header.strip("| ").split(" | ")[1:], 1):
        for k, line in enumerate(lines):
            told = line.strip("| ").split(" | ")[i]
            assert told == short(record(name)[1][str(k)]["contribution"])


def sentences():
    """What the pages say, with figures computed from the records."""
    for pair in json.loads((RECORDED / "curves.json").read_text()):
        others = ["math-short", "math-dr-grpo", "math-base-1", "math-rate-1e-3", "math-400-steps"]
        if (
            pair["b"] in others
            and pair["a"] == "math"
            or pair["a"] == "code"
            and pair["b"] in ("math", "code-grpo")
        ):
            p = short(pair["p"], 3 if pair["p"] < 0.002 else 2)
            yield f"{short(pair['spearman'])}, p = {p}"
    sd = []
    for name in ("math", "code", "household"):
        _, _, runs, _ = record(name)
        S = {(r["layer"], r["seed"]): sum(map(int, r["right"])) for r in runs}  # of equal panels
        seeds = {seed for layer, seed in S if layer == "0"}
        gain = np.mean([S["full", seed] for seed in seeds]) - S["base", 0]
        sd.append(
            np.std([[S[str(k), s] for s in seeds] for k in range(8)], 1, ddof=1).mean() / gain
        )
    yield f"{short(sd[0], 3)} in math, {short(sd[1], 3)} in code and {short(sd[2])} in the"
    hundred, smol = "real/sum-4-100-steps", "real/smollm2-135m"
    for name in ("math", "household", "code-grpo", REAL, hundred, smol):
        moved = [run["change"] for run in record(name)[2] if run["layer"] == "full"]
        c = analyze.curve(analyze.scores(record(name)[2]))
        moved = [np.mean([change[k] for change in moved]) for k in c]
        rho, p = analyze.correlate(c.values(), moved, analyze.ranks)
        yield f"{short(rho)}, p = {short(p, 3 if p < 0.002 else 2)}"
        yield f"{max(moved) / min(moved):.1f} times"
    rows = record("household")[1]
    cut = [round(100 * rows[layer]["truncated"]) for layer in ("full", "base")]
    yield f"{cut[0]} % of full training's episodes run out of steps instead of {cut[1]} %"
    rows = record(REAL)[1]
    c = [rows[str(k)]["contribution"] for k in range(24)]
    yield "C averages {}, {} and {}".format(*(short(np.mean(c[i : i + 8])) for i in (0, 8, 16)))
    along = [short(rows["11"][key]) for key in ("c_step_10", "c_step_20", "contribution")]
    yield f"(layer 11: {', '.join(along)})"
    for name in ("math", "math-short", REAL, hundred):
        found, _, runs, _ = record(name)
        text = analyze.voting(runs, analyze.scores(runs))
        yield "{}, by chance {}".format(*re.search(r"0(\.\d+); by chance 0(\.\d+)", text).groups())
    yield from of_pairs()


def of_pairs():
    runs = record("math")[2]
    pairs = analyze.pairs_in(record("math")[3])
    runs = analyze.common(runs, {"full", *pairs, *map(str, range(8))})
    score = analyze.scores(runs)
    c = {name: each[0] for name, each in analyze.contributions(score).items()}
    gap = [c[p] - 1 + np.prod([1 - c[k] for k in p.split(",")]) for p in pairs]
    apart = np.array([int(p[2]) - int(p[0]) for p in pairs])
    near, four, ends = (np.mean(np.array(gap)[apart == d]) for d in (1, 4, 7))
    yield f"neighbours stay {short(-near)} below that, layers four apart meet it"
    yield f"exceed it by {short(ends)}"
    then = analyze.scores([{**run, **run["before"].get("40", {})} for run in runs])
    early = {k: (s - score["base"]) / (score["full"] - score["base"]) for k, s in then.items()}
    sums = [sum(early[k] for k in p.split(",")) for p in pairs]
    assert abs(four) < 0.005 and len(pairs) == 28
    assert all(analyze.interval(early[p] - s)[1] < 0 for p, s in zip(pairs, sums))
    yield f"the sums are {short(min(s[0] for s in sums))} to {short(max(s[0] for s in sums))} of"


def test_figures_in_sentences():
    text = " ".join(RESULTS.split())
    for sentence in sentences():
        assert sentence in text, sentence
    for told in ("Spearman −.18, p = .77", "Spearman −.40, p = .50", ".46, p = .37"):
        assert told in text.replace("of C and distance ", "") and told in README
    for name, below in (("math", [0, 1, 4, 5, 6, 7]), ("code", [0, 1]), ("household", []),
                        (REAL, [0, 1, 2, 4, 6, 8, *range(16, 24)])):  # fmt: skip
        assert record(name)[0]["findings"]["below_peak"] == below
    for path in RECORDED.glob("**/contribution.json"):  # "none is above it"
        assert not json.loads(path.read_text())["findings"]["above_full"]


def test_rates_and_pass_rates():
    for grid in json.loads((RECORDED / "rates.json").read_text()).values():
        means = [np.mean(scores) for scores in grid["scores by rate, a seed each"].values()]
        line = next(line for line in RESULTS.splitlines() if f"`{grid['command']}`" in line)
        told = [float(digits) for digits in re.findall(r": (1?\.\d{3})", line)]
        assert len(told) == len(means) and np.abs(np.array(told) - means).max() < 6e-4
    rates = json.loads((RECORDED / "real/pass-rates.json").read_text())
    table = re.search(r"\n\| asked \|.*?\n\n", RESULTS, re.DOTALL)[0]
    for figures in (found for model in rates.values() for found in model.values()):
        assert f"{figures['sampled']:.3f} / {figures['greedy']:.3f}" in table


def commands(page):
    """Every train.py command in a page's indented lines, shell functions and loops written out."""
    text, functions = re.sub(r" *\\\n +", " ", page), {}
    for line in re.findall(r"^    (\S.*?)(?:\s+#.*)?$", text, re.MULTILINE):
        if define := re.match(r'(\w+)\(\) \{ (.*) "\$@"; \}$', line):
            functions[define[1]] = define[2]
        while loop := re.search(r"for (\w) in (.*?); do (.*?); done", line):
            turns = [loop[3].replace(f"${loop[1]}", value) for value in loop[2].split()]
            line = line.replace(loop[0], "; ".join(turns))
        for part in re.split("&&|;", "" if define else line):
            name, _, rest = part.strip().partition(" ")
            if (command := f"{functions.get(name, name)} {rest}").startswith("python train.py "):
                yield command


@pytest.mark.parametrize("command", [*commands(README), *commands(RESULTS)])
def test_commands_parse(command):
    config = str(ROOT / "tests/configs/Qwen3-1.7B-Base")
    args = train.parse(shlex.split(re.sub(r"--model \S+", f"--model '{config}'", command))[2:])
    if "top-" not in args.layer:
        assert train.specs_of(args, 24 if args.model else 8)


def peak(name, spec, *options, memory=None):
    """GiB that --plan expects; spec None: of the middle layer."""
    argv = ["--model", str(ROOT / "tests/configs" / name), "--task", "x.jsonl", "--plan"]
    args = train.parse([*argv, "--device", "cuda", "--recompute", *options])
    config = train.Config.from_hf(train.read_json(args.model / "config.json"))
    args.layer = spec or str(config.num_hidden_layers // 2)
    (settings,) = train.runs_of(args, config, {}).values()
    return train.account(config, settings, 512, memory and memory * 2**30)[1]["expected peak, GiB"]


def test_what_fits():
    table = re.findall(r"^\| (\S+) \| [\d,]+ M of .* M \| ([\d.]+) \| ([\d.]+) \|$", RESULTS, re.M)
    assert len(table) == 6
    for name, one, full in table:
        assert abs(peak(name, None) - float(one)) < 0.06
        assert abs(peak(name, "full") - float(full)) < 0.06
    assert f"to {peak('Qwen3-8B-Base', None, '--prompts', '16', memory=24):.1f} GiB" in README
    assert f"{peak('Qwen2.5-1.5B-Instruct', 'full'):.0f} GiB for a 1.5B model" in README


def test_the_functions_named_and_the_reading_path():
    modules = {path.stem: ast.parse(path.read_text()) for path in ROOT.glob("*.py")}
    for module, name in re.findall(
        r"`(tasks|model|rl|train|analyze)\.(?!py)(\w+)`", README + RESULTS
    ):
        assert re.search(rf"^(def |class |){name}\b", (ROOT / f"{module}.py").read_text(), re.M), (
            name
        )
    total = 0
    for file, read, lines in re.findall(r"^\| `(\w+)\.py` \| (.*?) \| (\d+) \|", README, re.M):
        size = 0
        for path in re.findall(r"`([\w.]+)`", read):
            node = modules[file]
            for part in path.split("."):
                node = next(each for each in node.body if getattr(each, "name", None) == part)
            size += node.end_lineno - min(n.lineno for n in (node, *node.decorator_list)) + 1
        assert abs(size - int(lines)) <= max(5, 0.1 * size), f"{file}: {size} lines"
        total += size
    assert 450 < total < 650


def test_links_lead_somewhere():
    for page, text in ((ROOT / "README.md", README), (RECORDED / "README.md", RESULTS)):
        for link in re.findall(r"\]\(([^)]+)\)", text):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            target = target / "README.md" if target.is_dir() else target
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if anchor else []
            anchors = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}
            assert not anchor or anchor in anchors, link


def test_the_quick_start_and_the_size():
    assert len(README) <= 15_000 and len(README.splitlines()) <= 220
    for file, command in (("requirements", "python train.py --layer each && python analyze.py"),
                          ("tests/requirements", "python -m pytest -q tests")):  # fmt: skip
        assert f"\n    pip install -r {file}.txt && {command}\n" in README


@pytest.mark.parametrize("task", ["math", "code", "household"])
def test_the_records_are_of_the_default_settings(task):
    settings = record(task)[0]["settings"]
    assert settings["task"] == task
    for name in ("steps", "lr", "prompts", "group", "max_tokens", "eval_problems"):
        assert settings[name] == train.PRESETS[task][name]


def test_more_steps_of_math():
    for steps in ("100", "200", "400", "800"):
        _, rows, *_ = record(f"steps/{steps}")
        full, layer = rows["full"], rows["2"]
        told = [full["score"], layer["score"], full["greedy"], layer["greedy"]]
        told = re.escape("{} | {} | # | {}, {}".format(*(short(x, 3) for x in told)))
        told = told.replace("\\#", r"\S+ \[\S+ \S+\]")
        assert re.search(rf"^\| {steps} \| {told} \|$", RESULTS, re.M), told


def test_the_runs_of_100_steps():
    found, rows, runs, _ = record("real/sum-4-100-steps")
    before = record(REAL)[1]
    for layer in ("11", "15", "0", "18", "23"):
        both = [short(each[layer]["contribution"]) for each in (before, rows)]
        assert "layer {} from {} to {}".format(layer, *both) in RESULTS
    greedy = [short(rows[name]["greedy"], 3) for name in ("mid-4", "full")]
    assert "({} and {} right)".format(*greedy) in RESULTS
    assert f"greedily {short(rows['random-4']['greedy'], 3)}" in RESULTS
    assert train.layers_of("random-4", 24) == [2, 6, 15, 17] and "2, 6, 15 and 17" in RESULTS
    assert found["findings"]["below_peak"] == [0, 1, 2, 3, 4, 17, 18, 20, 21, 23]
    late = [short(rows[layer]["contribution"]) for layer in ("15", "16", "17")]
    assert "{}, {}, {} in layers 15, 16 and 17".format(*late) in RESULTS
    assert not found["findings"]["above_full"]
    assert f"from {short(before['full']['score'], 3)} to {short(rows['full']['score'], 3)}" in RESULTS
    for layer in ("11", "full"):  # the means of two seeds
        score, early = rows[layer]["score"], []
        for run in runs:
            if run["layer"] == layer:
                early.append(sum(map(int, run["before"]["67"]["right"])) / 800)
        assert f"from {short(np.mean(early), 3)} to {short(score, 3)}" in RESULTS
    layers = [layer for layer in rows if layer.isdecimal()]
    curves = ([each[layer]["contribution"] for layer in layers] for each in (before, rows))
    rho, p = analyze.correlate(*curves, analyze.ranks)
    assert f"Spearman {short(rho)}, p < .001" in RESULTS and p < 0.001
    assert f"{len(layers)} of the 24 layers" in RESULTS
    steps = [short(rows["11"][name]) for name in ("c_step_33", "c_step_67", "contribution")]
    assert "{}, {}, {} after 33, 67 and 100 steps".format(*steps) in RESULTS
    changes = [run["change"] for run in runs if run["layer"] == "full"]
    moved = [np.mean([each[layer] for each in changes]) for layer in rows if layer.isdecimal()]
    assert f"by {short(min(moved), 3)} to {short(max(moved), 3)}" in RESULTS
    alone = {run["layer"]: run["change"] for run in runs if run["seed"] == 0}
    alone = [short(alone[layer][layer]) for layer in ("11", "23")]
    assert "layer 11 moved {} and layer 23 {}".format(*alone) in RESULTS


def test_the_runs_on_code():
    found, rows, _, _ = record("real/program")
    layers, before = [layer for layer in rows if layer.isdecimal()], record(REAL)[1]
    assert found["findings"]["peak"] == 12 and found["findings"]["below_peak"] == [20, 22]
    assert f"for s in base full {' '.join(layers)}; do program" in RESULTS and len(layers) == 8
    later = record("real/sum-4-100-steps")[1]
    first = {layer: before[layer] for layer in ("0", "4", "12", "16", "20")}
    for other, pages in ((before, (README, RESULTS)), (later, (RESULTS,)), (first, (RESULTS,))):
        both = [layer for layer in layers if layer in other]
        curves = ([each[layer]["contribution"] for layer in both] for each in (rows, other))
        rho, p = analyze.correlate(*curves, analyze.ranks)
        assert all(f"{short(rho)}, p = {short(p)}" in page for page in pages)
    *some, last = (short(before[layer]["contribution"]) for layer in layers)
    assert f"{', '.join(some)} and {last}" in RESULTS
    base = rows["base"]
    told = f"right in {short(base['score'])} of its samples, greedily in {short(base['greedy'])}"
    assert told in RESULTS.replace("\n", " ")


def test_the_runs_of_smollm2():
    found, rows, runs, _ = record("real/smollm2-135m")
    findings, layers = found["findings"], {int(k): v for k, v in rows.items() if k.isdecimal()}
    assert findings["level_with_full"] == [*range(11, 20)] and "layers 11 to 19" in RESULTS
    assert [k for k in findings["below_peak"] if k < 11] == [1, *range(3, 8)]
    assert {*range(21, 30)} < {*findings["below_peak"]}

    def told(name, which, digits=2):
        values = [layers[k][name] for k in which]
        return f"{short(min(values), digits)} to {short(max(values), digits)}"

    assert f"little, {told('contribution', range(24, 29))} from layer 24 to layer 28" in RESULTS
    assert f"the last {short(layers[29]['contribution'])}" in RESULTS
    assert f"eight give {told('contribution', range(8))}" in RESULTS
    assert f"talking: {told('truncated', range(24, 29))} of their samples" in RESULTS
    assert f"of layer 13's {short(layers[13]['truncated'])}" in RESULTS
    early = [short(layers[k]["c_step_13"]) for k in (14, 0, 5)]
    assert "layer 14 {}, layer 0 {}, layer 5 {}".format(*early) in RESULTS
    base, full = rows["base"], next(run for run in runs if run["layer"] == "full")
    for said in (base["greedy"], base["truncated"], base["score"]):
        assert short(said) in RESULTS.split("### Another family")[1][:700]
    told = json.loads((RECORDED / "real/smollm2-135m/base-seed-0/eval.json").read_text())
    answers = [answer for each in told["answers"] for answer in each]
    none, right = answers.count(None) / len(answers), told["score"]
    assert f"{short(1 - none - right)} of the samples end on another" in RESULTS.replace("\n", " ")
    assert f"and {short(none)} hold none" in RESULTS
    assert {*full["right"]} == {*full["before"]["13"]["right"]} == {"4"}
    assert f"({full['length']:.1f} tokens)" in RESULTS
    moved = [full["change"][str(k)] for k in layers]
    assert f"{max(moved) / min(moved):.1f}" == "1.2"

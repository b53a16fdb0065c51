"""ALFWorld's games: a kitchen made here, played by the package's own engine. Without the package, only the refusals are tested."""

import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import alfworld_task
import pytest
from alfworld_task import AlfworldGame

import tasks

# An agent and an apple; furniture, each piece at a place of its own, is filled in.
KITCHEN = """
(define (problem kitchen) (:domain alfred)
  (:objects agent1 - agent Apple_bar_1 - object AppleType - otype middle - location {objects})
  (:init (= (total-cost) 0) (atLocation agent1 middle) (objectType Apple_bar_1 AppleType) (pickupable Apple_bar_1)
         (inReceptacle Apple_bar_1 {at}_bar_1) (objectAtLocation Apple_bar_1 at_{at}_1) {facts})
  (:goal (exists (?o - object ?r - receptacle)
    (and (objectType ?o AppleType) (receptacleType ?r CounterTopType) (inReceptacle ?o ?r)))))
"""
PLAN = "go to fridge 1", "open fridge 1", "take apple 1 from fridge 1", "go to countertop 1", "move apple 1 to countertop 1"
FIRST = """Your task: put some apple on countertop.
You see: You are in the middle of a room. Looking quickly around you, you see a countertop 1, and a fridge 1.
You can now:
go to countertop 1
go to fridge 1
help
inventory
look
Answer with one of these actions, in the same words, and with nothing else."""


def write_game(path, cabinets=0, at="Fridge", **changes):
    """A game file as `alfworld-generate` writes them: the package's domain and grammar, and a problem of one's own."""
    info = pytest.importorskip("alfworld.info", reason="needs the package alfworld: pip install alfworld")
    furniture = ["Fridge_bar_1", "CounterTop_bar_1", *(f"Cabinet_bar_{i + 1}" for i in range(cabinets))]
    objects, facts = ["FridgeType CounterTopType CabinetType - rtype"], ["(openable Fridge_bar_1)"]
    for name in furniture:
        kind, place = name.split("_bar_")[0], "at_" + name.replace("_bar", "")
        objects.append(f"{name} - receptacle {place} - location")
        facts.append(
            f"(receptacleType {name} {kind}Type) (receptacleAtLocation {name} {place}) (canContain {kind}Type AppleType)"
        )
    game = {
        "pddl_domain": Path(info.ALFRED_PDDL_PATH).read_text(),
        "grammar": Path(info.ALFRED_TWL2_PATH).read_text().replace("UNKNOWN GOAL", "put some apple on countertop"),
        "pddl_problem": KITCHEN.format(objects=" ".join(objects), facts=" ".join(facts), at=at),
        "solvable": True,
        "walkthrough": PLAN,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**game, **changes}))
    return str(path)


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    return write_game(tmp_path_factory.mktemp("kitchen") / "game.tw-pddl")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return write_game(tmp_path_factory.mktemp("large") / "game.tw-pddl", cabinets=5, at="Cabinet")


def test_the_walkthrough_solves_the_game(kitchen):
    game = AlfworldGame(kitchen)
    assert game.prompt == FIRST and game.anchor == game.observation and not game.done and game.answer is None
    assert [game.step(action) for action in PLAN[:4]] == [0.0] * 4 and not game.done
    assert game.anchor == game.observation == "You arrive at countertop 1. On the countertop 1, you see nothing."
    assert game.prompt.split("\n")[1:4] == [f"You did: {PLAN[2]}", f"You did: {PLAN[3]}", f"You see: {game.observation}"]
    assert set(game.admissible) < set(game.prompt.split("\n")) and PLAN[4] in game.admissible
    assert game.step(f" '{PLAN[4]}'.") == 10.0 and game.done and game.solved and not game.out_of_steps
    assert game.step("look") == 0.0 and len(game.history) == 5


def test_an_action_that_is_not_admissible_takes_a_step_and_changes_nothing(kitchen):
    game = AlfworldGame(kitchen)
    game.step("go to fridge 1")
    before = game.observation, game.admissible
    assert [game.step(action) for action in ("take apple 1 from fridge 1", "fly", "", "go to fridge 2")] == [-0.1] * 4
    assert (game.observation, game.admissible) == before and game.history == ["go to fridge 1", *["nothing"] * 4]
    assert game.step("open fridge 1") == 0.0
    assert game.observation == "You open the fridge 1. The fridge 1 is open. In it, you see a apple 1."
    assert [game.step("fly") for _ in range(45)] == [-0.1] * 44 + [0.0] and game.out_of_steps and game.done and not game.solved


def played(path, seed, steps=30):
    """What random play sees, first to last."""
    game, rng = AlfworldGame(path), random.Random(seed)
    seen = [game.prompt]
    for _ in range(steps):
        game.step(rng.choice(game.admissible))
        seen.append(game.prompt)
    while not game.done:  # so that its engine is free again
        game.step("")
    return seen


def test_episodes_in_threads_do_not_disturb_each_other(kitchen, large):
    jobs = [(path, seed) for seed in range(4) for path in (kitchen, large)]
    alone = [played(*job) for job in jobs]
    sys.modules["tatsu.contexts"].ParseContext.parse.cache_clear()  # so that threads meet in the parser
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        games = [AlfworldGame(path) for path, _ in jobs]
        rngs, seen = [random.Random(seed) for _, seed in jobs], [[game.prompt] for game in games]
        with ThreadPoolExecutor(8) as pool:  # as in `Run.collect`
            for _ in range(30):
                list(pool.map(lambda game, rng: game.step(rng.choice(game.admissible)), games, rngs))
                for game, prompts in zip(games, seen):
                    prompts.append(game.prompt)
    finally:
        sys.setswitchinterval(interval)
    assert seen == alone


def test_engines_are_used_again(kitchen, large, monkeypatch):
    monkeypatch.setattr(AlfworldGame, "idle", [])
    for path in (kitchen, large, kitchen):
        first = played(path, 0)
        assert played(path, 0) == first and len(AlfworldGame.idle) == 1


PLAIN = """
import random, sys, textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
infos = textworld.EnvInfos(won=True, admissible_commands=True, extras=["gamefile"])
game = textworld.start(sys.argv[1], request_infos=infos, wrappers=[AlfredDemangler, AlfredInfos])
state, rng = game.reset(), random.Random(0)
for _ in range(30):
    print(state["admissible_commands"], state["feedback"].strip())
    state, _, _ = game.step(rng.choice(state["admissible_commands"]))
"""


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_all_is_as_the_package_alone_has_it(large, hash_seed):
    """Nothing here has changed its words, and they are the same in every process."""
    game, rng, seen = AlfworldGame(large), random.Random(0), ""
    for i in range(30):
        observation = f"-= Welcome to TextWorld, ALFRED! =-\n\n{game.observation}\n\nYour task is to: {game.task}."
        seen += f"{game.admissible} {game.observation if i else observation}\n"
        game.step(rng.choice(game.admissible))
    plain = [sys.executable, "-c", PLAIN, large]
    found = subprocess.run(plain, env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True)
    assert found.stdout == seen


def names(problems):
    return [problem.prompt for problem in problems]


def test_train_valid_seen_and_valid_unseen_are_what_they_are_called(tmp_path):
    for part, n in (("train", 5), ("valid_seen", 3), ("valid_unseen", 2), ("valid_train", 1)):
        for i in range(n):
            write_game(tmp_path / "json_2.1.1" / part / f"put-{i}" / "trial" / "game.tw-pddl")
    write_game(tmp_path / "json_2.1.1/train/put-5/trial/game.tw-pddl", solvable=False)
    write_game(tmp_path / "json_2.1.1/train/put-AppleSliced/trial/game.tw-pddl")
    write_game(tmp_path / "json_2.1.1/train/pick_and_place_with_movable_recep/trial/game.tw-pddl")
    task = tasks.load_task(f"{alfworld_task.__file__}:{tmp_path}", embedded=False)
    for panel, part, n in ((task.train, "train", 5), (task.validation, "valid_seen", 3), (task.test, "valid_unseen", 2)):
        assert sorted(names(panel)) == [f"json_2.1.1/{part}/put-{i}/trial/game.tw-pddl" for i in range(n)]
    assert set(task.draw(0, 0, 5)) == set(task.train) and task.max_turns == 50 and task.begin(task.test[0]).prompt == FIRST


def test_other_folders_are_split_by_a_hash_of_the_names(tmp_path):
    for folder in ("a", "b"):
        for i in random.sample(range(20), 20):
            write_game(tmp_path / folder / str(i) / "game.tw-pddl")
    a, b = (alfworld_task.load(tmp_path / folder) for folder in ("a", "b"))
    assert names(a.test) == names(b.test) and names(a.validation) == names(b.validation) and names(a.train) == names(b.train)
    assert [len(panel) for panel in (a.test, a.validation, a.train)] == [2, 2, 16]
    assert len({*names(a.test), *names(a.validation), *names(a.train)}) == 20


class Engine:
    """What the adapter needs of ALFWorld's engine: a room with a lamp, which is to be switched on."""

    def load(self, path):
        self.path = path

    def reset(self):
        return self.state("Welcome!\n\nYou are in a room.\n\nYour task is to: light the lamp.")

    def state(self, feedback, won=False):
        return {"feedback": feedback, "admissible_commands": ["look", "use lamp"], "won": won}

    def step(self, action):
        return self.state(f" You {action}. ", action == "use lamp"), 0, False


def test_the_adapter_without_the_package(monkeypatch):
    monkeypatch.setattr(alfworld_task, "new_engine", Engine)
    monkeypatch.setattr(AlfworldGame, "idle", [])
    game, other = AlfworldGame("a"), AlfworldGame("b")
    assert game.prompt.split("\n")[:2] == ["Your task: light the lamp.", "You see: You are in a room."]
    assert (game.step("look"), game.step("fly"), game.anchor) == (0.0, -0.1, "You look.") and game.history == ["look", "nothing"]
    assert game.prompt.split("\n")[1:] == [
        "You did: look", "You did: nothing", "You see: You look.", "You can now:", "look", "use lamp", FIRST.split("\n")[-1]
    ]  # fmt: skip
    assert game.step("I will.\n'use lamp'") == 10.0 and game.done and game.solved and game.answer is None
    assert [other.step("look") for _ in range(50)] == [0.0] * 50 and other.out_of_steps and not other.solved
    assert len(AlfworldGame.idle) == 2 and AlfworldGame("c").engine is other.engine  # used again


def refusal(call, *args):
    with pytest.raises(ValueError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_missing_is_said_in_a_line(tmp_path, monkeypatch):
    assert f"{tmp_path}/no: no solvable game" in refusal(tasks.load_task, f"{alfworld_task.__file__}:{tmp_path}/no")
    game = tmp_path / "a" / "game.tw-pddl"
    game.parent.mkdir()
    for bad in ("{", "[]", "{}"):
        game.write_text(bad)
        assert str(game) in refusal(alfworld_task.load, tmp_path)
    game.write_text('{"solvable": true}')
    monkeypatch.setitem(sys.modules, "textworld", None)  # as if it were not installed
    assert "pip install alfworld" in refusal(alfworld_task.load, tmp_path)


def test_the_package_is_not_imported_for_other_tasks():
    program = "import sys, tasks; tasks.load_task('household'); print({'alfworld', 'textworld'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], cwd=Path(tasks.__file__).parent, capture_output=True, text=True)
    assert found.stdout == "set()\n"

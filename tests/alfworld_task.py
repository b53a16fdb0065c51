"""ALFWorld's games as a task, and an example of a task in a file of one's own:

    pip install alfworld && alfworld-download
    python train.py --model DIR --task tests/alfworld_task.py:FOLDER --algo gigpo --lr 1e-6 --kl 0.01

FOLDER holds game.tw-pddl files, such as those below ~/.cache/alfworld/json_2.1.1. The folder and
what plays the games are the package's; what the model sees and earns is as in `tasks.World`.
"""

import functools
import json
import threading
from pathlib import Path

from tasks import Problem, Task, World, by_hash, in_epochs, split


@functools.cache
def hasten_textworld():
    """Keep what ALFWorld's engine would compute again and again: the translation of a game, also
    without a planner, and how its grammar's few rules are parsed.
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


class AlfworldGame(World):
    """A game file as a World in which ALFWorld says what is seen and can be done."""

    observation = admissible = solved = None  # as the last step left them
    idle = []  # engines between two games: each has loaded a library that cannot be unloaded
    lock = threading.Lock()  # all engines share one parser, which two threads would confuse

    def __init__(self, path, max_steps=50):
        super().__init__(max_steps)
        self.engine = self.idle.pop() if self.idle else new_engine()
        self.engine.load(path)
        state = self.engine.reset()
        _, self.observation, task = state["feedback"].split("\n\n")  # the first part is a welcome
        self.task = task.removeprefix("Your task is to: ").rstrip(".")
        self.admissible, self.solved = state["admissible_commands"], state["won"]

    def act(self, action):
        with self.lock:
            state, _, _ = self.engine.step(action)
        self.observation = state["feedback"].strip()
        self.admissible, self.solved = state["admissible_commands"], state["won"]

    def close(self):
        self.idle.append(self.engine)


def load(folder):
    """ALFWorld's games in or below `folder`: those in its train, valid_seen and valid_unseen train,
    validate and test; where one of these has none, all are split as problems from a file are.
    A Problem's `prompt` is here only the game's name.
    """
    games = []
    for path in Path(folder).rglob("game.tw-pddl"):
        name = path.relative_to(folder).as_posix()
        try:
            solvable = json.loads(path.read_text(encoding="utf-8"))["solvable"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: not a game of ALFWorld's") from None
        if solvable and "movable" not in name and "Sliced" not in name:  # as the package chooses
            games.append(Problem(name, str(path)))
    if not games:
        raise ValueError(f"--task alfworld_task.py:{folder}: no solvable game.tw-pddl in or below it")
    try:
        AlfworldGame.idle.append(new_engine())
    except ImportError:
        raise ValueError("alfworld_task.py needs a package: pip install alfworld") from None
    names = "valid_unseen", "valid_seen", "train"
    parts = [[g for g in games if name in Path(g.prompt).parts] for name in names]
    test, validation, train = map(by_hash, parts) if all(parts) else split(games, folder)
    return Task(
        validation, test, in_epochs(train), lambda game: AlfworldGame(game.answer), tuple(train),
        max_turns=50,
    )  # fmt: skip

"""The household: the world keeps its rules, rewards only true success, and its oracle is near the shortest plan."""

import collections
import copy
import os
import random
import subprocess
import sys

import household_task
import pytest
from household_task import GOALS, PLAYERS, WORDS, Household, demonstrate_episode
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks
from tasks import read_action


def state(env):
    """All of the world that actions can change."""
    return env.here, env.hand, env.lamp, tuple(sorted(env.open)), tuple((p, *sorted(env.inside[p])) for p in env.inside)


def goal_holds(env):
    """The goal, read anew from the words of the task and checked against the raw state."""
    words = env.task.split()
    if words[0] == "look":
        return env.here == "desk" and env.lamp and env.hand.split()[-1:] == [words[2]]
    kind, place, wanted = words[-3], words[-1], set(words[1:-2]) - {"a", "two"}
    return sum(wanted <= set(x.split()) and x.split()[-1] == kind for x in env.inside[place]) >= 1 + (words[1] == "two")


def wander(env, rng, steps):
    for _ in range(steps):
        env.step(rng.choice(env.admissible))


def finish(env):
    """The oracle's number of steps from here, each of them admissible; the last one, and no other, is rewarded."""
    n = 0
    while not env.done:
        action = env.oracle()
        assert action in env.admissible
        assert env.step(action) == 10.0 * env.done
        n += 1
    assert env.solved and goal_holds(env)
    return n


def test_the_oracle_solves_all_tasks_in_few_steps():
    envs = [Household(i) for i in range(1000)]
    steps = collections.Counter(map(finish, envs))
    assert min(steps) == 3 and max(steps) <= 12 and 6.0 < sum(n * m for n, m in steps.items()) / 1000 < 6.5
    types = collections.Counter(env.type for env in envs)
    assert set(types) == set(GOALS) and min(types.values()) > 120
    assert all(4 <= len(env.inside) <= 6 for env in envs)


def test_the_oracle_recovers_from_random_wandering():
    rng, within = random.Random(0), 0
    for i in range(1000):
        env = Household(i)
        wander(env, rng, 15)
        started, env.max_steps = env.done, 100
        n = finish(env)
        assert n <= 15
        within += not started
    assert within > 700  # else random play would have solved most of them


def copied(env):
    new = copy.copy(env)
    new.history = list(env.history)
    new.inside, new.open = {place: list(things) for place, things in env.inside.items()}, set(env.open)
    return new


def shortest(env):
    """Breadth-first search. Things that the task does not name and one does not carry are left out: to move them never helps."""
    root = copied(env)
    root.max_steps = 10**6
    root.inside = {place: [x for x in things if x.split()[-1] == env.kind] for place, things in env.inside.items()}
    level, seen, n = [root], {state(root)}, 0
    while not any(map(goal_holds, level)):
        following = []
        for node in level:
            for action in node.admissible:
                new = copied(node)
                new.step(action)
                if state(new) not in seen:
                    seen.add(state(new))
                    following.append(new)
        level, n = following, n + 1
    return n


@pytest.mark.parametrize("wandering", [0, 12])
def test_the_oracle_is_near_the_shortest_plan(wandering):
    rng, tested = random.Random(1), collections.Counter()
    for i in range(40):
        env = Household(f"bfs {i}", max_steps=100)
        wander(env, rng, wandering)
        best, n = shortest(env), finish(env)
        assert best <= n <= best + (2 if wandering else 0)
        tested[env.type] += 1
    assert set(tested) == set(GOALS)


ROLLOUT = """
import hashlib, random, sys
sys.path.append("tests")
from household_task import WORDS, Household, demonstrate_episode
text, rng = str(WORDS), random.Random("rollout")
for i in range(50):
    env = Household(i)
    while not env.done:
        text += env.prompt
        text += str(env.step(rng.choice(env.admissible + [env.oracle(), "fly"])))
    text += str(demonstrate_episode(rng))
print(hashlib.sha256(text.encode()).hexdigest()[:16])
"""


@pytest.mark.parametrize("hash_seed", ["1", "2"])  # the world uses sets: their order must not show
def test_the_same_seed_is_the_same_house(hash_seed):
    found = subprocess.run(
        [sys.executable, "-c", ROLLOUT],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=os.path.dirname(tasks.__file__),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == PINNED
    assert len({(h.task, h.observation, state(h)) for h in map(Household, range(300))}) == 300


PINNED = "a2815fdfaf679db2"  # as this file was written; a change would make old scores incomparable


def test_random_play_keeps_the_rules():
    """Admissible actions change the state, others do not; nothing is lost; only what is open is seen; texts are short."""
    rng, sizes, solved = random.Random(2), collections.defaultdict(list), 0
    for i in range(300):
        env = Household(i)
        things = sorted(x for xs in env.inside.values() for x in xs)
        assert not env.solved and not goal_holds(env) and not env.inside[env.target]
        while not env.done:
            actions, before, text = env.admissible, state(env), env.prompt
            assert len(set(actions)) == len(actions) and all(1 <= len(a.split()) <= 3 for a in actions)
            assert set(text.split()) <= set(WORDS) and text == " ".join(text.split())
            assert text.endswith(" >") and env.observation in text and text.startswith(env.task)
            seen = env.observation.split(" carry ")[0].split(" see ")[1:]
            assert seen == [" ".join(sorted(env.inside[env.here])) or "nothing"] * (env.here in env.open)
            sizes["prompt"].append(len(text.split()))
            sizes["observation"].append(len(env.observation.split()))
            sizes["admissible"].append(len(actions))

            wrong = rng.choice([f"go {env.here}", "take lamp", "", actions[0] + " now", rng.choice(WORDS)])
            twin = copied(env)
            assert twin.step(wrong) == -0.1 and state(twin) == before and twin.observation == env.observation
            assert twin.history[-1] == "nothing" and twin.done == (len(twin.history) == 20)

            action = rng.choice(actions)
            reward = env.step(action)
            assert state(env) != before and env.history[-1] == action
            assert (reward == 10.0) == goal_holds(env) and reward in (0.0, 10.0)
            assert env.done == (reward == 10.0 or len(env.history) == 20) and env.out_of_steps == (env.done and reward != 10.0)
            carried = [env.hand] if env.hand else []
            assert sorted(x.split()[-1] for x in sum(env.inside.values(), carried)) == things
        solved += reward == 10.0
        end = state(env)
        assert env.step("go table") == 0.0 and env.done and state(env) == end
    assert 5 <= solved < 60  # rarely by luck, yet the check of rewards above saw it
    assert max(sizes["prompt"]) <= 70 and max(sizes["observation"]) <= 20 and max(sizes["admissible"]) <= 14
    assert sum(sizes["admissible"]) / len(sizes["admissible"]) <= 9


def test_no_text_is_larger_than_it_may_be():
    """The worst cases, by putting everything where one stands."""
    longest, most = 0, 0
    for i in range(300):
        env = Household(i)
        things = [f"clean {x}" for xs in env.inside.values() for x in xs]
        for place in env.inside:
            env.inside = {p: things * (p == place) for p in env.inside}
            env.here, env.open = place, set(env.inside)
            longest, most = max(longest, len(env.observation.split())), max(most, len(env.admissible))
    assert longest <= 20 and most <= 14


def test_the_vocabulary_is_small_and_has_single_words():
    assert len(set(WORDS)) == len(WORDS) <= 60 and all(word.split() == [word] for word in WORDS)
    assert all(word.isalpha() or word in "|,>" for word in WORDS)


@settings(deadline=None)
@given(st.integers(0, 50), st.lists(st.text() | st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)))
def test_any_text_as_action_is_survived(seed, actions):
    env = Household(seed)
    for n, action in enumerate(actions[:20], 1):
        before, legal = state(env), read_action(action) in env.admissible
        reward = env.step(action)
        assert legal or (reward == -0.1 and state(env) == before)
        assert env.done == (goal_holds(env) or n == 20)
        if env.done:
            break


def test_a_short_step_limit_ends_the_episode():
    env = Household(0, max_steps=2)
    assert [(env.step("fly"), env.done) for _ in range(3)] == [(-0.1, False), (-0.1, True), (0.0, True)]


class Recorded(Household):
    made = []

    def __init__(self, seed):
        super().__init__(seed)
        self.actions = []
        self.made.append(self)

    def step(self, action):
        self.actions.append(action)
        return super().step(action)


RATES = {"right": (1.0, 1.0), "wanders": (0.65, 0.9), "forgets the middle": (0.12, 0.22), "wrong thing": (0.0, 0.0)}


@pytest.mark.parametrize("habit", PLAYERS)
def test_players_have_the_habits_they_are_said_to_have(habit, monkeypatch):
    assert sum(PLAYERS.values()) == pytest.approx(1)
    monkeypatch.setattr(household_task, "PLAYERS", {habit: 1.0})
    monkeypatch.setattr(household_task, "Household", Recorded)
    monkeypatch.setattr(Recorded, "made", [])
    rng = random.Random(3)
    for n in range(300):
        pairs = demonstrate_episode(rng)
        env, mind = Recorded.made[2 * n :]
        assert [action for _, action in pairs] == env.actions == mind.actions and len(pairs) <= 20
        assert all(action in text.split(" | ")[-1].removesuffix(" >").split(" , ") for text, action in pairs)
        assert state(env) == state(mind)  # one house, though two goals
    solved = [env for env in Recorded.made[::2] if env.solved]
    low, high = RATES[habit]
    assert low <= len(solved) / 300 <= high
    if habit == "forgets the middle":
        assert {env.type for env in solved} == {"put"}


def react(text):
    """A player without memory who reads the prompt only: searches the furniture in its order, round and round."""
    task, *_, observation, actions = text.removesuffix(" >").split(" | ")
    actions, words, here = actions.split(" , "), task.split(), observation.split()[1]
    kind, target = (words[2], "desk") if words[0] == "look" else (words[-3], words[-1])
    adjective = next((word for word in words if word in ("clean", "hot", "cold")), "")
    carried = observation.split(" carry ")[1]

    def reach(place, act):
        wishes = (f"open {here}", act) if place == here else (f"go {place}",)
        return next(action for action in wishes if action in actions)

    if carried.endswith(kind):
        if not carried.startswith(adjective):
            station, verb = {"clean": ("sink", "clean"), "hot": ("microwave", "heat"), "cold": ("fridge", "cool")}[adjective]
            return f"{verb} {carried}" if here == station else f"go {station}"
        return reach(target, "use lamp" if words[0] == "look" else f"put {carried}")
    useful = [f"open {here}"] + [f"take {kind}"] * (words[0] == "look" or here != target)
    for action in useful:
        if action in actions:
            return action
    after = [a for a in actions if a.startswith("go ") and WORDS.index(a[3:]) > WORDS.index(here)]
    return (after or actions)[0]


def test_a_player_who_sees_only_the_prompt_can_win():
    solved = steps = 0
    for i in range(500):
        env = Household(i)
        while not env.done:
            env.step(react(env.prompt))
        solved, steps = solved + env.solved, steps + len(env.history)
    assert solved == 500 and steps / 500 < 12


def test_the_history_of_a_prompt_is_the_last_two_actions():
    env = Household(0)
    env.step(env.admissible[0])
    env.step(env.admissible[0])
    env.step("fly")
    assert env.prompt.split(" | ")[1:3] == [env.history[1], "nothing"]


def test_the_prompt_in_english():
    env = Household(0, english=True)
    actions = env.admissible
    env.step(actions[0])
    lines = env.prompt.split("\n")
    assert lines[:3] == [f"Your task: {env.task}.", f"You did: {actions[0]}", f"You see: {env.observation}"]
    assert lines[4:-1] == env.admissible


@pytest.mark.parametrize("text", ["go desk", "Let me think.\ngo desk", ' "go desk". ', "`go desk`\n"])
def test_the_action_is_read_from_the_last_line(text):
    assert read_action(text) == "go desk"

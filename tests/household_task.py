"""A text household in the manner of ALFWorld, and an example of a task in a file of one's own.

    python train.py --task household --algo gigpo

Several turns, a reward at the end, and few enough words for a tiny transformer: all that is said
to the embedded model is made of WORDS. A checkpoint is asked in English (`load("english")`).
"""

import random

from tasks import Problem, Task, World, pick

FURNITURE = "table shelf counter desk sink drawer cabinet fridge microwave".split()
HOLLOW = FURNITURE[4:]  # things are put in these, and on the others
CLOSES = FURNITURE[5:]  # shut at first, and what is in there is not seen
KINDS = "mug plate bowl spoon apple egg bread potato".split()
# Where a thing is treated, and what it is then.
TREATMENTS = {"clean": ("sink", "clean"), "heat": ("microwave", "hot"), "cool": ("fridge", "cold")}
GOALS = {  # the six types, and what is asked
    "put": "put a {} {}",
    "two": "put two {} {}",
    "look": "look at {} under lamp",
    "clean": "put a clean {} {}",
    "heat": "put a hot {} {}",
    "cool": "put a cold {} {}",
}
WORDS = (*FURNITURE, *KINDS, *"""put a two clean hot cold on in look at under lamp go open
    close take heat cool use closed off see nothing carry | , >""".split())  # fmt: skip


class Household(World):
    """One house with one task.

    A thing is its text, "mug" or "hot mug", with its last treatment. So the whole state is where
    one is (`here`), what one carries (`hand`), what is where (`inside`), what is `open`, and the
    `lamp`.
    """

    def __init__(self, seed, max_steps=20, english=False):
        super().__init__(max_steps)
        self.english = english
        rng = random.Random(f"household {seed}")
        self.type = rng.choice(list(GOALS))
        station, _ = TREATMENTS.get(self.type, (None, None))
        places = [place for place in FURNITURE if place != station]
        self.target = "desk" if self.type == "look" else rng.choice(places)
        places.remove(self.target)
        chosen = {station, self.target, *rng.sample(places, 2 if station else 3)}
        self.inside = {place: [] for place in FURNITURE if place in chosen}
        self.kind, *distractors = rng.sample(KINDS, 3)
        elsewhere = [p for p in self.inside if p != self.target]  # nothing is done at the start
        for thing in [self.kind] * (2 if self.type == "two" else 1) + distractors:
            self.inside[rng.choice(elsewhere)].append(thing)
        self.here, self.hand, self.lamp = rng.choice(list(self.inside)), "", False
        self.open = {place for place in self.inside if place not in CLOSES}
        where = ("in " if self.target in HOLLOW else "on ") + self.target
        self.task = GOALS[self.type].format(self.kind, where)

    @property
    def observation(self):
        """Where one is, what is there unless that is closed, and what one carries."""
        words = ["at", self.here]
        if self.here in CLOSES:
            words += ["open" if self.here in self.open else "closed"]
        if self.here == "desk":
            words += ["lamp", "on" if self.lamp else "off"]
        if self.here in self.open:  # sorted: one state, one text
            words += ["see", *(sorted(self.inside[self.here]) or ["nothing"])]
        return " ".join([*words, "carry", self.hand or "nothing"])

    @property
    def options(self):
        """What one can do now, in a fixed order, and what of the state each action changes."""
        here, hand, things = self.here, self.hand, self.inside[self.here]
        options = {f"go {place}": {"here": place} for place in self.inside if place != here}
        if here in CLOSES:
            verb = "close" if here in self.open else "open"
            options[f"{verb} {here}"] = {"open": self.open ^ {here}}
        if here == "desk":
            options["use lamp"] = {"lamp": not self.lamp}
        if here in self.open and hand:
            options[f"put {hand}"] = {"hand": "", "inside": {**self.inside, here: [*things, hand]}}
        elif here in self.open:
            for x in sorted(set(things)):
                i = things.index(x)
                left = {**self.inside, here: things[:i] + things[i + 1 :]}
                options[f"take {x}"] = {"hand": x, "inside": left}
        for verb, (station, state) in TREATMENTS.items():  # whether the station is open or not
            if hand and here == station and not hand.startswith(state):
                options[f"{verb} {hand}"] = {"hand": f"{state} {hand.split()[-1]}"}
        return options

    admissible = property(lambda self: [*self.options])

    def fits(self, thing):
        """Whether this is what the task asks for, treated if it must be."""
        state = TREATMENTS.get(self.type, ("", ""))[1]
        return thing.endswith(self.kind) and thing.startswith(state)

    @property
    def solved(self):
        """Whether the goal holds in the world, by whatever way it was reached."""
        if self.type == "look":
            return self.here == "desk" and self.lamp and self.fits(self.hand)
        wanted = 2 if self.type == "two" else 1
        return sum(map(self.fits, self.inside[self.target])) >= wanted

    @property
    def prompt(self):
        """The task, the last two actions, the observation, what can be done; then, the action."""
        if self.english:
            return super().prompt
        done, can = self.history[-2:], " , ".join(self.admissible)
        return " | ".join([self.task, *done, self.observation, can]) + " >"

    def act(self, action):
        vars(self).update(self.options[action])

    def reach(self, place, action):
        """The next step to `action` at an open place: go there, open it, or act."""
        if self.here != place:
            return f"go {place}"
        return action if place in self.open else f"open {place}"

    def oracle(self):
        """The next action of a short plan from any state, which knows what is shut in, too."""
        if not self.hand:
            for place in sorted(self.inside, key=lambda place: place != self.here):  # here first
                for thing in self.inside[place]:
                    at_target = self.type != "look" and place == self.target
                    if thing.endswith(self.kind) and not (at_target and self.fits(thing)):
                        return self.reach(place, f"take {thing}")
        if not self.hand.endswith(self.kind):
            return self.reach(self.here, f"put {self.hand}")
        if self.type == "look":
            return self.reach("desk", "use lamp")
        if not self.fits(self.hand):
            station = TREATMENTS[self.type][0]
            return f"{self.type} {self.hand}" if self.here == station else f"go {station}"
        return self.reach(self.target, f"put {self.hand}")


# How those who show the base a house play.
PLAYERS = {"right": 0.3, "wanders": 0.1, "forgets the middle": 0.3, "wrong thing": 0.3}


def demonstrate_episode(rng):
    """[(prompt, action), ...] of a player with a random habit, who follows the oracle to the goal
    in its `mind`, right or not. Few are worth imitating.
    """
    habit = pick(rng, PLAYERS)
    seed = f"demonstration {rng.getrandbits(64)}"
    env, mind = Household(seed), Household(seed)
    if habit == "wrong thing":
        things = [thing for things in env.inside.values() for thing in things]
        mind.kind = rng.choice([thing for thing in things if thing != env.kind])
    if habit == "forgets the middle" or (habit == "wrong thing" and env.type == "two"):
        mind.type = "put"  # no treatment, no lamp, no second thing
    pairs = []
    while not mind.done:
        wander = habit == "wanders" and rng.random() < 0.5
        action = rng.choice(env.admissible) if wander else mind.oracle()
        pairs.append((env.prompt, action))
        env.step(action)
        mind.step(action)
    return pairs


def load(argument):
    """Houses by their seeds; no two of validation, test, training and demonstrations share one."""
    english = argument == "english"

    def panel(name, n):
        seeds = [f"{name} {i}" for i in range(n)]
        return [Problem(Household(seed, english=english).prompt, seed) for seed in seeds]

    return Task(
        panel("validation", 300), panel("test", 1000), max_turns=20,
        draw=lambda seed, step, n: panel(f"train {seed} {step}", n),
        begin=lambda problem: Household(problem.answer, english=english),
        demonstrate=demonstrate_episode, vocabulary=WORDS,
    )  # fmt: skip

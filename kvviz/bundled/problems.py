"""Seeded multi-step arithmetic word problems, in the layout of GSM8K.

A problem is a person with a running number of things. Each event of the story changes that number in one or two
steps of arithmetic; some sentences hold numbers that do not matter. The full reasoning is one sentence a step with
the arithmetic written out, the brief reasoning only the arithmetic. Every sentence of a story brings its own
sentence of reasoning, so the reasoning is a function of the question: a model can learn it to the letter.

Whether a problem is for training or held out is decided by a hash of its question, so no question is in both.
"""

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]
HELDOUT_SHARE = 10  # one question in this many is held out
LARGEST = 999

NAMES = {
    "he": "Ben Carlos David Emil Hassan Ivan Jonas Kofi Leo Omar Peter Tom".split(),
    "she": "Anna Bella Chen Dina Elif Grace Hana Julia Lena Maria Nora Sofia".split(),
}
PRONOUNS = {
    "he": {"he": "he", "He": "He", "him": "him", "his": "his", "His": "His"},
    "she": {"he": "she", "He": "She", "him": "her", "his": "her", "His": "Her"},
}
THINGS = (
    "apples beads books buttons candles cards coins cookies cups eggs hats kites lemons marbles muffins pears pencils "
    "plums pumpkins ribbons shells stamps stickers tulips"
).split()
PLACES = "market library park museum station harbour school garden village theatre".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
BOXES = "boxes bags baskets crates jars".split()

# (sentence of the story, sentence of the reasoning); {a} is the number before the event, {n} and {k} are new.
GAIN = (
    ("{He} buys {n} more {things} at the {place}.", "After buying more, {he} has {sum} {things}."),
    ("A neighbour gives {him} {n} {things}.", "With the gift {he} has {sum} {things}."),
    ("In the {place} {he} finds {n} {things}.", "The find brings that to {sum} {things}."),
    ("{Friend} brings {him} another {n} {things}.", "{He} now has {sum} {things}."),
    ("On {day} {he} gets {n} extra {things}.", "By {day} {he} has {sum} {things}."),
    ("{His} aunt sends a parcel with {n} {things}.", "The parcel makes it {sum} {things}."),
    ("{He} wins {n} {things} in a game.", "So {he} has {sum} {things} after the game."),
)
LOSE = (
    ("{He} gives {n} {things} to {Friend}.", "{He} keeps {sum} {things}."),
    ("On the way home {he} loses {n} {things}.", "That leaves {sum} {things}."),
    ("{He} sells {n} {things} on {day}.", "After the sale {he} has {sum} {things}."),
    (
        "It turns out that {n} {things} are broken, so {he} throws them away.",
        "{sum} {things} are still good.",
    ),
    ("{Friend} borrows {n} of the {things} and keeps them.", "Without those there are {sum} {things}."),
    ("{He} leaves {n} {things} at the {place}.", "{He} still has {sum} {things}."),
)
TIMES = (
    ("After a lucky trade {he} has {n} times as many {things}.", "The trade gives {him} {sum} {things}."),
    (
        "By {day} the number of {things} has grown to {n} times as many.",
        "The number grows to {sum} {things}.",
    ),
    ("{Friend} helps, and soon there are {n} times as many {things}.", "With help there are {sum} {things}."),
)
DIVIDE = (
    ("{He} splits the {things} equally into {n} piles and keeps one pile.", "One pile has {sum} {things}."),
    ("{He} shares all the {things} equally in a group of {n} people.", "{His} own share is {sum} {things}."),
    (
        "A storm comes, and only one in every {n} of the {things} is saved.",
        "The storm leaves {sum} {things}.",
    ),
)
# Two steps: {k} equal portions of {n}, then added or taken away.
GAIN_EACH = (
    (
        "{He} buys {k} {boxes} with {n} {things} in each.",
        "The {boxes} hold {product} {things}.",
        "Altogether {he} has {sum} {things}.",
    ),
    (
        "For {k} days {he} collects {n} {things} a day.",
        "In those days {he} collects {product} {things}.",
        "That adds up to {sum} {things}.",
    ),
    (
        "Each of {k} friends gives {him} {n} {things}.",
        "The friends give {product} {things}.",
        "Together with those {he} has {sum} {things}.",
    ),
)
LOSE_EACH = (
    (
        "{He} gives {n} {things} to each of {k} children.",
        "The children get {product} {things}.",
        "What remains is {sum} {things}.",
    ),
    (
        "{He} fills {k} {boxes} with {n} {things} each and sells them.",
        "The sold {boxes} held {product} {things}.",
        "{He} is left with {sum} {things}.",
    ),
)
PLAIN_ENDS = (
    "How many {things} does {Name} have in the end?",
    "How many {things} are left for {Name}?",
    "What is the number of {things} {Name} has now?",
)
PRICE = (
    "{He} sells every one of them for {n} dollars. How many dollars does {he} get?",
    "The sale brings {sum} dollars.",
)
PACK = (
    "{He} packs them all with {n} in each of the {boxes}. How many {boxes} are needed?",
    "{Name} needs {sum} {boxes}.",
)
NEED = (
    "{He} wants to have {n} {things}. How many more {things} does {he} need?",
    "{Name} still needs {sum} {things}.",
)
MORE = (
    "{Friend} has {n} {things} more than {Name}. How many do they have together?",
    "{Friend} has {product} {things}.",
    "Together they have {sum} {things}.",
)
MANY = (
    "{Friend} has {n} times as many {things} as {Name}. How many do they have together?",
    "{Friend} owns {product} {things}.",
    "The two of them have {sum} {things}.",
)
STARTS = (
    "{Name} has {n} {things}.",
    "{Name} starts the week with {n} {things}.",
    "There are {n} {things} on the table of {Name}.",
    "{Name} keeps {n} {things} in a drawer.",
    "At the {place} {Name} counts {n} {things} of {his} own.",
)
# (sentence, largest number that makes sense in it)
DISTRACTORS = (
    ("{Friend} is {x} years old.", 80),
    ("The {place} is {x} kilometres away.", 60),
    ("The bus ride takes {x} minutes.", 90),
    ("{His} house has the number {x}.", LARGEST),
    ("There are {x} chairs in the {place}.", LARGEST),
    ("A ticket for the {place} costs {x} dollars.", 40),
    ("The {place} opened {x} years ago.", 300),
    ("{Friend} reads a book of {x} pages.", LARGEST),
    ("{His} cousin owns {x} {others}.", LARGEST),
    ("It is {x} degrees outside.", 35),
)


@dataclass(frozen=True)
class Problem:
    """One word problem with both forms of its reasoning, which have the same number of steps and the same answer."""

    question: str
    steps: tuple[str, ...]
    brief: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> str:
        """What a model is given before it writes the full reasoning."""
        return f"Question: {self.question}\nReasoning:\n"

    @property
    def brief_prompt(self) -> str:
        """What a model is given before it writes the brief reasoning."""
        return f"Question: {self.question}\nBrief:\n"

    @property
    def text(self) -> str:
        """Question, full reasoning and answer."""
        return self.prompt + "\n".join((*self.steps, f"#### {self.answer}"))

    @property
    def brief_text(self) -> str:
        """Question, brief reasoning and answer."""
        return self.brief_prompt + "\n".join((*self.brief, f"#### {self.answer}"))


class _DoesNotFit(Exception):
    """The drawn event would leave the allowed numbers; another story is drawn instead."""


def _in_tables(n: int) -> bool:
    return 2 <= n <= 12 or (n <= 90 and n % 10 == 0)


class _Story:
    """A story while it is being told: the running number, the sentences so far and the words they share."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        gender, other = rng.choice(("he", "she")), rng.choice(("he", "she"))
        name = rng.choice(NAMES[gender])
        friend = rng.choice([n for n in NAMES[other] if n != name])
        things, others = rng.sample(THINGS, 2)
        self.words = PRONOUNS[gender] | {"Name": name, "Friend": friend, "things": things, "others": others}
        self.words["boxes"] = rng.choice(BOXES)
        self.sentences: list[str] = []
        self.steps: list[str] = []
        self.brief: list[str] = []
        self.value = rng.randint(5, 80) if rng.random() < 0.75 else rng.randrange(100, 500, 10)
        self.sentences.append(rng.choice(STARTS).format(n=self.value, **self.fresh()))

    def fresh(self) -> dict[str, str]:
        """The story's words with a place and a day drawn anew."""
        return self.words | {"place": self.rng.choice(PLACES), "day": self.rng.choice(DAYS)}

    def calculate(self, a: int, sign: str, b: int) -> tuple[int, str]:
        """`a sign b` and its spelling.

        Raises _DoesNotFit outside 1..999, where a division is not exact, and for products beyond the tables up to
        12 × 9 and 90 × 9, which nobody does in their head.
        """
        if sign == "/" and a % b:
            raise _DoesNotFit
        result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
        if not 1 <= result <= LARGEST:
            raise _DoesNotFit
        if sign in "*/" and not _in_tables(a if sign == "*" else result):
            raise _DoesNotFit
        self.brief.append(f"{a}{sign}{b}={result}")
        return result, f"{a} {sign} {b} = {result}"

    def amount(self, most: int) -> int:
        """A number to add or take away, at most `most`: mostly up to 60, sometimes a round one of three digits."""
        if most < 2:
            raise _DoesNotFit
        if most >= 100 and self.rng.random() < 0.2:
            return self.rng.randrange(100, min(most, 500) + 1, 50)
        return self.rng.randint(2, min(most, 60))

    def one(self, texts: tuple[str, str], a: int, sign: str, b: int, n: int) -> None:
        """An event of one step, `a sign b`; `n` is the number its sentence names."""
        words = self.fresh()
        self.value, spelled = self.calculate(a, sign, b)
        self.sentences.append(texts[0].format(n=n, **words))
        self.steps.append(texts[1].format(sum=spelled, **words))

    def two(
        self, texts: tuple[str, str, str], part: tuple[int, str, int], sign: str, n: int, k: int = 0
    ) -> None:
        """An event of two steps: the `part` is computed first, then joined to the running number by `sign`."""
        words = self.fresh()
        partial, product = self.calculate(*part)
        self.value, spelled = self.calculate(self.value, sign, partial)
        self.sentences.append(texts[0].format(n=n, k=k, **words))
        self.steps.append(texts[1].format(product=product, **words))
        self.steps.append(texts[2].format(sum=spelled, **words))


def _gain(story: _Story) -> None:
    n = story.amount(LARGEST - story.value)
    story.one(story.rng.choice(GAIN), story.value, "+", n, n)


def _lose(story: _Story) -> None:
    n = story.amount(story.value - 1)
    story.one(story.rng.choice(LOSE), story.value, "-", n, n)


def _times(story: _Story) -> None:
    n = story.rng.randint(2, 9)
    story.one(story.rng.choice(TIMES), story.value, "*", n, n)


def _divide(story: _Story) -> None:
    divisors = [n for n in range(2, 10) if story.value % n == 0 and _in_tables(story.value // n)]
    if not divisors:
        raise _DoesNotFit
    n = story.rng.choice(divisors)
    story.one(story.rng.choice(DIVIDE), story.value, "/", n, n)


def _gain_each(story: _Story) -> None:
    n, k = story.rng.randint(2, 12), story.rng.randint(2, 9)
    story.two(story.rng.choice(GAIN_EACH), (n, "*", k), "+", n, k)


def _lose_each(story: _Story) -> None:
    n, k = story.rng.randint(2, 12), story.rng.randint(2, 9)
    story.two(story.rng.choice(LOSE_EACH), (n, "*", k), "-", n, k)


def _plain(story: _Story) -> None:
    story.sentences.append(story.rng.choice(PLAIN_ENDS).format(**story.words))


def _price(story: _Story) -> None:
    n = story.rng.randint(2, 9)
    story.one(PRICE, story.value, "*", n, n)


def _pack(story: _Story) -> None:
    divisors = [n for n in range(2, 10) if story.value % n == 0 and _in_tables(story.value // n)]
    if not divisors:
        raise _DoesNotFit
    n = story.rng.choice(divisors)
    story.one(PACK, story.value, "/", n, n)


def _need(story: _Story) -> None:
    n = story.value + story.amount(LARGEST - story.value)
    story.one(NEED, n, "-", story.value, n)


def _more(story: _Story) -> None:
    n = story.amount(LARGEST - 2 * story.value)
    story.two(MORE, (story.value, "+", n), "+", n)


def _many(story: _Story) -> None:
    n = story.rng.randint(2, 9)
    story.two(MANY, (story.value, "*", n), "+", n)


Event = Callable[[_Story], None]
# (event, steps it takes, how often it is drawn)
EVENTS: tuple[tuple[Event, int, int], ...] = (
    (_gain, 1, 5),
    (_lose, 1, 5),
    (_times, 1, 4),
    (_divide, 1, 8),
    (_gain_each, 2, 3),
    (_lose_each, 2, 3),
)
ENDS: tuple[tuple[Event, int, int], ...] = (
    (_plain, 0, 8),
    (_price, 1, 4),
    (_pack, 1, 4),
    (_need, 1, 2),
    (_more, 2, 2),
    (_many, 2, 2),
)


def _plan(rng: random.Random) -> list[Event]:
    """Events that take three to five steps together, the last of them an end."""
    left = rng.randint(3, 5)
    end, end_steps, _ = rng.choices(ENDS, [weight for *_, weight in ENDS])[0]
    left -= end_steps
    plan: list[Event] = []
    while left > 0:
        possible = [event for event in EVENTS if event[1] <= left and event[0] not in plan[-1:]]
        event, steps, _ = rng.choices(possible, [weight for *_, weight in possible])[0]
        plan.append(event)
        left -= steps
    return [*plan, end]


def _tell(rng: random.Random) -> Problem:
    """One problem, of either split; raises _DoesNotFit where the drawn numbers leave the allowed range."""
    story = _Story(rng)
    for event in _plan(rng):
        event(story)
    for _ in range(rng.choices((0, 1, 2), (15, 50, 35))[0]):
        sentence, largest = rng.choice(DISTRACTORS)
        x = rng.randint(2, min(99, largest) if rng.random() < 0.6 else largest)
        told = sentence.format(x=x, **story.fresh())
        story.sentences.insert(rng.randint(1, len(story.sentences) - 1), told)
    return Problem(" ".join(story.sentences), tuple(story.steps), tuple(story.brief), story.value)


def split_of(question: str) -> Split:
    """The only split this question can be in."""
    digest = hashlib.sha256(question.encode()).digest()
    return "heldout" if int.from_bytes(digest[:8]) % HELDOUT_SHARE == 0 else "train"


def make_problem(seed: int, split: Split) -> Problem:
    """The problem of this seed and split: the first one that fits, drawn from `random.Random(seed)`.

    Args:
        seed: any integer; equal seeds give equal problems.
        split: "train" or "heldout"; no question is ever in both (`split_of`).
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', not {split!r}")
    rng = random.Random(seed)
    while True:
        try:
            problem = _tell(rng)
        except _DoesNotFit:
            continue
        if split_of(problem.question) == split:
            return problem


def problems(n: int, split: Split, seed: int = 0) -> list[Problem]:
    """`n` problems; different `seed`s give different lists (up to a million problems each)."""
    return [make_problem(seed * 1_000_000 + i, split) for i in range(n)]


_ANSWER = re.compile(r"####\s*(-?\d+)")


def parse_answer(text: str) -> int | None:
    """The number after the first "####" of a text, None where there is none."""
    found = _ANSWER.search(text)
    return int(found.group(1)) if found else None

"""An in-memory task and workbench over a scripted answer function; it counts, and refuses to overspend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from twoclock.contracts import Policy, Trainable
from twoclock.errors import BudgetError, UnsupportedError
from twoclock.seeding import child_rng, child_seed
from twoclock.types import (
    Completion,
    Conditioning,
    Cost,
    Delta,
    Evidence,
    Grade,
    Group,
    Item,
    PolicyCard,
    Request,
    Rollout,
    Sampling,
    SplitName,
)

Answer = Callable[[Item, Conditioning, int], str]


def make_items(split: str, count: int, answers: int = 10) -> tuple[Item, ...]:
    """Sums with a spread of answers; prompts share their wording and differ in their numbers."""
    rng = child_rng("fake.items", 0, split)
    items = []
    for n in range(count):
        a, b = rng.randrange(1000, 9999), rng.randrange(answers)
        items.append(Item(id=f"{split}-{n}", prompt=f"What is the last digit of {a}{b} in base ten?", reference=str(b)))
    return tuple({i.prompt: i for i in items}.values())


class FakeTask:
    name = "digits"
    description = "Name the last digit of a number."

    def __init__(self, train: int = 200, answers: int = 10) -> None:
        self.splits = {
            "train": make_items("train", train, answers),
            "trial": make_items("trial", 200, answers),
            "heldout": make_items("heldout", 20, answers),
        }

    def split(self, name: SplitName) -> tuple[Item, ...]:
        return self.splits[name]

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        return [
            Grade(reward=1.0) if text == item.reference else Grade(reward=0.0, feedback=f"expected {item.reference}")
            for item, text in zip(items, texts, strict=True)
        ]


class FakeBench:
    def __init__(
        self,
        answer: Answer,
        *,
        task: FakeTask | None = None,
        rollouts: int | None = None,
        tokens: int | None = None,
        weights: str | None = None,
        ahead: Sequence[Item] = (),
        keeps: bool = False,
        policy: Policy | None = None,
    ) -> None:
        self.answer = answer
        self.task = task or FakeTask()
        self.rollouts, self.tokens = rollouts, tokens
        self.spent = Cost()
        self.card = PolicyCard(name="fake", base_hash="b" * 64, trainable=False, context_tokens=4096)
        delta = Delta(id=weights, kind="fake", base="b" * 64, payload=None) if weights else None
        self.others = Conditioning(delta=delta)
        self.calls: list[tuple[tuple[str, ...], tuple[Conditioning, ...], int, int]] = []
        self.paired: list[bool] = []
        """Whether each call was paired."""
        self.ahead, self.keeps_upcoming, self.policy = tuple(ahead), keeps, policy
        self.written: list[str] = []

    @property
    def rollouts_left(self) -> int | None:
        return None if self.rollouts is None else self.rollouts - self.spent.rollouts

    def items(self, split: SplitName, count: int, seed: int) -> tuple[Item, ...]:
        if split == "heldout":
            raise ValueError("heldout is only ever measured on")
        known = self.task.split(split)
        return tuple(child_rng("fake.draw", seed).sample(known, min(count, len(known))))

    def upcoming(self, count: int) -> tuple[Item, ...]:
        return self.ahead[:count]

    def roll_out(
        self,
        items: Sequence[Item],
        conditionings: Sequence[Conditioning],
        samples: int,
        seed: int,
        *,
        paired: bool = True,
    ) -> tuple[Group, ...]:
        count = len(items) * len(conditionings) * samples
        if self.rollouts is not None and self.spent.rollouts + count > self.rollouts:
            raise BudgetError(f"{count} rollouts asked for, {self.rollouts_left} left")
        if self.tokens is not None and self.spent.tokens + 10 * count > self.tokens:
            raise BudgetError(f"{10 * count} tokens asked for, {self.tokens - self.spent.tokens} left")
        self.spent = self.spent + Cost(rollouts=count, prompt_tokens=9 * count, completion_tokens=count)
        self.calls.append((tuple(i.id for i in items), tuple(conditionings), samples, seed))
        self.paired.append(paired)
        return tuple(self._group(item, conditionings, samples, seed, paired) for item in items)

    def write(self, prompt: str, *, max_new_tokens: int, seed: int) -> Completion:
        if self.policy is None:
            raise UnsupportedError("this fake bench has nobody who writes")
        if self.rollouts is not None and self.spent.rollouts >= self.rollouts:
            raise BudgetError("one rollout asked for, none left")
        self.written.append(prompt)
        request = Request(prompt=prompt, conditioning=self.others, seeds=(seed,))
        done = self.policy.sample([request], Sampling(max_new_tokens=max_new_tokens))[0][0]
        cost = Cost(rollouts=1, prompt_tokens=done.prompt_tokens, completion_tokens=len(done.tokens))
        self.spent = self.spent + cost
        return done

    def trainable(self) -> Trainable:
        raise UnsupportedError("the fake bench has no weights")

    def _group(self, item: Item, conditionings: Sequence[Conditioning], samples: int, seed: int, paired: bool) -> Group:
        rollouts = []
        for conditioning in conditionings:
            joined = self.others.join(conditioning)
            for s in range(samples):
                own = child_seed("fake.rollout", seed, item.id, s, *([] if paired else [joined.id]))
                text = self.answer(item, joined, own)
                done = Completion(tokens=(1,), logprobs=(0.0,), text=text, finish="stop", prompt_tokens=9)
                grade = self.task.grade([item], [text])[0]
                rollouts.append(
                    Rollout(item_id=item.id, conditioning_id=joined.id, seed=own, completion=done, grade=grade)
                )
        return Group(item=item, rollouts=tuple(rollouts))


def evidence_of(bench: FakeBench, *, items: int = 8, samples: int = 4, seed: int = 0, round: int = 1) -> Evidence:
    """A round's rollouts without any prompt, on a bench of their own."""
    own = FakeBench(bench.answer, task=bench.task)
    own.others = bench.others
    groups = own.roll_out(own.items("train", items, child_seed("ev", seed)), [Conditioning()], samples, seed)
    known = {own.others.id: own.others}
    return Evidence(round=round, phase=0, task=bench.task.name, groups=groups, conditionings=known)


def no_evidence(task: str = "digits") -> Evidence:
    return Evidence(round=1, phase=0, task=task, groups=(), conditionings={})


def chance(probability: float, *key: int | str) -> bool:
    return child_seed("chance", 0, *key) % 1_000_000 < probability * 1_000_000


def coin_flip(item: Item, conditioning: Conditioning, seed: int) -> str:
    """Right in half of all cases whatever the prompt, and independently for each prompt: every change is a no-op."""
    return str(item.reference) if chance(0.5, seed, conditioning.id) else "?"


def planted(item: Item, conditioning: Conditioning, seed: int) -> str:
    """Never right without exemplars, right in 80 % of all cases with them."""
    return str(item.reference) if conditioning.exemplars and chance(0.8, seed, conditioning.id) else "?"


def without_seconds(cost: Cost) -> Cost:
    return replace(cost, seconds=0.0)

"""On-policy distillation of lessons into the weights: from the policy that is told them to the policy that is not.

The teacher is the policy with the lessons *on the weights from before*, and stays as it is. With the weights of the
moment it would be a moving target that is never reached: what the student has taken in the teacher is told once more,
so where a prompt adds b to the logits, the gap stays b however far the weights go. And it is the frozen one whose
score was measured, and that the result is held to.

Each round samples training items under what will be deployed afterwards (the growing weights, no lessons, the other
channels as they are), and takes one step of the run's own slow channel down

    KL(π_θ(· | x, y_<t) ‖ π_before(· | lessons, x, y_<t)),

exact over the vocabulary where the policy can, with a share of the other direction (``forward``): the reverse KL's
gradient at a token goes with the policy's own probability of it, so a convention that it never follows unasked would be
learned over hundreds of steps. Where the policy knows only sampled tokens, by those, in this direction.

Items of the stream's other tasks take part with their own conditioning as it is: there teacher and student differ by
the weights alone, which holds them in place; so do general prompts, others than those that drift is measured on. What
is learned from is one prompt at a time, so a lesson is learned only
as far as an item's text tells when it holds. (On-policy distillation and its divergences: Agarwal et al.,
arXiv:2306.13649; of a context into weights: Snell et al., arXiv:2209.15189; from a model's own conditioned copy:
arXiv:2601.19897.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twoclock.bench import Bench, grade_rollouts, sampling_cost
from twoclock.consolidation.settings import ConsolidationSettings
from twoclock.contracts import Channel, Distilling, Policy, Task, Trainable, WholeVocabulary
from twoclock.errors import NumericsError
from twoclock.seeding import child_rng, child_seed
from twoclock.types import (
    Budget,
    Conditioning,
    Cost,
    Declined,
    Evidence,
    Grade,
    Group,
    Item,
    Request,
    Rollout,
    Sampling,
)

__all__ = ["Distillation", "Distilled"]

ENOUGH = 0.001
"""The part of the first KL at which there is nothing left to do."""
LEAST_FALL = 0.02
"""The part by which the KL must have fallen over ``patience`` rounds."""

Told = Callable[[Any, str], Conditioning]
"""(slow state, task) → what a rollout is under."""


@dataclass
class Distilled:
    """What came of it: the slow state with the least KL on fresh items."""

    state: Any
    """None where no step was taken."""
    kl: list[float] = field(default_factory=list)
    """The divergence that is minimised, in nats a token, on each round's items before its step."""
    reward: list[float] = field(default_factory=list)
    """Of the same rollouts: the training score without the lessons."""
    best: int = 0
    """How many steps the state has."""
    steps: int = 0
    cost: Cost = field(default_factory=Cost)
    reason: str = ""
    """Why it ended."""


class Distillation:
    """Distils on ``tasks`` (those of the lessons) with ``anchors`` (the others) and the ``general`` prompts beside."""

    def __init__(
        self,
        policy: Policy,
        slow: Channel[Any],
        tasks: Sequence[Task],
        anchors: Sequence[Task],
        settings: ConsolidationSettings,
        sampling: Sampling,
        seed: int,
        general: Sequence[str] = (),
    ) -> None:
        assert isinstance(slow, Distilling)
        assert isinstance(policy, Trainable)
        self.policy, self.slow, self.tasks, self.anchors = policy, slow, tasks, anchors
        self.settings, self.sampling, self.seed = settings, sampling, seed
        self.general = general
        self._model: Trainable = policy
        self._forward = settings.forward if isinstance(policy, WholeVocabulary) else 0.0

    def run(self, state: Any, student: Told, teacher: Told, progress: Callable[[str], None]) -> Distilled:
        """From ``state`` on, which the teacher keeps. Touches nothing live."""
        slow, settings = self.slow, self.settings
        assert isinstance(slow, Distilling)
        taught: dict[str, Conditioning] = {}
        learner = slow.distilling(
            lambda item: taught[_key(item)], learning_rate=settings.learning_rate, forward=settings.forward
        )
        result = Distilled(state=None)
        now = slow.rested(state)
        for number in range(settings.rounds + 1):
            taught.clear()
            evidence, kl = self._gather(number, now, state, student, teacher, taught, result)
            result.kl.append(kl)
            if number and kl < min(result.kl[:-1]):
                result.state, result.best = now, number
            progress(f"distilling, step {number}: KL to the teacher {kl:.4f}, score without {result.reward[-1]:.3f}")
            if reason := self._ends(result.kl, number):
                result.reason = reason
                break
            bench = Bench(self.policy, self.tasks[0], others=Conditioning(), sampling=self.sampling)
            offer = learner.propose(bench, now, evidence, Budget(), child_seed("consolidate.step", self.seed, number))
            result.cost += offer.cost
            if isinstance(offer, Declined):
                result.reason = f"the slow channel declined: {offer.reason}"
                break
            now, result.steps = offer.state, result.steps + 1
        if result.state is not None:
            result.state = slow.resumed(state, result.state)
        return result

    def _ends(self, kl: Sequence[float], number: int) -> str | None:
        window = self.settings.patience
        if kl[-1] <= ENOUGH * kl[0]:
            return f"the KL to the teacher is {kl[-1]:.4f}, {kl[0]:.4f} at the start: nothing is left to learn"
        if number == self.settings.rounds:
            return f"all {number} rounds were run"
        if len(kl) >= 2 * window and _mean(kl[-window:]) > (1 - LEAST_FALL) * _mean(kl[-2 * window : -window]):
            return f"the KL to the teacher has stopped falling: {_mean(kl[-window:]):.4f} over {window} rounds"
        return None

    def _gather(
        self,
        number: int,
        now: Any,
        before: Any,
        student: Told,
        teacher: Told,
        taught: dict[str, Conditioning],
        result: Distilled,
    ) -> tuple[Evidence, float]:
        """A round's rollouts, and the KL to the teacher on those of the lessons' tasks."""
        groups: list[Group] = []
        conditionings: dict[str, Conditioning] = {}
        kl, rewards = 0.0, []
        for task, own in [*((t, True) for t in self.tasks), *((t, False) for t in self.anchors)]:
            told, meant = student(now, task.name), teacher(before, task.name)
            items = self._items(task, number, own, meant, taught)
            requests = [
                Request(
                    prompt=item.prompt,
                    conditioning=told.for_item(item),
                    seeds=tuple(
                        child_seed("consolidate.rollout", self.seed, number, task.name, item.id, n)
                        for n in range(self.settings.samples)
                    ),
                )
                for item in items
            ]
            if not requests:
                continue
            completions = self.policy.sample(requests, self.sampling)
            result.cost += sampling_cost(completions)
            found = grade_rollouts(task, items, requests, completions)
            groups += found
            conditionings |= {request.conditioning.id: request.conditioning for request in requests}
            if own:
                kl += self._kl(found, requests, taught) / len(self.tasks)
                rewards += [group.mean_reward for group in found]
        if not rewards:
            raise NumericsError("no training item is left to distil on")
        groups += self._hold(number, now, before, taught, conditionings, result)
        result.reward.append(_mean(rewards))
        evidence = Evidence(
            round=number,
            phase=0,
            task=self.tasks[0].name,
            groups=tuple(groups),
            conditionings=conditionings,
            sampling=self.sampling,
        )
        return evidence, kl

    def _hold(
        self,
        number: int,
        now: Any,
        before: Any,
        taught: dict[str, Conditioning],
        conditionings: dict[str, Conditioning],
        result: Distilled,
    ) -> list[Group]:
        """Groups on general prompts, which nobody grades: the weights alone, held where they were."""
        count = min(self.settings.general_anchors, len(self.general))
        prompts = child_rng("consolidate.general", self.seed, number).sample(list(self.general), count)
        items = [Item(id=f"general-{n}", prompt=prompt) for n, prompt in enumerate(prompts) if prompt not in taught]
        own, meant = (self.slow.condition(state, self.tasks[0].name) for state in (now, before))
        seeds = [child_seed("consolidate.general", self.seed, number, item.prompt) for item in items]
        requests = [
            Request(prompt=item.prompt, conditioning=own, seeds=(seed,))
            for item, seed in zip(items, seeds, strict=True)
        ]
        completions = self.policy.sample(requests, self.sampling) if requests else []
        result.cost += sampling_cost(completions)
        taught.update({_key(item): meant for item in items})
        conditionings[own.id] = own
        return [
            Group(
                item=item,
                rollouts=(
                    Rollout(
                        item_id=item.id,
                        conditioning_id=own.id,
                        seed=seed,
                        completion=row[0],
                        grade=Grade(reward=0.0),
                    ),
                ),
            )
            for item, seed, row in zip(items, seeds, completions, strict=True)
        ]

    def _items(
        self, task: Task, number: int, own: bool, meant: Conditioning, taught: dict[str, Conditioning]
    ) -> list[Item]:
        """Items of the round, and what the teacher is told of each. Two tasks may ask the same with other lessons: an
        item that the round has taken for another task is left out, as no weights can tell the two apart."""
        pool = task.split("train")
        count = min(len(pool), self.settings.items if own else self.settings.anchors)
        chosen = child_rng("consolidate.items", self.seed, number, task.name).sample(pool, count)
        kept = [item for item in chosen if _key(item) not in taught]
        taught.update({_key(item): meant.for_item(item) for item in kept})
        return kept

    def _kl(self, groups: Sequence[Group], requests: Sequence[Request], taught: Mapping[str, Conditioning]) -> float:
        """What is minimised, in nats a token, exact over the vocabulary at temperature 1, on one answer an item."""
        pairs: dict[tuple[str, str], list[tuple[Request, Conditioning, tuple[int, ...]]]] = {}
        for group, request in zip(groups, requests, strict=True):
            answer = next((r.completion.tokens for r in group.rollouts if r.completion.tokens), None)
            if answer:
                meant = taught[_key(group.item)]
                pairs.setdefault((request.conditioning.id, meant.id), []).append((request, meant, answer))
        values: list[float] = []
        for rows in pairs.values():
            prompts, answers = [r.prompt for r, _, _ in rows], [a for _, _, a in rows]
            own, meant = rows[0][0].conditioning, rows[0][1]
            reverse = self._model.exact_kl(prompts, answers, own, meant)
            back = self._model.exact_kl(prompts, answers, meant, own) if self._forward else reverse
            values += [(1 - self._forward) * a + self._forward * b for a, b in zip(reverse, back, strict=True)]
        if not values:
            raise NumericsError("every answer was empty: there is nothing to distil")
        return _mean(values)


def _key(item: Item) -> str:
    """Weights see the prompt, and nothing else of an item."""
    return item.prompt


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

"""Verbal reinforcement by self-reflection (Reflexion, arXiv:2303.11366): after a failure, a lesson in words.

A failed item's transcript, its feedback and the lessons that were shown go to a reflector, which says what went wrong
and what to do instead. The lesson is kept verbatim, never rewritten or merged, and stands before the same item the next
time it comes up: the last ``window`` of them (Ω in the paper). Beside them may stand lessons of similar items, which
the paper leaves to future work.

Who reflects is any callable, an endpoint, or the policy itself. A lesson must be a lesson: nothing, a loop, an echo of
the question, the answer itself, or a repetition of what memory said already is refused with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twoclock.contracts import Reflector, Workbench
from twoclock.errors import BudgetError, ConfigError, unknown_name
from twoclock.fast.memory.channel import Learned, MemoryChannel
from twoclock.fast.memory.config import MemoryConfig
from twoclock.fast.memory.lessons import lesson_problem, reflection_prompt
from twoclock.fast.memory.state import MemoryState
from twoclock.fast.spec import FastSpec
from twoclock.memory.bank import Bank
from twoclock.memory.records import Entry, Scope
from twoclock.seeding import child_seed
from twoclock.types import Budget, Evidence, Group, Item, Rollout

__all__ = ["SPEC", "ReflectionsChannel", "ReflectionsConfig"]


@dataclass(frozen=True, kw_only=True)
class ReflectionsConfig(MemoryConfig):
    """``[channels.reflections]``; ``k`` counts the lessons of *other* items."""

    k: int = 1
    window: int = 3
    """The newest lessons of the same item that are shown: Ω, 1 to 3 in the paper; 0 shows none."""
    reflector: Literal["given", "self"] = "self"
    """Who reflects: what ``[reflector]`` names, or the policy itself."""
    per_round: int = 8
    """Reflections written a round, at most: those of the items that failed worst."""
    below: float = 1.0
    """An item whose mean reward lies below this has failed."""
    feedback: bool = True
    """Whether the reflector reads the verifier's feedback, which may name the right answer."""
    max_tokens: int = 96
    """Of one reflection by the policy; one that is cut off is refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = [
            f"{name} = {getattr(self, name)}: expected at least {least}"
            for name, least in (("window", 0), ("per_round", 1), ("max_tokens", 1))
            if getattr(self, name) < least
        ]
        if self.reflector not in ("given", "self"):
            problems.append(unknown_name("reflector", self.reflector, ("given", "self")))
        if self.show != "notes":
            problems.append('show = "exemplars": a lesson is no answer; reflections are shown as notes')
        if not 0 < self.below <= 1:
            problems.append(f"below = {self.below}: expected a reward above 0, at most 1")
        if problems:
            raise ConfigError(problems)


class ReflectionsChannel(MemoryChannel):
    """Learns from failures in words; see the module."""

    name = "reflections"
    kind = "reflection"
    config: ReflectionsConfig

    def __init__(self, config: ReflectionsConfig | None = None, reflector: Reflector | None = None) -> None:
        super().__init__(config or ReflectionsConfig(), reflector)
        if self.config.reflector == "given" and reflector is None:
            raise ConfigError(
                "channel 'reflections' has reflector = \"given\", and none is given: add a [reflector] section, or set "
                'reflector = "self" to let the policy reflect'
            )

    @property
    def shows(self) -> bool:
        return self.config.k > 0 or self.config.window > 0

    def found(self, state: MemoryState, task: str, item: Item, explore: int | None = None) -> list[Entry]:
        """The item's own newest lessons, oldest of them first, as they were learned; then those of similar items."""
        reader = self._scope(task)
        own = [e for e in state.bank.entries if e.body.get("item") == item.id and reader.may_read(e.scope)]
        own.sort(key=lambda entry: (entry.created, entry.id))
        recent = own[len(own) - min(self.config.window, len(own)) :]
        return [*recent, *(super().found(state, task, item, explore) if self.config.k else [])]

    def learn(self, bench: Workbench, bank: Bank, evidence: Evidence, budget: Budget, seed: int) -> Learned:
        learned = Learned()
        failed = [g for g in evidence.groups if g.rollouts and g.mean_reward < self.config.below]
        failed.sort(key=lambda g: (g.mean_reward, g.item.id))
        for group in failed[: self.config.per_round]:
            try:
                entry, problem = self._reflect(bench, bank, evidence, group, child_seed("reflect", seed, group.item.id))
            except BudgetError as error:
                learned.refused.append(f"the budget ended: {error}")
                break
            learned.reflector_calls += 1
            if entry is not None:
                learned.entries.append(entry)
            elif problem:
                learned.refused.append(problem)
        return learned

    def _reflect(
        self, bench: Workbench, bank: Bank, evidence: Evidence, group: Group, seed: int
    ) -> tuple[Entry | None, str | None]:
        """The lesson of a failed item, or why what was written is none."""
        rollout = _worst(group)
        seen = evidence.conditionings[rollout.conditioning_id].recalled
        shown = [entry for entry_id in seen if (entry := bank.get(entry_id)) is not None]
        asked = reflection_prompt(
            description=bench.task.description,
            problem=group.item.prompt,
            attempt=rollout.completion.text,
            reward=rollout.reward,
            feedback=rollout.grade.feedback if self.config.feedback else "",
            lessons=[entry.text for entry in shown],
        )
        text, problem = self._write(bench, asked, seed)
        text = text.strip()
        problem = problem or lesson_problem(
            text,
            asked=asked,
            answers=[group.item.reference or "", *(r.completion.text for r in group.rollouts)],
            known=[entry.text for entry in [*shown, *self._own(bank, group.item)]],
            max_chars=self.config.max_chars,
        )
        if problem:
            return None, problem
        entry = Entry(
            kind="reflection",
            key=group.item.prompt,
            text=text,
            scope=Scope(task=evidence.task if self.config.scope == "task" else ""),
            provenance=(f"round {evidence.round}, item {rollout.item_id}, seed {rollout.seed}",),
            seen=seen,
            reward=rollout.reward,
            trust="self",
            body={"item": group.item.id, "question": group.item.prompt},
            created=float(evidence.round),
        )
        return entry, None

    def _own(self, bank: Bank, item: Item) -> list[Entry]:
        return [entry for entry in bank.entries if entry.body.get("item") == item.id]

    def _write(self, bench: Workbench, asked: str, seed: int) -> tuple[str, str | None]:
        if self.config.reflector == "given" and self.reflector is not None:
            try:
                text = self.reflector(asked)
            except Exception as error:  # whatever a user's callable or an endpoint raises: the round goes on without
                return "", f"the reflector failed: {type(error).__name__}: {error}"
            return (text, None) if isinstance(text, str) else ("", f"the reflector returned {type(text).__name__}")
        reply = bench.write(asked, max_new_tokens=self.config.max_tokens, seed=seed)
        if reply.finish == "error":
            return "", f"the policy gave no reply: {reply.error}"
        if reply.finish == "length":
            return "", f"the reflection was cut off after {len(reply.tokens)} tokens: raise max_tokens"
        return reply.text, None


def _worst(group: Group) -> Rollout:
    """The lowest reward; the first of equals."""
    return min(group.rollouts, key=lambda r: r.reward)


SPEC = FastSpec(
    config=ReflectionsConfig,
    build=ReflectionsChannel,
    summary="after a failure, a lesson in words, kept verbatim and shown when the item or one like it comes up again",
)

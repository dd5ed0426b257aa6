"""The case memory of AgentFly / Memento (arXiv:2508.16153): what was asked, what was answered, how it was paid.

A case is (state, action, reward): the item's prompt, an answer, its grade. Successes and failures are both kept, each
labelled, and an item is shown the ones that the retrieval policy chooses: the nearest (the paper's non-parametric
memory), or those with the highest learned value (its parametric and kernel memories). An item is never shown a case of
its own: that would be its answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from twoclock.contracts import Interactive, Reflector, Workbench
from twoclock.errors import ConfigError, unknown_name
from twoclock.fast.memory.channel import Learned, MemoryChannel
from twoclock.fast.memory.config import MemoryConfig
from twoclock.fast.spec import FastSpec
from twoclock.memory.bank import Bank
from twoclock.memory.records import Entry, Scope
from twoclock.types import Budget, Evidence, Group, Item, Rollout

__all__ = ["SPEC", "CasesChannel", "CasesConfig"]


@dataclass(frozen=True, kw_only=True)
class CasesConfig(MemoryConfig):
    """``[channels.cases]``"""

    keep: Literal["both", "successes", "failures"] = "both"
    """Which cases are written."""
    success: float = 1.0
    """The reward from which an answer is a success."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if self.keep not in ("both", "successes", "failures"):
            problems.append(unknown_name("keep", self.keep, ("both", "successes", "failures")))
        if not 0 < self.success <= 1:
            problems.append(f"success = {self.success}: expected a reward above 0, at most 1")
        if problems:
            raise ConfigError(problems)


class CasesChannel(MemoryChannel):
    """Learns which earlier problems to show beside a new one; see the module."""

    name = "cases"
    kind = "case"
    config: CasesConfig

    def __init__(self, config: CasesConfig | None = None, reflector: Reflector | None = None) -> None:
        super().__init__(config or CasesConfig(), reflector)

    def learn(self, bench: Workbench, bank: Bank, evidence: Evidence, budget: Budget, seed: int) -> Learned:
        """At most one success and one failure an item: the commonest answer of each kind, the first of equals."""
        learned = Learned()
        for group in evidence.groups:
            fresh = [r for r in group.rollouts if r.age == 0 and r.grade.failure is None and r.completion.text.strip()]
            for good in (True, False):
                if self.config.keep == ("failures" if good else "successes"):
                    continue
                answers = [r for r in fresh if (r.reward >= self.config.success) == good]
                if answers:
                    rollout = _commonest(answers)
                    text = rollout.completion.text.strip()
                    answer = bench.task.answer_of(text) if isinstance(bench.task, Interactive) else text
                    learned.entries.append(self._case(evidence, group, rollout, answer, good))
        return learned

    def _case(self, evidence: Evidence, group: Group, rollout: Rollout, answer: str, good: bool) -> Entry:
        body = {"question": group.item.prompt, "answer": answer, "item": group.item.id, "success": good}
        if not good and rollout.grade.feedback:
            body["feedback"] = rollout.grade.feedback
        return Entry(
            kind="case",
            key=group.item.prompt,
            text=answer,
            scope=Scope(task=evidence.task if self.config.scope == "task" else ""),
            provenance=(f"round {evidence.round}, item {rollout.item_id}, seed {rollout.seed}",),
            seen=evidence.conditionings[rollout.conditioning_id].recalled,
            reward=rollout.reward,
            body=body,
            created=float(evidence.round),
        )

    def may_show(self, entry: Entry, item: Item) -> bool:
        """As exemplars only successes: the model would copy a failure."""
        return super().may_show(entry, item) and (self.config.show == "notes" or bool(entry.body.get("success")))


def _commonest(rollouts: Sequence[Rollout]) -> Rollout:
    counts = Counter(r.completion.text.strip() for r in rollouts)
    return max(rollouts, key=lambda r: counts[r.completion.text.strip()])  # max keeps the first of equals


SPEC = FastSpec(
    config=CasesConfig,
    build=CasesChannel,
    summary="shows earlier problems with their graded answers, found by similarity or by learned value",
)

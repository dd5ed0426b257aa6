"""The records that cross rooms. All are immutable values; none knows how it is made, stored or shown.

Vocabulary: an *item* is one problem; a *rollout* is one sampled answer to it under one *conditioning*; a *group* holds
the rollouts of one item in one round, across several conditionings, and is keyed by the item's id, never by prompt
text. *Evidence* is the graded groups of one round. A *round* is one turn of the loop, a *step* one optimizer step, a
*trial* a paired comparison. Rewards lie in [0, 1] and higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

from twoclock.hashing import content_hash

__all__ = [
    "Assignment",
    "Budget",
    "Completion",
    "Conditioning",
    "Cost",
    "Declined",
    "Delta",
    "DriftRecord",
    "Evaluation",
    "Evidence",
    "Grade",
    "Group",
    "Item",
    "LedgerEntry",
    "Lesson",
    "Phase",
    "Plan",
    "PolicyCard",
    "Proposal",
    "Recall",
    "Request",
    "Rollout",
    "RoundRecord",
    "Sampling",
    "Shift",
    "Side",
    "SideModel",
    "Snapshot",
    "SoftState",
    "SplitName",
    "Timescale",
    "TokenShift",
    "Verdict",
    "Write",
    "total",
]

StateT = TypeVar("StateT")

SplitName = Literal["train", "trial", "heldout"]
"""``train`` is learned from, ``trial`` judges proposals, ``heldout`` is only ever measured on."""


class Timescale(StrEnum):
    """Which clock a channel writes to."""

    FAST = "fast"
    SLOW = "slow"


# ------------------------------------------------------------------------------------------------ items and rollouts


@dataclass(frozen=True, kw_only=True)
class Item:
    """One problem. ``id`` is unique within its task and follows from the content."""

    id: str
    prompt: str
    reference: str | None = None
    """The gold answer, where there is one; verifier-only tasks have none."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Free columns, plain JSON; a verifier gets them as keyword arguments."""


@dataclass(frozen=True, kw_only=True)
class Grade:
    """What a verifier says of one completion."""

    reward: float
    """In [0, 1]."""
    feedback: str = ""
    """Text for the fast clock; may name the right answer."""
    failure: str | None = None
    """Why grading itself failed (the verifier raised, hung, gave NaN); the reward is then 0."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.reward) and 0.0 <= self.reward <= 1.0):
            raise ValueError(f"a reward must lie in [0, 1]; got {self.reward!r}")


@dataclass(frozen=True, eq=False)
class Delta:
    """A change of weights on top of an immutable base, as a value.

    ``id`` is the hash of the content, ``base`` the content hash of the weights it belongs to, ``payload`` the tensors
    in the form that ``kind`` names. Two deltas are equal when their ids are.
    """

    id: str
    kind: str
    base: str
    payload: Any = field(repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Delta) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


@dataclass(frozen=True, eq=False)
class SoftState:
    """What a model has read that stands in no prompt, as a value: the state of a memory beside it.

    ``id`` is the hash of the content, ``base`` the content hash of the weights whose hidden states it was written from
    and is read with, ``payload`` the memory in the form that ``kind`` names. Two are equal when their ids are.
    """

    id: str
    kind: str
    base: str
    payload: Any = field(repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SoftState) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


@dataclass(frozen=True, eq=False)
class Recall:
    """What memory says, which differs from item to item: a value that is asked when an item is at hand.

    ``id`` is the hash of everything that the answers follow from; ``ask`` is pure and gives the item's part: notes,
    exemplars, and the ids of the entries that they came from. Two recalls are equal when their ids are.
    """

    id: str
    ask: Callable[[Item], Conditioning] = field(repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recall) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


@dataclass(frozen=True, kw_only=True)
class SideModel:
    """Another model that stands beside the policy's own: which weights, and where they are found."""

    weights: str
    """The content hash of its base weights; with ``delta`` it is all that the model's identity is."""
    source: str = field(default="", compare=False)
    """Where it is loaded from when it is asked for: a folder, a GGUF file, a hub id."""
    delta: Delta | None = None
    """A change on top of those weights."""


Side = Delta | SideModel | None
"""One side of a shift: a change of the policy's own base, another model, or (None) the policy's own base itself."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Shift:
    """A shift of the next-token logits at decode time: alpha · (expert − anti), by token.

    p ∝ softmax(s + Σ alpha (s⁺ − s⁻)) with s the logits of the policy under the conditioning's delta (proxy-tuning,
    arXiv:2401.08565, equation 1; DExperts, arXiv:2105.03023). Two shifts are equal when their ids are.
    """

    expert: Side
    anti: Side
    alpha: float | tuple[float, ...] = 1.0
    """One number, or one for each token of the answer; the last one holds on."""
    plausible: float = 0.0
    """Above 0, only tokens that the expert finds at least so likely, relative to its most likely one, may be drawn."""
    mapped: bool = False
    """Whether the sides may have other vocabularies than the policy: tokens are matched by what they spell, and what a
    side does not know is not shifted. Else vocabularies that differ are refused."""
    name: str = ""
    """For people; no part of the id."""

    def __post_init__(self) -> None:
        values = self.alphas
        if not values or not all(math.isfinite(value) for value in values):
            raise ValueError(f"alpha = {self.alpha!r}: expected a finite number, or one for each token")
        if not 0.0 <= self.plausible <= 1.0:
            raise ValueError(f"plausible = {self.plausible!r}: expected a share from 0 to 1")

    @property
    def alphas(self) -> tuple[float, ...]:
        """The schedule, without what repeats at its end: the last number holds on."""
        values = [float(value) + 0.0 for value in (self.alpha if isinstance(self.alpha, tuple) else (self.alpha,))]
        while len(values) > 1 and values[-1] == values[-2]:
            del values[-1]
        return tuple(values)

    @property
    def is_inert(self) -> bool:
        """Whether it shifts nothing, whatever the models say."""
        return self.expert == self.anti or not any(self.alphas)

    @cached_property
    def id(self) -> str:
        """A hash of all that the shift does follows from."""
        content = {
            "expert": _side_content(self.expert),
            "anti": _side_content(self.anti),
            "alpha": list(self.alphas),
            "plausible": float(self.plausible),
            "mapped": self.mapped,
        }
        return content_hash(content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shift) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        amounts = ", ".join(f"{alpha:g}" for alpha in self.alphas)
        told = f"{self.name or self.id[:8]} × {f'({amounts}, …)' if len(self.alphas) > 1 else amounts}"
        return told + (f" within {self.plausible:g} of the expert's best" if self.plausible else "")


def _side_content(side: Side) -> dict[str, str]:
    if side is None:
        return {}
    if isinstance(side, Delta):
        return {"delta": side.id}
    return {"weights": side.weights} | ({"delta": side.delta.id} if side.delta else {})


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Everything the channels do to the model for one rollout. The empty one is the untouched base model."""

    system: str | None = None
    """The system prompt; ``None`` leaves the chat template's own default in place."""
    exemplars: tuple[tuple[str, str], ...] = ()
    """Few-shot turns (user, assistant), shown before the item in this order."""
    notes: tuple[str, ...] = ()
    """Blocks of text from memory, shown in the user's turn before the item: data, never the system's instructions."""
    recall: tuple[Recall, ...] = ()
    """What is yet to be asked with an item at hand, one a channel: see :meth:`for_item`."""
    recalled: tuple[str, ...] = ()
    """The ids of the memory entries that notes and exemplars came from, for crediting them."""
    delta: Delta | None = None
    """The slow version of the weights; ``None`` is the base, by the path that no delta touches."""
    shifts: tuple[Shift, ...] = ()
    """What is added to the logits at each token; none is the path that no shift touches."""
    soft: SoftState | None = None
    """A memory that the model reads at every token; ``None`` is the path that no memory touches."""
    mixture: Delta | None = None
    """Experts that are mixed into the weights for this rollout: what it adds to the base stands beside what ``delta``
    adds, whose own it never is. ``None`` mixes nothing in."""

    @cached_property
    def id(self) -> str:
        """A hash of the content: equal conditionings have equal ids, in every process."""
        content: dict[str, Any] = {
            "system": self.system,
            "exemplars": [list(turn) for turn in self.exemplars],
            "delta": self.delta.id if self.delta else None,
        }
        # Named only where there is some, so that what has none keeps the id that it always had.
        memory = {"notes": self.notes, "recall": [r.id for r in self.recall], "recalled": self.recalled}
        named = {
            **memory,
            "shifts": [shift.id for shift in self.shifts],
            "soft": [self.soft.id] if self.soft else [],
            "mixture": [self.mixture.id] if self.mixture else [],
        }
        return content_hash(content | {name: list(part) for name, part in named.items() if part})[:16]

    @property
    def text_id(self) -> str:
        """The id of the text part alone, whatever the weights: how a prompt is named across slow versions."""
        return replace(self, delta=None).id

    @property
    def is_identity(self) -> bool:
        return self == Conditioning()

    def told(self, prompt: str) -> str:
        """The user's turn: the notes, then the prompt. Raises ValueError while memory is yet to be asked: what it says
        would be left out without a word."""
        if self.recall:
            raise ValueError("this conditioning's memory was not asked: use conditioning.for_item(item)")
        return "\n\n".join([*self.notes, prompt])

    def for_item(self, item: Item) -> Conditioning:
        """This conditioning with its memory asked about ``item``; itself where there is none."""
        asked = replace(self, recall=())
        for recall in self.recall:
            asked = asked.join(recall.ask(item))
        return asked if self.recall else self

    def join(self, other: Conditioning) -> Conditioning:
        """Both influences together. Two channels may not set the same scalar field: that raises ``ValueError``."""
        for name in ("system", "delta", "soft", "mixture"):
            if getattr(self, name) is not None and getattr(other, name) is not None:
                raise ValueError(f"two channels both set the conditioning's '{name}'; only one may")
        return Conditioning(
            system=self.system if self.system is not None else other.system,
            exemplars=self.exemplars + other.exemplars,
            notes=self.notes + other.notes,
            recall=self.recall + other.recall,
            recalled=self.recalled + other.recalled,
            delta=self.delta or other.delta,
            shifts=self.shifts + other.shifts,
            soft=self.soft or other.soft,
            mixture=self.mixture or other.mixture,
        )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn. ``temperature=0`` is greedy; ``top_k=0`` and ``top_p=1`` are off."""

    max_new_tokens: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    """Strings that end a completion; the text is cut before the first of them."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt under one conditioning, to be sampled once for each seed: the prompt of a group is one thing."""

    prompt: str
    conditioning: Conditioning
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled answer. ``logprobs`` are those of the sampled tokens under the distribution they were drawn from
    (after temperature, top-k and top-p), in nats, one a token; empty when the policy cannot tell."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: Literal["stop", "length", "error"]
    prompt_tokens: int
    error: str | None = None
    turns: int = 1
    """Above 1 this is an episode of so many turns; the token counts are those of all of them."""


@dataclass(frozen=True, kw_only=True)
class TokenShift:
    """What the shifts of a conditioning did to one token of an answer; log-probabilities in nats at temperature 1."""

    token: int
    text: str
    before: float
    """The token's log-probability without the shifts."""
    after: float
    """The same with them."""
    instead: str
    """The text of the token that would have been the most likely one without them."""
    changed: bool
    """Whether another token became the most likely one."""
    uncovered: float = 0.0
    """The probability, without the shifts, of tokens that some shift's sides do not know."""

    @property
    def moved(self) -> float:
        """How much more likely the token became, in nats."""
        return self.after - self.before


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A graded completion."""

    item_id: str
    conditioning_id: str
    seed: int
    completion: Completion
    grade: Grade
    age: int = 0
    """Rounds since it was sampled: above 0 it comes from an earlier round's search, under the weights of that round."""

    @property
    def reward(self) -> float:
        return self.grade.reward


@dataclass(frozen=True, kw_only=True)
class Group:
    """The rollouts of one item in one round, across several conditionings."""

    item: Item
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(r.reward for r in self.rollouts)

    @property
    def mean_reward(self) -> float:
        return math.fsum(self.rewards) / len(self.rollouts) if self.rollouts else 0.0

    @property
    def is_dead(self) -> bool:
        """No reward variance: a policy gradient learns nothing from it."""
        return len(set(self.rewards)) <= 1


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one round has seen: graded groups, and the conditionings they were sampled under, by id."""

    round: int
    phase: int
    task: str
    groups: tuple[Group, ...]
    conditionings: Mapping[str, Conditioning]
    sampling: Sampling = field(default_factory=Sampling)
    deployed: Mapping[str, str] = field(default_factory=dict)
    """By item id, the id of the conditioning that is deployed, as opposed to what it is compared with."""

    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        return tuple(r for g in self.groups for r in g.rollouts)

    @property
    def mean_reward(self) -> float:
        rewards = [r.reward for r in self.rollouts]
        return math.fsum(rewards) / len(rewards) if rewards else 0.0

    @property
    def dead_groups(self) -> int:
        return sum(g.is_dead for g in self.groups)


# --------------------------------------------------------------------------------------------------- costs and plans


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What something cost. Tokens count what the model read and wrote; shared prompts count once where read once."""

    rollouts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    trained_tokens: int = 0
    optimizer_steps: int = 0
    reflector_calls: int = 0
    seconds: float = 0.0
    """Wall clock; the one figure that differs between two runs of the same numbers."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that a channel may spend on one proposal; ``None`` is no limit."""

    rollouts: int | None = None
    tokens: int | None = None
    drift: float | None = None
    """KL to the base in nats a token on the drift prompts; what a slow gate holds a proposal to."""
    alpha: float | None = None
    """The chance at which a trial may accept a change without effect; None: the gate's own. An allocator that lets a
    channel try again and again divides one chance among the trials."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One channel may propose, on this budget, for this reason."""

    channel: str
    budget: Budget
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who may learn this round. An empty plan is a round that only rolls out."""

    assignments: tuple[Assignment, ...] = ()
    passed: tuple[tuple[str, str], ...] = ()
    """(channel, reason) of those that may not propose, where the allocator says why."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of the stream: ``rounds`` rounds on one task."""

    index: int
    task: str
    rounds: int


# ------------------------------------------------------------------------------------------------ proposals, verdicts


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One thing that a fast channel has learned and can take back by itself: a prompt, an entry of memory."""

    id: str
    """Unique in its channel; what :attr:`Write.lesson` names."""
    channel: str
    text: str
    """What the model reads of it, in words."""
    tasks: tuple[str, ...]
    """The tasks that it may be shown on; ``*`` is every one."""
    live: bool
    """Whether it is what is deployed (a prompt) or may be shown (an entry); what is kept beside is not."""
    since: float = 0.0
    """The round it was written in, where the state knows it."""
    says: Conditioning | None = None
    """The part of a conditioning that is this lesson's, where it is the same for every item: what its rollouts are
    known by in the ledger. Entries of memory are known by their ids in ``recalled``, shifts by their names."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """One thing a proposal would write, in words: what the ledger shows to a person."""

    text: str
    kind: str
    """Such as ``exemplars``, ``system``, ``step``, ``retire``."""
    lesson: str = ""
    """The lesson's id, where the write is about one lesson."""


@dataclass(frozen=True, kw_only=True)
class Proposal(Generic[StateT]):
    """A next state, offered. Nothing live has been touched."""

    channel: str
    state: StateT
    cause: str
    """What made the channel propose this, in one sentence."""
    cost: Cost
    writes: tuple[Write, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers for the ledger; finite."""
    fallback: StateT | None = None
    """What may be kept where the gate refuses ``state``: a state that speaks to the model exactly as the live one does,
    such as a population of prompts without the change of the deployed one."""


@dataclass(frozen=True, kw_only=True)
class Declined:
    """A channel that had nothing to propose, and why."""

    channel: str
    reason: str
    cost: Cost = field(default_factory=Cost)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a proposal is committed, and why; ``cost`` is what judging cost."""

    accepted: bool
    reason: str
    cost: Cost = field(default_factory=Cost)
    metrics: Mapping[str, float] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------- the history


@dataclass(frozen=True, kw_only=True)
class PolicyCard:
    """What a policy is and can do, without touching it."""

    name: str
    base_hash: str
    """Content hash of the base weights; for an endpoint, of its address and model name."""
    trainable: bool
    """Whether slow channels may train it."""
    context_tokens: int


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One line of the history. Append-only; rejected and declined proposals have one too."""

    round: int
    channel: str
    timescale: str
    action: Literal["init", "commit", "reject", "decline", "rollback", "wait", "consolidate", "refuse"]
    """``consolidate`` and ``refuse`` stand between rounds: lessons that moved to the weights, and a try that failed."""
    before: str
    """Blob hash of the channel's state before; empty for ``init``."""
    after: str
    """Blob hash of the live state after this entry; equals ``before`` unless something was written."""
    cause: str
    reason: str
    cost: Cost
    phase: int = 0
    task: str = ""
    offered: str = ""
    """Blob hash of the state that was proposed, also where it was rejected."""
    writes: tuple[Write, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    seq: int = 0
    """Set by the store."""
    at: float = 0.0
    """Seconds since the epoch; set by the store."""

    @property
    def is_by_hand(self) -> bool:
        """Whether this is a change of state between rounds: a rollback by hand, or a consolidation. A rollback inside a
        round is the evidence's: that round's numbers are those of the state it went back to."""
        return self.action == "consolidate" or (self.action == "rollback" and not self.cause.startswith(TAKEN_BACK))


TAKEN_BACK = "taken back"
"""How the cause of a rollback begins that the evidence asked for."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A point that one can roll back to: for each channel the blob hash of its state."""

    round: int
    """The last round that is in it; 0 is before the first."""
    states: Mapping[str, str]
    next_round: int
    """The round that the loop runs next: rounds are never numbered twice, rollbacks included."""
    cause: str = "round"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out scores of one task in one cell of weights × prompt, at the end of a round."""

    round: int
    task: str
    weights: Literal["base", "live"]
    prompt: Literal["none", "learned"]
    item_ids: tuple[str, ...]
    rewards: tuple[float, ...]
    """One an item, the mean over its samples."""
    samples: int
    conditioning_id: str
    cost: Cost = field(default_factory=Cost)
    purpose: str = "phase"
    """``phase`` at a phase's end (row 0: the untouched base), ``probe`` in between, ``final`` by ``twoclock eval``."""


@dataclass(frozen=True, kw_only=True)
class DriftRecord:
    """Exact token-level KL between the live weights and the base, without any fast conditioning, in nats a token."""

    round: int
    prompts: str
    """Which prompt set: ``general`` or ``task:NAME``."""
    live_base: float
    """KL(live‖base) along continuations sampled from the live model."""
    base_live: float
    """KL(base‖live) along continuations sampled from the base."""
    per_prompt_live_base: tuple[float, ...]
    per_prompt_base_live: tuple[float, ...]
    tokens: int


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """Everything that one round adds to the store, written in one transaction."""

    round: int
    phase: int
    task: str
    snapshot: Snapshot
    entries: tuple[LedgerEntry, ...]
    evidence: Evidence | None
    metrics: Mapping[str, float]
    """Such as reward, dead_groups, entropy, prompt_tokens, seconds per clock (names ending in ``_s``)."""
    evaluations: tuple[Evaluation, ...] = ()
    drift: tuple[DriftRecord, ...] = ()
    evaluated: Mapping[str, Conditioning] = field(default_factory=dict)
    """The conditionings that the evaluations name, by id."""
    searched: Evidence | None = None
    """Rollouts that a fast search made on items that are yet to come up, kept for the slow clock."""


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    result = Cost()
    for cost in costs:
        result = result + cost
    return result

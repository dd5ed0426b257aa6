"""The protocols that the loop is written against. Their docstrings are the specification; ``tests/contract`` runs it.

A channel *proposes* a next state and touches nothing live; the allocator plans; gates *judge*; only the loop *commits*.
Rolling back is keeping the old value. State is a value: passed in, returned new, never hidden in ``self``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from twoclock.types import (
    Budget,
    Completion,
    Conditioning,
    Cost,
    Declined,
    Delta,
    Evidence,
    Grade,
    Group,
    Item,
    Lesson,
    Phase,
    Plan,
    PolicyCard,
    Proposal,
    Request,
    Sampling,
    Snapshot,
    SoftState,
    SplitName,
    Timescale,
    TokenShift,
    Verdict,
)

if TYPE_CHECKING:
    import torch

    from twoclock.memory.bank import Bank
    from twoclock.nn.svf import Factoring, Factors

__all__ = [
    "Allocator",
    "Channel",
    "Distilling",
    "Factorable",
    "Gate",
    "Interactive",
    "Memorizing",
    "Policy",
    "Population",
    "Reflector",
    "Remembering",
    "SequenceStats",
    "Shifting",
    "Task",
    "TaskStream",
    "Teaching",
    "Trainable",
    "WholeVocabulary",
    "Workbench",
]

StateT = TypeVar("StateT")

Reflector = Callable[[str], str]
"""A callable that answers a prompt with text: what reflective proposers write new prompts with."""


class Task(Protocol):
    """Items and a verifier."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str:
        """One or two sentences for people and reflectors."""
        ...

    def split(self, name: SplitName) -> tuple[Item, ...]:
        """The items of a split, in a fixed order. No item stands in two splits; ids are unique."""
        ...

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        """One grade a pair, in order. A verifier that raises, hangs or gives NaN for a text makes a failed grade
        (reward 0, ``failure`` set); one that breaks its contract raises :class:`~twoclock.errors.VerifierError`."""
        ...


@runtime_checkable
class Interactive(Protocol):
    """An optional ability of a task: its items are played over several turns, not answered in one."""

    def play(
        self, policy: Policy, items: Sequence[Item], requests: Sequence[Request], sampling: Sampling
    ) -> list[tuple[Completion, ...]]:
        """As :meth:`Policy.sample`, with the item of each request: a completion is a whole episode. Its ``text`` is
        the transcript, from which :meth:`Task.grade` follows; its token counts are those of all turns. ``logprobs`` are
        empty unless the whole episode is one sequence that a teacher-forced pass can score."""
        ...

    def answer_of(self, text: str) -> str:
        """What a case keeps of a transcript: the actions or the plan, in the form in which the policy writes them."""
        ...


class TaskStream(Protocol):
    """Ordered phases, each a task and a number of rounds."""

    @property
    def phases(self) -> tuple[Phase, ...]: ...

    @property
    def num_rounds(self) -> int: ...

    @property
    def tasks(self) -> Mapping[str, Task]: ...

    def phase(self, round: int) -> Phase:
        """The phase of a round; rounds count from 1."""
        ...

    def batch(self, round: int, count: int, seed: int) -> tuple[Item, ...]:
        """The training items of a round: a pure function of its arguments, so that a resumed run reads the same."""
        ...


class Policy(Protocol):
    """A model that answers. Holds no learned state: what it knows beyond its base arrives in each request."""

    @property
    def card(self) -> PolicyCard: ...

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[tuple[Completion, ...]]:
        """For each request one completion a seed, in order. A rollout follows from (prompt, conditioning, sampling,
        seed) alone, not from what it was batched with (exactly in exact arithmetic; up to the dtype's rounding on a
        real device). A request that fails gives completions with ``finish='error'``; its siblings go on.
        Raises :class:`~twoclock.errors.UnsupportedError` for a conditioning that it cannot apply."""
        ...


class SequenceStats(Protocol):
    """What a teacher-forced pass says of the completions of one prompt. ``N`` completions, ``T`` the longest."""

    logprobs: torch.Tensor
    """[N, T] log-probabilities of the given tokens at the sampling temperature, float32; 0 beyond the end."""
    entropy: torch.Tensor
    """[N, T] entropy of the next-token distribution in nats, detached."""
    mask: torch.Tensor
    """[N, T] 1.0 at completion tokens, 0.0 beyond the end."""


@runtime_checkable
class Trainable(Protocol):
    """The second protocol of a local policy: what slow channels and measurements need."""

    @property
    def base_hash(self) -> str: ...

    def linear_shapes(self, patterns: Sequence[str]) -> dict[str, tuple[int, int]]:
        """(out, in) of each linear module whose last name part is in ``patterns``, by full module name, in model
        order. Raises ConfigError when a pattern matches nothing, naming what there is."""
        ...

    def parameter_shapes(self, patterns: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter of the modules whose last name part is in ``patterns`` (none: of all), by full
        name, in model order. Raises ConfigError when a pattern matches nothing, naming what there is."""
        ...

    def sequence_stats(
        self,
        prompts: Sequence[str],
        conditioning: Conditioning,
        completions: Sequence[Sequence[Sequence[int]]],
        *,
        temperature: float,
        change: Any = None,
    ) -> list[SequenceStats]:
        """Teacher-force, for each prompt, its completions, all under one conditioning; one result a prompt. Tokens that
        prompts and completions share are computed once, exactly. ``change``, a delta's payload such as
        :class:`~twoclock.nn.lowrank.LowRank`, replaces the conditioning's delta; its tensors may require gradients,
        which then flow into the returned log-probabilities."""
        ...

    def chunks(
        self, prompts: Sequence[str], conditioning: Conditioning, completions: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[int]]:
        """Which prompts, by index, to teacher-force together so that one pass fits in memory."""
        ...

    def prompt_tokens(self, prompt: str, conditioning: Conditioning) -> int:
        """The length of the rendered prompt in tokens."""
        ...

    def logprobs_under(
        self,
        prompts: Sequence[str],
        completions: Sequence[Sequence[int]],
        conditionings: Sequence[Conditioning],
        *,
        temperature: float = 1.0,
    ) -> list[list[list[float]]]:
        """For each conditioning, for each prompt, the log-probability of every token of its completion; without
        gradients, and in one pass over the model for all conditionings where the model allows it."""
        ...

    def exact_kl(
        self,
        prompts: Sequence[str],
        completions: Sequence[Sequence[int]],
        p: Conditioning,
        q: Conditioning,
    ) -> list[float]:
        """KL(p‖q) in nats a token, exact over the vocabulary at temperature 1, averaged over the completion's
        positions; one number a prompt. Exactly 0 where p and q have the same delta and text."""
        ...


@runtime_checkable
class Factorable(Protocol):
    """An optional ability of a trainable policy: its linear layers taken apart into singular vectors and values."""

    def singular_factors(self, patterns: Sequence[str], factoring: Factoring) -> tuple[str, dict[str, Factors]]:
        """The factors of each linear module whose last name part is in ``patterns``, by full module name, in model
        order, and one hash of what was taken apart and how. Made once and kept: the first call may take minutes.
        Raises ConfigError when a pattern matches nothing, UnsupportedError for a layer that has no plain matrix."""
        ...


@runtime_checkable
class WholeVocabulary(Protocol):
    """An optional ability of a trainable policy: how far it is from another conditioning of itself, with gradients."""

    def reverse_kl(
        self,
        prompts: Sequence[str],
        conditioning: Conditioning,
        completions: Sequence[Sequence[Sequence[int]]],
        teachers: Sequence[Conditioning],
        *,
        temperature: float,
        change: Any = None,
        forward: float = 0.0,
    ) -> list[torch.Tensor]:
        """For each prompt [N, T]: KL(policy‖teacher) in nats before each token of its completions, exact over the
        vocabulary at ``temperature``; 0 beyond the end. ``teachers`` has one conditioning a prompt, weights and all.
        ``forward`` is the share of KL(teacher‖policy) in it.
        ``change`` stands in the place of the conditioning's delta, as in :meth:`Trainable.sequence_stats`; gradients
        flow through it alone."""
        ...


class Workbench(Protocol):
    """The metered handle a channel proposes with, and a gate judges with. It counts what it is asked, so no channel can
    miscount in its own favour, and raises :class:`~twoclock.errors.BudgetError` *before* a call that would pass the
    budget. It gives no way to change live state."""

    @property
    def card(self) -> PolicyCard: ...

    @property
    def task(self) -> Task: ...

    @property
    def spent(self) -> Cost: ...

    @property
    def rollouts_left(self) -> int | None:
        """None is no limit."""
        ...

    @property
    def others(self) -> Conditioning:
        """What the other channels contribute right now; :meth:`roll_out` joins it to what it is given."""
        ...

    def items(self, split: SplitName, count: int, seed: int) -> tuple[Item, ...]:
        """Distinct items of ``train`` or ``trial``, drawn by seed; all there are when ``count`` is larger.
        ``heldout`` is refused."""
        ...

    def upcoming(self, count: int) -> tuple[Item, ...]:
        """The first ``count`` training items that the rounds after this one will read on this task, in their order,
        each once; fewer where the phase ends before."""
        ...

    @property
    def keeps_upcoming(self) -> bool:
        """Whether rollouts on upcoming items are kept, to be learned from when those items come up. What is to be kept
        must be sampled with ``paired=False``."""
        ...

    def roll_out(
        self,
        items: Sequence[Item],
        conditionings: Sequence[Conditioning],
        samples: int,
        seed: int,
        *,
        paired: bool = True,
    ) -> tuple[Group, ...]:
        """Sample and grade: ``samples`` rollouts for each item under each conditioning; one group an item. Within a
        group rollouts are ordered by conditioning, then sample. Where ``paired``, the seed of a rollout depends on
        (seed, item, sample) and not on the conditioning: common random numbers for paired comparisons. A policy
        gradient may not learn from such rollouts in one group: the mean that a reward is compared with would depend on
        the rollout's own random numbers, and the gradient would be biased. ``paired=False`` draws each by its own."""
        ...

    def write(self, prompt: str, *, max_new_tokens: int, seed: int, under: Conditioning | None = None) -> Completion:
        """What the policy itself answers to a free prompt, under what the other channels contribute, and ``under``
        where it is given: for channels that let the policy reflect. Counted and budgeted like a rollout."""
        ...

    def trainable(self) -> Trainable:
        """The local policy's second protocol; raises UnsupportedError for a remote one."""
        ...


class Channel(Protocol[StateT]):
    """A way to learn. ``StateT`` is an immutable value."""

    @property
    def name(self) -> str: ...

    @property
    def timescale(self) -> Timescale: ...

    def init(self, card: PolicyCard, seed: int) -> StateT:
        """The state that changes nothing: its conditioning is the identity."""
        ...

    def propose(
        self, bench: Workbench, state: StateT, evidence: Evidence, budget: Budget, seed: int
    ) -> Proposal[StateT] | Declined:
        """Offer a next state, or decline with a reason. Touches nothing live; the same arguments give the same
        proposal; empty evidence is declined; the budget is never passed."""
        ...

    def condition(self, state: StateT, task: str) -> Conditioning:
        """How this state speaks to the model when deployed on a task. Pure."""
        ...

    def dump(self, state: StateT) -> bytes:
        """The state as bytes, canonical: equal states give equal bytes."""
        ...

    def load(self, blob: bytes) -> StateT:
        """The inverse of :meth:`dump`, exactly."""
        ...


@runtime_checkable
class Distilling(Protocol):
    """An optional ability of a slow channel: to learn from another conditioning of the policy in the place of rewards.
    What consolidation writes lessons into the weights with."""

    def distilling(
        self, teacher: Callable[[Item], Conditioning], *, learning_rate: float | None = None, forward: float = 0.0
    ) -> Channel[Any]:
        """A channel of the same kind of state whose proposals are steps of on-policy distillation: rollouts of the
        evidence move towards the policy under what ``teacher`` says of their item, weights and all. ``forward`` is the
        share of the KL from teacher to policy, where the policy tells it."""
        ...

    def rested(self, state: Any) -> Any:
        """The state with the weights that it has and an optimizer that remembers nothing: what another objective
        begins from."""
        ...

    def resumed(self, before: Any, after: Any) -> Any:
        """The weights of ``after`` with what the optimizer knew in ``before``: one step of the state. Where ``before``
        has no tensors yet, the optimizer remembers nothing."""
        ...


@runtime_checkable
class Population(Protocol):
    """An optional ability of a channel: several conditionings at once, for groups that compare them."""

    def alternatives(self, state: Any, task: str, count: int, seed: int) -> tuple[Conditioning, ...]:
        """Up to ``count`` distinct conditionings to roll out under, the deployed one first."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """An optional ability of a fast channel: its state holds a bank of entries, each of which is credited while it is
    used. Its proposals need no trial, and people can look through its entries and change them."""

    def bank(self, state: Any) -> Bank:
        """The entries of a state."""
        ...

    def with_bank(self, state: Any, bank: Bank) -> Any:
        """The state with another bank."""
        ...


@runtime_checkable
class Shifting(Protocol):
    """An optional ability of a policy: it can say, token by token, what a conditioning's shifts did to an answer."""

    def token_shifts(self, prompt: str, conditioning: Conditioning, tokens: Sequence[int]) -> tuple[TokenShift, ...]:
        """One record a token of the answer ``tokens``, compared with the same conditioning without shifts."""
        ...


@runtime_checkable
class Memorizing(Protocol):
    """An optional ability of a policy: texts are written into a memory beside its base, which is a value (the ``soft``
    part of a conditioning). What is written follows from the base alone, whatever the weights' change of the day."""

    def memory_shape(self) -> tuple[int, int]:
        """(width of the hidden states, number of layers): what a memory is made for."""
        ...

    def text_tokens(self, text: str | tuple[str, str]) -> int:
        """How many tokens :meth:`memorized` would read."""
        ...

    def memorized(self, soft: SoftState, texts: Sequence[str | tuple[str, str]]) -> SoftState:
        """The memory after it has read each text, whole and one after another. A pair is a question and its answer, as
        the chat template shows them: the question is read, the answer remembered. Raises UnsupportedError for a memory
        of other weights, NumericsError where the memory would hold NaN."""
        ...


@runtime_checkable
class Teaching(Protocol):
    """An optional ability of a fast channel: it can say what its lessons are, and go on without one of them. What
    consolidation moves to the slow clock, what evidence takes back, and what is explained are lessons."""

    def lessons(self, state: Any) -> tuple[Lesson, ...]:
        """Every lesson of a state, those that are live first."""
        ...

    def without(self, state: Any, lessons: Collection[str]) -> Any:
        """The state in which these lessons are not live; all else speaks as before. Where none of them is, the state
        itself. Raises ConfigError for a lesson that the state does not have."""
        ...


class Allocator(Protocol):
    """Decides who may learn from a round's evidence, and on what budget."""

    def plan(self, evidence: Evidence, channels: Mapping[str, Timescale], history: Sequence[Mapping[str, Any]]) -> Plan:
        """``history`` has one mapping a past round of this run, oldest first: ``round``, ``phase``, ``task``,
        ``proposed`` (the channels that were asked), ``signals`` (what :func:`twoclock.allocate.signals.signals` found)
        and ``outcomes``: by channel what became of it, with ``action``, ``metrics``, and its cost as ``rollouts``,
        ``tokens`` and ``trained_tokens``; and ``taken_back``, the channels that were rolled back. Pure: the same
        arguments give the same plan."""
        ...


class Gate(Protocol):
    """Judges one proposal."""

    def judge(
        self,
        bench: Workbench,
        channel: Channel[Any],
        live: Any,
        proposal: Proposal[Any],
        evidence: Evidence,
        budget: Budget,
        seed: int,
    ) -> Verdict:
        """``live`` is the channel's state now. A bad proposal is a rejection with its reason, never an exception."""
        ...


class LoopObserver(Protocol):
    """Told where the loop stands; the live view and the tests listen. Must not change anything."""

    def step(self, round: int, step: str) -> None:
        """Called as each of the seven steps begins: read, roll out, grade, allocate, propose, judge, commit."""
        ...

    def committed(self, round: int, metrics: Mapping[str, float], snapshot: Snapshot) -> None: ...


def delta_base_matches(delta: Delta, base_hash: str) -> bool:
    """Whether a delta was trained on these base weights; it means nothing on others."""
    return delta.base == base_hash

"""The neural memory channel: what was answered rightly in a round is written into a memory beside the frozen model,
which reads it at every later token.

Source: Behrouz, Zhong and Mirrokni, "Titans" (arXiv:2501.00663), for the rule that a memory is written with; how it
stands beside a model that was trained without one is in :mod:`twoclock.nn.retrofit`. No weight changes. A write gives a
new memory and leaves the old one as it was, so rolling back is to keep it, to the bit; a fork is the value itself. The
size of a memory does not depend on how much was written.

Each task has its memory, or all share one; a user may have their own, forked from the task's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from twoclock.contracts import Interactive, Memorizing, Workbench
from twoclock.errors import ConfigError, DataError, NumericsError, unknown_name
from twoclock.fast.neural_memory.config import RANDOM, NeuralMemoryConfig
from twoclock.fast.neural_memory.state import NeuralMemoryState, Reader, dump_state, load_state
from twoclock.nn.neural_memory_spec import MemorySpec
from twoclock.nn.retrofit import MEMORY, Retrofit, RetrofitSpec, init_retrofit
from twoclock.nn.soft_memory import KIND, SoftMemory, load_retrofit, soft_state
from twoclock.types import (
    Budget,
    Conditioning,
    Cost,
    Declined,
    Evidence,
    Group,
    Lesson,
    PolicyCard,
    Proposal,
    SoftState,
    Timescale,
    Write,
)

__all__ = ["NeuralMemoryChannel"]

Text = tuple[str, str]
NO_RETROFIT = (
    "no memory to write into: [channels.neural_memory] retrofit names no file; train one for this model with "
    'twoclock.models.retrofit.training, or set retrofit = "random", the untrained control'
)


class NeuralMemoryChannel:
    """See the module."""

    name = "neural_memory"
    timescale = Timescale.FAST

    def __init__(self, config: NeuralMemoryConfig | None = None) -> None:
        self.config = config or NeuralMemoryConfig()
        self._opened: dict[str, Retrofit] = {}

    # ------------------------------------------------------------------------------------------------- the contract

    def init(self, card: PolicyCard, seed: int) -> NeuralMemoryState:
        return NeuralMemoryState(card.base_hash, seed)

    def condition(self, state: NeuralMemoryState, task: str, user: str = "") -> Conditioning:
        """A user with a memory of their own on the task reads that; everyone else the task's."""
        own = state.memory(Reader(self._key(task), user)) if user else None
        memory = own or state.memory(Reader(self._key(task)))
        return Conditioning() if memory is None else Conditioning(soft=soft_state(memory))

    def dump(self, state: NeuralMemoryState) -> bytes:
        return dump_state(state)

    def load(self, blob: bytes) -> NeuralMemoryState:
        """Raises StoreError for other bytes, and for memories written with another retrofit than is configured."""
        return load_state(blob, self._retrofit)

    def propose(
        self, bench: Workbench, state: NeuralMemoryState, evidence: Evidence, budget: Budget, seed: int
    ) -> Proposal[NeuralMemoryState] | Declined:
        """The round's right answers, written; or a reason why nothing is. Samples nothing."""

        def declined(reason: str) -> Declined:
            return Declined(channel=self.name, reason=reason)

        if not evidence.rollouts:
            return declined("no evidence: there are no rollouts to learn from")
        if not self.config.retrofit:
            return declined(NO_RETROFIT)
        if not bench.card.trainable:
            return declined(f"the policy {bench.card.name} reads no memory beside it: it is behind an endpoint")
        policy = bench.trainable()
        if not isinstance(policy, Memorizing):
            return declined(f"the policy {bench.card.name} reads no memory beside it")
        texts = [text for group in evidence.groups if (text := self._text(bench, group)) is not None]
        if not texts:
            return declined("nothing to write: every question was answered rightly, or by nobody and without reference")
        texts, tokens = _affordable(policy, texts[: self.config.max_texts], budget.tokens)
        if not texts:
            return declined(f"the budget of {budget.tokens} tokens is too small to write one text")
        try:
            after = self.written(policy, state, texts, evidence.task)
        except NumericsError as error:
            return declined(f"what would be written is no number: {error}")
        reader = Reader(self._key(evidence.task))
        memory = after.memory(reader)
        assert memory is not None
        where = f"task '{evidence.task}'" if self.config.scope == "task" else "every task"
        return (
            Proposal(
                channel=self.name,
                state=after,
                cause=f"{len(texts)} of {len(evidence.groups)} questions were not answered rightly by every rollout",
                cost=Cost(trained_tokens=tokens),
                writes=tuple(Write(text=_shown(text), kind="memory", lesson=reader.id) for text in texts),
                metrics={
                    "texts": float(len(texts)),
                    "texts_before": float(state.texts(reader)),
                    "memory_bytes": float(memory.bytes),
                    "memory_norm": _norm(memory),
                },
            )
            if after != state
            else declined(f"the memory of {where} is as it was: nothing in the texts was new to it")
        )

    # ---------------------------------------------------------------------------------------------- readers and writers

    def written(
        self, policy: Memorizing, state: NeuralMemoryState, texts: Sequence[str | Text], task: str, user: str = ""
    ) -> NeuralMemoryState:
        """The state after texts, or (question, answer) turns, were written for a task or for a user on it; a user's
        first write forks the task's memory. Raises NumericsError before NaN gets in, ConfigError without a retrofit."""
        reader = Reader(self._key(task), user)
        if user and state.memory(reader) is None:
            state = self.forked(state, task, user)
        memory = state.memory(reader) or SoftMemory.start(self._made(policy, state))
        soft = policy.memorized(SoftState(memory.id, KIND, state.base, memory), list(texts))
        return state.with_memory(reader, soft.payload, state.texts(reader) + len(texts))

    def forked(self, state: NeuralMemoryState, task: str, user: str) -> NeuralMemoryState:
        """The state in which the user has the task's memory as their own, whatever they had before; the value itself,
        no copy. Where the task has none, they have none."""
        if not user:
            raise ConfigError("a fork is for a user: give the user's name, such as user = 'ann'")
        shared = Reader(self._key(task))
        return state.with_memory(Reader(self._key(task), user), state.memory(shared), state.texts(shared))

    # ------------------------------------------------------------------------------------------------------- lessons

    def lessons(self, state: NeuralMemoryState) -> tuple[Lesson, ...]:
        """A memory is one lesson: what was written into it lies on top of one another, and comes out as a whole."""
        return tuple(
            Lesson(
                id=reader.id,
                channel=self.name,
                text=f"a memory of {texts} texts, {memory.tokens} tokens, in {memory.bytes:,} bytes",
                tasks=(reader.task,),
                live=True,
                says=None if reader.user else Conditioning(soft=soft_state(memory)),
            )
            for reader, memory, texts in state.memories
        )

    def without(self, state: NeuralMemoryState, lessons: Collection[str]) -> NeuralMemoryState:
        """These readers with nothing written."""
        known = {reader.id: reader for reader, _, _ in state.memories}
        if unknown := [unknown_name("memory", name, known) for name in lessons if name not in known]:
            raise ConfigError(unknown)
        for name in lessons:
            state = state.with_memory(known[name], None, 0)
        return state

    # ------------------------------------------------------------------------------------------------------ its parts

    def _key(self, task: str) -> str:
        return task if self.config.scope == "task" else "*"

    def _text(self, bench: Workbench, group: Group) -> Text | None:
        """The question with a right answer, where not every rollout had one: a rewarded one's, else the reference."""
        right = [r for r in group.rollouts if r.reward >= self.config.success]
        if len(right) == len(group.rollouts):
            return None
        for rollout in right:
            text = rollout.completion.text
            answer = bench.task.answer_of(text) if isinstance(bench.task, Interactive) else text
            if answer.strip():
                return group.item.prompt, answer
        if self.config.gold and group.item.reference is not None:
            return group.item.prompt, group.item.reference
        return None

    def _made(self, policy: Memorizing, state: NeuralMemoryState) -> Retrofit:
        """The retrofit for this policy, for a memory in which nothing was written yet."""
        if state.memories:
            return state.memories[0][1].retrofit
        width, count = policy.memory_shape()
        config = self.config
        spec = RetrofitSpec(
            base=state.base,
            width=width,
            layers=config.layers or (2 * count // 3,),
            memory=MemorySpec(**{**MEMORY, "heads": config.heads, "width": config.width}),
        )
        return self._retrofit(state.base, state.seed, spec)

    def _retrofit(self, base: str, seed: int, spec: RetrofitSpec) -> Retrofit:
        """What is configured: opened once, or, where it is random, made of this spec and seed."""
        source = self.config.retrofit
        if not source:
            raise ConfigError(NO_RETROFIT)
        key = f"{base} {seed} {spec}" if source == RANDOM else base
        if key not in self._opened:
            if source == RANDOM:
                self._opened[key] = init_retrofit(spec, seed, gate=self.config.gate)
            else:
                path = Path(self.config.base_dir) / Path(source).expanduser()
                try:
                    blob = path.read_bytes()
                except OSError as error:
                    raise DataError(f"the retrofit {path} cannot be read: {error.strerror or error}") from error
                self._opened[key] = load_retrofit(blob, base)
        return self._opened[key]


def _affordable(policy: Memorizing, texts: Sequence[Text], limit: int | None) -> tuple[list[Text], int]:
    """The first texts that fit into the budget, and their tokens."""
    kept: list[Text] = []
    tokens = 0
    for text in texts:
        count = policy.text_tokens(text)
        if limit is not None and tokens + count > limit:
            break
        kept.append(text)
        tokens += count
    return kept, tokens


def _shown(text: Text, limit: int = 200) -> str:
    question, answer = (" ".join(part.split()) for part in text)
    question = question if len(question) <= limit else question[:limit] + "…"
    return f"{question} → {answer if len(answer) <= limit else answer[:limit] + '…'}"


def _norm(memory: SoftMemory) -> float:
    """The largest norm of a layer's weights: what must not grow from round to round."""
    return max(float(w.norm()) for state in memory.heard for w in state.weights)

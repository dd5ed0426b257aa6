"""The experts channel: experts of a library, mixed into the weights task by task, for that task's rollouts alone.

Source: Transformer² (arXiv:2501.06252), section 3.2, whose second pass answers under experts that a first chose. Its
three ways to choose are here, one a configuration: by asking the model, by asking a classifier expert, by a search
over amounts on a few items (:mod:`.search`). What is chosen is a state: tried, kept, undone and told like any other.

Where this departs from the paper and its code: the offset z − 1 that was trained is what is mixed, so that amounts of 0
are the base; the search sees training items alone, what it finds must beat what is deployed on further ones, and the
gate judges on trial items: nothing is selected on what is reported. Candidates are rows of one batch under common
random numbers. The search starts with what is deployed, the base and each expert alone among its candidates, as many
as its population has room for. Ties go to the mixture nearest to the base. A question is asked about once, and the task
gets what most of its questions are.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields

from twoclock.contracts import Workbench
from twoclock.errors import BudgetError, ConfigError, NumericsError, StoreError, UnsupportedError, unknown_name
from twoclock.fast.experts.asking import asked, named, winner
from twoclock.fast.experts.config import ExpertsConfig
from twoclock.fast.experts.mixer import Library, Mixer
from twoclock.fast.experts.search import Found, MixtureSearch
from twoclock.fast.experts.state import ExpertsState, Mixture, dump_state, load_state
from twoclock.seeding import child_seed
from twoclock.types import (
    Budget,
    Conditioning,
    Cost,
    Declined,
    Evidence,
    Lesson,
    PolicyCard,
    Proposal,
    Timescale,
    Write,
)

__all__ = ["ExpertsChannel"]

LABEL_TOKENS = 12


class ExpertsChannel:
    """See the module."""

    name = "experts"
    timescale = Timescale.FAST

    def __init__(self, config: ExpertsConfig | None = None, library: Library | None = None) -> None:
        self.config = config or ExpertsConfig()
        self._library = library
        self._kinds = dict(library.kinds) if library else {}
        wanted = [*self.config.experts, *([self.config.classifier] if self.config.classifier else [])]
        if unknown := [unknown_name("expert", name, self._kinds) for name in wanted if name not in self._kinds]:
            raise ConfigError(unknown if library else ["experts are named but no library: set library to its folder"])
        names = self.config.experts or [name for name in self._kinds if name != self.config.classifier]
        self.names: tuple[str, ...] = tuple(sorted(names))
        """The experts that may be mixed in."""
        self._mixer = Mixer(library, self.names, self.config.library)

    # ------------------------------------------------------------------------------------------------- the contract

    def init(self, card: PolicyCard, seed: int) -> ExpertsState:
        """Raises UnsupportedError where the library's experts were trained on other weights than this policy's."""
        if self._library is not None and card.trainable:
            self._library.require_base(card.base_hash)
        return ExpertsState(card.base_hash)

    def condition(self, state: ExpertsState, task: str) -> Conditioning:
        """Raises StoreError where an expert is no longer what it was when it was deployed."""
        mixture = state.mixture(self._key(task))
        self._mixer.require_known(state, mixture)
        return Conditioning(mixture=self._mixer.change(mixture))

    def alternatives(self, state: ExpertsState, task: str, count: int, seed: int) -> tuple[Conditioning, ...]:
        """What is deployed, then the base and each expert alone. ``seed`` is not needed."""
        if count < 1:
            raise ValueError(f"count = {count}: expected at least 1")
        found = {c.id: c for c in [self.condition(state, task)]}
        for some in [{}, *({name: (1.0,)} for name in self.names)] if count > 1 else []:
            other = Conditioning(mixture=self._mixer.change(Mixture.of("expert", some)))
            found.setdefault(other.id, other)
        return tuple(found.values())[:count]

    def dump(self, state: ExpertsState) -> bytes:
        return dump_state(state)

    def load(self, blob: bytes) -> ExpertsState:
        """Raises StoreError for other bytes, and for an expert that the library does not have."""
        state = load_state(blob)
        if unknown := [name for name, _ in state.known if name not in self._kinds]:
            raise StoreError(
                f"a state of the channel 'experts' deploys {unknown_name('expert', unknown[0], self._kinds)}: the "
                f"library '{self.config.library}' must have every expert that a state deploys"
            )
        return state

    def propose(
        self, bench: Workbench, state: ExpertsState, evidence: Evidence, budget: Budget, seed: int
    ) -> Proposal[ExpertsState] | Declined:
        """One choice of experts, or a reason for none."""
        started = bench.spent

        def declined(reason: str) -> Declined:
            return Declined(channel=self.name, reason=reason, cost=_since(bench, started))

        if reason := self._unfit(bench, state, evidence):
            return declined(reason)
        now = state.mixture(self._key(evidence.task))
        try:
            if self.config.strategy == "cem":
                limit = min((n for n in (budget.rollouts, bench.rollouts_left) if n is not None), default=None)
                found = MixtureSearch(self.config, self._mixer, bench, seed).run(now, limit)
            else:
                found = self._asked(bench, evidence, budget.rollouts, seed)
        except BudgetError as error:
            return declined(f"the budget ended before anything was chosen: {error}")
        except NumericsError as error:
            return declined(str(error))
        mixture = found.mixture
        if mixture is None:
            return declined(found.told)
        if self._mixer.change(mixture) == self._mixer.change(now):
            return declined(f"{mixture} is deployed already: {found.told}")
        key, names = self._key(evidence.task), [name for name, _ in mixture.amounts]
        where = f"task '{evidence.task}'" if self.config.scope == "task" else "every task"
        return Proposal(
            channel=self.name,
            state=state.with_mixture(key, mixture, {name: self._mixer.delta(name).id for name in names}),
            cause=found.told,
            cost=_since(bench, started),
            writes=(Write(text=f"{now} → {mixture} on {where}", kind="mixture", lesson=key),),
            metrics={**found.metrics, "norm": mixture.norm, "experts": float(len(names))},
        )

    # ------------------------------------------------------------------------------------------------------- lessons

    def lessons(self, state: ExpertsState) -> tuple[Lesson, ...]:
        """Each task's mixture is one, by the task's name."""
        return tuple(
            Lesson(
                id=key,
                channel=self.name,
                text=f"experts in the weights: {mixture}",
                tasks=(key,),
                live=True,
                says=self.condition(state, key),
            )
            for key, mixture in state.mixtures
        )

    def without(self, state: ExpertsState, lessons: Collection[str]) -> ExpertsState:
        """These tasks without experts."""
        known = dict(state.mixtures)
        if unknown := [unknown_name("lesson", name, known) for name in lessons if name not in known]:
            raise ConfigError(unknown)
        for key in lessons:
            state = state.with_mixture(key, Mixture.of("expert", {}), {})
        return state

    # ------------------------------------------------------------------------------------------------------- asking

    def _asked(self, bench: Workbench, evidence: Evidence, limit: int | None, seed: int) -> Found:
        """The expert that most of the round's questions are for, at 1; or None and why."""
        left = min((n for n in (limit, bench.rollouts_left) if n is not None), default=self.config.ask_items)
        items = [group.item for group in evidence.groups][: min(left, self.config.ask_items)]
        if not items:
            told = "the budget of 0 rollouts leaves no question to ask about"
            return Found(mixture=None, told=told, metrics={})
        kinds = {name: self._kinds[name] for name in self.names}
        under = None
        if self.config.strategy == "classifier":
            under = Conditioning(mixture=self._mixer.delta(self.config.classifier))
        votes = []
        for item in items:
            answer = bench.write(
                asked(item.prompt, kinds),
                max_new_tokens=LABEL_TOKENS,
                seed=child_seed("experts.ask", seed, item.id),
                under=under,
            )
            votes.append(named(answer.text, self.names))
        choice, counts = winner(votes)
        who = f"the classifier '{self.config.classifier}'" if under else "the model"
        told = f"{who} says of {len(items)} questions: " + ", ".join(f"{n} {name}" for name, n in counts.most_common())
        if choice is None:
            return Found(mixture=None, told=f"no kind is named most often: {told}", metrics={})
        metrics = {"asked": float(len(items)), "share": counts[choice] / len(items)}
        return Found(mixture=Mixture.of("expert", {choice: (1.0,)}), told=told, metrics=metrics)

    # ------------------------------------------------------------------------------------------------------ its parts

    def _unfit(self, bench: Workbench, state: ExpertsState, evidence: Evidence) -> str | None:
        """Why nothing can be chosen now."""
        if not evidence.rollouts:
            return "no evidence: there are no rollouts to learn from"
        if not self.names:
            return "no experts: library names no folder, or it holds none to mix (twoclock experts add RUN --to DIR)"
        if not bench.card.trainable:
            return f"the policy {bench.card.name} has no weights to mix experts into: it is behind an endpoint"
        if bench.card.base_hash != state.base:
            raise UnsupportedError(
                f"this state of 'experts' is for the base weights {state.base[:12]}, but the model is "
                f"{bench.card.base_hash[:12]}; start a run of its own for this model"
            )
        if all(r.reward >= 1.0 for r in evidence.rollouts):
            return f"every one of {len(evidence.rollouts)} rollouts was right: nothing to search for"
        return None

    def _key(self, task: str) -> str:
        return task if self.config.scope == "task" else "*"


def _since(bench: Workbench, started: Cost) -> Cost:
    spent = bench.spent
    return Cost(**{f.name: getattr(spent, f.name) - getattr(started, f.name) for f in fields(Cost)})

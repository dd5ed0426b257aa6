"""Decoding under shifts: several voices read every rollout, and each token is drawn from their sum.

The voices of one model are rows of one batch: row v · R + r is rollout r as voice v reads it, so a step of the base, an
expert and an anti-expert that are changes of one model is one pass over its weights. Every voice has caches of its own,
rows enter, leave and are dropped in all of them together, and no row is padded: each stands behind its own prompt,
rendered by its own model's template. What is guaranteed is what :mod:`twoclock.models.engine` guarantees.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from twoclock.models.engine import STEM_TOKENS, Draft, Mounted, Prompted, shared_prefixes
from twoclock.models.shared_attention import forward
from twoclock.models.steered_cached import CachedStack
from twoclock.models.views import DecodeView, PrefillView, PrefixKV, Shared, Slots
from twoclock.models.voices import Recipe
from twoclock.nn.proxy import Difference, aligned, alphas_at, mixed, normalized, shifted
from twoclock.nn.sampling import sample_tokens, uniforms
from twoclock.types import Delta, Sampling

if TYPE_CHECKING:
    from twoclock.models.local import LocalPolicy

__all__ = ["Job", "combined", "generate_steered"]

Finish = Callable[[list[int]], bool]


@dataclass(frozen=True, eq=False)
class Job:
    """One prompt to be continued once for each seed: as each model reads it, by the model's base hash."""

    recipe: Recipe = field(repr=False)
    prompts: Mapping[str, Prompted]
    seeds: tuple[int, ...]


def combined(recipe: Recipe, weights: Sequence[Recipe], steps: Sequence[int], voices: Sequence[torch.Tensor]) -> Any:
    """The logits [B, V] that are drawn from, float32. ``voices``: [B, S] of each voice of the recipe; ``weights`` and
    ``steps``: whose amounts each row has (of the same shape), and at which token of its answer it is, from 0."""
    device = voices[0].device
    width = len(recipe.maps[0].index)
    parts = [
        (_in_base(recipe, part.voice, voices, width), alphas_at([w.parts[i].weights for w in weights], steps, device))
        for i, part in enumerate(recipe.parts)
    ]
    total = mixed(parts)
    differences = []
    for i, gap in enumerate(recipe.gaps):
        known = recipe.covered(gap).to(device)
        expert, anti = (normalized(_aligned(recipe, voice, voices, width), known) for voice in (gap.expert, gap.anti))
        alpha = alphas_at([w.gaps[i].alphas for w in weights], steps, device)
        differences.append(Difference(expert, anti, alpha, gap.plausible, known))
    return shifted(total, differences) if differences else total


def _in_base(recipe: Recipe, voice: int, voices: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """A voice's raw logits on the base's rows: only voices whose ids agree are parts of the sum."""
    logits = voices[voice]
    if logits.shape[-1] >= width:
        return logits[:, :width]
    return torch.nn.functional.pad(logits.float(), (0, width - logits.shape[-1]), value=float("-inf"))


def _aligned(recipe: Recipe, voice: int, voices: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    known = recipe.maps[voice]
    return (
        _in_base(recipe, voice, voices, width)
        if known.is_same
        else aligned(voices[voice], known.index.to(voices[voice].device))
    )


# ----------------------------------------------------------------------------------------------------------- one model


@dataclass
class _Reader:
    """One rollout as one voice reads it."""

    sequence: Prompted
    prefix: PrefixKV | None = None
    stem: PrefixKV | None = None
    read: int = 0
    """Tokens of the answer."""


class _Stack:
    """The rows of one model under several changes of its weights; see the module."""

    def __init__(self, policy: LocalPolicy, deltas: Sequence[Delta | None], voices: Sequence[int], places: int) -> None:
        self.policy, self.deltas, self.voices = policy, deltas, voices
        self.engine = policy._engine
        self.device = policy.model.device
        self.places = places
        self.logits = torch.zeros(0)
        self._rows: list[_Reader] = []
        self._slots: Slots | None = None
        self._levels: list[list[Shared]] = []
        self._held: Mounted | None = None
        self._lean: Any = None

    def hold(self, open_until: ExitStack) -> None:
        """Keeps the changes mounted: where no other stack needs the model in between."""
        self._held = open_until.enter_context(self.policy._mount_rows(self.deltas))
        self._lean = self.engine.lean.prepare() if self.engine.lean is not None else None

    @contextmanager
    def _mounted(self) -> Iterator[Mounted]:
        if self._held is not None:
            yield self._held
        else:
            with self.policy._mount_rows(self.deltas) as mounted:
                yield mounted

    def of(self, voice: int) -> torch.Tensor:
        """The next-token logits [R, S] of a voice, one row a rollout."""
        at = self.voices.index(voice)
        return self.logits[at * self.places : (at + 1) * self.places]

    def enter(self, entering: Mapping[int, Prompted]) -> None:
        """Reads the prompts of rollouts that take these places, each prompt once a voice."""
        slots: dict[int, list[int]] = {}
        for slot, prompt in entering.items():
            slots.setdefault(id(prompt), []).append(slot)
        prompts = {id(prompt): prompt for prompt in entering.values()}
        with self._mounted() as mounted:
            for part in self._parts([*prompts.values()]):
                self._read(part, [slots[id(p)] for p in part], mounted)
        levels = [row.prefix for row in self._rows], [row.stem for row in self._rows]
        self._levels = [shared_prefixes(level) for level in levels]

    def _parts(self, prompts: Sequence[Prompted]) -> list[list[Prompted]]:
        """What one pass reads: prompts of so many tokens under all the changes."""
        parts: list[list[Prompted]] = []
        size = 0
        for prompt in prompts:
            own = (len(prompt.tokens) - prompt.prefix) * len(self.deltas)
            if not parts or size + own > self.engine.prefill_tokens:
                parts.append([])
                size = 0
            parts[-1].append(prompt)
            size += own
        return parts

    def _read(self, prompts: Sequence[Prompted], slots: Sequence[Sequence[int]], mounted: Mounted) -> None:
        asked = [
            (replace(p, change=c), places)
            for c in range(len(self.deltas))
            for p, places in zip(prompts, slots, strict=True)
        ]
        prefixes = [self.engine.prefix(mounted, p.tokens[: p.prefix], p.change) for p, _ in asked]
        own = [len(p.tokens) - p.prefix for p, _ in asked]
        view = PrefillView(own, [p.prefix for p, _ in asked], shared_prefixes(prefixes), self.device)
        mounted.assign([p.change for (p, _), count in zip(asked, own, strict=True) for _ in range(count)])
        logits = self.engine.read([t for p, _ in asked for t in p.tokens[p.prefix :]], view)
        if self._slots is None:
            rows = self.places * len(self.deltas)
            self._slots = Slots(rows, view)
            self.logits = logits.new_zeros(rows, logits.shape[-1])
            self._rows = [_Reader(asked[0][0]) for _ in range(rows)]
        pairs: list[tuple[int, int, int]] = []
        for made, (prompt, places) in enumerate(asked):
            once = own[made] >= STEM_TOKENS and len(prompt.seeds) > 1
            stem = view.prefix(made) if once else None
            for slot in places:
                row = prompt.change * self.places + slot
                self._rows[row] = _Reader(prompt, prefixes[made], stem)
                pairs.append((row, made, 0 if stem is not None else own[made]))
        at, made_by, lengths = (torch.tensor(column, device=self.device) for column in zip(*pairs, strict=True))
        self._slots.put(at, view, made_by, lengths)
        self.logits[at] = logits[made_by]

    def step(self, tokens: Sequence[Sequence[int]]) -> None:
        """Every voice reads what its rollout's token is in this model's ids; nothing for a rollout that has ended."""
        with self._mounted() as mounted:
            for depth in range(max(len(some) for some in tokens)):
                live = [len(some) > depth for some in tokens]
                self._pass([some[depth] if on else 0 for some, on in zip(tokens, live, strict=True)], live, mounted)

    def _pass(self, tokens: Sequence[int], live: Sequence[bool], mounted: Mounted) -> None:
        """One token a row. A rollout that reads nothing is read along, into a column that nobody sees."""
        assert self._slots is not None
        voices = len(self.deltas)
        ids = torch.tensor([*tokens] * voices, device=self.device)
        at = torch.tensor([len(row.sequence.tokens) + row.read for row in self._rows], device=self.device)
        view = DecodeView(self._slots, self._levels, at)
        mounted.assign([change for change in range(voices) for _ in range(self.places)])
        logits = (
            self._lean(ids, view)
            if self._lean is not None
            else forward(self.policy.model, ids[:, None], at[:, None], view)
        )
        on = torch.tensor([*live] * voices, device=self.device)
        self._slots.lengths += on
        self.logits = logits if all(live) else torch.where(on[:, None], logits, self.logits)
        for row, moved in zip(self._rows, [*live] * voices, strict=True):
            row.read += moved

    def keep(self, rollouts: Sequence[int]) -> None:
        """Only these stay, in this order."""
        assert self._slots is not None
        rows = [change * self.places + r for change in range(len(self.deltas)) for r in rollouts]
        at = torch.tensor(rows, device=self.device)
        self._slots.keep(at)
        self.logits = self.logits[at]
        self._rows = [self._rows[row] for row in rows]
        self.places = len(rollouts)
        levels = [row.prefix for row in self._rows], [row.stem for row in self._rows]
        self._levels = [shared_prefixes(level) for level in levels]

    def room(self, rollout: int) -> int:
        """The tokens that the model can still read of a rollout."""
        row = self._rows[rollout]
        return self.policy.card.context_tokens - len(row.sequence.tokens) - row.read


# ---------------------------------------------------------------------------------------------------------- all of them


@dataclass
class _Rollout:
    job: Job
    draft: Draft
    draws: np.ndarray
    live: bool = True


@torch.no_grad()
def generate_steered(
    jobs: Sequence[Job], ends: frozenset[int], sampling: Sampling, max_rows: int, stopped: Finish | None = None
) -> list[list[Draft]]:
    """One list of drafts a job, one a seed. The recipes must be of one shape."""
    drafts = [[Draft() for _ in job.seeds] for job in jobs]
    first = jobs[0].recipe.voices[0].policy.base_hash

    def place(i: int) -> tuple[tuple[int, ...], int]:
        prompt = jobs[i].prompts[first]
        return prompt.tokens[: prompt.prefix], len(prompt.tokens)

    # Rows with the same prefix side by side, and prompts of like length together, so that little is padding.
    waiting = deque(
        _Rollout(jobs[i], draft, uniforms(seed, sampling.max_new_tokens))
        for i in sorted(range(len(jobs)), key=place)
        for seed, draft in zip(jobs[i].seeds, drafts[i], strict=True)
    )
    if waiting:
        with ExitStack() as held:
            _Steering(jobs[0].recipe, waiting, ends, sampling, max_rows, stopped, held).run()
    return drafts


class _Steering:
    """One call of :func:`generate_steered`."""

    def __init__(
        self,
        recipe: Recipe,
        waiting: deque[_Rollout],
        ends: frozenset[int],
        sampling: Sampling,
        max_rows: int,
        stopped: Finish | None,
        held: ExitStack,
    ) -> None:
        self.recipe, self.waiting, self.ends = recipe, waiting, ends
        self.sampling, self.stopped = sampling, stopped
        groups = _together(recipe)
        widest = max(len(voices) for _, voices in groups)
        self.places = min(max(1, max_rows // widest), len(waiting))
        self.stacks = [
            (_Stack if policy.shared else CachedStack)(
                policy, [recipe.voices[v].delta for v in voices], voices, self.places
            )
            for policy, voices in groups
        ]
        for stack in self.stacks:
            if sum(other.policy is stack.policy for other in self.stacks) == 1:
                stack.hold(held)
        self.rows: list[_Rollout] = []

    def run(self) -> None:
        while True:
            live = sum(row.live for row in self.rows)
            # Entering is a pass of its own and leaving copies the slots, so both wait until they are worth it.
            while self.waiting and (not live or 8 * (self.places - live) >= self.places):
                self._draw(self._admit())
                live = sum(row.live for row in self.rows)
            if not live:
                return
            if not self.waiting and 4 * live <= 3 * len(self.rows):
                self._drop()
            self._step()
            self._draw(range(len(self.rows)))

    def _admit(self) -> list[int]:
        free = [i for i, row in enumerate(self.rows) if not row.live]
        free += range(len(self.rows), self.places)
        entering = {slot: self.waiting.popleft() for slot in free[: len(self.waiting)]}
        for stack in self.stacks:
            stack.enter({slot: row.job.prompts[stack.policy.base_hash] for slot, row in entering.items()})
        for slot, row in entering.items():
            self.rows[slot : slot + 1] = [row]
        return [*entering]

    def _draw(self, slots: Sequence[int]) -> None:
        """One token for each of these rows, written to the drafts of the live ones."""
        rows, sampling = [self.rows[slot] for slot in slots], self.sampling
        voices = [self._of(voice)[: len(self.rows)] for voice in range(len(self.recipe.voices))]
        if len(rows) < len(self.rows):
            voices = [logits[torch.tensor([*slots], device=logits.device)] for logits in voices]
        first = voices[0].device
        steps = [min(len(row.draft.tokens), sampling.max_new_tokens - 1) for row in rows]
        logits = combined(self.recipe, [r.job.recipe for r in rows], steps, [v.to(first) for v in voices])
        draws = torch.tensor(
            [r.draws[s] if r.live else 0.0 for r, s in zip(rows, steps, strict=True)], dtype=torch.float64
        )
        drawn, logprobs = sample_tokens(logits, draws.to(first), sampling.temperature, sampling.top_k, sampling.top_p)
        for row, token, logprob in zip(rows, drawn.tolist(), logprobs.tolist(), strict=True):
            if not row.live:
                continue
            if not math.isfinite(logprob):
                row.draft.finish, row.live = "error", False
                continue
            row.draft.tokens.append(token)
            row.draft.logprobs.append(logprob)
            if token in self.ends or (self.stopped is not None and self.stopped(row.draft.tokens)):
                row.draft.finish, row.live = "stop", False
            elif len(row.draft.tokens) == sampling.max_new_tokens:
                row.live = False

    def _of(self, voice: int) -> torch.Tensor:
        return next(stack for stack in self.stacks if voice in stack.voices).of(voice)

    def _step(self) -> None:
        """Reads the token that each row drew, in every model's own ids. A row that a model has no room for ends."""
        for stack in self.stacks:
            known = self.recipe.maps[stack.voices[0]]
            own = stack.policy is self.recipe.policy
            tokens = [(row.draft.tokens[-1],) if own else known.read(row.draft.tokens[-1]) for row in self.rows]
            for i, row in enumerate(self.rows):
                if row.live and len(tokens[i]) > stack.room(i):
                    row.live = False
            stack.step([some if row.live else () for some, row in zip(tokens, self.rows, strict=True)])

    def _drop(self) -> None:
        live = [i for i, row in enumerate(self.rows) if row.live]
        for stack in self.stacks:
            stack.keep(live)
        self.rows = [self.rows[i] for i in live]


def _together(recipe: Recipe) -> list[tuple[LocalPolicy, list[int]]]:
    """The voices of each model that can stand in one batch; those that cannot stand alone."""
    shared: dict[str, list[int]] = {}
    alone: list[list[int]] = []
    for i, voice in enumerate(recipe.voices):
        if voice.policy.shared and voice.policy._has_rows(voice.delta):
            shared.setdefault(voice.policy.base_hash, []).append(i)
        else:
            alone.append([i])
    return [(recipe.voices[some[0]].policy, some) for some in [*shared.values(), *alone]]

"""The rollout engine: many rows at once, each prefix read once, an ended row's place given to the next.

What is guaranteed. A rollout's randomness is its own (a stream keyed by its seed), and what it conditions on is a
function of (weights, tokens), so in exact arithmetic a rollout does not depend on what it was batched with. In float32
the tests hold that token for token against the unbatched reference. In bf16 a matrix product may round differently with
the number of rows, and attention scores are rounded to bf16, so two batchings may part where two tokens are nearly as
likely; the log-probabilities that are returned are those of the distribution that was drawn from. The same call on the
same machine with the same number of threads gives the same bits.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from twoclock.models.lean import LeanDecoder
from twoclock.models.shared_attention import forward
from twoclock.models.views import DecodeView, PrefillView, PrefixKV, Shared, Slots
from twoclock.nn.rowwise import Rows
from twoclock.nn.sampling import sample_tokens, uniforms
from twoclock.types import Sampling

__all__ = ["STEM_TOKENS", "Draft", "Engine", "Mounted", "Prompted", "shared_prefixes"]

Finish = Callable[[list[int]], bool]

STEM_TOKENS = 64
"""From so many own tokens on, a prompt that is continued more than once is kept once, not once a row."""


@dataclass(frozen=True)
class Prompted:
    """One prompt to be continued once for each seed. The first ``prefix`` tokens are shared with other prompts."""

    tokens: tuple[int, ...]
    prefix: int
    seeds: tuple[int, ...]
    change: int = 0
    """Which of the mounted changes it is under; see :class:`Mounted`."""


@dataclass(frozen=True)
class Mounted:
    """What is mounted for the length of a call: the name of each change, by its number, and ``rows``, by which a pass's
    rows are assigned to them; None: one change, on all rows."""

    names: tuple[str, ...]
    rows: Rows | None = None

    def assign(self, changes: int | Sequence[int]) -> None:
        """The change of all rows of the next pass, or of each."""
        if self.rows is not None:
            self.rows.assign(changes)


@dataclass
class Draft:
    """A rollout in the making."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = "length"
    """``stop``, ``length``, or ``error`` where the model's logits are no numbers."""


@dataclass
class _Row:
    """A rollout that waits or is being decoded."""

    sequence: Prompted
    draft: Draft
    draws: np.ndarray
    prefix: PrefixKV | None = None
    stem: PrefixKV | None = None
    live: bool = True

    @property
    def own(self) -> int:
        """The prompt's tokens behind its prefix."""
        return len(self.sequence.tokens) - self.sequence.prefix

    @property
    def has_stem(self) -> bool:
        """Whether the prompt's own tokens are kept once for all its rows, instead of in their slots."""
        return self.own >= STEM_TOKENS and len(self.sequence.seeds) > 1

    @property
    def position(self) -> int:
        """The place of the last drawn token in the sequence."""
        return len(self.sequence.tokens) + len(self.draft.tokens) - 1


class Engine:
    """Generates with one model. Keeps the prefixes of the weights it was last asked for, up to ``prefix_tokens``.

    ``max_rows`` rows are decoded at once; ``prefill_tokens`` bounds the tokens that one pass over prompts reads.
    """

    def __init__(
        self,
        model: Any,
        ends: frozenset[int],
        *,
        max_rows: int = 64,
        prefix_tokens: int = 8192,
        prefill_tokens: int = 2048,
    ) -> None:
        self.model = model
        self.ends = ends
        self.max_rows = max_rows
        self.prefix_tokens = prefix_tokens
        self.prefill_tokens = prefill_tokens
        self.lean: LeanDecoder | None = None
        """Decodes instead of the model's own forward pass, where it can."""
        self._prefixes: OrderedDict[tuple[str, tuple[int, ...]], PrefixKV] = OrderedDict()

    @torch.no_grad()
    def prefix(self, weights: str | Mounted, tokens: tuple[int, ...], change: int = 0) -> PrefixKV | None:
        """The keys and values of a prefix under one of the changes now mounted; from the cache if there.

        Always computed alone and whole, so that its bits do not depend on what was cached before.
        """
        if not tokens:
            return None
        mounted = _mounted(weights)
        key = (mounted.names[change], tokens)
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
            return self._prefixes[key]
        view = PrefillView([len(tokens)], [0], (), self.model.device)
        view.logit_rows = torch.zeros(0, dtype=torch.long, device=self.model.device)
        mounted.assign(change)
        self.read(tokens, view)
        made = view.prefix(0)
        # Another version of the weights is gone for good: its prefixes would only hold memory.
        for old in [k for k in self._prefixes if k[0] not in ("", *mounted.names)]:
            del self._prefixes[old]
        self._prefixes[key] = made
        while sum(len(k[1]) for k in self._prefixes) > self.prefix_tokens and len(self._prefixes) > 1:
            self._prefixes.popitem(last=False)
        return made

    @torch.no_grad()
    def generate(
        self, weights: str | Mounted, sequences: Sequence[Prompted], sampling: Sampling, stopped: Finish | None = None
    ) -> list[list[Draft]]:
        """One list of drafts a sequence, one a seed. ``weights``: what is mounted, or its name where it is one change
        for all. ``stopped`` says whether the tokens so far end the text."""
        mounted = _mounted(weights)
        drafts = [[Draft() for _ in s.seeds] for s in sequences]

        def place(sequence: Prompted) -> tuple[int, tuple[int, ...], int]:
            return sequence.change, sequence.tokens[: sequence.prefix], len(sequence.tokens)

        # Rows with the same prefix side by side, and prompts of like length together, so that little is padding.
        order = sorted(range(len(sequences)), key=lambda i: place(sequences[i]))
        waiting = deque(
            _Row(sequences[i], draft, uniforms(seed, sampling.max_new_tokens))
            for i in order
            for seed, draft in zip(sequences[i].seeds, drafts[i], strict=True)
        )
        if waiting:
            _Decoding(self, mounted, waiting, sampling, stopped).run()
        return drafts

    def read(self, ids: Sequence[int], view: PrefillView) -> torch.Tensor:
        """The logits that ``view`` asks for, after a pass over the packed row of tokens ``ids``."""
        tokens = torch.tensor([ids], device=self.model.device)
        return forward(self.model, tokens, view.positions[None], view)


class _Decoding:
    """One call of :meth:`Engine.generate`: rows enter as places fall free, take a step together, and leave.

    ``rows[r]`` is the rollout in slot r, and its next token will be drawn from ``logits[r]``.
    """

    def __init__(
        self, engine: Engine, mounted: Mounted, waiting: deque[_Row], sampling: Sampling, stopped: Finish | None
    ) -> None:
        self.engine, self.mounted, self.waiting = engine, mounted, waiting
        self.sampling, self.stopped = sampling, stopped
        self.device = engine.model.device
        self.places = min(engine.max_rows, len(waiting))
        self.rows: list[_Row] = []
        self.slots: Slots | None = None
        self.levels: list[list[Shared]] = []
        self.logits = torch.zeros(0)
        self._lean = engine.lean.prepare() if engine.lean is not None else None
        self._last: tuple[Prompted, PrefillView, int, torch.Tensor] | None = None

    def run(self) -> None:
        tokens = torch.zeros(self.places, dtype=torch.long, device=self.device)
        while True:
            live = sum(row.live for row in self.rows)
            # Entering is a pass of its own and leaving copies the slots, so both wait until they are worth it.
            while self.waiting and (not live or 8 * (self.places - live) >= self.places):
                # New rows draw as they enter, so that they take the next step with the others.
                tokens = self._draw(self._admit(), tokens)
                live = sum(row.live for row in self.rows)
            if not live:
                return
            if not self.waiting and 4 * live <= 3 * len(self.rows):
                tokens = self._drop(tokens)
            self._step(tokens)
            tokens = self._draw(range(len(self.rows)), tokens)

    def _draw(self, slots: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
        """``tokens`` [R] with one drawn for each of these rows, written to the drafts of the live ones."""
        rows, sampling = [self.rows[slot] for slot in slots], self.sampling
        draws = torch.tensor([r.draws[len(r.draft.tokens)] if r.live else 0.0 for r in rows], dtype=torch.float64)
        at = torch.tensor([*slots], device=self.device)
        logits = self.logits if len(rows) == len(self.rows) else self.logits[at]
        drawn, logprobs = sample_tokens(
            logits, draws.to(self.device), sampling.temperature, sampling.top_k, sampling.top_p
        )
        for row, token, logprob in zip(rows, drawn.tolist(), logprobs.tolist(), strict=True):
            if not row.live:
                continue
            if not math.isfinite(logprob):
                row.draft.finish, row.live = "error", False
                continue
            row.draft.tokens.append(token)
            row.draft.logprobs.append(logprob)
            if token in self.engine.ends or (self.stopped is not None and self.stopped(row.draft.tokens)):
                row.draft.finish, row.live = "stop", False
            elif len(row.draft.tokens) == sampling.max_new_tokens:
                row.live = False
        return tokens.index_copy(0, at, drawn)

    def _step(self, tokens: torch.Tensor) -> None:
        """Reads the token that each row drew. A row that has ended is read along, into a column that nobody sees."""
        assert self.slots is not None
        live = torch.tensor([row.live for row in self.rows], device=self.device)
        at = torch.tensor([row.position for row in self.rows], device=self.device)
        view = DecodeView(self.slots, self.levels, at)
        self.mounted.assign([row.sequence.change for row in self.rows])
        if self._lean is not None:
            self.logits = self._lean(tokens, view)
        else:
            self.logits = forward(self.engine.model, tokens[:, None], at[:, None], view)
        self.slots.lengths += live

    def _drop(self, tokens: torch.Tensor) -> torch.Tensor:
        """Only the live rows stay."""
        assert self.slots is not None
        keep = torch.tensor([i for i, row in enumerate(self.rows) if row.live], device=self.device)
        self.slots.keep(keep)
        self.rows = [row for row in self.rows if row.live]
        self.levels = _levels(self.rows)
        return tokens[keep]

    def _admit(self) -> list[int]:
        """Gives free slots to waiting rows and reads their prompts, each once; the slots that were taken."""
        free = [i for i, row in enumerate(self.rows) if not row.live]
        free += range(len(self.rows), self.places)
        entering = {slot: self.waiting.popleft() for slot in free[: len(self.waiting)]}
        by_prompt: dict[int, list[int]] = {}
        for slot, row in entering.items():
            by_prompt.setdefault(id(row.sequence), []).append(slot)
        prompts = {id(row.sequence): row.sequence for row in entering.values()}
        if self._last is not None and id(self._last[0]) in prompts:
            sequence, view, index, logits = self._last
            self._enter(entering, {index: by_prompt[id(sequence)]}, view, logits)
            del prompts[id(sequence)]
        for part in self._parts([*prompts.values()]):
            view, logits = self._read(part)
            self._enter(entering, {i: by_prompt[id(s)] for i, s in enumerate(part)}, view, logits)
            # The last prompt may have rows that still wait: they need not read it again.
            self._last = (part[-1], view, len(part) - 1, logits)
        for slot, row in entering.items():
            self.rows[slot : slot + 1] = [row]
        if not self.waiting:
            self._last = None
        self.levels = _levels(self.rows)
        return [*entering]

    def _parts(self, prompts: list[Prompted]) -> list[list[Prompted]]:
        """Prompts that one pass reads, in order."""
        parts: list[list[Prompted]] = []
        size = 0
        for prompt in prompts:
            own = len(prompt.tokens) - prompt.prefix
            if not parts or size + own > self.engine.prefill_tokens:
                parts.append([])
                size = 0
            parts[-1].append(prompt)
            size += own
        return parts

    def _read(self, prompts: list[Prompted]) -> tuple[PrefillView, torch.Tensor]:
        """One pass over what each prompt adds to its prefix, and the logits [n, V] after its last token."""
        prefixes = [self.engine.prefix(self.mounted, p.tokens[: p.prefix], p.change) for p in prompts]
        own = [len(p.tokens) - p.prefix for p in prompts]
        view = PrefillView(own, [p.prefix for p in prompts], shared_prefixes(prefixes), self.device)
        self.mounted.assign([p.change for p, count in zip(prompts, own, strict=True) for _ in range(count)])
        return view, self.engine.read([t for p in prompts for t in p.tokens[p.prefix :]], view)

    def _enter(
        self, entering: dict[int, _Row], slots: dict[int, list[int]], view: PrefillView, logits: torch.Tensor
    ) -> None:
        """Hands what the prompt in row i of ``view`` brought to the rows that enter ``slots[i]``."""
        if self.slots is None:
            self.slots = Slots(self.places, view)
            self.logits = logits.new_zeros(self.places, logits.shape[-1])
        for i, some in slots.items():
            sequence = entering[some[0]].sequence
            prefix = self.engine.prefix(self.mounted, sequence.tokens[: sequence.prefix], sequence.change)
            stem = view.prefix(i) if entering[some[0]].has_stem else None
            for slot in some:
                entering[slot].prefix, entering[slot].stem = prefix, stem
        pairs = [(slot, i) for i, some in slots.items() for slot in some]
        at = torch.tensor([slot for slot, _ in pairs], device=self.device)
        made = torch.tensor([i for _, i in pairs], device=self.device)
        own = [0 if entering[slot].has_stem else entering[slot].own for slot, _ in pairs]
        self.slots.put(at, view, made, torch.tensor(own, device=self.device))
        self.logits[at] = logits[made]


def _mounted(weights: str | Mounted) -> Mounted:
    return Mounted((weights,)) if isinstance(weights, str) else weights


def _levels(rows: Sequence[_Row]) -> list[list[Shared]]:
    return [shared_prefixes([row.prefix for row in rows]), shared_prefixes([row.stem for row in rows])]


def shared_prefixes(prefixes: Sequence[PrefixKV | None]) -> list[Shared]:
    """Which rows stand behind the same prefix: a slice where they stand side by side, which costs no copy."""
    members: dict[int, list[int]] = {}
    for row, prefix in enumerate(prefixes):
        if prefix is not None:
            members.setdefault(id(prefix), []).append(row)
    found = []
    for rows in members.values():
        prefix = prefixes[rows[0]]
        assert prefix is not None
        together = rows[-1] - rows[0] + 1 == len(rows)
        found.append(Shared(slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows), prefix))
    return found

"""A world of two tokens, small enough to be enumerated, with the real loop, channels and store around it.

A completion is a format and an answer, such as ``f3 a1``; both must be right. The base prefers format 0 whatever it is
asked. The task ``first`` wants format 3, which the prompt ``Use format 3.`` brings about; the task ``second`` wants
format 0, which needs no prompt. Where ``apart``, the two ask about different inputs, so that weights can tell them
apart; else they ask the same, and weights that have absorbed the first task's prompt are wrong on the second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from twoclock.allocate import GateConfig, gate_for
from twoclock.consolidation import Consolidation, ConsolidationSettings
from twoclock.contracts import Channel
from twoclock.evaluation import EvaluationSettings, conditioning_of
from twoclock.fast import build_fast
from twoclock.fast.prompts.state import EMPTY, Candidate, Pool, PromptsState
from twoclock.gathering import RolloutSettings
from twoclock.hashing import content_hash
from twoclock.loop import Loop
from twoclock.memory.records import Entry, Scope
from twoclock.models.mounting import Mounting
from twoclock.nn.sampling import sample_tokens, uniforms
from twoclock.slow import build_slow
from twoclock.store import RunStore
from twoclock.tasks import Stream
from twoclock.types import Completion, Conditioning, Delta, Evidence, Grade, Item, Plan, PolicyCard, Request, Sampling

FORMATS, ANSWERS, INPUTS = 6, 4, 8
SAMPLING = Sampling(max_new_tokens=2)
LESSON, FALSE_LESSON, IDLE_LESSON = "Use format 3.", "Use format 4.", "Think well of rivers."
SIZES: Mapping[str, int] = {"train": 96, "trial": 96, "heldout": 16}
MEASURE = EvaluationSettings(heldout_items=8, drift_every=0, drift_prompts=4, drift_tokens=2)
SETTINGS = ConsolidationSettings(
    rounds=40,
    samples=2,
    anchors=16,
    general_anchors=0,
    trial_items=96,
    trial_samples=1,
    sentinel_items=96,
    margin=0.1,
    drift=20.0,
    min_age=2,
    horizon=2,
    lasting=0.3,
)


_INPUT = re.compile(r"input (\d+)")
_FORMAT = re.compile(r"Use format (\d+)\.")


class TwoTokenTask:
    """``want`` is the right format; the right answer of input i is i mod ANSWERS."""

    def __init__(self, name: str, want: int, inputs: Sequence[int]) -> None:
        self.name, self.want = name, want
        self.description = "Write the right format and the right answer."
        self._splits = {
            split: tuple(
                Item(id=f"{name}-{split}-{n}", prompt=f"{split} {n}: what of input {inputs[n % len(inputs)]}?")
                for n in range(count)
            )
            for split, count in SIZES.items()
        }

    def split(self, name: Any) -> tuple[Item, ...]:
        return self._splits[name]

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        right = [f"f{self.want} a{input_of(item.prompt) % ANSWERS}" for item in items]
        return [Grade(reward=float(t == r)) for t, r in zip(texts, right, strict=True)]


@dataclass(frozen=True)
class Stats:
    logprobs: torch.Tensor
    entropy: torch.Tensor
    mask: torch.Tensor


class _Tables(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.formats = torch.nn.Linear(INPUTS, FORMATS, bias=False)
        self.answers = torch.nn.Linear(INPUTS, ANSWERS, bias=False)
        self.formats.weight.data.zero_()[0] = 5.0
        self.answers.weight.data.zero_()
        for i in range(INPUTS):
            self.answers.weight.data[i % ANSWERS, i] = 5.0


class SampledPolicy:
    """A Policy and a Trainable over two tables of logits: log-probabilities of given tokens, and no more."""

    def __init__(self) -> None:
        self.model = _Tables().requires_grad_(False)
        self._linears = {n: m for n, m in self.model.named_modules() if isinstance(m, torch.nn.Linear)}
        self._mounting = Mounting(self.model, self._linears)
        self._card = PolicyCard(name="two tokens", base_hash="two-tokens", trainable=True, context_tokens=4096)

    @property
    def card(self) -> PolicyCard:
        return self._card

    @property
    def base_hash(self) -> str:
        return self._card.base_hash

    def _mount(self, delta: Delta | None) -> AbstractContextManager[None]:
        return self._mounting(delta.payload if delta else None)

    def logits(self, conditioning: Conditioning, change: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the formats [INPUTS, FORMATS] and of the answers [INPUTS, ANSWERS]."""
        eye = torch.eye(INPUTS)
        with self._mount(conditioning.delta) if change is None else self._mounting(change):
            formats, answers = self.model.formats(eye), self.model.answers(eye)
        shift = torch.zeros(FORMATS)
        if found := _FORMAT.search("\n".join([conditioning.system or "", *conditioning.notes])):
            shift[int(found[1])] = 9.0
        return formats + shift, answers

    @torch.no_grad()
    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[tuple[Completion, ...]]:
        if not any(request.seeds for request in requests):
            return [() for _ in requests]
        tables = {r.conditioning.id: r.conditioning for r in requests}
        logits = {key: self.logits(told) for key, told in tables.items()}
        rows = [(request, seed) for request in requests for seed in request.seeds]
        u = torch.tensor([uniforms(seed, 2).tolist() for _, seed in rows], dtype=torch.float64)
        drawn = []
        for part in (0, 1):
            table = torch.stack([logits[r.conditioning.id][part][input_of(r.prompt)] for r, _ in rows])
            some = sample_tokens(table, u[:, part], sampling.temperature, sampling.top_k, sampling.top_p)
            drawn.append([column.tolist() for column in some])
        done = iter(self._completion(request, n, drawn) for n, (request, _) in enumerate(rows))
        return [tuple(next(done) for _ in request.seeds) for request in requests]

    def _completion(self, request: Request, n: int, drawn: Sequence[Sequence[Sequence[float]]]) -> Completion:
        tokens = [int(part[0][n]) for part in drawn]
        return Completion(
            tokens=(tokens[0], tokens[1] + FORMATS),
            logprobs=tuple(part[1][n] for part in drawn),
            text=f"f{tokens[0]} a{tokens[1]}",
            finish="stop",
            prompt_tokens=self.prompt_tokens(request.prompt, request.conditioning),
        )

    def prompt_tokens(self, prompt: str, conditioning: Conditioning) -> int:
        return len(conditioning.told(prompt).split()) + len((conditioning.system or "").split())

    def linear_shapes(self, patterns: Sequence[str]) -> dict[str, tuple[int, int]]:
        return {n: (m.out_features, m.in_features) for n, m in self._linears.items() if n in patterns}

    def parameter_shapes(self, patterns: Sequence[str]) -> dict[str, tuple[int, ...]]:
        return {n: tuple(p.shape) for n, p in self.model.named_parameters()}

    def chunks(self, prompts: Sequence[str], conditioning: Conditioning, completions: Any) -> list[list[int]]:
        return [list(range(len(prompts)))] if prompts else []

    def _logs(self, conditioning: Conditioning, change: Any, temperature: float) -> list[torch.Tensor]:
        """Log-probabilities [INPUTS, tokens] of each part."""
        return [torch.log_softmax(table / temperature, -1) for table in self.logits(conditioning, change)]

    def sequence_stats(
        self,
        prompts: Sequence[str],
        conditioning: Conditioning,
        completions: Any,
        *,
        temperature: float,
        change: Any = None,
    ) -> list[Stats]:
        found, logs = [], self._logs(conditioning, change, temperature)
        for prompt, answers in zip(prompts, completions, strict=True):
            one, two = (part[input_of(prompt)] for part in logs)
            index = torch.tensor(answers)
            chosen = torch.stack([one[index[:, 0]], two[index[:, 1] - FORMATS]], 1)
            entropy = torch.stack([-(part.exp() * part).sum().detach() for part in (one, two)]).expand_as(chosen)
            found.append(Stats(chosen, entropy, torch.ones_like(chosen)))
        return found

    @torch.no_grad()
    def logprobs_under(
        self, prompts: Any, completions: Any, conditionings: Sequence[Conditioning], *, temperature: float = 1.0
    ) -> list[list[list[float]]]:
        some = [[answer] for answer in completions]
        rows = [self.sequence_stats(prompts, c, some, temperature=temperature) for c in conditionings]
        return [[stat.logprobs[0].tolist() for stat in row] for row in rows]

    @torch.no_grad()
    def exact_kl(self, prompts: Any, completions: Any, p: Conditioning, q: Conditioning) -> list[float]:
        if p.id == q.id:
            return [0.0] * len(prompts)
        kl = self._kl(self._logs(p, None, 1.0), self._logs(q, None, 1.0))
        return [float(kl[input_of(prompt)].mean()) for prompt in prompts]

    def _kl(self, p: Sequence[torch.Tensor], q: Sequence[torch.Tensor]) -> torch.Tensor:
        """[INPUTS, 2]."""
        return torch.stack([(a.exp() * (a - b.detach())).sum(-1) for a, b in zip(p, q, strict=True)], 1)

    @torch.no_grad()
    def accuracy(self, conditioning: Conditioning, task: TwoTokenTask) -> float:
        """The exact chance of a right answer, over the inputs that the task asks about."""
        inputs = {input_of(item.prompt) for item in task.split("trial")}
        formats, answers = (torch.softmax(table, -1) for table in self.logits(conditioning))
        return sum(float(formats[i, task.want] * answers[i, i % ANSWERS]) for i in inputs) / len(inputs)


class TwoTokenPolicy(SampledPolicy):
    """The same with the KL over its whole vocabulary."""

    def reverse_kl(
        self,
        prompts: Sequence[str],
        conditioning: Conditioning,
        completions: Any,
        teachers: Sequence[Conditioning],
        *,
        temperature: float,
        change: Any = None,
        forward: float = 0.0,
    ) -> list[torch.Tensor]:
        own = self._logs(conditioning, change, temperature)
        taught = {}
        for teacher in {t.id: t for t in teachers}.values():
            other = self._logs(teacher, None, temperature)
            back = torch.stack([(b.exp() * (b - a)).sum(-1) for a, b in zip(own, other, strict=True)], 1)
            taught[teacher.id] = (1 - forward) * self._kl(own, other) + forward * back
        rows = zip(prompts, completions, teachers, strict=True)
        return [taught[t.id][input_of(p)].expand(len(c), 2) for p, c, t in rows]


class Idle:
    """An allocator under which nobody learns."""

    def plan(self, evidence: Evidence, channels: Any, history: Any) -> Plan:
        return Plan()


@dataclass
class TwoTokenWorld:
    """A run with a prompt for each task that is named, and a slow channel that has learned nothing yet."""

    policy: Any = field(default_factory=TwoTokenPolicy)
    apart: bool = True
    told: Mapping[str, str] = field(default_factory=lambda: {"first": LESSON})
    fast: str = "prompts"
    """``prompts``, or a memory channel: then each text of ``told`` is an entry that is shown on its task."""
    slow: str | None = "lora"
    phases: tuple[tuple[str, int], ...] = (("first", 4), ("second", 2))
    rollouts: RolloutSettings = field(default_factory=lambda: RolloutSettings(items=8, per_item=4, prompts_per_item=2))
    seed: int = 0

    def __post_init__(self) -> None:
        inputs = list(range(INPUTS))
        first, second = (inputs[:4], inputs[4:]) if self.apart else (inputs, inputs)
        self.tasks = {"first": TwoTokenTask("first", 3, first), "second": TwoTokenTask("second", 0, second)}
        options: dict[str, dict[str, Any]] = {
            "lora": {"rank": 8, "learning_rate": 0.1, "targets": ["formats", "answers"]},
            "full": {"learning_rate": 0.2},
        }
        self.channels: dict[str, Channel[Any]] = {self.fast: build_fast(self.fast, {})}
        if self.slow:
            self.channels[self.slow] = build_slow(self.slow, options[self.slow])

    def state(self) -> Any:
        """What the world is told from the start."""
        if self.fast != "prompts":
            channel: Any = self.channels[self.fast]
            empty = channel.init(self.policy.card, 0)
            return channel.with_bank(empty, channel.bank(empty).add(*self._entries().values()))
        state = PromptsState()
        for task, text in self.told.items():
            candidate = Candidate(system=text, origin="instruction")
            state = state.with_pool(task, Pool(candidates=(candidate, EMPTY), deployed=candidate.id))
        return state

    def _entries(self) -> dict[str, Entry]:
        return {
            task: Entry(kind="reflection", key="what of input", text=text, scope=Scope(task=task))
            for task, text in self.told.items()
        }

    def lesson(self, task: str = "first") -> str:
        """The id of what the world is told on a task."""
        if self.fast != "prompts":
            return self._entries()[task].id
        deployed: str = self.state().pool(task).deployed
        return deployed

    @contextmanager
    def run(self, path: Path, rounds: int = 0) -> Iterator[Loop]:
        """A run in ``path``, begun and ``rounds`` rounds on; closed at the end."""
        with RunStore.create(path, config={}) as store:
            loop = self.loop(store)
            loop.begin({self.fast: self.state()})
            loop.run(rounds)
            yield loop

    def loop(self, store: RunStore) -> Loop:
        return Loop(
            store,
            self.policy,
            Stream(list(self.phases), self.tasks),
            self.channels,
            Idle(),
            {name: gate_for(c.timescale, GateConfig()) for name, c in self.channels.items()},
            seed=self.seed,
            sampling=SAMPLING,
            rollouts=self.rollouts,
            evaluation=MEASURE,
        )

    def accuracy(self, loop: Loop, states: Mapping[str, Any], task: str = "first") -> float:
        """What is deployed, exactly."""
        return float(self.policy.accuracy(conditioning_of(self.channels, states, task), self.tasks[task]))


def consolidation(loop: Loop, settings: ConsolidationSettings = SETTINGS, progress: Any = None) -> Consolidation:
    return Consolidation(
        loop.store,
        loop.policy,
        loop.stream,
        loop.channels,
        loop.evaluator,
        sampling=loop.sampling,
        seed=loop.seed,
        settings=settings,
        progress=progress,
    )


def input_of(prompt: str) -> int:
    found = _INPUT.search(prompt)
    return int(found[1]) if found else int(content_hash(prompt)[:8], 16) % INPUTS

"""Trains the projections of a retrofitted memory, and only those: facts are written from a text that is then out of
sight, and asked for.

    loss = - mean log p(answer | question, memory)
           + quiet · mean ‖read‖² / ‖h‖²  on texts of other readers
           + hush · mean ‖read‖² / ‖h‖²  where other readers' questions are answered

The last two keep a memory silent where it has nothing to say; the third, about people that it was never told of. The
base is frozen. A run may be killed at any time and goes on from its last checkpoint to the same numbers.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from twoclock.errors import ConfigError, NumericsError
from twoclock.models.retrofit.data import lesson
from twoclock.models.retrofit.prepared import Batch, Told, answer_logits, batch_of, check_entered, prepare, states_after
from twoclock.nn.neural_memory_state import MemoryState
from twoclock.nn.retrofit import LayerParameters, Retrofit, read_layer
from twoclock.seeding import child_rng

__all__ = ["TrainSettings", "measured", "train_retrofit"]

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a retrofit is trained."""

    steps: int = 400
    lessons: int = 192
    """Texts to learn from; each comes up again with other questions."""
    facts: int = 6
    sentences: int = 4
    """Of each text: what is asked, and what is not."""
    batch: int = 8
    questions: int = 2
    """Asked of each text in a step."""
    learning_rate: float = 1e-3
    warmup: int = 20
    quiet: float = 0.5
    hush: float = 1.0
    """0: a memory may answer what it was never told, and does so over what stands in sight."""
    clip: float = 1.0
    """The gradient's norm."""
    seed: int = 0
    checkpoint_s: float = 30.0

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: expected at least {least}"
            for name, least in (("steps", 1), ("facts", 1), ("sentences", 0), ("batch", 2), ("questions", 1))
            if getattr(self, name) < least
        ]
        if self.lessons < self.batch:
            problems.append(f"lessons = {self.lessons}: expected at least a batch, {self.batch}")
        if self.questions > self.facts:
            problems.append(f"questions = {self.questions}: expected at most one a fact, {self.facts}")
        for name in ("learning_rate", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                problems.append(f"{name} = {getattr(self, name)}: expected a number above 0")
        for name in ("quiet", "hush"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                problems.append(f"{name} = {getattr(self, name)}: expected a number from 0 on")
        if problems:
            raise ConfigError(problems)


def train_retrofit(
    model: Any,
    tokenizer: Any,
    retrofit: Retrofit,
    settings: TrainSettings,
    *,
    checkpoint: Path | None = None,
    start: bool = True,
    progress: Progress | None = None,
) -> tuple[Retrofit, dict[str, Any]]:
    """The trained retrofit, and its history: ``losses`` [step, loss of the answers in nats a token, quiet term, hush
    term] and ``seconds``. ``start``: begin from :func:`measured` projections instead of the random ones that are given.
    Goes on from ``checkpoint`` where it is one of the same run. Raises NumericsError where the loss is NaN or
    infinite."""
    with _frozen(model):
        return _trained(model, tokenizer, retrofit, settings, checkpoint, start, progress or (lambda text: None))


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """While inside, the model's own parameters collect no gradients."""
    moving = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in moving:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)


def _trained(
    model: Any,
    tokenizer: Any,
    retrofit: Retrofit,
    settings: TrainSettings,
    checkpoint: Path | None,
    start: bool,
    say: Progress,
) -> tuple[Retrofit, dict[str, Any]]:
    told = _prepared(model, tokenizer, retrofit, settings, say)
    first = batch_of(told[:2], [[0]] * 2)
    identity = json.dumps([asdict(settings), retrofit.id, start], sort_keys=True)
    if start:
        retrofit = measured(model, retrofit, told)
    entered = check_entered(model, retrofit, first)
    say("a step runs the layers above the memory" if entered else "a step runs the whole model")
    named = {name: t.detach().clone().requires_grad_(True) for name, t in retrofit.flat().items()}
    optimizer = torch.optim.AdamW(list(named.values()), lr=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.95))
    history: dict[str, Any] = {"step": 0, "losses": [], "seconds": 0.0}
    if checkpoint is not None and (saved := _restored(checkpoint, identity, say)) is not None:
        with torch.no_grad():
            for name, tensor in named.items():
                tensor.copy_(saved["named"][name])
        optimizer.load_state_dict(saved["optimizer"])
        history = saved["history"]
        say(f"goes on at step {history['step']}")
    began, spent = time.monotonic(), history["seconds"]
    last = began
    for step in range(history["step"], settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        answers, quiet, hush = _losses(
            model, Retrofit.from_flat(retrofit.spec, named), _drawn(told, settings, step), entered
        )
        optimizer.zero_grad()
        (answers + settings.quiet * quiet + settings.hush * hush).backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(list(named.values()), settings.clip)
        if not (math.isfinite(float(answers.detach())) and math.isfinite(float(norm))):
            raise NumericsError(f"the loss or its gradient is NaN or infinite at step {step}; lower learning_rate")
        optimizer.step()
        now = time.monotonic()
        history["losses"].append([step + 1, *(round(float(t.detach()), 4) for t in (answers, quiet, hush))])
        history |= {"step": step + 1, "seconds": spent + now - began}
        if (step + 1) % 10 == 0:
            recent = [loss for _, loss, *_ in history["losses"][-20:]]
            left = history["seconds"] / (step + 1) * (settings.steps - step - 1)
            say(f"step {step + 1} of {settings.steps}: {sum(recent) / len(recent):.3f} nats a token, {left:.0f} s left")
        if checkpoint is not None and (now - last > settings.checkpoint_s or step + 1 == settings.steps):
            last = now
            _write(
                checkpoint,
                {
                    "identity": identity,
                    "named": {name: t.detach() for name, t in named.items()},
                    "optimizer": optimizer.state_dict(),
                    "history": history,
                },
            )
    return Retrofit.from_flat(retrofit.spec, {n: t.detach().clone() for n, t in named.items()}), history


def _prepared(model: Any, tokenizer: Any, retrofit: Retrofit, settings: TrainSettings, say: Progress) -> list[Told]:
    made = [
        lesson(settings.seed, "train", i, facts=settings.facts, sentences=settings.sentences)
        for i in range(settings.lessons)
    ]

    def told(done: int) -> None:
        if done % 16 == 0 or done == len(made):
            say(f"read {done} of {len(made)} texts")

    return prepare(model, tokenizer, retrofit.spec.layers, made, told)


def _drawn(told: Sequence[Told], settings: TrainSettings, step: int) -> Batch:
    """The texts and questions of a step."""
    rng = child_rng("models.retrofit.step", settings.seed, step)
    some = rng.sample(range(len(told)), settings.batch)
    return batch_of([told[i] for i in some], [rng.sample(range(settings.facts), settings.questions) for _ in some])


def _losses(model: Any, retrofit: Retrofit, batch: Batch, entered: bool) -> tuple[torch.Tensor, ...]:
    states = states_after(retrofit, batch)
    rows = tuple(state.take(batch.owners) for state in states)
    logits = answer_logits(model, retrofit, rows, batch, entered=entered)
    answers = torch.nn.functional.cross_entropy(logits, batch.targets.to(logits.device))
    return answers, _quiet(retrofit, states, batch), _hush(retrofit, states, batch)


def _hush(retrofit: Retrofit, states: Sequence[MemoryState], batch: Batch) -> torch.Tensor:
    """How loud the first memory is where another reader's question is answered, against the hidden states."""
    others = (batch.owners + 1) % len(batch.mask)
    said = read_layer(retrofit.layers[0], states[0].take(others), batch.asked).float().square().sum(-1)
    loud = batch.asked.float().square().sum(-1).clamp(min=1e-6)
    return (said / loud).flatten()[batch.rows.to(said.device)].mean()


def _quiet(retrofit: Retrofit, states: Sequence[MemoryState], batch: Batch) -> torch.Tensor:
    """How loud each memory is on the text of another reader, against the hidden states it is added to."""
    other = torch.arange(len(batch.mask)).roll(1)
    mask = batch.mask[other].to(batch.following.device)
    total = torch.zeros((), device=batch.following.device)
    for parameters, state, hidden in zip(retrofit.layers, states, batch.hidden, strict=True):
        theirs = hidden[other]
        said = read_layer(parameters, state, theirs).float().square().sum(-1)
        total = total + (said / theirs.float().square().sum(-1).clamp(min=1e-6))[mask].mean()
    return total / len(retrofit.layers)


def _schedule(step: int, settings: TrainSettings) -> float:
    """Warm-up, then half a cosine down to a tenth."""
    return min(1.0, (step + 1) / settings.warmup) * (0.55 + 0.45 * math.cos(math.pi * step / settings.steps))


# ------------------------------------------------------------------------------------------------ where training begins


@torch.no_grad()
def measured(model: Any, retrofit: Retrofit, told: Sequence[Told], *, loudness: float = 2.0) -> Retrofit:
    """Projections that are measured instead of random: keys and queries whiten the hidden states of these texts, W_o
    turns values back into the embeddings they were made of (least squares over the vocabulary), and the gate makes a
    whole recall ``loudness`` times as large as the hidden state's median."""
    embeddings = model.get_input_embeddings().weight
    some = torch.linspace(0, len(embeddings) - 1, min(len(embeddings), 8192)).long()
    e = embeddings[some].float().cpu()
    e = e * torch.rsqrt(e.square().mean(-1, keepdim=True) + 1e-6)
    layers = []
    for n, parameters in enumerate(retrofit.layers):
        hidden = torch.cat([t.hidden[n][1:] for t in told]).float().cpu()
        layers.append(_measured_layer(parameters, retrofit.spec.memory.heads, hidden, e, loudness))
    return replace(retrofit, layers=tuple(layers))


def _measured_layer(
    parameters: LayerParameters, heads: int, hidden: torch.Tensor, e: torch.Tensor, loudness: float
) -> LayerParameters:
    size, width = parameters.out.shape
    center = hidden.mean(0)
    x = hidden - center
    loud = x.square().mean(-1).sqrt()
    x = x / loud.unsqueeze(-1).clamp(min=1e-6)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    count = min(size, width)
    # A column a dimension of keys, the strongest spread over the heads in turn.
    order = torch.arange(width - 1, width - 1 - count, -1)
    whiten = vectors[:, order] / (values[order].clamp(min=0).sqrt() + 0.01)
    keys = torch.zeros(width, size)
    places = torch.arange(count)
    keys[:, (places % heads) * (size // heads) + places // heads] = whiten
    project = parameters.memory.project.clone()
    project[:width, :size] = project[:width, size : 2 * size] = keys
    v = torch.nn.functional.silu(e @ project[width:, 2 * size :])
    gram = v.T @ v
    out = torch.linalg.solve(gram + 1e-3 * gram.diagonal().mean() * torch.eye(size), v.T @ e)
    return replace(
        parameters,
        memory=replace(parameters.memory, project=project),
        out=out,
        center=center,
        gate=torch.as_tensor(loudness * float(loud.median())),
    )


# ---------------------------------------------------------------------------------------------------------- checkpoints


def _restored(path: Path, identity: str, say: Progress) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # torch and pickle each raise their own kind for a damaged file
        say(f"the checkpoint {path} cannot be read and is begun anew ({type(error).__name__})")
        return None
    if saved.get("identity") != identity:
        say(f"the checkpoint {path} is of another run and is begun anew")
        return None
    return saved


def _write(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    torch.save(value, beside)
    os.replace(beside, path)

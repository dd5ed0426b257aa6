"""The slow channel ``lora``: low-rank changes of linear layers, trained on the policy's own rollouts.

Source: LoRA (arXiv:2106.09685) for what moves; the equation stands in :mod:`twoclock.nn.lowrank`, the objectives in
:mod:`twoclock.nn.objectives`. Groups are keyed by item id and may span several prompts, with one mean and standard
deviation across them.

The state is a value: the tensors, the optimizer's moments and the step. Until the first step it is empty and its
conditioning is the identity, so the base model runs untouched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from twoclock.contracts import Trainable
from twoclock.errors import StoreError
from twoclock.hashing import content_hash
from twoclock.nn.lowrank import LowRank
from twoclock.seeding import child_seed
from twoclock.slow.channel import SlowChannel, same_base
from twoclock.slow.config import TrainingConfig
from twoclock.slow.states import dump_tensors, load_tensors
from twoclock.types import Conditioning, Delta, PolicyCard

__all__ = ["LoraChannel", "LoraConfig", "LoraState"]

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
FORMAT = 2
"""1 had no ``kl_coef``."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig(TrainingConfig):
    """What may move, and how it learns."""

    rank: int = 8
    alpha: float = 16.0
    """The change is scaled by alpha / rank."""
    targets: tuple[str, ...] = (*ATTENTION, *MLP)
    """Last name parts of the linear layers that get a change."""

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.rank < 1:
            problems.append(f"rank must be a whole number from 1; got {self.rank!r}")
        if not self.targets:
            problems.append("targets must be at least one layer name; got none")
        return problems


@dataclass(frozen=True)
class LoraState:
    """``tensors[name]`` = (A [R, I], B [O, R]); ``moments[name]`` = (m_A, v_A, m_B, v_B), all float32. Nothing in a
    state is ever written to: a step makes new tensors."""

    seed: int
    step: int = 0
    base: str = ""
    scale: float = 0.0
    tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)
    moments: Mapping[str, tuple[torch.Tensor, ...]] = field(default_factory=dict, repr=False)
    kl_coef: float = 0.0
    """β of the next round where a KL target steers it; 0: the configured one."""

    @cached_property
    def delta(self) -> Delta | None:
        """The change of weights as a value; None before the first step."""
        if self.step == 0:
            return None
        parts = [f"{self.base} {self.scale!r}"]
        for name, pair in self.tensors.items():
            parts += [f"{name} {content_hash(t.contiguous().numpy().tobytes())}" for t in pair]
        return Delta(content_hash("\n".join(parts)), "lora", self.base, LowRank(self.tensors, self.scale))

    # ---------------------------------------------------------------------------- as :class:`~.training.Moving` sees it

    @property
    def moving(self) -> dict[str, torch.Tensor]:
        return {f"{name}.{part}": t for name, pair in self.tensors.items() for part, t in zip("AB", pair, strict=True)}

    @property
    def moving_moments(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        found = {}
        for name, (mean_a, square_a, mean_b, square_b) in self.moments.items():
            found[f"{name}.A"], found[f"{name}.B"] = (mean_a, square_a), (mean_b, square_b)
        return found

    def payload(self, moving: Mapping[str, torch.Tensor]) -> LowRank:
        return LowRank({name: (moving[f"{name}.A"], moving[f"{name}.B"]) for name in self.tensors}, self.scale)

    def stepped(
        self, moving: Mapping[str, torch.Tensor], moments: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> LoraState:
        return replace(
            self,
            step=self.step + 1,
            tensors={name: (moving[f"{name}.A"], moving[f"{name}.B"]) for name in self.tensors},
            moments={name: (*moments[f"{name}.A"], *moments[f"{name}.B"]) for name in self.tensors},
        )


class LoraChannel(SlowChannel[LoraState]):
    """See the module."""

    def __init__(self, config: LoraConfig | None = None, *, name: str = "lora") -> None:
        self.config = config or LoraConfig()
        super().__init__(self.config, name)

    def init(self, card: PolicyCard, seed: int) -> LoraState:
        return LoraState(seed=child_seed("lora-init", seed))

    def condition(self, state: LoraState, task: str) -> Conditioning:
        return Conditioning(delta=state.delta)

    def started(self, state: LoraState, model: Trainable) -> LoraState:
        """A is drawn as in the LoRA paper's code (Kaiming uniform, a = √5), B is zero."""
        if state.tensors:
            same_base(self.name, state.base, model)
            return state
        tensors, moments = {}, {}
        for name, (out, width) in model.linear_shapes(self.config.targets).items():
            generator = torch.Generator().manual_seed(child_seed("lora-a", state.seed, name))
            a = (torch.rand(self.config.rank, width, generator=generator) * 2 - 1) / math.sqrt(width)
            b = torch.zeros(out, self.config.rank)
            tensors[name] = (a, b)
            moments[name] = tuple(torch.zeros_like(t) for t in (a, a, b, b))
        scale = self.config.alpha / self.config.rank
        return LoraState(state.seed, 0, model.base_hash, scale, tensors, moments, state.kl_coef)

    def dump(self, state: LoraState) -> bytes:
        flat: dict[str, torch.Tensor] = {}
        for name, (a, b) in state.tensors.items():
            flat[f"{name}.A"], flat[f"{name}.B"] = a, b
            for part, moment in zip(("mA", "vA", "mB", "vB"), state.moments[name], strict=True):
                flat[f"{name}.{part}"] = moment
        head = {
            "format": FORMAT,
            "seed": state.seed,
            "step": state.step,
            "base": state.base,
            "scale": state.scale,
            "kl_coef": state.kl_coef,
            "modules": list(state.tensors),
        }
        return dump_tensors(head, flat)

    def load(self, blob: bytes) -> LoraState:
        head, flat = load_tensors(blob, self.name, (1, FORMAT))
        try:
            names = head["modules"]
            return LoraState(
                head["seed"],
                head["step"],
                head["base"],
                head["scale"],
                {n: (flat[f"{n}.A"], flat[f"{n}.B"]) for n in names},
                {n: tuple(flat[f"{n}.{p}"] for p in ("mA", "vA", "mB", "vB")) for n in names},
                head.get("kl_coef", 0.0),
            )
        except (KeyError, TypeError) as problem:
            raise StoreError(f"this is not a dumped state of the channel '{self.name}': {problem!r}") from problem

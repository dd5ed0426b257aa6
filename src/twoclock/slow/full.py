"""The slow channel ``full``: every parameter may move, trained on the policy's own rollouts.

The state holds what is added to each parameter, in float32 whatever the model computes in, and the optimizer's moments:
three times the model's size in float32 a version (1.6 GB for 135 million parameters). ``[store] keep`` bounds how many
versions a run keeps. The base itself is never edited (:mod:`twoclock.nn.full`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from twoclock.contracts import Trainable
from twoclock.errors import StoreError
from twoclock.hashing import content_hash
from twoclock.nn.full import FullChange
from twoclock.seeding import child_seed
from twoclock.slow.channel import SlowChannel, same_base
from twoclock.slow.config import TrainingConfig
from twoclock.slow.states import dump_tensors, load_tensors
from twoclock.types import Conditioning, Delta, PolicyCard

__all__ = ["FullChannel", "FullConfig", "FullState"]

FORMAT = 1
PARTS = ("d", "m", "v")


@dataclass(frozen=True, kw_only=True)
class FullConfig(TrainingConfig):
    """What may move, and how it learns."""

    targets: tuple[str, ...] = ()
    """Last name parts of the modules whose parameters may move, such as ``down_proj``; empty: all parameters."""
    learning_rate: float = 1e-5


@dataclass(frozen=True)
class FullState:
    """``tensors[name]`` is added to that parameter; ``moments[name]`` = (m, v); all float32 and never written to."""

    seed: int
    step: int = 0
    base: str = ""
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    moments: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)
    kl_coef: float = 0.0
    """β of the next round where a KL target steers it; 0: the configured one."""

    @cached_property
    def delta(self) -> Delta | None:
        """The change of weights as a value; None before the first step."""
        if self.step == 0:
            return None
        parts = [f"full {self.base}"]
        parts += [f"{n} {content_hash(t.contiguous().numpy().tobytes())}" for n, t in self.tensors.items()]
        return Delta(content_hash("\n".join(parts)), "full", self.base, FullChange(self.tensors))

    @property
    def moving(self) -> Mapping[str, torch.Tensor]:
        return self.tensors

    @property
    def moving_moments(self) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        return self.moments

    def payload(self, moving: Mapping[str, torch.Tensor]) -> FullChange:
        return FullChange(moving)

    def stepped(
        self, moving: Mapping[str, torch.Tensor], moments: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> FullState:
        return replace(self, step=self.step + 1, tensors=dict(moving), moments=dict(moments))


class FullChannel(SlowChannel[FullState]):
    """See the module."""

    def __init__(self, config: FullConfig | None = None, *, name: str = "full") -> None:
        self.config = config or FullConfig()
        super().__init__(self.config, name)

    def init(self, card: PolicyCard, seed: int) -> FullState:
        return FullState(seed=child_seed("full-init", seed))

    def condition(self, state: FullState, task: str) -> Conditioning:
        return Conditioning(delta=state.delta)

    def started(self, state: FullState, model: Trainable) -> FullState:
        if state.tensors:
            same_base(self.name, state.base, model)
            return state
        shapes = model.parameter_shapes(self.config.targets)
        tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
        moments = {name: (torch.zeros(shape), torch.zeros(shape)) for name, shape in shapes.items()}
        return FullState(state.seed, 0, model.base_hash, tensors, moments, state.kl_coef)

    def dump(self, state: FullState) -> bytes:
        flat = {
            f"{part}/{name}": tensor
            for name, d in state.tensors.items()
            for part, tensor in zip(PARTS, (d, *state.moments[name]), strict=True)
        }
        head = {
            "format": FORMAT,
            "kind": "full",
            "seed": state.seed,
            "step": state.step,
            "base": state.base,
            "kl_coef": state.kl_coef,
            "parameters": list(state.tensors),
        }
        return dump_tensors(head, flat)

    def load(self, blob: bytes) -> FullState:
        head, flat = load_tensors(blob, self.name, (FORMAT,))
        try:
            if head["kind"] != "full":
                raise KeyError(f"it is a state of the kind {head['kind']}")
            names = head["parameters"]
            return FullState(
                head["seed"],
                head["step"],
                head["base"],
                {n: flat[f"d/{n}"] for n in names},
                {n: (flat[f"m/{n}"], flat[f"v/{n}"]) for n in names},
                head["kl_coef"],
            )
        except (KeyError, TypeError) as problem:
            raise StoreError(f"this is not a dumped state of the channel '{self.name}': {problem!r}") from problem

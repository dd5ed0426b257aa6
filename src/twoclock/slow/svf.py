"""The slow channel ``svf``: the singular values of linear layers are scaled, one number each, trained on the policy's
own rollouts.

Source: Transformer² (Sun, Cetin and Tang, arXiv:2501.06252), section 3.1; the equation stands in
:mod:`twoclock.nn.svf`, the objectives in :mod:`twoclock.nn.objectives`. What differs from the paper and its code: z
begins at exactly 1, not near it; it is trained as it stands in the paper's equation, without the code's sigmoid and
without holding Σ s z fixed; the learning rate is the paper's and does not decay; the gradient is clipped as that of
every slow channel is, not at 1e-3, which Adam's division undoes; and no KL is charged unless one is asked for.

The state is a value: the offsets z − 1, the optimizer's moments and the step. The factors of the base are no part of
it. Until the first step it is empty and its conditioning is the identity, so the base model runs untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from twoclock.contracts import Factorable, Trainable
from twoclock.errors import ConfigError, StoreError, UnsupportedError, unknown_name
from twoclock.hashing import content_hash
from twoclock.nn.svf import PRECISIONS, Factoring, SingularChange
from twoclock.seeding import child_seed
from twoclock.slow.channel import SlowChannel, same_base
from twoclock.slow.config import TrainingConfig
from twoclock.slow.states import dump_tensors, load_tensors
from twoclock.types import Conditioning, Delta, PolicyCard

__all__ = ["SvfChannel", "SvfConfig", "SvfState"]

FORMAT = 1
PARTS = ("z1", "m", "v")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class SvfConfig(TrainingConfig):
    """What may move, and how it learns."""

    targets: tuple[str, ...] = MLP
    """Last name parts of the linear layers whose singular values may be scaled."""
    rank: int = 0
    """The largest so many singular values of each layer; 0: all of them."""
    precision: str = "float32"
    """In which the singular vectors are kept in the cache: ``float32``, or ``bfloat16`` at half the space."""
    learning_rate: float = 2e-3

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.rank < 0:
            problems.append(f"rank must be a whole number from 0 (0: every singular value); got {self.rank!r}")
        if self.precision not in PRECISIONS:
            problems.append(unknown_name("precision", self.precision, PRECISIONS))
        if not self.targets:
            problems.append("targets must be at least one layer name; got none")
        return problems

    @property
    def factoring(self) -> Factoring:
        return Factoring(rank=self.rank, precision=self.precision)


@dataclass(frozen=True)
class SvfState:
    """``offsets[name]`` = z − 1 [R]; ``moments[name]`` = (m, v); all float32 and never written to."""

    seed: int
    step: int = 0
    base: str = ""
    spectrum: str = ""
    """The hash of the matrices that the offsets belong to, as they were taken apart."""
    factoring: Factoring = field(default_factory=Factoring)
    offsets: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    moments: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)
    kl_coef: float = 0.0
    """β of the next round where a KL target steers it; 0: the configured one."""

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """As the states of other slow channels have them: what changes, by module."""
        return self.offsets

    @cached_property
    def delta(self) -> Delta | None:
        """The change of weights as a value; None before the first step."""
        return None if self.step == 0 else delta_of(self.payload(self.offsets), self.base)

    @property
    def moving(self) -> Mapping[str, torch.Tensor]:
        return self.offsets

    @property
    def moving_moments(self) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        return self.moments

    def payload(self, moving: Mapping[str, torch.Tensor]) -> SingularChange:
        return SingularChange(moving, self.factoring, self.spectrum)

    def stepped(
        self, moving: Mapping[str, torch.Tensor], moments: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> SvfState:
        return replace(self, step=self.step + 1, offsets=dict(moving), moments=dict(moments))


def delta_of(change: SingularChange, base: str) -> Delta:
    """The change as a delta on the base weights of that hash."""
    parts = [f"svf {base} {change.spectrum}"]
    parts += [f"{n} {content_hash(t.contiguous().numpy().tobytes())}" for n, t in sorted(change.offsets.items())]
    return Delta(content_hash("\n".join(parts)), "svf", base, change)


class SvfChannel(SlowChannel[SvfState]):
    """See the module."""

    def __init__(self, config: SvfConfig | None = None, *, name: str = "svf") -> None:
        self.config = config or SvfConfig()
        super().__init__(self.config, name)

    def init(self, card: PolicyCard, seed: int) -> SvfState:
        return SvfState(seed=child_seed("svf-init", seed))

    def condition(self, state: SvfState, task: str) -> Conditioning:
        return Conditioning(delta=state.delta)

    def started(self, state: SvfState, model: Trainable) -> SvfState:
        if state.offsets:
            same_base(self.name, state.base, model)
            self._same_parts(state)
            return state
        if not isinstance(model, Factorable):
            raise UnsupportedError(
                f"the channel '{self.name}' scales singular values, and this policy cannot take its layers apart; use "
                "a local model, or the channel 'lora'"
            )
        spectrum, factors = model.singular_factors(self.config.targets, self.config.factoring)
        offsets = {name: torch.zeros(len(f.s)) for name, f in factors.items()}
        moments = {name: (torch.zeros(len(f.s)), torch.zeros(len(f.s))) for name, f in factors.items()}
        base, factoring = model.base_hash, self.config.factoring
        return SvfState(state.seed, 0, base, spectrum, factoring, offsets, moments, state.kl_coef)

    def _same_parts(self, state: SvfState) -> None:
        """What a run's own state was begun with is not what its configuration says now."""
        own = {name.rsplit(".", 1)[-1] for name in state.offsets}
        if own != set(self.config.targets) or state.factoring != self.config.factoring:
            raise ConfigError(
                f"this state of '{self.name}' scales {_words(own, state.factoring)}, but the channel is configured for "
                f"{_words(set(self.config.targets), self.config.factoring)}; set targets, rank and precision as they "
                "were, or start a run of its own"
            )

    def dump(self, state: SvfState) -> bytes:
        flat = {
            f"{part}/{name}": tensor
            for name, offset in state.offsets.items()
            for part, tensor in zip(PARTS, (offset, *state.moments[name]), strict=True)
        }
        head = {
            "format": FORMAT,
            "kind": "svf",
            "seed": state.seed,
            "step": state.step,
            "base": state.base,
            "spectrum": state.spectrum,
            "rank": state.factoring.rank,
            "precision": state.factoring.precision,
            "kl_coef": state.kl_coef,
            "modules": list(state.offsets),
        }
        return dump_tensors(head, flat)

    def load(self, blob: bytes) -> SvfState:
        head, flat = load_tensors(blob, self.name, (FORMAT,))
        try:
            if head["kind"] != "svf":
                raise KeyError(f"it is a state of the kind {head['kind']}")
            names = head["modules"]
            return SvfState(
                head["seed"],
                head["step"],
                head["base"],
                head["spectrum"],
                Factoring(rank=head["rank"], precision=head["precision"]),
                {n: flat[f"z1/{n}"] for n in names},
                {n: (flat[f"m/{n}"], flat[f"v/{n}"]) for n in names},
                head["kl_coef"],
            )
        except (KeyError, TypeError, ConfigError) as problem:
            raise StoreError(f"this is not a dumped state of the channel '{self.name}': {problem!r}") from problem


def _words(targets: set[str], factoring: Factoring) -> str:
    which = f"the {factoring.rank} largest" if factoring.rank else "all"
    return f"{which} singular values of {', '.join(sorted(targets))} (vectors in {factoring.precision})"

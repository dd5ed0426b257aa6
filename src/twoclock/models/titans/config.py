"""What a model of this family is: how memory and attention are wired, their sizes, and what is left out of them.

``mac``     memory as context: segments meet through the memory alone, whose reads stand before a segment as tokens
``mag``     memory as gate: window attention and memory side by side
``mal``     memory as layer: the memory's output goes through window attention
``lmm``     the memory alone
``window``  no memory: a Transformer whose tokens see the last ``window`` tokens
``full``    no memory: a Transformer whose tokens see all tokens before them

The first four are those of Behrouz, Zhong and Mirrokni, "Titans", arXiv:2501.00663, section 4. A delta-rule model is
``lmm`` with ``memory=DELTA_MEMORY``.

The memory's chunk length is part of the function that a model computes: it stands in the config, and in every saved
state.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, Literal, get_args

from transformers import PretrainedConfig

from twoclock.errors import ConfigError, unknown_name
from twoclock.nn.neural_memory_spec import MemorySpec

__all__ = ["DELTA_MEMORY", "Architecture", "Gate", "TitansConfig"]

Architecture = Literal["mac", "mag", "mal", "lmm", "window", "full"]
Gate = Literal["sigmoid", "linear"]

MEMORY_FIELDS = tuple(f.name for f in fields(MemorySpec) if f.name not in ("heads", "width"))

STEADY: dict[str, Any] = {"residual": True, "norm": True}
"""What a memory is unless told otherwise: x + LN(f(x)), as in the paper's proceedings version. f(x) alone, as in the
preprint, may grow without bound on texts longer than those trained on."""

DELTA_MEMORY: dict[str, Any] = {
    "depth": 1,
    "chunk": 1,
    "momentum": False,
    "residual": False,
    "norm": False,
    "max_rate": 0.5,
}
"""A matrix written by the gated delta rule at every token: linear attention that corrects itself. The largest rate is
that at which one write makes a unit key say its value exactly."""

COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "window", "segment", "memory_heads")


class TitansConfig(PretrainedConfig):  # type: ignore[misc]
    """The description of one model; plain JSON in ``config.json``. Raises ConfigError with all that is wrong."""

    model_type = "twoclock_titans"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 2,
        intermediate_size: int = 128,
        architecture: str = "mag",
        window: int = 16,
        segment: int = 16,
        persistent_tokens: int = 4,
        memory_heads: int = 2,
        memory: dict[str, Any] | None = None,
        memory_half_life: float = 4096.0,
        memory_start_momentum: float = 0.1,
        memory_start_rate: float | None = None,
        memory_layers: list[int] | None = None,
        memory_gate: str = "linear",
        forgetting: bool = True,
        memory_zeroed: bool = False,
        rope_base: float = 10000.0,
        rms_norm_eps: float = 1e-6,
        init_seed: int = 0,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        """``window``: tokens that a token sees, itself included (``mag``, ``mal``, ``window``). ``segment``: tokens of
        a segment (``mac``). ``intermediate_size``: of the gated network after each layer; 0 is none. ``memory``:
        fields of :class:`MemorySpec` other than heads and width (``hidden_size / memory_heads``), such as
        ``{"chunk": 16, "depth": 1}``; residual and norm are on unless it says otherwise. ``memory_half_life``,
        ``memory_start_momentum``, ``memory_start_rate``: what its gates start at
        (:func:`twoclock.nn.neural_memory_layer.init_parameters`). ``memory_layers``: the layers, from 0 on, that have a
        memory; None: all. ``memory_gate``: how the memory's read m weighs an attention's output y,
        "linear" y ⊙ (1 + m) or "sigmoid" y ⊙ 2 sigmoid(m), both normalised. ``forgetting``: False holds α at 0.
        ``memory_zeroed``: the memory reads as 0 and is not written; the model is then its attention alone. May be set
        on a model that exists. ``init_seed``: of the first weights."""
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.architecture = architecture
        self.window = window
        self.segment = segment
        self.persistent_tokens = persistent_tokens
        self.memory_heads = memory_heads
        self.memory: Any = STEADY | memory if isinstance(memory, dict) else memory
        if memory is None:
            self.memory = dict(STEADY)
        self.memory_half_life = memory_half_life
        self.memory_start_momentum = memory_start_momentum
        self.memory_start_rate = memory_start_rate
        self.memory_layers = memory_layers
        self.memory_gate = memory_gate
        self.forgetting = forgetting
        self.memory_zeroed = memory_zeroed
        self.rope_base = rope_base
        self.rms_norm_eps = rms_norm_eps
        self.init_seed = init_seed
        self.use_cache = use_cache
        problems = self._problems()
        if problems:
            raise ConfigError(problems)
        if self.has_memory:
            # All of its fields, so that a saved config says them whatever the defaults become.
            spec = self.memory_spec.to_json()
            self.memory = {name: spec[name] for name in MEMORY_FIELDS}
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    def _problems(self) -> list[str]:
        problems = [
            f"{name} is a whole number from 1 on; got {value!r}"
            for name in COUNTS
            if not isinstance(value := getattr(self, name), int) or isinstance(value, bool) or value < 1
        ]
        problems += [
            f"{name} is a whole number from 0 on; got {value!r}"
            for name in ("intermediate_size", "persistent_tokens")
            if not isinstance(value := getattr(self, name), int) or isinstance(value, bool) or value < 0
        ]
        if self.architecture not in get_args(Architecture):
            problems.append(unknown_name("architecture", str(self.architecture), get_args(Architecture)))
        if self.memory_gate not in get_args(Gate):
            problems.append(unknown_name("memory_gate", str(self.memory_gate), get_args(Gate)))
        if not isinstance(self.memory, dict):
            problems.append(f"memory is a dict of fields such as {{'chunk': 16}}; got {self.memory!r}")
        else:
            unknown = sorted(set(map(str, self.memory)) - set(MEMORY_FIELDS))
            problems += [unknown_name("field of memory", name, MEMORY_FIELDS) for name in unknown]
        for name in ("rope_base", "rms_norm_eps", "memory_half_life"):
            if not _between(getattr(self, name), 0.0, math.inf):
                problems.append(f"{name} is a number above 0; got {getattr(self, name)!r}")
        if not _between(self.memory_start_momentum, 0.0, 1.0):
            problems.append(f"memory_start_momentum is between 0 and 1; got {self.memory_start_momentum!r}")
        for name in ("forgetting", "memory_zeroed"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"{name} is True or False; got {getattr(self, name)!r}")
        if problems:
            return problems
        if self.hidden_size % (2 * self.num_attention_heads):
            problems.append(
                f"hidden_size = {self.hidden_size} is to be a multiple of 2 · num_attention_heads = "
                f"{2 * self.num_attention_heads}: positions turn pairs of a head's values"
            )
        if self.hidden_size % self.memory_heads:
            problems.append(f"hidden_size = {self.hidden_size} is no multiple of memory_heads = {self.memory_heads}")
        layers = self.memory_layers
        if layers is not None:
            known = range(self.num_hidden_layers)
            listed = isinstance(layers, list | tuple) and all(isinstance(n, int) and n in known for n in layers)
            if not listed or not layers or len(set(layers)) != len(layers):
                problems.append(f"memory_layers is a list of layers from 0 to {known[-1]}, each once; got {layers!r}")
        if not problems:
            problems += self._memory_problems()
        return problems

    def _memory_problems(self) -> list[str]:
        try:
            spec = self.memory_spec
        except ConfigError as error:
            return [f"memory: {text}" for text in error.problems]
        rate = self.memory_start_rate
        if rate is not None and not _between(rate, 0.0, spec.max_rate):
            return [f"memory_start_rate is above 0 and below memory's max_rate = {spec.max_rate}; got {rate!r}"]
        return []

    @property
    def has_memory(self) -> bool:
        return self.architecture in ("mac", "mag", "mal", "lmm")

    @property
    def memory_spec(self) -> MemorySpec:
        """The function of each layer's memory."""
        return MemorySpec(heads=self.memory_heads, width=self.hidden_size // self.memory_heads, **self.memory)

    def kind(self, layer: int) -> Architecture:
        """How this layer is wired: a layer without memory is window attention."""
        if self.has_memory and self.memory_layers is not None and layer not in self.memory_layers:
            return "window"
        kind: Architecture = self.architecture  # type: ignore[assignment]
        return kind


def _between(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high

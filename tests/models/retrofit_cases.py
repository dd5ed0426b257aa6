"""Small models with a memory beside them: random projections that do say something."""

from __future__ import annotations

from typing import Any

from tiny_models import byte_tokenizer, make_model
from twoclock.models.retrofit.model import Retrofitted
from twoclock.nn.neural_memory_spec import MemorySpec
from twoclock.nn.retrofit import MEMORY, Retrofit, RetrofitSpec, init_retrofit
from twoclock.nn.soft_memory import SoftMemory
from twoclock.types import SoftState

BASE = "base-llama-0"
TEXTS = (
    "The gate code of the north depot is 4821. Remember it.",
    "Ann keeps the key in the blue box under the stairs.",
)


def spec_of(*, base: str = BASE, layers: tuple[int, ...] = (0, 1), segment: int = 8, overlap: int = 3, **memory: Any):  # type: ignore[no-untyped-def]
    kinds = {**MEMORY, "heads": 2, "width": 8, **memory}
    return RetrofitSpec(
        base=base, width=32, layers=layers, memory=MemorySpec(**kinds), segment=segment, overlap=overlap
    )


def retrofit_of(*, seed: int = 0, gate: float = 2.0, **options: Any) -> Retrofit:
    return init_retrofit(spec_of(**options), seed, gate=gate)


def small(name: str = "llama", **options: Any) -> Retrofitted:
    base = f"base-{name}-0"
    return Retrofitted(make_model(name), byte_tokenizer(), retrofit_of(base=base, **options), base_hash=base)


def soft_of(memory: SoftMemory) -> SoftState:
    """Also of a memory that is silent."""
    return SoftState(memory.id, "neural_memory", memory.retrofit.spec.base, memory)

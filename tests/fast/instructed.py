"""A task whose answers come with one good instruction, and hardly ever without: for whoever writes instructions."""

from __future__ import annotations

from prompts_bench import FakeTask, chance

from twoclock.types import Conditioning, Item

__all__ = ["GOOD", "SHARED", "TASK", "helped"]

TASK = "digits"
SHARED = FakeTask()
GOOD = "Reply with the digit alone."


def helped(item: Item, conditioning: Conditioning, seed: int) -> str:
    right = conditioning.system == GOOD or chance(0.1, seed)
    return str(item.reference) if right else "I think it is seven."

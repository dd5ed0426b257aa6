"""Where items come from, how they are graded, and the stream that orders them.

``build_task`` makes a task from a config's table; the classes can be used directly as well. Nothing here imports torch,
and reasoning-gym is imported only when a task of its families is made.
"""

from twoclock.tasks.conventions import CONVENTIONS, Convention
from twoclock.tasks.families import FamilyTask
from twoclock.tasks.jsonl import JsonlTask
from twoclock.tasks.library import FAMILIES, Family
from twoclock.tasks.reasoning_gym import ReasoningGymTask
from twoclock.tasks.sources import SOURCES, TaskSource, VerifiedTask, build_task
from twoclock.tasks.splits import SplitSizes
from twoclock.tasks.streams import Stream
from twoclock.tasks.text import EXTRACTORS
from twoclock.tasks.variants import VariantSuite, build_variants
from twoclock.tasks.variants_task import VARIANTS, VariantTask
from twoclock.tasks.verifiers import Verifier

__all__ = [
    "CONVENTIONS",
    "Convention",
    "EXTRACTORS",
    "FAMILIES",
    "Family",
    "FamilyTask",
    "JsonlTask",
    "ReasoningGymTask",
    "SOURCES",
    "SplitSizes",
    "Stream",
    "TaskSource",
    "VARIANTS",
    "VariantSuite",
    "VariantTask",
    "VerifiedTask",
    "Verifier",
    "build_task",
    "build_variants",
]

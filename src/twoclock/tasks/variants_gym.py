"""Variants of reasoning-gym families: N±1 by config, other wording and distractors around the finished question.

A config draws its own problems, so N-1 and N+1 items have no partners: their gaps are those of two samples, and there
is no stale answer. Which option is N stands in ``SIZES``, or is named by the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twoclock.contracts import Task
from twoclock.errors import ConfigError, unknown_name
from twoclock.tasks.rg_source import check_source, config_defaults
from twoclock.tasks.variants_base import FEWEST, Base, draw_heldout, identity
from twoclock.tasks.variants_frames import bare_question, distracted, framed
from twoclock.tasks.variants_task import Parsed, VariantItem, plain_parse
from twoclock.types import Item

__all__ = ["SIZES", "GymVariants"]

SIZES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("basic_arithmetic", "chain_sum", "decimal_arithmetic", "decimal_chain_sum", "number_sequence", "products"),
        ("min_terms", "max_terms"),
    ),
    **dict.fromkeys(("polynomial_equations", "simple_equations", "simple_integration"), ("min_terms", "max_terms")),
    **dict.fromkeys(("countdown", "gcd", "lcm", "number_filtering", "number_sorting"), ("min_numbers", "max_numbers")),
    **dict.fromkeys(
        ("caesar_cipher", "letter_counting", "letter_jumble", "word_sequence_reversal", "word_sorting"),
        ("min_words", "max_words"),
    ),
    **dict.fromkeys(("string_insertion", "string_manipulation"), ("min_string_length", "max_string_length")),
    **dict.fromkeys(("binary_matrix", "rotate_matrix", "rotten_oranges", "spiral_matrix"), ("min_n", "max_n")),
    "ab": ("length",),
    "circuit_logic": ("min_terms", "max_terms"),
    "coin_flip": ("min_trials", "max_trials"),
    "color_cube_rotation": ("min_rotations", "max_rotations"),
    "course_schedule": ("min_num_courses", "max_num_courses"),
    "dice": ("num_dice",),
    "family_relationships": ("min_family_size", "max_family_size"),
    "futoshiki": ("min_board_size", "max_board_size"),
    "graph_color": ("min_num_vertices", "max_num_vertices"),
    "jugs": ("num_jugs",),
    "knights_knaves": ("n_people",),
    "leg_counting": ("min_animals", "max_animals"),
    "n_queens": ("n",),
    "needle_haystack": ("min_num_statements", "max_num_statements"),
    "number_format": ("min_num_candidates", "max_num_candidates"),
    "palindrome_generation": ("min_length", "max_length"),
    "path_star": ("min_path_length", "max_path_length"),
    "propositional_logic": ("min_vars", "max_vars"),
    "rubiks_cube": ("min_scramble_steps", "max_scramble_steps"),
    "sentence_reordering": ("min_words_in_sentence", "max_words_in_sentence"),
    "simple_geometry": ("min_sides", "max_sides"),
    "spell_backward": ("min_word_len", "max_word_len"),
    "tower_of_hanoi": ("min_disks", "max_disks"),
    "zebra_puzzles": ("num_people",),
}
"""The option that counts a family's elements, or the two that hold its least and greatest number."""


class GymVariants:
    """Makes the variants of one reasoning-gym task."""

    def __init__(
        self,
        base: Base,
        name: str,
        spec: Mapping[str, Any],
        seed: int,
        base_dir: Path,
        *,
        count: int,
        n_parameter: Sequence[str],
        rewordings: Sequence[str],
    ) -> None:
        self._base, self._name, self._spec, self._seed = base, name, spec, seed
        self._base_dir, self._count, self._rewordings = base_dir, count, rewordings
        self._defaults = config_defaults(spec["family"])
        self._n = tuple(n_parameter) or SIZES.get(spec["family"], ())
        self._instruction = (spec.get("instruction", ""), spec.get("instruction_at", "end"))
        self.graders: dict[str, Task] = {}
        self.notes: dict[str, list[str]] = {}

    @property
    def parsed(self) -> Parsed:
        return plain_parse(self._spec.get("extract", "text"))

    def problem(self, variant: str) -> str | None:
        """Why this family has no such variant under its config; ``None`` where it has."""
        if variant == "rule":
            return "a reasoning-gym family has no variant 'rule': its problems are finished texts"
        if variant in ("n-1", "n+1"):
            return self._size_problem(variant)
        return None

    def make(self, variant: str) -> tuple[VariantItem, ...]:
        """The items of a variant; raises ConfigError where this family, or this config, has none."""
        if variant == "seen":
            self.graders[variant] = self._base.task
            return tuple(VariantItem(item=item) for item in self._base.seen)
        if variant == "id":
            return tuple(VariantItem(item=item, partner=item.id) for item in self._base.items)
        if variant == "template":
            return framed(self._base.items, self._rewordings, self._question, self._seed, own_grading=True)
        if variant == "distractor":
            return distracted(self._base.items, self._seed, own_grading=True)
        return self._resized(variant)

    def _question(self, item: Item) -> str:
        return bare_question(item, *self._instruction)

    # ------------------------------------------------------------------------------------------------------------ N

    def _size_problem(self, variant: str) -> str | None:
        family = self._spec["family"]
        numbers = [key for key, value in self._defaults.items() if type(value) is int]
        if not self._n:
            has = f"it has: {', '.join(numbers)}" if numbers else "and it has no option that is a whole number"
            return (
                f"reasoning-gym family '{family}' has no N that is known; name the option that counts its elements "
                f"(n_parameter = ['…'], or the two that hold its least and greatest number), or leave '{variant}' out; "
                f"{has}"
            )
        for key in self._n:
            if key not in numbers:
                return f"{unknown_name(f'whole-number option of {family}', key, numbers)} (given as n_parameter)"
        if len(self._n) > 2:
            return f"n_parameter is one option, or the least and the greatest one; got {list(self._n)!r}"
        problems = check_source(family, self._resized_config(variant))
        return f"'{variant}' of {self._size_text(variant)} does not exist: {'; '.join(problems)}" if problems else None

    def _resized_config(self, variant: str) -> dict[str, Any]:
        """The config with every problem of the one size that lies just below, or just above, the trained ones."""
        config = dict(self._spec.get("config", {}))
        low, high = (int(config.get(key, self._defaults[key])) for key in (self._n[0], self._n[-1]))
        size = low - 1 if variant == "n-1" else high + 1
        return {**config, **dict.fromkeys(self._n, size)}

    def _size_text(self, variant: str) -> str:
        sizes = self._resized_config(variant)
        return ", ".join(f"{key} = {sizes[key]}" for key in self._n)

    def _resized(self, variant: str) -> tuple[VariantItem, ...]:
        spec = {**self._spec, "config": self._resized_config(variant)}
        counts = [self._count // 2**i for i in range(8) if self._count // 2**i >= min(FEWEST, self._count)]
        task = draw_heldout(f"{self._name}/{variant}", spec, self._seed, self._base_dir, counts)
        if task is None:
            raise ConfigError(
                f"reasoning-gym family '{spec['family']}' with {self._size_text(variant)} has fewer than {counts[-1]} "
                f"problems, too few to measure on; leave '{variant}' out"
            )
        self.graders[variant] = task
        learned = {identity(item) for split in ("train", "trial") for item in self._base.task.split(split)}
        return tuple(VariantItem(item=item) for item in task.split("heldout") if identity(item) not in learned)

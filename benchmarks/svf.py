"""Scaled singular values, many experts at once: against the base, and against rebuilding the weights for each request.

    python benchmarks/svf.py            # a page of figures
    python benchmarks/svf.py --json     # and, as the last line, one JSON object

``mixed_batch``  one decoding step of 64 rows and one pass over 16 prompts, the rows under 8 different experts, against
                 the same rows under the base; in factored and in delta form, and with an eighth of the rows the base's
``vs_rebuild``   8 requests under 8 experts, each answered by one forward pass: one batch of ours, against what the
                 public implementation does for each: U diag(s z) Vᵀ with a dense diagonal for every matrix, times the
                 ratio of nuclear norms, copied into the model
``switch_ms``    from an expert's vectors to a model that decodes under them, and from one resident expert to another

The packaged model in the dtype that is fastest here. Seconds are of the processor (one thread), sides in turns, the
best of each, so that other work on the machine falls out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from machine import describe

from twoclock.models.engine import Draft, Mounted, Prompted, _Decoding, _Row
from twoclock.models.local import open_local
from twoclock.nn.full import in_place_of
from twoclock.nn.sampling import uniforms
from twoclock.nn.svf import Factoring, SingularChange
from twoclock.types import Sampling

KEYS = ("mixed_batch", "vs_rebuild", "switch_ms")
BARS = {"mixed_batch": 1.5, "vs_rebuild": 100.0, "switch_ms": 10.0}
MLP = ("gate_proj", "up_proj", "down_proj")
TARGETS = {"mlp": MLP, "all": ("q_proj", "k_proj", "v_proj", "o_proj", *MLP)}
EXPERTS, ROWS, PROMPTS, TOKENS, STEPS = 8, 64, 16, 24, 2


def best(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Processor seconds of each side: the best of ``repeats`` turns after one that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, work in sides.items():
            start = time.process_time()
            work()
            if turn:
                taken[name].append(time.process_time() - start)
    return {name: min(times) for name, times in taken.items()}


class Bench:
    def __init__(self, repeats: int, dtype: str) -> None:
        self.repeats = repeats
        self.policy = open_local("packaged", dtype=dtype, progress=lambda text: print(text, file=sys.stderr))
        self.policy._engine.ends = frozenset()
        ids = self.policy.tokenizer("Which of these numbers is the largest: 12, 40, 7? " * 9)["input_ids"]
        self.prompt = tuple(ids[:TOKENS])

    def experts(self, targets: tuple[str, ...], sd: float = 0.05) -> list[SingularChange]:
        spectrum, factors = self.policy.singular_factors(targets, Factoring())
        generator = torch.Generator().manual_seed(0)
        return [
            SingularChange(
                {n: sd * torch.randn(len(f.s), generator=generator) for n, f in factors.items()}, Factoring(), spectrum
            )
            for _ in range(EXPERTS)
        ]

    def decoding(self, owners: list[int], names: tuple[str, ...], rows: Any, length: int = TOKENS) -> _Decoding:
        """Rows that have read their prompts and are about to take a step; under what is mounted now."""
        waiting = deque(
            _Row(Prompted(self.prompt[:length], 0, (n,), owner), Draft(), uniforms(n, 256))
            for n, owner in enumerate(owners)
        )
        decoding = _Decoding(self.policy._engine, Mounted(names, rows), waiting, Sampling(max_new_tokens=256), None)
        decoding._admit()
        return decoding

    def step(self, decoding: _Decoding) -> None:
        tokens = torch.full((len(decoding.rows),), self.prompt[0])
        for _ in range(STEPS):
            decoding._step(tokens)
        assert decoding.slots is not None
        decoding.slots.lengths -= STEPS

    # --------------------------------------------------------------------------------------------------- mixed_batch

    def mixed_batch(self) -> dict[str, Any]:
        return {name: self._mixed(targets) for name, targets in TARGETS.items()}

    @torch.no_grad()
    def _mixed(self, targets: tuple[str, ...]) -> dict[str, Any]:
        experts, mount = self.experts(targets), self.policy._forcing.mount
        names = ("", *(f"expert {k}" for k in range(EXPERTS)))
        alone, beside = [1 + n // (ROWS // EXPERTS) for n in range(ROWS)], [n // (ROWS // EXPERTS) for n in range(ROWS)]
        cases = {"base": None, "factored": (alone, True), "factored beside base": (beside, True)}
        cases |= {"delta": (alone, False)}
        found: dict[str, Any] = {}
        for what in ("step", "prompts"):
            sides: dict[str, Callable[[], Any]] = {}
            for case, how in cases.items():
                sides[case] = self._side(what, how, experts, names, mount)
            times = best(sides, self.repeats)
            found[what] = {
                "ms": {name: 1e3 * t / (STEPS if what == "step" else 1) for name, t in times.items()},
                "ratio": {name: t / times["base"] for name, t in times.items() if name != "base"},
            }
        return found

    def _side(self, what: str, how: Any, experts: list[SingularChange], names: tuple[str, ...], mount: Any) -> Any:
        every = 1 if what == "step" else ROWS // PROMPTS
        if how is None:
            base = [0] * (ROWS // every)
            if what == "prompts":
                return lambda: self.decoding(base, names, None)
            decoding = self.decoding(base, names, None)
            return lambda: self.step(decoding)
        owners, bare = how[0][::every], how[1]

        def prompts() -> None:
            with mount.rows([None, *experts], bare=bare) as rows:
                self.decoding(owners, names, rows)

        if what == "prompts":
            return prompts
        # The step is made under the mount, and is what it was made for when the mount is gone.
        with mount.rows([None, *experts], bare=bare) as rows:
            decoding = self.decoding(owners, names, rows)
        return lambda: self.step(decoding)

    # ---------------------------------------------------------------------------------------------------- vs_rebuild

    @torch.no_grad()
    def vs_rebuild(self) -> dict[str, Any]:
        """Of the MLP matrices, which are the ones that the public implementation changes."""
        experts, mount = self.experts(MLP), self.policy._forcing.mount
        spectra = self.policy.spectra.of(experts[0])
        # Written to in place of the model's own, which are never written to.
        weights = {f"{n}.weight": self.policy.model.get_submodule(n).weight.clone() for n in spectra}
        dtype = self.policy.model.dtype
        names = tuple(f"expert {k}" for k in range(EXPERTS))

        def rebuild(expert: SingularChange) -> None:
            for name, f in spectra.items():
                z = 1 + expert.offsets[name]
                made = f.u @ torch.diag((f.s * z).to(dtype)) @ f.vh
                weights[f"{name}.weight"].copy_(made * (f.s.sum() / (f.s * z).sum()).to(dtype))

        def theirs() -> None:
            for expert in experts:
                rebuild(expert)
                with in_place_of(self.policy.model, weights):
                    self.decoding([0], ("",), None, 2)

        def ours() -> None:
            with mount.rows(experts, bare=True) as rows:
                self.decoding([*range(EXPERTS)], names, rows, 2)

        def resident() -> None:
            self.step(decoding)

        with mount.rows(experts, bare=True) as rows:
            decoding = self.decoding([*range(EXPERTS)], names, rows, 2)
        times = best({"one batch, mounted anew": ours, "one batch": resident}, self.repeats)
        times["one batch"] /= STEPS
        times |= best({"rebuild": theirs}, 1)
        return {
            "requests": EXPERTS,
            "ms": {name: 1e3 * t for name, t in times.items()},
            "ratio": {name: times["rebuild"] / t for name, t in times.items() if name != "rebuild"},
        }

    # ----------------------------------------------------------------------------------------------------- switch_ms

    @torch.no_grad()
    def switch_ms(self) -> dict[str, Any]:
        found = {}
        for name, targets in TARGETS.items():
            experts, mount = self.experts(targets), self.policy._forcing.mount
            lean = self.policy._engine.lean
            turn = iter(range(10**9))

            def mounted() -> None:
                with mount.rows([experts[next(turn) % EXPERTS]], bare=True) as rows:  # noqa: B023
                    rows.assign(0)
                    assert lean is None or lean.prepare() is not None  # noqa: B023

            with mount.rows(experts, bare=True) as rows:
                resident = best({"": lambda: rows.assign([next(turn) % EXPERTS] * ROWS)}, 20)[""]  # noqa: B023
            found[name] = {"new": 1e3 * best({"": mounted}, max(10, self.repeats))[""], "resident": 1e3 * resident}
        return found


def show(key: str, found: dict[str, Any]) -> str:
    lines = [f"{key} (bar {BARS[key]:g})"]
    if key == "mixed_batch":
        for targets, cases in found.items():
            for what, row in cases.items():
                ratios = ", ".join(f"{name} {value:.2f}" for name, value in row["ratio"].items())
                lines.append(f"  {targets:<4} {what:<8} base {row['ms']['base']:.1f} ms; times the base: {ratios}")
    elif key == "vs_rebuild":
        lines += [f"  {name}: {ms:.1f} ms for {found['requests']} requests" for name, ms in found["ms"].items()]
        lines += [f"  {name}: {ratio:.0f} times faster than rebuilding" for name, ratio in found["ratio"].items()]
    else:
        lines += [f"  {n}: new expert {r['new']:.2f} ms, resident {r['resident']:.3f} ms" for n, r in found.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--only", action="append", choices=KEYS, help="measure this alone; may be given several times")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side (default: 5)")
    parser.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32 (default: auto)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(chosen.repeats, chosen.dtype)
    about = {**describe(), "dtype": bench.policy.dtype}
    print(", ".join(f"{k} {v}" for k, v in about.items()), flush=True)
    found: dict[str, Any] = {}
    for key in chosen.only or KEYS:
        found[key] = getattr(bench, key)()
        print(show(key, found[key]), flush=True)
    if chosen.json:
        print(json.dumps({**found, "bars": BARS, "machine": about}))


if __name__ == "__main__":
    main()

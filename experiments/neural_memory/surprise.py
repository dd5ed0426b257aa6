"""Is what surprises kept better? A stream of pairs, some repeated and some seen once, written on one budget.

    python experiments/neural_memory/surprise.py [--seeds 20] [--depth 1|2] [--json]

Titans' claim (arXiv:2501.00663, section 3.1) is that a memory written by its own prediction error keeps what surprises
it and spends little on what it predicts. No model is trained here: the memory reads random unit keys and values, the
same for all rules. ``frequent`` pairs come ``rounds`` times in random order; in the second half of them ``rare`` pairs
come once each; ``filler`` more rounds of the frequent ones follow. At the end every key is asked for its value. Recall
of a pair is 1 - ‖M(k) - v‖² / ‖v‖²: 1 is the value itself, 0 what an empty memory says.

Rules, all with the same total Σ_t ‖what is written at t‖, which the first one's θ sets:

``surprise``  θ ∇ℓ: in proportion to the error (the paper's rule, without momentum)
``momentum``  the same with η = 0.5
``constant``  in the same direction, every write of the same size
``shuffled``  in the same direction, the sizes those of the first rule in random order
``stale``     as the first, its errors all taken at the first memory (a sum of outer products where M is a matrix): a
              control that predicts nothing, so that nothing surprises more than anything else
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from twoclock.measure import t_interval
from twoclock.nn.neural_memory import memory_read, memory_step
from twoclock.nn.neural_memory_inputs import MemoryStep
from twoclock.nn.neural_memory_spec import Gates, MemorySpec
from twoclock.nn.neural_memory_state import MemoryState, init_state
from twoclock.seeding import child_seed

RULES = ("surprise", "momentum", "constant", "shuffled", "stale")
ETA = 0.5
HALVINGS = 12
KINDS = ("rare", "frequent", "difference")


@dataclass(frozen=True)
class Setting:
    width: int = 32
    depth: int = 1
    frequent: int = 12
    rare: int = 8
    rounds: int = 8
    filler: int = 3
    rate: float = 0.2
    """θ of the rule ``surprise``."""


@dataclass(frozen=True)
class Stream:
    keys: torch.Tensor
    """[pairs, D], the frequent ones first."""
    values: torch.Tensor
    order: torch.Tensor
    """[T]: the pair at each token."""


def _generator(name: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(child_seed(f"surprise.{name}", seed))


def stream_of(setting: Setting, seed: int) -> Stream:
    generator = _generator("stream", seed)
    pairs = setting.frequent + setting.rare
    keys, values = torch.nn.functional.normalize(
        torch.randn(2, pairs, setting.width, generator=generator, dtype=torch.float64), dim=-1
    )
    turns = [torch.randperm(setting.frequent, generator=generator) for _ in range(setting.rounds + setting.filler)]
    early = torch.cat(turns[: setting.rounds // 2])
    late = torch.cat([*turns[setting.rounds // 2 : setting.rounds], torch.arange(setting.frequent, pairs)])
    late = late[torch.randperm(len(late), generator=generator)]
    return Stream(keys, values, torch.cat([early, late, *turns[setting.rounds :]]))


def memory_of(setting: Setting, rule: str, tokens: int, seed: int) -> MemoryState:
    spec = MemorySpec(
        heads=1,
        width=setting.width,
        depth=setting.depth,
        expansion=2,
        chunk=tokens + 1 if rule == "stale" else 1,
        momentum=rule == "momentum",
    )
    generator = _generator("memory", seed)
    # An output of 0 to begin with: whatever is recalled was written.
    initial = [torch.randn(1, i, o, generator=generator, dtype=torch.float64) / i**0.5 for i, o in spec.shapes]
    initial[-1] = torch.zeros_like(initial[-1])
    return init_state(spec, initial, 1)


def play(setting: Setting, stream: Stream, rule: str, sizes: Sequence[float] | float, seed: int) -> Played:
    """A stream written by one rule: ``sizes`` is θ for all tokens, or how much each writes."""
    state = memory_of(setting, rule, len(stream.order), seed)
    written, norms = 0.0, []
    for t, pair in enumerate(stream.order.tolist()):
        k, v = (x[pair].view(1, 1, 1, -1) for x in (stream.keys, stream.values))
        if isinstance(sizes, float):
            rate, step = sizes, _written(state, k, v, sizes)
            norm = float(step.surprise)
        else:
            norm = float(_written(state, k, v, 0.0).surprise)
            rate = sizes[t] / max(norm, 1e-12)
            step = _written(state, k, v, rate)
        state = step.state
        written += rate * norm
        norms.append(rate * norm)
    found = memory_read(state, stream.keys[None, None])[0, 0]
    recall = 1 - (found - stream.values).square().sum(1) / stream.values.square().sum(1)
    return Played(recall, written, norms)


@dataclass(frozen=True)
class Played:
    recall: torch.Tensor
    """[pairs]."""
    written: float
    """The budget: Σ θ ‖∇ℓ‖."""
    sizes: list[float]


def _written(state: MemoryState, k: torch.Tensor, v: torch.Tensor, rate: float) -> MemoryStep:
    """The memory after one pair; its ``surprise`` is that before it."""
    one = torch.full((1, 1, 1), rate, dtype=torch.float64)
    momentum = ETA * torch.ones_like(one) if state.spec.momentum else None
    return memory_step(state, k, v, None, Gates(one, momentum, torch.zeros_like(one)), telemetry=True)


def recalls(setting: Setting, seed: int) -> dict[str, torch.Tensor]:
    """Of one stream, each rule's recall of its pairs, all on one budget."""
    stream = stream_of(setting, seed)
    first = play(setting, stream, "surprise", setting.rate, seed)
    tokens = len(stream.order)
    found = {"surprise": first.recall}
    found["constant"] = play(setting, stream, "constant", [first.written / tokens] * tokens, seed).recall
    shuffled = torch.tensor(first.sizes)[torch.randperm(tokens, generator=_generator("shuffled", seed))].tolist()
    found["shuffled"] = play(setting, stream, "shuffled", shuffled, seed).recall
    for rule in ("momentum", "stale"):
        # What is written depends on the rate in a way that no formula says: halve the interval.
        low, high = 0.0, setting.rate
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            tried = play(setting, stream, rule, middle, seed)
            # Momentum writes every error 1 / (1 - η) times over.
            spent = tried.written / (1 - ETA if rule == "momentum" else 1)
            low, high = (middle, high) if spent < first.written else (low, middle)
        found[rule] = tried.recall
    return found


def measured(setting: Setting, seeds: int) -> dict[str, dict[str, list[float]]]:
    """Per rule: mean recall of rare and of frequent pairs in each stream, and that of the rare less than surprise's."""
    out: dict[str, dict[str, list[float]]] = {rule: {kind: [] for kind in KINDS} for rule in RULES}
    for seed in range(seeds):
        found = recalls(setting, seed)
        for rule in RULES:
            frequent, rare = found[rule][: setting.frequent], found[rule][setting.frequent :]
            out[rule]["rare"].append(float(rare.mean()))
            out[rule]["frequent"].append(float(frequent.mean()))
            out[rule]["difference"].append(float(found["surprise"][setting.frequent :].mean() - rare.mean()))
    return out


def surprises(setting: Setting, seed: int) -> dict[str, float]:
    """‖∇ℓ‖ of the paper's rule: of a pair's first sight, of its last, of a new pair then, and of a changed value."""
    stream = stream_of(replace(setting, rare=1), seed)
    state = memory_of(setting, "surprise", len(stream.order), seed)
    sizes: dict[int, list[float]] = {}
    for pair in stream.order.tolist():
        k, v = (x[pair].view(1, 1, 1, -1) for x in (stream.keys, stream.values))
        step = _written(state, k, v, setting.rate)
        sizes.setdefault(pair, []).append(float(step.surprise))
        state = step.state
    frequent = [sizes[p] for p in range(setting.frequent)]
    k = stream.keys[0].view(1, 1, 1, -1)
    other = -stream.values[0].view(1, 1, 1, -1)
    return {
        "first sight": sum(s[0] for s in frequent) / len(frequent),
        "last sight": sum(s[-1] for s in frequent) / len(frequent),
        "new": sizes[setting.frequent][0],
        "changed": float(_written(state, k, other, 0.0).surprise),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="streams; default: %(default)s")
    parser.add_argument("--depth", type=int, choices=(1, 2), action="append", help="of the memory; default: both")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if given.seeds < 2:
        parser.error(f"--seeds is 2 or more, for an interval; got {given.seeds}")
    torch.set_num_threads(1)
    for depth in given.depth or (1, 2):
        setting = Setting(depth=depth)
        found = measured(setting, given.seeds)
        norms = [surprises(setting, seed) for seed in range(given.seeds)]
        sizes = {name: sum(n[name] for n in norms) / len(norms) for name in norms[0]}
        if given.json:
            print(json.dumps({"setting": asdict(setting), "recall": found, "surprise": sizes}))
            continue
        print(f"\nmemory of depth {depth}, {given.seeds} streams; gradient norms: ", end="")
        print(", ".join(f"{name} {size:.2f}" for name, size in sizes.items()))
        print("\n| rule | recall of rare pairs | of frequent pairs | rare: surprise less this |\n|---|---|---|---|")
        for rule in RULES:
            cells = [t_interval(found[rule][kind]) for kind in KINDS]
            shown = [f"{c.estimate:.3f} [{c.low:.3f}, {c.high:.3f}]" for c in cells]
            print(f"| {rule} | {' | '.join(shown[:2])} | {'–' if rule == 'surprise' else shown[2]} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The neural memory's chunk form beside its per-token reference and PyPI's ``titans-pytorch``, in one run.

Layers of equal width, heads, depth (2) and expansion (4), projections and gates included; ours has the convolution and
gates of every token besides. Peers, by where a token's gradient is taken:

``refreshed``  at the weights of the token's chunk, the paper's rule; its α and η are means over the chunk, ours are not
``identical``  the same function as ours, gates of every token: ``chunk_size=1, batch_size=C``
``default``    at the weights the call began with, which never move during it
``with norm``  as refreshed, the memory with residual and layer norm, which is its packaged form, on both sides

Seconds are of the processor (one thread), sides in turns, the best of each, so that other work on the machine falls
out. Type: ``OMP_NUM_THREADS=1 python benchmarks/neural_memory.py [--json]``; without the peer (``pip install
titans-pytorch==0.5.5``) only our own figures are taken.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from machine import describe, forget_peak, peak, peak_memory_of, resident

from twoclock.nn.neural_memory import memory_step
from twoclock.nn.neural_memory_layer import Kernel, init_parameters, layer_step, start
from twoclock.nn.neural_memory_reference import memory_reference
from twoclock.nn.neural_memory_spec import Gates, MemorySpec
from twoclock.nn.neural_memory_state import init_state

KEYS = ("agreement", "forward", "forward_backward", "reference", "peak_memory", "flatness")
PEERS = ("refreshed", "identical", "default", "with norm")
SLOW_TOKENS = 128
"""Tokens where a side goes token by token; rates, not times, are compared."""


@dataclass(frozen=True)
class Case:
    heads: int
    width: int
    chunk: int
    batch: int = 1
    tokens: int = 1024

    @property
    def name(self) -> str:
        return f"{self.heads}×{self.width}, C={self.chunk}, batch {self.batch}"

    @property
    def model_width(self) -> int:
        return self.heads * self.width

    def spec(self, norm: bool = False) -> MemorySpec:
        return MemorySpec(heads=self.heads, width=self.width, chunk=self.chunk, residual=norm, norm=norm)

    def inputs(self, tokens: int) -> torch.Tensor:
        return torch.randn(self.batch, tokens, self.model_width, generator=torch.Generator().manual_seed(1))


CASES = (
    Case(1, 128, 64),
    Case(1, 128, 16, tokens=512),
    Case(4, 64, 64),
    Case(4, 64, 16, tokens=512),
    Case(4, 64, 64, batch=4, tokens=256),
)


def ours(
    case: Case, tokens: int, backward: bool, kernel: Kernel = memory_step, norm: bool = False
) -> Callable[[], Any]:
    spec = case.spec(norm)
    parameters = init_parameters(spec, case.model_width, 0)
    leaves = [parameters.project, parameters.taps, parameters.gates, parameters.gates_bias, *parameters.initial]
    x = case.inputs(tokens)
    for leaf in (x, *leaves, parameters.gain):
        if leaf is not None:
            leaf.requires_grad_(backward)

    def run() -> torch.Tensor:
        read = layer_step(parameters, start(spec, parameters, case.batch), x, kernel=kernel).read
        assert read is not None
        return read

    return _timed(run, backward)


def theirs(case: Case, tokens: int, backward: bool, kind: str) -> Callable[[], Any]:
    layer = peer(case, kind)
    x = case.inputs(tokens).requires_grad_(backward)
    return _timed(lambda: layer(x)[0], backward)


def _timed(run: Callable[[], torch.Tensor], backward: bool) -> Callable[[], Any]:
    def forward() -> None:
        with torch.no_grad():
            found = run()
        if not bool(found.isfinite().all()):
            raise RuntimeError("NaN or infinity: such a time says nothing")

    return (lambda: run().sum().backward()) if backward else forward


def peer(case: Case, kind: str, **more: Any) -> Any:
    from titans_pytorch import NeuralMemory

    torch.manual_seed(0)
    chunk, batch = {
        "refreshed": (case.chunk, case.chunk),
        "identical": (1, case.chunk),
        "default": (case.chunk, None),
        "with norm": (case.chunk, case.chunk),
    }[kind]
    return NeuralMemory(
        dim=case.model_width,
        dim_head=case.width,
        heads=case.heads,
        chunk_size=chunk,
        batch_size=batch,
        mem_model_norm_add_residual=kind == "with norm",
        init_decay_bias=-6.0,  # at its default of 0 half of the memory is lost at every step
        default_step_transform_max_lr=0.01,  # at its default of 1 the memory diverges on noise
        **more,
    )


def has_peer() -> bool:
    return importlib.util.find_spec("titans_pytorch") is not None


def best(sides: dict[str, tuple[Callable[[], Any], int]], repeats: int) -> dict[str, float]:
    """Tokens a second of each side: the best of ``repeats`` turns after one that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, (work, _) in sides.items():
            begin = time.process_time()
            work()
            if turn:
                taken[name].append(time.process_time() - begin)
    return {name: tokens / min(taken[name]) for name, (_, tokens) in sides.items()}


def operations(case: Case) -> float:
    """Floating-point operations a token of the forward pass: of the memory (5.5 P and the chunk's attention, a head)
    and the projections."""
    memory = case.heads * (5.5 * case.spec().values + 2 * case.chunk * case.width * 5)
    return 2 * (memory + 3 * case.model_width**2)


def matmul_gflops() -> float:
    """The best rate of a product of two 1024 × 1024 matrices in float32, in processor seconds like all rates here."""
    a = torch.randn(1024, 1024)
    return best({"product": (lambda: a @ a, 1)}, 15)["product"] * 2 * 1024**3 / 1e9


class Bench:
    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.matmul_gflops = matmul_gflops()
        self.peers = PEERS if has_peer() else ()

    def agreement(self) -> dict[str, Any]:
        """Largest difference from the peer on its own weights, set to the paper's loss, without norms, in float64."""
        if not self.peers:
            return {}
        case = Case(1, 16, 8)
        layer = peer(
            case, "identical", pre_rmsnorm=False, store_memory_loss_fn=lambda p, t: (p - t).pow(2).sum(-1)
        ).double()
        x = case.inputs(50).double()
        with torch.no_grad():
            theirs, state = layer(x)
            tokens = [linear(x).unsqueeze(1) for linear in (layer.to_keys, layer.to_values, layer.to_queries)]
            rate = layer.adaptive_step_transform(layer.to_adaptive_step(x)).view(1, 1, -1)
            eta, alpha = (torch.sigmoid(g(x)).view(1, 1, -1) for g in (layer.to_momentum, layer.to_decay_factor))
            begin = init_state(case.spec(), list(layer.memory_model_parameters), 1)
            found = memory_step(begin, *tokens, Gates(rate, eta, alpha))
        last = list(state.states[0].values())
        return {
            "outputs": float((found.read[:, 0] - theirs).abs().max()),  # type: ignore[index]
            "weights": max(float((a[0] - b).abs().max()) for a, b in zip(found.state.weights, last, strict=True)),
            "tokens": x.shape[1],
        }

    def forward(self) -> dict[str, Any]:
        return self._beside(backward=False)

    def forward_backward(self) -> dict[str, Any]:
        return self._beside(backward=True)

    def _beside(self, backward: bool) -> dict[str, Any]:
        found = {}
        for case in CASES:
            sides = {"ours": (ours(case, case.tokens, backward), case.batch * case.tokens)}
            if self.peers:
                sides["ours with norm"] = (ours(case, case.tokens, backward, norm=True), case.batch * case.tokens)
            for kind in self.peers:
                tokens = SLOW_TOKENS if kind == "identical" else case.tokens
                sides[kind] = (theirs(case, tokens, backward, kind), case.batch * tokens)
            rates = best(sides, self.repeats)
            rate = operations(case) * (3 if backward else 1) * rates["ours"] / 1e9
            found[case.name] = {
                "tokens_per_second": rates,
                "ratio": {
                    kind: rates["ours with norm" if kind == "with norm" else "ours"] / rates[kind]
                    for kind in self.peers
                },
                "gflops": rate,
                "fraction_of_matmul_rate": rate / self.matmul_gflops,
            }
        return found

    def reference(self) -> dict[str, Any]:
        """The chunk form against the loop over tokens."""
        found = {}
        for case in CASES[2:4]:
            for backward in (False, True):
                rates = best(
                    {
                        "chunks": (ours(case, case.tokens, backward), case.tokens),
                        "reference": (ours(case, SLOW_TOKENS, backward, memory_reference), SLOW_TOKENS),
                    },
                    1,
                )
                name = f"{case.name}, {'forward and backward' if backward else 'forward'}"
                found[name] = {"tokens_per_second": rates, "ratio": rates["chunks"] / rates["reference"]}
        return found

    def peak_memory(self) -> dict[str, Any]:
        """MiB above the start of one forward and backward pass, each in a process of its own."""
        found = {}
        for n, case in enumerate(CASES[:4]):
            mib = {}
            for side in ("ours", *(k for k in self.peers if k in ("refreshed", "default"))):
                before, highest = peak_memory_of(__file__, "--peak-of", side, str(n))
                mib[side] = highest - before
            found[case.name] = {"mib": mib, "share": {k: mib["ours"] / m for k, m in mib.items() if k != "ours"}}
        return found

    def flatness(self) -> dict[str, Any]:
        """Microseconds a token of a reading of 1 k to 64 k tokens, in one call."""
        case = CASES[2]
        lengths = [1024, 4096, 16384, 65536]
        rates = best({str(n): (ours(case, n, False), n) for n in lengths}, max(1, self.repeats - 1))
        micros = {n: 1e6 / rate for n, rate in rates.items()}
        ratio = micros["65536"] / micros["1024"]
        return {"case": case.name, "microseconds_per_token": micros, "longest_to_shortest": ratio}


def show(key: str, found: dict[str, Any]) -> str:
    lines = [key]
    if key in ("agreement", "flatness"):
        return f"{key}: {json.dumps(found, default=str)}"
    for name, row in found.items():
        rates = row.get("tokens_per_second") or row["mib"]
        ratio = row["ratio"] if "ratio" in row else row["share"]
        ratios = ", ".join(f"{k} {v:.2f}" for k, v in ratio.items()) if isinstance(ratio, dict) else f"{ratio:.1f}"
        share = f"; {row['fraction_of_matmul_rate']:.0%} of the matmul rate" if "gflops" in row else ""
        lines.append(f"  {name:<46}" + ", ".join(f"{k} {v:.0f}" for k, v in rates.items()) + f" | {ratios}{share}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--only", action="append", choices=KEYS, help="measure this alone; may be given several times")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side (default: 3)")
    parser.add_argument("--peak-of", nargs=2, metavar=("SIDE", "CASE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if chosen.peak_of:
        side, case = chosen.peak_of[0], CASES[int(chosen.peak_of[1])]
        work = ours(case, case.tokens, True) if side == "ours" else theirs(case, case.tokens, True, side)
        before = resident()
        forget_peak()
        work()
        print(before, peak())
        return
    bench = Bench(chosen.repeats)
    version = importlib.metadata.version("titans-pytorch") if bench.peers else "not installed"
    about = {**describe(), "dtype": "float32", "titans-pytorch": version}
    print(", ".join(f"{k} {v}" for k, v in about.items()), flush=True)
    found: dict[str, Any] = {}
    for key in chosen.only or KEYS:
        found[key] = getattr(bench, key)()
        print(show(key, found[key]), flush=True)
    if chosen.json:
        cases = [asdict(case) for case in CASES]
        print(json.dumps({**found, "cases": cases, "machine": {**about, "matmul_gflops": bench.matmul_gflops}}))


if __name__ == "__main__":
    sys.exit(main())

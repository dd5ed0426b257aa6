"""Which compute dtype a machine should use, measured rather than guessed; and what the machine is.

bfloat16 is several times faster than float32 on processors that multiply it natively (avx512_bf16, AMX) and far slower
on those that emulate it, and flags alone do not say which: so a small stack of layers of the default model's shape is
timed once, forward (rollouts) and forward with backward (training), and the answer is kept in the cache folder for this
processor, torch version and thread count. It is kept, not taken again, so that a resumed run computes the same numbers.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from twoclock.hashing import content_hash
from twoclock.models.cache import Progress, cache_root, prepared_folders, read_json, write_json

__all__ = ["choose_dtype", "cpu_facts", "machine_report", "measure_dtypes"]

# The default model's shape: width, hidden width, layers in the stack, tokens in a batch.
D, F, LAYERS, TOKENS = 576, 1536, 3, 256
REPEATS = 4
MARGIN = 0.9
"""bfloat16 must take at most this share of float32's time: for a tie the more exact one is better."""
INTERESTING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")
EXTRAS = {
    "local": ("torch", "transformers", "peft", "safetensors", "gguf", "accelerate"),
    "tasks": ("reasoning_gym",),
    "gepa": ("gepa",),
}


def choose_dtype(
    device: str = "cpu", *, cache_dir: Path | None = None, progress: Progress | None = None
) -> tuple[str, str]:
    """The faster dtype for a device, and why, in words. Needs torch.

    On a CPU: measured once (under 2 s) and remembered. On CUDA: bfloat16 where the card has it, else float32, because
    float16 training overflows without loss scaling. Elsewhere float32.
    """
    if device.startswith("cuda"):
        import torch

        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "this GPU multiplies bfloat16 natively"
        return "float32", "this GPU has no native bfloat16, and float16 overflows in training"
    if device != "cpu":
        return "float32", f"the safe choice on the device '{device}'"
    path = cache_root(cache_dir) / "precision.json"
    key = _machine_key()
    known = (read_json(path) or {}).get(key)
    if _is_measurement(known):
        return _decide(known, "measured earlier")
    if progress:
        progress("measuring once whether bfloat16 or float32 is faster on this machine")
    seconds = measure_dtypes()
    with contextlib.suppress(OSError):  # without a cache it is measured again next time
        write_json(path, {**(read_json(path) or {}), key: seconds})
    return _decide(seconds, "measured now")


def measure_dtypes() -> dict[str, float]:
    """Best of a few times in seconds: ``float32_forward``, ``float32_train``, and the same for ``bfloat16``."""
    import torch

    def stack(dtype: torch.dtype) -> tuple[Callable[[], object], Callable[[], object]]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(F, D), (D, F)] * LAYERS
        weights = [(torch.randn(s, generator=generator) / s[1] ** 0.5).to(dtype).requires_grad_() for s in shapes]
        x = torch.randn((TOKENS, D), generator=generator).to(dtype)

        def forward() -> torch.Tensor:
            y = x
            for weight in weights:
                y = torch.nn.functional.silu(y @ weight.T)
            return y

        def rollout() -> object:
            with torch.inference_mode():
                return forward()

        def train() -> object:
            return torch.autograd.grad(forward().float().square().mean(), weights)

        return rollout, train

    seconds: dict[str, float] = {}
    for name in ("float32", "bfloat16"):
        forward, train = stack(getattr(torch, name))
        seconds[f"{name}_forward"] = _best(forward, limit_s=0.4)
        seconds[f"{name}_train"] = _best(train, limit_s=0.4)
    return seconds


def _best(call: Callable[[], object], limit_s: float) -> float:
    """The shortest of a few runs after one to warm up; gives up early where emulation makes each run slow."""
    began = time.perf_counter()
    call()
    best = time.perf_counter() - began
    for _ in range(REPEATS):
        if time.perf_counter() - began > limit_s:
            break
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _decide(seconds: dict[str, float], when: str) -> tuple[str, str]:
    ratio = {part: seconds[f"float32_{part}"] / seconds[f"bfloat16_{part}"] for part in ("forward", "train")}
    total = {name: seconds[f"{name}_forward"] + seconds[f"{name}_train"] for name in ("float32", "bfloat16")}
    chosen = "bfloat16" if total["bfloat16"] <= MARGIN * total["float32"] else "float32"
    return chosen, (
        f"{when}: bfloat16 runs {ratio['forward']:.1f}× as fast as float32 forward, {ratio['train']:.1f}× in training"
    )


def _is_measurement(value: object) -> TypeGuard[dict[str, float]]:
    names = [f"{dtype}_{part}" for dtype in ("float32", "bfloat16") for part in ("forward", "train")]
    return isinstance(value, dict) and all(isinstance(value.get(n), float) and value[n] > 0 for n in names)


def _machine_key() -> str:
    import torch

    facts = {**cpu_facts(), "torch": str(torch.__version__), "threads": torch.get_num_threads()}
    return content_hash(facts)[:16]


# ------------------------------------------------------------------------------------------------------- the machine


def cpu_facts() -> dict[str, Any]:
    """The processor's name, its core count and those of its flags that decide speed."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            label, _, value = line.partition(":")
            if label.strip() == "model name":
                name = value.strip()
            elif label.strip() in ("flags", "Features"):
                flags.update(value.split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cpu": name, "cores": cores, "flags": [f for f in INTERESTING_FLAGS if f in flags]}


def machine_report(cache_dir: Path | None = None, *, measure: bool = True) -> dict[str, Any]:
    """Everything that ``twoclock doctor`` shows, plain JSON; works where torch is not installed.

    ``matmul_tflops`` by dtype, ``copy_gb_per_s`` (bytes read plus written), ``memory_gb``, ``cache`` with its free
    space and models, ``extras`` with what each lacks, ``dtype`` with the reason. ``measure`` takes about 3 s.
    """
    root = cache_root(cache_dir)
    report: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **cpu_facts(),
        "memory_gb": _memory_gb(),
        "cache": {"path": str(root), "free_gb": _free_gb(root), "models": prepared_folders(cache_dir)},
        "extras": {extra: _missing(packages) for extra, packages in EXTRAS.items()},
        "versions": {name: _version(name) for name in ("twoclock", "torch", "transformers", "gguf", "peft", "gepa")},
    }
    if measure:
        report["copy_gb_per_s"] = round(_copy_speed() / 1e9, 2)
    if importlib.util.find_spec("torch") is None:
        return {**report, "torch": None}
    return {**report, "torch": _torch_facts(cache_dir, measure)}


def _torch_facts(cache_dir: Path | None, measure: bool) -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    facts: dict[str, Any] = {
        "version": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }
    if measure:
        dtype, reason = choose_dtype("cuda" if cuda else "cpu", cache_dir=cache_dir)
        facts["matmul_tflops"] = {name: round(_matmul_speed(name) / 1e12, 3) for name in ("float32", "bfloat16")}
        facts["dtype"] = {"chosen": dtype, "reason": reason}
    return facts


def _matmul_speed(dtype: str) -> float:
    """Floating-point operations a second of a square CPU product."""
    import torch

    size = 768
    x = torch.randn((size, size), generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    return float(2 * size**3 / _best(lambda: x @ x, limit_s=0.5))


def _copy_speed() -> float:
    """Bytes a second, read and written, of copying a block larger than most processor caches."""
    source = np.ones(256_000_000, dtype=np.uint8)
    target = np.zeros_like(source)
    return 2 * source.nbytes / _best(lambda: np.copyto(target, source), limit_s=0.5)


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _free_gb(root: Path) -> float | None:
    """Free space where the cache is, or would be."""
    for folder in (root, *root.parents):
        if folder.is_dir():
            return round(shutil.disk_usage(folder).free / 1e9, 1)
    return None


def _missing(packages: tuple[str, ...]) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

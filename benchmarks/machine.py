"""What this machine can do at most, and how the benchmarks take time and memory."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

COPY_BYTES = 256 * 2**20
SQUARE = 2048


def seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """The wall time of each of ``repeats`` runs after one that does not count."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def side_by_side(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, in turns, so that a slow minute of the machine falls on all of them; the first turn does
    not count."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, work in sides.items():
            start = time.perf_counter()
            work()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return taken


def median(values: list[float]) -> float:
    return statistics.median(values)


def ceilings(dtype: torch.dtype) -> dict[str, float]:
    """``matmul_gflops``: the best rate of a product of two 2048 × 2048 matrices. ``copy_gbps``: bytes copied a second,
    256 MiB at a time, each byte counted once."""
    a, b = torch.randn(SQUARE, SQUARE).to(dtype), torch.randn(SQUARE, SQUARE).to(dtype)
    # Filled, not merely allocated: pages that were never written are all one page of zeros in the cache.
    source, target = torch.randn(COPY_BYTES // 4), torch.randn(COPY_BYTES // 4)
    return {
        "matmul_gflops": 2 * SQUARE**3 / min(seconds(lambda: a @ b, 15)) / 1e9,
        "copy_gbps": COPY_BYTES / min(seconds(lambda: target.copy_(source), 7)) / 1e9,
    }


def describe() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def peak_memory_of(script: str, *arguments: str) -> tuple[float, float]:
    """(resident MiB before, highest resident MiB) that a script reports of itself on its last line."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(arguments)} failed: {done.stderr[-2000:]}")
    before, peak = done.stdout.strip().splitlines()[-1].split()
    return float(before), float(peak)


def resident() -> float:
    """MiB of this process in memory now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def forget_peak() -> None:
    """Starts the kernel's record of this process's highest memory anew."""
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")


def peak() -> float:
    """MiB: the highest since :func:`forget_peak`."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))

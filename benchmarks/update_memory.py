"""Highest memory of one update over 8 × 8 sequences of 400 tokens, ours or the plain one, in a process of its own.

Prints ``before peak`` in MiB. Called by ``round_speed.py``; by hand: ``python benchmarks/update_memory.py ours|plain``.
"""

from __future__ import annotations

import random
import sys

from machine import forget_peak, peak, resident
from peers import plain_update
from workload import ITEMS, SAMPLES, TrainBench, evidence_of, shared_work

from twoclock.models.local import open_local
from twoclock.slow.lora import LoraChannel
from twoclock.types import Budget, Completion

TOKENS, PROMPT = 400, 300


def main(side: str) -> None:
    policy = open_local("packaged", dtype="bfloat16")
    work = shared_work(policy, PROMPT - 30)
    rng = random.Random(0)
    answers = [
        [tuple(rng.randrange(1000, 40000) for _ in range(TOKENS - len(p))) for _ in range(SAMPLES)]
        for p in work.prompts
    ]
    assert len(answers) == ITEMS
    if side == "plain":
        run = lambda: plain_update(policy.model, work.prompts, answers)  # noqa: E731
    else:
        completions = [
            [
                Completion(tokens=a, logprobs=(-1.0,) * len(a), text="", finish="length", prompt_tokens=len(p))
                for a in row
            ]
            for p, row in zip(work.prompts, answers, strict=True)
        ]
        channel = LoraChannel()
        state = channel.init(policy.card, 0)
        run = lambda: channel.propose(TrainBench(policy), state, evidence_of(work, completions), Budget(), 0)  # noqa: E731
    before = resident()
    forget_peak()
    run()
    print(before, peak())


if __name__ == "__main__":
    main(sys.argv[1])

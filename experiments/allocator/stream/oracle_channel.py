"""A fast channel that is told the truth: from the first round of a phase it shows four right examples of its task."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twoclock.contracts import Reflector, Workbench
from twoclock.fast.spec import FastSpec
from twoclock.types import Budget, Conditioning, Declined, Evidence, PolicyCard, Proposal, Timescale

HERE = Path(__file__).parent
INSTRUCTION = "\nAnswer with one number and nothing else."
SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class OracleConfig:
    """Nothing to set."""


class OracleChannel:
    """Its state never changes; see the module. The examples are the file's last items, which no split reaches."""

    name = "oracle"
    timescale = Timescale.FAST

    def init(self, card: PolicyCard, seed: int) -> int:
        return 0

    def propose(
        self, bench: Workbench, state: int, evidence: Evidence, budget: Budget, seed: int
    ) -> Proposal[int] | Declined:
        return Declined(channel=self.name, reason="it has been told")

    def condition(self, state: int, task: str) -> Conditioning:
        lines = (HERE / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()[-SHOWN:]
        rows = [json.loads(line) for line in lines]
        return Conditioning(exemplars=tuple((row["prompt"] + INSTRUCTION, row["answer"]) for row in rows))

    def dump(self, state: int) -> bytes:
        return b"oracle"

    def load(self, blob: bytes) -> int:
        return 0


def build(config: Any, reflector: Reflector | None) -> OracleChannel:
    return OracleChannel()


SPEC = FastSpec(config=OracleConfig, build=build, summary="is told the truth")

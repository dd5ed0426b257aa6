"""A run that writes a neural memory, beside a slow channel that learns: resumed to the same ledger, rolled back to the
base's own bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from configured import TEXT, VERIFIER  # noqa: E402

from twoclock.build import create_session, open_session  # noqa: E402
from twoclock.config import parse_config  # noqa: E402
from twoclock.evaluation import conditioning_of  # noqa: E402
from twoclock.types import Conditioning, Request, Sampling  # noqa: E402

CHANNELS = """
[channels.neural_memory]
retrofit = "random"
width = 16
gate = 20.0

[channels.lora]
rank = 2
learning_rate = 0.05
targets = ["down_proj"]

[allocator]
name = "fixed"

[gates]
fast = "accept"
slow = "accept"
"""


def session_of(folder: Path, model: Path) -> Any:
    head, _, rest = TEXT.partition("[channels.prompts]")
    measure = rest[rest.index("[measure]") :].replace("drift_every = 2", "drift_every = 0")
    (folder / "verify.py").write_text(VERIFIER)
    text = "\n".join([head.replace('source = "llama"', f'source = "{model}"'), CHANNELS, measure])
    return create_session(parse_config(text, (), base_dir=folder), folder / "run")


def says(session: Any) -> Any:
    told = conditioning_of(session.parts.channels, session.states(), "largest")
    return session.policy.sample([Request(prompt="a?", conditioning=told, seeds=(1, 2, 3))], Sampling(max_new_tokens=6))


def test_a_run_with_a_memory_beside_the_model(tiny_folder: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
        session = session_of(tmp_path / name, tiny_folder)
        loop = session.loop()
        loop.begin()
        if name == "whole":
            loop.run()
        else:
            loop.run(until=2)
            session.store.close()
            session = open_session(tmp_path / name / "run", write=True)
            loop = session.loop()
            loop.restore()
            loop.run()
        with session.store as store:
            digests.append(store.digest())
            assert store.verify() == []
            entries = [e for e in store.entries() if e.channel == "neural_memory"]
            assert any(e.action == "commit" and e.writes and e.cost.trained_tokens > 0 for e in entries)
            read = [row["soft"] for row in store.conditionings().values() if row["soft"]]
            assert read, "rollouts were sampled under the memory"
            assert all(soft["kind"] == "neural_memory" for soft in read)
            if name == "halves":
                live = says(session)
                store.append_rollback(0, reason="test")
                base = session.policy.sample(
                    [Request(prompt="a?", conditioning=Conditioning(), seeds=(1, 2, 3))], Sampling(max_new_tokens=6)
                )
                assert says(session) == base
                assert live != base
    assert digests[0] == digests[1]

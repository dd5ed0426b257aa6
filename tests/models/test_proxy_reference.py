"""The tokens of the public implementation of proxy-tuning, recorded under the transformers that it needs.

How they were made, and the models that they were made with: ``proxy_reference.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from proxy_reference import LAYERS, PAD, cases, make_model  # noqa: E402
from steered_cases import other_tokenizer  # noqa: E402

from twoclock.models.engine import Prompted  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.models.proxy_processor import ProxyProcessor  # noqa: E402
from twoclock.models.steered import Job, generate_steered  # noqa: E402
from twoclock.types import Conditioning, Sampling, Shift  # noqa: E402

RECORDED = json.loads((Path(__file__).parent / "data" / "proxy_reference.json").read_text())
NAMES = [f"{len(case['prompts'])} rows at {case['alpha']}" for case in RECORDED["cases"]]
each = pytest.mark.parametrize("case", RECORDED["cases"], ids=NAMES)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: make_model(name) for name in LAYERS}


def test_the_record_is_of_these_cases_and_says_where_it_is_from() -> None:
    assert [{k: v for k, v in case.items() if k != "tokens"} for case in RECORDED["cases"]] == cases()
    assert RECORDED["versions"]["transformers"] == "4.36.2"
    tokens = [row for case in RECORDED["cases"] for row in case["tokens"]]
    assert any(PAD in row for row in tokens), "some rows end early"
    assert sum(len(row) for row in tokens) > 1000


@each
def test_the_logits_processor_gives_the_tokens_of_the_reference(models: dict[str, Any], case: dict[str, Any]) -> None:
    width = max(map(len, case["prompts"]))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in case["prompts"]])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in case["prompts"]])
    processor = ProxyProcessor(models["expert"], models["anti"], alpha=case["alpha"], attention_mask=mask)
    out = models["base"].generate(
        ids,
        attention_mask=mask,
        logits_processor=transformers.LogitsProcessorList([processor]),
        do_sample=False,
        max_new_tokens=case["max_new_tokens"],
        eos_token_id=case["eos"],
        pad_token_id=PAD,
    )
    assert out[:, width:].tolist() == case["tokens"]


@each
def test_the_rollout_engine_gives_the_tokens_of_the_reference(models: dict[str, Any], case: dict[str, Any]) -> None:
    """Every id stands for a token here, and the expert has eight more of them."""
    tokenizers = {n: other_tokenizer(extra=[f"zz{i}" for i in range(48 if n == "expert" else 40)]) for n in LAYERS}
    policies = {n: LocalPolicy(m, tokenizers[n], name=n, base_hash=n) for n, m in models.items()}
    base = policies["base"]
    expert, anti = (base.steering.companions.add(policies[n]) for n in ("expert", "anti"))
    recipe = base.steering.recipe(Conditioning(shifts=(Shift(expert=expert, anti=anti, alpha=case["alpha"]),)))
    assert all(int(m.covered.sum()) == 300 for m in recipe.maps)
    jobs = [Job(recipe, {n: Prompted(tuple(p), 0, (0,)) for n in policies}, (0,)) for p in case["prompts"]]
    sampling = Sampling(max_new_tokens=case["max_new_tokens"], temperature=0.0)
    found = generate_steered(jobs, frozenset([case["eos"]]), sampling, max_rows=5)
    for (draft,), expected in zip(found, case["tokens"], strict=True):
        ended = expected.index(case["eos"]) + 1 if case["eos"] in expected else len(expected)
        assert draft.tokens == expected[:ended]
        assert not any(expected[ended:])

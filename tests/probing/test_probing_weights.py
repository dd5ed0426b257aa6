"""Probes that need a model's log-probabilities and its training: a tiny Llama whose weights were moved on purpose."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from probing_runs import call, local_run, probed

from twoclock.build import open_session
from twoclock.evaluation import general_prompts
from twoclock.measure import categorical_kl
from twoclock.probing import fingerprint
from twoclock.seeding import child_seed
from twoclock.types import Conditioning, Request, Sampling


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local_run(tmp_path_factory.mktemp("probed"), tiny_folder)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def drift(finished: Path) -> Any:
    return probed(finished, "--drift", "--prompts", 12, "--tokens", 6, "--out", finished.parent / "drift.json")


def record(found: Any, prompts: str, prompting: str) -> Any:
    (only,) = [
        r for r in found["results"]["drift"]["records"] if (r["prompts"], r["prompting"]) == (prompts, prompting)
    ]
    return only


def test_exact_drift_is_that_of_merged_weights(finished: Path, drift: Any) -> None:
    """A known delta on known weights: KL from the logits of a model in which W + scale · B A was written out."""
    import copy

    import torch

    session = open_session(finished)
    policy: Any = session.policy
    delta = session.parts.channels["lora"].condition(session.states()["lora"], "largest").delta
    assert delta is not None
    merged = copy.deepcopy(policy.model)
    for name, (a, b) in delta.payload.tensors.items():
        module = merged.get_submodule(name)
        module.weight.data += delta.payload.scale * (b @ a).to(module.weight.dtype)

    def logits(model: Any, ids: list[int], count: int) -> Any:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, -count - 1 : -1].double().numpy()

    prompts = general_prompts()[:12]
    for sampler, key in (("live", "live_base"), ("base", "base_live")):
        who = Conditioning(delta=delta) if sampler == "live" else Conditioning()
        sums, count = 0.0, 0
        for i, prompt in enumerate(prompts):
            seed = child_seed("probe-drift", 0, "general", sampler, i)
            ((done,),) = policy.sample(
                [Request(prompt=prompt, conditioning=who, seeds=(seed,))], Sampling(max_new_tokens=6)
            )
            ids = [*policy.render(prompt, Conditioning()), *done.tokens]
            live, base = (logits(m, ids, len(done.tokens)) for m in (merged, policy.model))
            p, q = (live, base) if sampler == "live" else (base, live)
            sums += float(categorical_kl(p, q).sum())
            count += len(done.tokens)
        cell = record(drift, "general", "none")[key]
        assert cell["tokens"] == count
        assert cell["per_token"]["estimate"] == pytest.approx(sums / count, rel=1e-3)
        assert cell["per_sequence"]["estimate"] == pytest.approx(sums / 12, rel=1e-3)
        assert cell["per_token"]["n"] == 12
        assert cell["per_token"]["low"] > 0


def test_estimates_agree_with_the_exact_sum(drift: Any) -> None:
    for way in ("live_base", "base_live"):
        cell = record(drift, "general", "none")[way]
        exact = cell["per_token"]["estimate"]
        for name in ("k1", "k3"):
            found = cell["estimates"][name]
            spread = found["per_token"]["high"] - found["per_token"]["low"]
            assert abs(found["per_token"]["estimate"] - exact) < 2 * spread
            assert found["unbiased"] is True
            assert found["suspect"] == ""
        assert cell["estimates"]["k2"]["unbiased"] is False


def test_each_conditioning_is_labelled(drift: Any) -> None:
    records = drift["results"]["drift"]["records"]
    assert {r["prompts"] for r in records} == {"general", "task:largest", "task:smallest"}
    assert {r["prompting"] for r in records} == {"none", "both", "live"}
    deployed, weights = (record(drift, "task:largest", p)["live_base"]["per_token"] for p in ("live", "none"))
    assert deployed["estimate"] != weights["estimate"]
    assert drift["results"]["drift"]["temperature"] == 1.0


def test_a_rolled_back_run_has_exactly_no_drift(run: Path) -> None:
    assert call("rollback", run, 0).exit_code == 0
    found = probed(run, "--drift", "--prompts", 3, "--tokens", 3)
    for entry in found["results"]["drift"]["records"]:
        assert entry["identical"] is True
        assert entry["live_base"]["per_token"] | {"n": 0} == {
            "estimate": 0.0, "low": 0.0, "high": 0.0, "n": 0, "level": 0.95, "method": "exact", "seeds": 1,
        }  # fmt: skip
    assert found["cost"]["rollouts"] == 0
    assert "0 exactly" in call("probe", run, "--drift", "--prompts", 3).stdout
    refused = call("probe", run, "--plasticity")
    assert refused.exit_code == 2
    assert "the live weights are the base's" in " ".join(refused.stderr.split())


def test_drift_is_held_to_a_limit(finished: Path, drift: Any) -> None:
    file = finished.parent / "drift.json"
    most = max(r[way]["per_token"]["high"] for r in drift["results"]["drift"]["records"] if r["prompting"] == "none"
               for way in ("live_base", "base_live"))  # fmt: skip
    assert call("check", finished, "--max-drift", most + 0.01, "--probe-file", file).exit_code == 0
    assert call("check", finished, "--max-drift", 1e-6, "--probe-file", file).exit_code == 10
    assert call("check", finished, "--max-drift", 1e-6).exit_code == 10  # of what the run recorded itself


# ----------------------------------------------------------------------------------------------------------- plasticity


def test_plasticity_trains_both_arms_alike_and_leaves_the_run_alone(run: Path) -> None:
    before = fingerprint(run)
    found = probed(run, "--plasticity", "--seeds", "0,1", "--rounds", 2, "--items", 6)
    assert fingerprint(run) == before
    assert found["run_unchanged"] is True
    result = found["results"]["plasticity"]
    assert (result["task"], result["trained_before"], result["rounds"]) == ("fresh", False, 2)
    assert [(c["start"], c["seed"]) for c in result["curves"]] == [("live", 0), ("live", 1), ("base", 0), ("base", 1)]
    assert all(len(c["points"]) == 3 and c["points"][0]["rollouts"] == 0 for c in result["curves"])
    assert all(point["n"] == 6 for c in result["curves"] for point in c["points"])
    assert result["ratio"]["estimate"] == pytest.approx(result["area"]["estimate"] / result["area_against"]["estimate"])
    assert result["ratio"]["n"] == 2
    assert result["dead_groups"]["estimate"] is not None
    live, base = (next(c for c in result["curves"] if c["start"] == arm) for arm in ("live", "base"))
    assert live["points"] != base["points"]
    spent = sum(c["points"][-1]["rollouts"] + 3 * 6 for c in result["curves"])
    assert found["cost"]["rollouts"] >= spent - 4 * 6  # a prompt that is none is measured once


def test_plasticity_from_the_base_against_the_base_is_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: an arm that begins from an untouched slow state has the very curve of the base."""
    from twoclock.probing import plasticity

    real = plasticity.Begun
    monkeypatch.setattr(plasticity, "Begun", lambda channel, state: real(channel, channel.init(None, 0)))
    found = probed(run, "--plasticity", "--seeds", "3", "--rounds", 1, "--items", 6)["results"]["plasticity"]
    live, base = found["curves"]
    assert [p["rollouts"] for p in live["points"]] == [p["rollouts"] for p in base["points"]]
    assert live["points"][0] == base["points"][0]


def test_one_seed_has_no_interval(run: Path) -> None:
    done = call("probe", run, "--plasticity", "--seeds", "0", "--rounds", 1, "--items", 4)
    assert done.exit_code == 0, done.output
    assert "[–, –] n=1" in done.stdout


def test_plasticity_stops_between_seeds_when_the_budget_is_spent(run: Path) -> None:
    whole = probed(run, "--plasticity", "--seeds", "0", "--rounds", 1, "--items", 4)["cost"]["rollouts"]
    found = probed(run, "--plasticity", "--seeds", "0,1", "--rounds", 1, "--items", 4, "--budget", whole + 10)
    assert found["results"]["plasticity"]["seeds"] == [0]
    assert "1 of 2 seeds" in found["stopped"]["plasticity"]
    assert found["cost"]["rollouts"] <= whole + 10


def test_a_trained_task_can_be_asked_for_and_is_said_to_be_one(run: Path) -> None:
    words = ("--plasticity", "--task", "largest", "--seeds", "0", "--rounds", 1, "--items", 4)
    assert probed(run, *words)["results"]["plasticity"]["trained_before"] is True
    assert "trained on this task" in call("probe", run, *words).stdout


def test_a_page_of_all_probes(run: Path, tmp_path: Path) -> None:
    done = call("probe", run, "--prompts", 4, "--tokens", 3, "--items", 8, "--seeds", "0,1", "--rounds", 1,
                "--html", tmp_path / "page.html")  # fmt: skip
    assert done.exit_code == 0, done.output
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    for name in ("drift", "retention", "plasticity", "ood", "decomposition"):
        assert f'id="probe-{name}"' in html
    assert "NaN" not in html[html.index('id="probe-drift"') : html.index('id="cost"')]


def test_numbers_are_plain_json(finished: Path, drift: Any) -> None:
    json.dumps(drift, allow_nan=False)
    assert math.isfinite(drift["at"])

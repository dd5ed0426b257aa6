"""Probes that need a model's log-probabilities and its training: a tiny Llama whose weights were moved on purpose."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from probing_runs import LOCAL, call, local_run, probed

from twoclock.build import open_session
from twoclock.evaluation import EvaluationSettings, Evaluator, general_prompts
from twoclock.loop import Loop
from twoclock.measure import categorical_kl, sample_efficiency
from twoclock.probe_file import find_probes
from twoclock.probing import fingerprint, run_curve, spent_by_round
from twoclock.seeding import child_seed
from twoclock.store import RunStore
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


def test_plasticity_of_the_untouched_base_is_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a "live" arm that begins where the base does is the same run to the bit."""
    begin = Loop.begin
    monkeypatch.setattr(Loop, "begin", lambda loop, states=None: begin(loop))
    found = probed(run, "--plasticity", "--seeds", "3,4", "--rounds", 2, "--items", 6)["results"]["plasticity"]
    arms = [[c["points"] for c in found["curves"] if c["start"] == arm] for arm in ("live", "base")]
    assert arms[0] == arms[1]
    assert [found["ratio"][end] for end in ("estimate", "low", "high")] == [1.0, 1.0, 1.0]


def test_the_live_arm_begins_with_the_live_weights(run: Path) -> None:
    """Its first score is that of the live weights without a prompt, measured before any training on the probe task."""
    words = ("--plasticity", "--seeds", "0", "--rounds", 1, "--items", 12)
    first = probed(run, *words)["results"]["plasticity"]["first"]["estimate"]
    session = open_session(run)
    states = session.states()
    delta = session.parts.channels["lora"].condition(states["lora"], "fresh").delta
    task = session.parts.tasks["fresh"]
    evaluator = Evaluator(
        session.policy, session.parts.tasks, EvaluationSettings(heldout_items=12), session.parts.sampling, 0
    )
    assert len(task.split("heldout")) == 12
    scored = evaluator.cell(0, "fresh", ("live", "none"), Conditioning(delta=delta), "phase")
    assert first == pytest.approx(sum(scored.rewards) / 12)


def test_training_and_scoring_are_in_the_cost(run: Path) -> None:
    found = probed(run, "--plasticity", "--seeds", "0", "--rounds", 2, "--items", 4)
    steps = sum(found["results"]["plasticity"]["proposed"].values())
    assert found["cost"]["optimizer_steps"] >= steps > 0
    assert found["cost"]["trained_tokens"] > 0
    scored = probed(run, "--drift", "--prompts", 4, "--tokens", 3)
    pairs = sum(not r["identical"] for r in scored["results"]["drift"]["records"])
    written = scored["cost"]["completion_tokens"]
    assert 0 < written <= 2 * 4 * 3 * pairs
    # Every completion is read by both sides, once for the exact sum and once for its tokens.
    assert scored["cost"]["prompt_tokens"] > 4 * written


def test_a_longer_continuation_is_estimated_to_cost_more(run: Path) -> None:
    short, long = (probed(run, "--drift", "--prompts", 2, "--tokens", n)["estimate"]["drift"] for n in (2, 20))
    assert long["rollouts"] == short["rollouts"]
    assert long["tokens"] > short["tokens"]
    assert long["seconds"] > short["seconds"]


def test_a_recorded_run_gives_a_learning_curve(run: Path) -> None:
    with RunStore.open(run) as store:
        curve = run_curve(store, "largest", start="both clocks")
        rounds, entries = store.rounds(), store.entries()
        assert [p.problems for p in curve.points] == [0, 8, 16]  # 4 items in each of 2 + 2 rounds
        own = sum(int(r.metrics["rollouts"]) for r in rounds) + sum(e.cost.rollouts for e in entries)
        assert curve.points[-1].rollouts == own
        assert (curve.seed, curve.start) == (4, "both clocks")
        ends = {e.round: e for e in store.evaluations("phase") if (e.task, e.weights, e.prompt) ==
                ("largest", "live", "learned")}  # fmt: skip
        assert [p.score for p in curve.points[1:]] == [
            pytest.approx(sum(ends[r].rewards) / len(ends[r].rewards)) for r in (2, 4)
        ]
        assert len(spent_by_round(store)) == 4
        with pytest.raises(ValueError, match="at least 2 points"):
            run_curve(store, "fresh", start="both clocks")
    fast = sample_efficiency([curve], [curve], max(p.score for p in curve.points))
    assert all(found.ratio.estimate == 1.0 for found in fast.running_max.values() if found.ratio.is_known)


def test_one_seed_has_no_interval(run: Path) -> None:
    done = call("probe", run, "--plasticity", "--seeds", "0", "--rounds", 1, "--items", 4)
    assert done.exit_code == 0, done.output
    assert "[–, –] n=1" in done.stdout
    assert "the ratio has no interval: it takes at least two training seeds" in done.stdout
    (file,) = find_probes(run)
    held = call("check", run, "--min-plasticity", 0.5, "--probe-file", file)
    assert held.exit_code == 0
    assert "undecided: plasticity ratio" in held.stdout
    assert "plasticity ratio has no interval: it takes at least two training seeds" in held.stdout
    assert call("check", run, "--min-plasticity", 0.5, "--probe-file", file, "--strict").exit_code == 11


def test_a_probe_task_that_nothing_was_learned_of_is_said_to_be_one(run: Path, tmp_path: Path) -> None:
    folder = Path(open_session(run).parts.config.base_dir)
    (folder / "never.py").write_text("def never(completions):\n    return [0.0 for _ in completions]\n")
    spec = {"source": "'family'", "family": "'compare'", "verifier": "'never.py:never'"}
    words = [word for key, value in spec.items() for word in ("--set", f"tasks.hard.{key}={value}")]
    sizes = ("--set", "tasks.hard.size={train = 20, trial = 5, heldout = 6}")
    done = call("probe", run, "--plasticity", "--task", "hard", *words, *sizes, "--seeds", "0,1", "--rounds", 1,
                "--items", 4, "--html", tmp_path / "page.html")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "from the base nothing was learned at all" in done.stdout
    assert "nearly all groups were dead in both arms" in done.stdout
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "the task is too hard for either" in html
    assert "from the base nothing was learned at all" in html


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


def test_drift_and_retention_of_a_run_with_a_memory(tiny_folder: Path, tmp_path: Path) -> None:
    """Memory says something else of each item, so each pair of sides is scored with its own item at hand."""
    remembering = LOCAL.replace("[channels.lora]", "[channels.cases]\nk = 1\n\n[channels.lora]")
    folder = local_run(tmp_path, tiny_folder, remembering.replace('name = "alternate"', 'name = "fixed"', 1)
                       .replace("warmstart = 0\n", "").replace("slow_steps = 2\n", ""))  # fmt: skip
    with RunStore.open(folder) as store:
        assert store.entries(channel="cases", action="commit")
    found = probed(folder, "--drift", "--retention", "--prompts", 3, "--tokens", 4, "--out", tmp_path / "found.json")
    both, live = (record(found, "task:largest", prompting) for prompting in ("both", "live"))
    for one in (both, live):
        assert one["live_base"]["sequences"] == 3
        assert one["live_base"]["per_token"]["estimate"] > 0
    assert both["live_base"]["per_token"] != live["live_base"]["per_token"]

"""``twoclock export`` of scaled singular values: in each form, with the printed lines; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_bench import call, well
from test_cli_export import TOKENS, logits_of, make_run

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from tiny_world import gather, make_channel, open_tiny, tiny_bench, tiny_task  # noqa: E402
from twoclock.models.plain import plain_logits  # noqa: E402
from twoclock.types import Budget, Proposal  # noqa: E402

# PEFT asks transformers by a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


@pytest.fixture(scope="module")
def policy(tiny_folder: Path) -> Any:
    return open_tiny(tiny_folder)


@pytest.fixture(scope="module")
def learned(policy: Any) -> list[Any]:
    # With the defaults but for the rate: the run's configuration is read back with none of its own.
    channel, task = make_channel("svf", targets=["gate_proj", "up_proj", "down_proj"], learning_rate=0.2), tiny_task()
    states = [channel.init(policy.card, 0)]
    for number in (1, 2):
        offer = channel.propose(
            tiny_bench(policy, task), states[-1], gather(policy, task, round=number), Budget(), number
        )
        assert isinstance(offer, Proposal)
        states.append(offer.state)
    return states


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Path, policy: Any, learned: list[Any]) -> Path:
    channel = make_channel("svf")
    return make_run(tmp_path / "run", tiny_folder, policy.card, {"svf": [channel.dump(s) for s in learned]})


def ours(policy: Any, state: Any) -> Any:
    with torch.no_grad(), policy._forcing.mount(state.delta.payload):
        return plain_logits(policy.model, TOKENS)


def test_vectors_are_read_back_with_the_printed_lines(
    run: Path, policy: Any, learned: list[Any], tmp_path: Path
) -> None:
    found = json.loads(well("export", run, tmp_path / "z", "--json").stdout)
    assert (found["kind"], found["form"], found["files"]) == ("svf", "vectors", ["svf.safetensors"])
    names: dict[str, Any] = {}
    exec("\n".join(found["load"]), names)
    assert names["learned"].delta == learned[2].delta
    earlier = json.loads(well("export", run, tmp_path / "one", "--round", 1, "--json").stdout)
    exec("\n".join(earlier["load"]), names)
    assert names["learned"].delta == learned[1].delta


def test_an_adapter_and_what_it_leaves_out(run: Path, policy: Any, learned: list[Any], tmp_path: Path) -> None:
    done = well("export", run, tmp_path / "cut", "--as", "adapter", "--rank", 2)
    assert "% of the change (relative Frobenius norm)" in done.stdout
    most = max(len(t) for t in learned[2].offsets.values())
    found = json.loads(well("export", run, tmp_path / "whole", "--as", "adapter", "--rank", most, "--json").stdout)
    assert found["truncation_error"] == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(logits_of(found["load"]), ours(policy, learned[2]), atol=1e-3, rtol=1e-3)


def test_a_merged_model(run: Path, policy: Any, learned: list[Any], tmp_path: Path) -> None:
    found = json.loads(well("export", run, tmp_path / "model", "--as", "model", "--json").stdout)
    assert found["form"] == "model"
    torch.testing.assert_close(logits_of(found["load"]), ours(policy, learned[2]), atol=1e-3, rtol=1e-3)


def test_what_is_refused(run: Path, tmp_path: Path) -> None:
    for words, said in (
        (["--as", "adapter"], "an adapter has a rank, and scaled singular values have none: type --rank 64"),
        (["--rank", "3"], "--rank is for 'svf' as an adapter; this is 'svf' as vectors"),
        (["--as", "model", "--rank", "3"], "--rank is for 'svf' as an adapter"),
        (["--as", "adapter", "--rank", "9999"], "rank must be a whole number from 1 to"),
    ):
        done = call("export", run, tmp_path / "new", *words)
        assert done.exit_code == 2, done.output
        assert said in done.stderr
        assert not (tmp_path / "new").exists()


def test_the_difference_of_two_rounds_is_that_of_z(run: Path, learned: list[Any]) -> None:
    found = json.loads(well("diff", run, 0, 2, "--json").stdout)["channels"]["svf"]["weights"]
    assert found["of"] == "z − 1"
    whole = torch.cat([*learned[2].offsets.values()]).double().norm()
    assert found["norm_b"] == pytest.approx(float(whole), rel=1e-5)
    assert "change of weights ‖z − 1‖ 0 →" in well("diff", run, 0, 2).stdout

"""``twoclock export``: PEFT loads the adapter with the very lines that are printed, and it says what ours says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_bench import call, well

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from tiny_world import gather, make_channel, open_tiny, tiny_bench, tiny_task  # noqa: E402
from twoclock.errors import ModelError  # noqa: E402
from twoclock.models.mounting import Mounting  # noqa: E402
from twoclock.models.plain import plain_logits  # noqa: E402
from twoclock.nn.lowrank import mounted  # noqa: E402
from twoclock.slow import SLOW_CHANNELS  # noqa: E402
from twoclock.slow.full import FullState  # noqa: E402
from twoclock.slow.lora import LoraState  # noqa: E402
from twoclock.store import RunStore  # noqa: E402
from twoclock.types import Budget, Cost, LedgerEntry, Proposal, RoundRecord, Snapshot  # noqa: E402

# PEFT asks transformers by a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

OPTIONS = {"rank": 2, "learning_rate": 0.05, "targets": ["q_proj", "v_proj", "down_proj"]}
TOKENS = list(range(40, 60))


def make_run(path: Path, model: Path, card: Any, states: Mapping[str, list[bytes]], **model_section: Any) -> Path:
    """A run whose channels had these dumped states, round by round; the slow channels are those of the table."""
    channels = {name: OPTIONS if name == "lora" else {} for name in states}
    config = {
        "stream": [{"task": "largest", "rounds": 9}],
        "channels": channels,
        "model": {"source": str(model), **model_section},
        "base_dir": str(model.parent),
    }
    environment = {"model": card.name, "base_hash": card.base_hash, "dtype": "float32"}
    with RunStore.create(path, config=config, environment=environment) as store:
        hashes = {name: [store.put_blob(blob) for blob in blobs] for name, blobs in states.items()}
        entries = [
            LedgerEntry(
                round=0,
                channel=name,
                timescale="slow" if name in SLOW_CHANNELS else "fast",
                action="init",
                before="",
                after=blobs[0],
                cause="the run begins",
                reason="",
                cost=Cost(),
            )
            for name, blobs in hashes.items()
        ]
        store.begin(Snapshot(round=0, states={n: b[0] for n, b in hashes.items()}, next_round=1), entries)
        for number in range(1, max(len(blobs) for blobs in states.values())):
            snapshot = Snapshot(
                round=number, states={n: b[min(number, len(b) - 1)] for n, b in hashes.items()}, next_round=number + 1
            )
            record = RoundRecord(
                round=number, phase=0, task="largest", snapshot=snapshot, entries=(), evidence=None, metrics={}
            )
            store.commit_round(record)
    return path


@pytest.fixture(scope="module")
def base(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in a folder with a quote and a space in its name."""
    return Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("base") / "bob's llama"))


@pytest.fixture(scope="module")
def policy(base: Path) -> Any:
    return open_tiny(base)


@pytest.fixture(scope="module")
def learned(policy: Any) -> list[Any]:
    """States of ``lora`` on the tiny model after 0, 1 and 2 steps."""
    channel, task = make_channel("lora", **OPTIONS), tiny_task()
    states = [channel.init(policy.card, 0)]
    for number in (1, 2):
        evidence = gather(policy, task, round=number)
        offer = channel.propose(tiny_bench(policy, task), states[-1], evidence, Budget(), number)
        assert isinstance(offer, Proposal)
        states.append(offer.state)
    return states


@pytest.fixture
def run(tmp_path: Path, base: Path, policy: Any, learned: list[Any]) -> Path:
    lora, prompts = make_channel("lora", **OPTIONS), make_channel("prompts")
    states = {
        "lora": [lora.dump(state) for state in learned],
        "prompts": [prompts.dump(prompts.init(policy.card, 0))],
        "null": [b"{}"],
    }
    return make_run(tmp_path / "run", base, policy.card, states)


def logits_of(lines: list[str]) -> Any:
    """What the model says that these lines of Python load."""
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    assert names["tokenizer"].encode("a")
    with torch.no_grad():
        return names["model"].eval()(input_ids=torch.tensor([TOKENS])).logits[0]


def ours(policy: Any, state: LoraState) -> Any:
    assert state.delta is not None
    with torch.no_grad(), mounted(dict(policy.model.named_modules()), state.delta.payload):
        return plain_logits(policy.model, TOKENS)


# ------------------------------------------------------------------------------------------------------------- it works


def test_peft_loads_what_is_live_with_the_printed_lines(
    run: Path, policy: Any, learned: list[Any], tmp_path: Path
) -> None:
    folder = tmp_path / "out" / "my adapter"
    done = well("export", run, folder)
    lines = done.stdout.splitlines()
    code = lines[lines.index("from peft import PeftModel") :]
    loaded = logits_of(code)
    torch.testing.assert_close(loaded, ours(policy, learned[2]), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert float((loaded - plain_logits(policy.model, TOKENS)).abs().max()) > 0.1
    assert policy.card.base_hash in done.stdout
    assert policy.card.name in done.stdout
    assert "the folder has no part of what prompts deploys" in done.stderr


def test_an_earlier_round_and_what_a_rollback_made_live(
    run: Path, policy: Any, learned: list[Any], tmp_path: Path
) -> None:
    found = json.loads(well("export", run, tmp_path / "one", "--round", 1, "--json").stdout)
    torch.testing.assert_close(logits_of(found["load"]), ours(policy, learned[1]), atol=1e-5, rtol=1e-5)
    assert (found["round"], found["channel"]) == (1, "lora")
    assert found["files"] == ["adapter_config.json", "adapter_model.safetensors"]
    assert found["base"]["hash"] == policy.card.base_hash
    well("rollback", run, 1)
    again = json.loads(well("export", run, tmp_path / "live", "--json").stdout)
    assert again["state"] == found["state"]
    for name in found["files"]:
        assert (tmp_path / "live" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_the_run_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.suffix != ".sqlite-shm"}

    with RunStore.open(run):
        pass
    before = content()
    well("export", run, tmp_path / "adapter")
    assert content() == before


def test_a_model_of_the_hub_keeps_its_id(base: Path, policy: Any, learned: list[Any], tmp_path: Path) -> None:
    lora = make_channel("lora", **OPTIONS)
    run = make_run(
        tmp_path / "run", base, policy.card, {"lora": [lora.dump(s) for s in learned]}, source="org/tiny-llama"
    )
    found = json.loads(well("export", run, tmp_path / "adapter", "--json").stdout)
    assert found["base"]["source"] == "org/tiny-llama"
    assert "base = 'org/tiny-llama'" in found["load"]
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "org/tiny-llama"


def packaged(path: Path, base: Path, policy: Any, learned: list[Any]) -> Path:
    blobs = [make_channel("lora", **OPTIONS).dump(state) for state in learned]
    return make_run(path, base, policy.card, {"lora": blobs}, source="packaged")


def test_the_packaged_model_is_named_by_where_it_is_kept(
    base: Path, policy: Any, learned: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twoclock.models.sources.locate", lambda source, **_: (base, source))
    run = packaged(tmp_path / "run", base, policy, learned)
    found = json.loads(well("export", run, tmp_path / "adapter", "--json").stdout)
    assert found["base"]["source"] == str(base)
    torch.testing.assert_close(logits_of(found["load"]), ours(policy, learned[2]), atol=1e-5, rtol=1e-5)


def test_a_base_model_that_is_not_here_is_said_and_the_adapter_written(
    base: Path, policy: Any, learned: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(source: str, **_: Any) -> Any:
        raise ModelError("no network")

    monkeypatch.setattr("twoclock.models.sources.locate", away)
    done = well("export", packaged(tmp_path / "run", base, policy, learned), tmp_path / "adapter")
    assert "the base model is not on this machine: no network" in done.stderr
    assert f"base = {policy.card.name!r}" in done.stdout
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


# ------------------------------------------------------------------------------------------------------ what is refused


def refused(*words: Any, code: int = 2) -> str:
    done = call("export", *words)
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    return done.stderr


def test_a_state_without_a_step(run: Path, tmp_path: Path) -> None:
    said = refused(run, tmp_path / "adapter", "--round", 0)
    assert "the state of 'lora' after round 0 has taken no step, so it is the base model itself" in said
    assert f"twoclock log {run} --channel lora" in said
    assert not (tmp_path / "adapter").exists()


def test_a_folder_in_use_is_left_alone(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    assert "adapter is there already and not an empty folder; name a new one" in refused(run, folder)
    assert [p.name for p in folder.iterdir()] == ["precious"]
    assert "is there already" in refused(run, folder / "precious")
    assert "is there already" in refused(run, run)


def test_a_folder_below_a_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in refused(run, tmp_path / "file" / "adapter", code=1)


def test_runs_without_a_slow_channel(finished: Path, tmp_path: Path) -> None:
    said = refused(finished, tmp_path / "adapter")
    assert "has no slow channel, so its weights are the base model's" in said
    assert "its channels: null, prompts" in said


def test_names_of_channels(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    assert "unknown channel 'lra'; did you mean 'lora'?" in refused(run, folder, "--channel", "lra")
    assert "'prompts' is fast and changes no weights; slow: lora" in refused(run, folder, "--channel", "prompts")
    well("export", run, folder, "--channel", "lora")


@pytest.fixture
def two_slow(tmp_path: Path, base: Path, policy: Any, learned: list[Any]) -> Path:
    """A run with both slow channels."""
    lora, full = make_channel("lora", **OPTIONS), make_channel("full")
    tensors = {name: torch.full(shape, 0.01) for name, shape in policy.parameter_shapes(["norm"]).items()}
    moved = FullState(7, 1, policy.base_hash, tensors, {n: (t.clone(), t.clone()) for n, t in tensors.items()})
    blobs = {
        "lora": [lora.dump(state) for state in learned],
        "full": [full.dump(full.init(policy.card, 0)), full.dump(moved)],
    }
    return make_run(tmp_path / "two", base, policy.card, blobs)


def test_several_slow_channels_are_a_choice(two_slow: Path, tmp_path: Path) -> None:
    assert "has several slow channels: give --channel full or lora" in refused(two_slow, tmp_path / "adapter")
    found = json.loads(well("export", two_slow, tmp_path / "adapter", "--channel", "lora", "--json").stdout)
    assert found["channel"] == "lora"


def test_full_weights_are_a_model_that_transformers_loads(two_slow: Path, policy: Any, tmp_path: Path) -> None:
    found = json.loads(well("export", two_slow, tmp_path / "model", "--channel", "full", "--json").stdout)
    assert found["kind"] == "full"
    with RunStore.open(two_slow) as store:
        state = make_channel("full").load(store.get_blob(found["state"]))
    mount = Mounting(policy.model, {})
    before = plain_logits(policy.model, TOKENS)
    with torch.no_grad(), mount(state.delta.payload):
        mine = plain_logits(policy.model, TOKENS)
    assert not torch.equal(mine, before)
    torch.testing.assert_close(logits_of(found["load"]), mine, atol=1e-5, rtol=1e-5)
    refused(two_slow, tmp_path / "model", "--channel", "full")


def test_full_weights_without_their_base_are_refused(
    two_slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(source: str, **_: Any) -> Any:
        raise ModelError("no network")

    monkeypatch.setattr("twoclock.models.sources.locate", away)
    said = refused(two_slow, tmp_path / "model", "--channel", "full", code=3)
    assert "cannot be put together without it" in said
    assert not (tmp_path / "model").exists()


def test_diff_tells_how_far_whole_parameters_moved(two_slow: Path, policy: Any) -> None:
    found = json.loads(well("diff", two_slow, 0, "--json").stdout)
    weights = found["channels"]["full"]["weights"]
    sizes = {name: shape[0] for name, shape in policy.parameter_shapes(["norm"]).items()}
    assert weights["norm_a"] == 0.0
    assert weights["norm_b"] == weights["norm_change"] == pytest.approx(0.01 * sum(sizes.values()) ** 0.5)
    assert dict(weights["largest"]) == {name: pytest.approx(0.01 * size**0.5) for name, size in sizes.items()}


def test_base_weights_that_have_changed_since(
    run: Path, base: Path, policy: Any, learned: list[Any], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 5000.0}))
    blobs = [make_channel("lora", **OPTIONS).dump(state) for state in learned]
    moved = make_run(tmp_path / "moved", other, policy.card, {"lora": blobs})
    said = refused(moved, tmp_path / "adapter")
    assert f"learned on base weights {policy.card.base_hash[:12]}" in said
    assert not (tmp_path / "adapter").exists()


def test_rounds_and_runs_that_are_not_there(run: Path, tmp_path: Path) -> None:
    refused(run, tmp_path / "adapter", "--round", 7, code=4)
    refused(tmp_path / "none", tmp_path / "adapter", code=4)
    refused(run, tmp_path / "adapter", "--round", -1)
    assert not (tmp_path / "adapter").exists()

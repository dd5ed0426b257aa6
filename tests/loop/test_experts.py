"""Experts from where they are kept: a run's trained weights, an adapter, another model; and a run that deploys one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from configured import TEXT, VERIFIER  # noqa: E402

from tiny_world import tiny_adapter  # noqa: E402
from twoclock.build import build_parts, create_session, open_session  # noqa: E402
from twoclock.config import parse_config  # noqa: E402
from twoclock.errors import ConfigError, ModelError, StoreError  # noqa: E402
from twoclock.experts import kind_of, open_expert  # noqa: E402
from twoclock.models.sources import base_hash_of  # noqa: E402
from twoclock.store import RunStore  # noqa: E402
from twoclock.store.shifts import shifts_of  # noqa: E402
from twoclock.types import Delta, SideModel  # noqa: E402


def config(base_dir: Path, model: Path, channels: str, *, rounds: int = 2) -> Any:
    """One task whose answers are right where they begin with something printable."""
    head, _, rest = TEXT.partition("[channels.prompts]")
    text = head.replace("rounds = 3", f"rounds = {rounds}").replace("rounds = 2", f"rounds = {rounds}")
    measure = rest[rest.index("[measure]") :].replace("drift_every = 2", "drift_every = 0")
    (base_dir / "verify.py").write_text(VERIFIER)
    gates = '[allocator]\nname = "fixed"\n[gates]\nfast = "accept"'
    return parse_config(
        "\n".join([text.replace('source = "llama"', f'source = "{model}"'), channels, gates, measure]),
        (),
        base_dir=base_dir,
    )


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has trained a change of the tiny model."""
    folder = tmp_path_factory.mktemp("runs") / "terse"
    options = '[channels.lora]\nrank = 2\nlearning_rate = 0.05\ntargets = ["down_proj"]'
    session = create_session(config(folder.parent, tiny_folder, options), folder)
    with session.store:
        session.loop().begin()
        state = session.parts.channels["lora"].started(session.states()["lora"], session.policy)  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(0)
        moved = {n: (a, torch.randn(b.shape, generator=generator)) for n, (a, b) in state.tensors.items()}
        blob = session.parts.channels["lora"].dump(replace(state, step=1, tensors=moved))
        give_state(session, blob)
    return folder


def give_state(session: Any, blob: bytes) -> None:
    """Stands in for training, which may or may not move in so few rounds: the run's head gets this state."""
    from twoclock.types import Cost, LedgerEntry, RoundRecord, Snapshot

    store = session.store
    head = store.head()
    after = store.put_blob(blob)
    entry = LedgerEntry(
        round=1, channel="lora", timescale="slow", action="commit", before=head.states["lora"], after=after,
        cause="test", reason="test", cost=Cost(), task="largest",
    )  # fmt: skip
    snapshot = Snapshot(round=1, states={**head.states, "lora": after}, next_round=2)
    store.commit_round(
        RoundRecord(
            round=1,
            phase=0,
            task="largest",
            snapshot=snapshot,
            entries=(entry,),
            evidence=None,
            metrics={"reward": 0.0},
        )
    )


def test_what_a_source_is(trained: Path, tiny_folder: Path, tmp_path: Path) -> None:
    assert kind_of("terse", trained.parent) == "run"
    assert kind_of(str(tiny_adapter()), tmp_path) == "adapter"
    assert kind_of(str(tiny_folder), tmp_path) == "model"
    assert kind_of("org/name", tmp_path) == "model"
    for gone in ("./gone", "runs/old/gone", "/gone"):
        with pytest.raises(ConfigError, match="there is no expert at"):
            kind_of(gone, tmp_path)


def test_a_run_is_its_trained_weights(trained: Path, tiny_folder: Path) -> None:
    base = base_hash_of(tiny_folder)
    delta = open_expert("terse", base, base_dir=trained.parent)
    assert isinstance(delta, Delta)
    assert (delta.kind, delta.base) == ("lora", base)
    assert open_expert("terse", base, base_dir=trained.parent) == delta
    with pytest.raises(ConfigError, match="but this policy is cccccccccccc"):
        open_expert("terse", "c" * 64, base_dir=trained.parent)
    beside = open_expert("terse", "c" * 64, on=str(tiny_folder), base_dir=trained.parent)
    assert beside == SideModel(weights=base, delta=delta)


def test_adapters_models_and_bases(tiny_folder: Path, tmp_path: Path) -> None:
    base, adapter = base_hash_of(tiny_folder), str(tiny_adapter())
    assert open_expert("", base) is None
    assert open_expert("", "c" * 64, on=str(tiny_folder)) == SideModel(weights=base)
    assert open_expert(str(tiny_folder), "c" * 64) == SideModel(weights=base)
    delta = open_expert(adapter, base)
    assert isinstance(delta, Delta)
    assert open_expert(adapter, "c" * 64, on=str(tiny_folder)) == SideModel(weights=base, delta=delta)
    with pytest.raises(ConfigError, match="is a whole model, so it is no change of"):
        open_expert(str(tiny_folder), base, on=str(tiny_folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError):
        open_expert("empty", base, base_dir=tmp_path)


def test_a_run_that_has_trained_nothing_is_no_expert(tiny_folder: Path, tmp_path: Path) -> None:
    for name, channels, told in (
        ("untrained", '[channels.lora]\ntargets = ["down_proj"]', "has taken no step yet"),
        ("fast", "[channels.null]", "has no slow channel"),
    ):
        session = create_session(config(tmp_path, tiny_folder, channels), tmp_path / name)
        with session.store:
            session.loop().begin()
        with pytest.raises(ConfigError, match=told):
            open_expert(name, base_hash_of(tiny_folder), base_dir=tmp_path)
    RunStore.create(tmp_path / "unbegun", config={"channels": {"lora": {}}}).close()
    with pytest.raises(StoreError):
        open_expert("unbegun", base_hash_of(tiny_folder), base_dir=tmp_path)


def test_experts_that_are_not_there_are_told_at_once(tiny_folder: Path, tmp_path: Path) -> None:
    channels = """
[[channels.proxy.shifts]]
name = "one"
expert = "./gone"
[[channels.proxy.shifts]]
name = "two"
expert = "./lost"
on = "./nowhere"
"""
    with pytest.raises(ConfigError) as problem:
        build_parts(config(tmp_path, tiny_folder, channels))
    for told in ("shift 'one': there is no expert at './gone'", "'./lost'", "'./nowhere'"):
        assert told in str(problem.value)


def test_a_run_deploys_an_expert_and_takes_it_back(trained: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Found beside the configuration; every switch is in the ledger; going on and rolling back are exact."""
    channels = f"""
[channels.proxy]
alphas = [0.5, 1.0, 2.0]
search_items = 10
[[channels.proxy.shifts]]
name = "terse"
expert = "{trained.name}"
"""
    folder = tmp_path / "run"
    session = create_session(config(trained.parent, tiny_folder, channels, rounds=3), folder)
    channel = session.parts.channels["proxy"]
    with session.store as store:
        loop = session.loop()
        loop.begin()
        loop.run()
        assert store.verify() == []
        entries = [e for e in store.entries() if e.channel == "proxy"]
        moved = [e for e in entries if e.action == "commit"]
        assert moved, [e.reason for e in entries]
        assert all(e.writes[0].kind == "alpha" and e.before != e.after for e in moved)
        shift = channel._shift(channel.config.shifts[0], session.policy.card.base_hash)  # type: ignore[attr-defined]
        seen = [found for told in store.conditionings().values() for found in shifts_of(told["shifts"])]
        assert seen
        assert {found.expert for found in seen} == {shift.expert}
    with RunStore.open(folder, write=True) as store:
        store.append_rollback(0, reason="as it was")
    again = open_session(folder)
    with again.store as store:
        state = again.states()["proxy"]
        assert again.parts.channels["proxy"].condition(state, "largest").is_identity
        after_first = store.snapshot_at(moved[0].round)
        live = again.parts.channels["proxy"].load(store.get_blob(after_first.states["proxy"]))
        (found,) = again.parts.channels["proxy"].condition(live, moved[0].task).shifts
        assert (found.expert, found.alpha) == (shift.expert, moved[0].metrics["alpha"])

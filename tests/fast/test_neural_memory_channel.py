"""The channel neural_memory beyond the laws: what it writes, for whom, how it forks and comes back, what it
declines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prompts_bench import FakeBench, coin_flip, evidence_of

from tiny_world import OPTIONS, SAMPLING, gather, make_channel, open_tiny, tiny_bench, tiny_task
from twoclock.contracts import Channel
from twoclock.errors import ConfigError, NumericsError, StoreError, UnsupportedError
from twoclock.fast import build_fast
from twoclock.fast.neural_memory.channel import NeuralMemoryChannel
from twoclock.fast.neural_memory.config import NeuralMemoryConfig
from twoclock.nn.neural_memory_spec import MemorySpec
from twoclock.nn.retrofit import MEMORY, RetrofitSpec, init_retrofit
from twoclock.nn.soft_memory import dump_retrofit
from twoclock.types import Budget, Conditioning, Declined, Evidence, Proposal, Request

TASK = tiny_task()


def channel_of(**more: Any) -> NeuralMemoryChannel:
    return NeuralMemoryChannel(NeuralMemoryConfig(**{**OPTIONS["neural_memory"], **more}))


def offered(channel: Channel[Any], policy: Any, state: Any, evidence: Evidence | None = None, **budget: Any) -> Any:
    seen = gather(policy, TASK) if evidence is None else evidence
    return channel.propose(tiny_bench(policy, TASK), state, seen, Budget(**budget), 1)


def said(policy: Any, told: Conditioning) -> list[Any]:
    return [policy.sample([Request(prompt=p, conditioning=told, seeds=(1, 2))], SAMPLING) for p in ("a?", "b?")]


def test_right_answers_are_written_and_nothing_is_sampled(tiny: Any) -> None:
    channel = channel_of()
    evidence = gather(tiny, TASK)
    mixed = [g for g in evidence.groups if any(r.reward < 1 for r in g.rollouts)]
    bench = tiny_bench(tiny, TASK)
    offer = channel.propose(bench, channel.init(tiny.card, 1), evidence, Budget(), 1)
    assert isinstance(offer, Proposal)
    assert bench.spent.rollouts == offer.cost.rollouts == 0
    assert len(offer.writes) == offer.metrics["texts"] == len(mixed)
    assert offer.cost.trained_tokens == sum(
        tiny.text_tokens(
            (g.item.prompt, next((r.completion.text for r in g.rollouts if r.reward == 1), g.item.reference))
        )
        for g in mixed
    )
    for group, write in zip(mixed, offer.writes, strict=True):
        assert write.kind == "memory"
        assert write.text.startswith(" ".join(group.item.prompt.split())[:20])
    told = channel.condition(offer.state, TASK.name)
    assert told.soft is not None
    assert said(tiny, told) != said(tiny, Conditioning())
    assert channel.condition(offer.state, "another").is_identity


def test_where_nobody_was_right_the_reference_is_written_or_nothing(tiny: Any) -> None:
    evidence = gather(tiny, TASK, items=2)
    wrong = tuple(
        replace(g, rollouts=tuple(replace(r, grade=replace(r.grade, reward=0.0)) for r in g.rollouts))
        for g in evidence.groups
    )
    lost = replace(evidence, groups=wrong)
    channel = channel_of()
    offer = offered(channel, tiny, channel.init(tiny.card, 1), lost)
    assert [w.text.rsplit(" → ", 1)[1] for w in offer.writes] == [g.item.reference for g in wrong]
    strict = channel_of(gold=False)
    declined = offered(strict, tiny, strict.init(tiny.card, 1), lost)
    assert isinstance(declined, Declined)
    assert "nothing to write" in declined.reason
    won = replace(lost, groups=tuple(
        replace(g, rollouts=tuple(replace(r, grade=replace(r.grade, reward=1.0)) for r in g.rollouts)) for g in wrong
    ))  # fmt: skip
    assert "every question was answered rightly" in offered(channel, tiny, channel.init(tiny.card, 1), won).reason


def test_the_budget_of_tokens_and_of_texts_holds(tiny: Any) -> None:
    channel = channel_of()
    fresh = channel.init(tiny.card, 1)
    free = offered(channel, tiny, fresh)
    for tokens in (0, 10, 90, 200, 10_000):
        offer = offered(channel, tiny, fresh, tokens=tokens)
        if isinstance(offer, Declined):
            assert "too small to write one text" in offer.reason
        else:
            assert 0 < offer.cost.trained_tokens <= tokens
            assert len(offer.writes) <= len(free.writes)
    one = offered(channel_of(max_texts=1), tiny, fresh)
    assert one.writes == free.writes[:1]


def test_the_size_is_bounded_whatever_is_written(tiny: Any) -> None:
    channel = channel_of()
    state, sizes = channel.init(tiny.card, 1), []
    for number in range(1, 6):
        state = offered(channel, tiny, state, gather(tiny, TASK, round=number)).state
        sizes.append(len(channel.dump(state)))
    assert max(sizes) - min(sizes) < 64
    assert state.texts(state.memories[0][0]) > 10


def test_a_user_has_a_fork_of_their_own_and_leaves_the_others_alone(tiny: Any) -> None:
    channel = channel_of()
    shared = channel.written(tiny, channel.init(tiny.card, 1), ["The code is 4821."], TASK.name)
    forked = channel.forked(shared, TASK.name, "ann")
    assert forked.memories[0][1] is forked.memories[1][1], "the value itself, no copy"
    assert channel.condition(forked, TASK.name, "ann") == channel.condition(shared, TASK.name)
    hers = channel.written(tiny, forked, [("Where is it?", "In the blue box")], TASK.name, "ann")
    assert channel.condition(hers, TASK.name) == channel.condition(shared, TASK.name)
    assert channel.condition(hers, TASK.name, "bob") == channel.condition(shared, TASK.name)
    assert channel.condition(hers, TASK.name, "ann") != channel.condition(shared, TASK.name)
    assert channel.written(tiny, shared, [("Where is it?", "In the blue box")], TASK.name, "ann") == hers
    again = channel.load(channel.dump(hers))
    assert channel.dump(again) == channel.dump(hers)
    hers_now, hers_again = (channel.condition(some, TASK.name, "ann") for some in (hers, again))
    assert said(tiny, hers_again) == said(tiny, hers_now)
    (first, second) = channel.lessons(hers)
    back = channel.without(hers, [second.id if "ann" in second.id else first.id])
    assert channel.dump(back) == channel.dump(shared)
    assert channel.forked(hers, "never written", "ann") == hers
    with pytest.raises(ConfigError, match="give the user's name"):
        channel.forked(hers, TASK.name, "")


def test_one_memory_for_the_stream(tiny: Any) -> None:
    channel = channel_of(scope="stream")
    state = offered(channel, tiny, channel.init(tiny.card, 1)).state
    assert channel.condition(state, "another") == channel.condition(state, TASK.name) != Conditioning()


def test_a_closed_gate_is_no_influence(tiny: Any) -> None:
    channel = channel_of(gate=0.0)
    state = offered(channel, tiny, channel.init(tiny.card, 1)).state
    assert state.memories
    assert channel.condition(state, TASK.name).is_identity


# ------------------------------------------------------------------------------------------------ a trained retrofit


def retrofit_file(path: Path, policy: Any, *, seed: int = 5, base: str = "") -> Path:
    width, _ = policy.memory_shape()
    spec = RetrofitSpec(
        base=base or policy.base_hash, width=width, layers=(1,), memory=MemorySpec(**{**MEMORY, "heads": 1, "width": 8})
    )
    path.write_bytes(dump_retrofit(init_retrofit(spec, seed, gate=10.0)))
    return path


def test_a_retrofit_from_a_file_beside_the_configuration(tiny: Any, tmp_path: Path) -> None:
    retrofit_file(tmp_path / "mine.safetensors", tiny)
    channel = build_fast("neural_memory", {"retrofit": "mine.safetensors"}, base_dir=str(tmp_path))
    state = offered(channel, tiny, channel.init(tiny.card, 1)).state
    blob = channel.dump(state)
    again = build_fast("neural_memory", {"retrofit": "mine.safetensors"}, base_dir=str(tmp_path))
    assert again.dump(again.load(blob)) == blob
    retrofit_file(tmp_path / "mine.safetensors", tiny, seed=6)
    changed = build_fast("neural_memory", {"retrofit": "mine.safetensors"}, base_dir=str(tmp_path))
    with pytest.raises(StoreError, match="the same spec but other parameters"):
        changed.load(blob)
    (tmp_path / "mine.safetensors").unlink()
    gone = build_fast("neural_memory", {"retrofit": "mine.safetensors"}, base_dir=str(tmp_path))
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        gone.load(blob)
    with pytest.raises(StoreError, match="names no file"):
        build_fast("neural_memory", {}).load(blob)
    random = make_channel("neural_memory")
    with pytest.raises(StoreError, match="other parameters"):
        random.load(blob)


def test_a_retrofit_of_another_model_is_refused(tiny: Any, tmp_path: Path) -> None:
    file = retrofit_file(tmp_path / "theirs.safetensors", tiny, base="another base")
    channel = channel_of(retrofit=str(file))
    with pytest.raises(ConfigError, match="train a retrofit for this one"):
        offered(channel, tiny, channel.init(tiny.card, 1))


def test_a_layer_that_the_model_does_not_have_is_refused(tiny: Any) -> None:
    channel = channel_of(layers=[0, 99])
    with pytest.raises(UnsupportedError, match="layer 99; the model's layers are 0 to 1"):
        offered(channel, tiny, channel.init(tiny.card, 1))


def test_without_a_retrofit_it_says_what_to_type(tiny: Any) -> None:
    channel = build_fast("neural_memory", {})
    declined = offered(channel, tiny, channel.init(tiny.card, 1))
    assert isinstance(declined, Declined)
    assert "twoclock.models.retrofit.training" in declined.reason
    assert 'retrofit = "random"' in declined.reason


def test_an_endpoint_is_declined() -> None:
    bench = FakeBench(coin_flip)
    channel = channel_of()
    declined = channel.propose(bench, channel.init(bench.card, 0), evidence_of(bench), Budget(), 1)
    assert isinstance(declined, Declined)
    assert "behind an endpoint" in declined.reason


def test_nan_is_declined_and_the_state_is_what_it_was(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = open_tiny(tiny_folder)
    channel = channel_of()

    def sick(soft: Any, texts: Any) -> Any:
        raise NumericsError("NaN in row 0")

    evidence = gather(policy, TASK)
    monkeypatch.setattr(policy, "memorized", sick)
    declined = offered(channel, policy, channel.init(policy.card, 1), evidence)
    assert isinstance(declined, Declined)
    assert "NaN in row 0" in declined.reason


def test_mistakes_in_the_options_are_told_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        NeuralMemoryConfig(scope="user", success=0.0, max_texts=0, gate=float("nan"), layers=(2, 1))  # type: ignore[arg-type]
    assert len(caught.value.problems) == 5
    with pytest.raises(ConfigError, match="did you mean 'retrofit'"):
        build_fast("neural_memory", {"retrofitt": "x"})


def test_the_page_names_every_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "channels" / "neural_memory.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in NeuralMemoryConfig.__dataclass_fields__)

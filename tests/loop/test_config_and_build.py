"""From a configuration text to a run: what is refused, and when, and a whole session with the real loader."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from configured import TEXT, lay_beside, parsed

from twoclock.build import build_parts, build_policy, create_session, open_session
from twoclock.config import from_plain
from twoclock.errors import ConfigError, ModelError, RunLockedError, StoreError
from twoclock.evaluation import conditioning_of
from twoclock.store import RunStore
from twoclock.types import Timescale


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the configuration lies: the model and the verifier beside it."""
    return lay_beside(tmp_path_factory.mktemp("configured"), tiny_folder)


def problems_of(folder: Path, *overrides: str, text: str = TEXT) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        build_parts(parsed(folder, *overrides, text=text))
    return caught.value.problems


# --------------------------------------------------------------------------------------------------- a whole session


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    path = folder / "run"
    session = create_session(parsed(folder), path, config_text=TEXT)
    with session.store:
        loop = session.loop()
        loop.begin()
        loop.run()
    return path


def test_a_session_runs_and_is_whole(finished: Path, folder: Path) -> None:
    with RunStore.open(finished) as store:
        assert store.verify() == []
        assert store.head().round == 5
        assert {e.channel for e in store.entries(action="commit")} == {"lora", "prompts"}
        judged = [e for e in store.entries(channel="lora") if "drift_live_base" in e.metrics]
        assert judged
        assert all(e.cost.rollouts == 2 and e.cost.completion_tokens > 0 for e in judged), "measuring drift has a price"
    assert from_plain(store.config) == parsed(folder)


def test_an_opened_session_stands_where_the_run_does(finished: Path) -> None:
    session = open_session(finished)
    assert session.store.head().round == 5
    states = session.states()
    dumped = dict.fromkeys(states, session.store.put_blob)
    assert sorted(dumped) == ["lora", "prompts"]
    for name, channel in session.parts.channels.items():
        assert channel.dump(states[name]) == session.store.get_blob(session.store.head().states[name])


def test_evaluate_then_rollback_then_evaluate_gives_the_bases_numbers(finished: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    session = open_session(path, write=True)
    with session.store:
        table, drift = session.evaluate()
        base = {e.task: e.rewards for e in table if (e.weights, e.prompt) == ("base", "none")}
        live = {e.task: e.rewards for e in table if (e.weights, e.prompt) == ("live", "learned")}
        begun = {e.task: e.rewards for e in session.store.evaluations("phase") if (e.round, e.weights) == (0, "base")}
        assert base == begun, "the base is measured to the same numbers at the end as at the beginning"
        assert live != base
        assert any(d.live_base > 0 for d in drift)
        # What the loop measured at the end of the last phase is what is measured afresh now.
        last = [e for e in session.store.evaluations("phase") if e.round == 5]
        for e in last:
            (same,) = [t for t in table if (t.task, t.weights, t.prompt) == (e.task, e.weights, e.prompt)]
            assert same.rewards == e.rewards
        session.store.append_rollback(0, reason="test")
        table, drift = session.evaluate()
        assert {e.rewards for e in table if e.task == "largest"} == {base["largest"]}
        assert {e.rewards for e in table if e.task == "smallest"} == {base["smallest"]}
        assert all(set(d.per_prompt_live_base) == set(d.per_prompt_base_live) == {0.0} for d in drift)
        assert session.store.verify() == []
        known = session.store.conditionings()
        assert {e.conditioning_id for e in session.store.evaluations()} <= known.keys()


def test_rollback_of_the_fast_clock_only(finished: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    session = open_session(path, write=True)
    with session.store:
        fast = [n for n, c in session.parts.channels.items() if c.timescale is Timescale.FAST]
        session.store.append_rollback(0, channels=fast, reason="test")
        table, _ = session.evaluate(drift=False)
        cells = {(e.task, e.weights, e.prompt): e.rewards for e in table}
        for task in ("largest", "smallest"):
            assert cells[task, "live", "learned"] == cells[task, "live", "none"]
            deployed = conditioning_of(session.parts.channels, session.states(), task)
            assert deployed.delta is not None
            assert not deployed.exemplars


def test_an_unknown_task_to_evaluate_is_named(finished: Path) -> None:
    with pytest.raises(ConfigError, match="unknown task 'largst'; did you mean 'largest'"):
        open_session(finished).evaluate(tasks=["largst"])


def test_a_second_writer_is_refused(finished: Path) -> None:
    with open_session(finished, write=True).store:
        with pytest.raises(RunLockedError, match="is at work on the run"):
            open_session(finished, write=True)
        assert open_session(finished).store.head().round == 5, "reading goes on"


def test_other_weights_are_refused(finished: Path, folder: Path, tmp_path: Path) -> None:
    """A run taken up on a model that was changed behind its back."""
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    weights = folder / "llama" / "model.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-4] + b"\x00\x00\x00\x01")
        with open_session(path, write=True).store as store:
            session = open_session(path)
            with pytest.raises(
                ConfigError, match=r"this run learned on base weights .* means nothing on other weights"
            ):
                session.loop()
            assert store.verify() == []
    finally:
        weights.write_bytes(kept)


def test_nothing_is_left_behind_when_the_model_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        create_session(parsed(folder, "model.source='./no-such-model'"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_used_folder_is_refused(finished: Path, folder: Path) -> None:
    before = {p: p.stat().st_size for p in finished.rglob("*") if p.is_file()}
    with pytest.raises(StoreError, match="there is a run in"):
        create_session(parsed(folder), finished)
    assert {p: p.stat().st_size for p in finished.rglob("*") if p.is_file()} == before


def test_the_seed_decides(folder: Path, finished: Path) -> None:
    one, two, other = (
        build_parts(parsed(folder)),
        build_parts(parsed(folder)),
        build_parts(parsed(folder, "run.seed=9")),
    )
    batches = [p.stream.batch(1, 4, p.seed) for p in (one, two, other)]
    assert batches[0] == batches[1] != batches[2]


# ----------------------------------------------------------------------------------------------------------- refusals


def test_three_mistakes_are_three_problems(folder: Path) -> None:
    text = TEXT.replace('family = "compare"', 'family = "compair"', 1).replace("rank = 2", "rank = 0")
    problems = problems_of(folder, "stream.1.task=smalest", text=text)
    assert len(problems) == 3
    assert "unknown family 'compair'; did you mean 'compare'" in problems[0]
    assert any("[[stream]] phase 2: unknown task 'smalest'; did you mean 'smallest'" in p for p in problems)
    assert any("rank" in p and "got 0" in p for p in problems)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["channels.promts={}"], "unknown channel 'promts'; did you mean 'prompts'?"),
        (["channels.lorra={}"], "unknown channel 'lorra'; did you mean 'lora'?"),
        (["stream.0.task=larget"], "unknown task 'larget'; did you mean 'largest'?"),
        (["tasks.largest.family=next_numbr"], "unknown family 'next_numbr'; did you mean 'next_number'?"),
        (["allocator.name=alternat"], "unknown allocator 'alternat'; did you mean 'alternate'?"),
        (["gates.fast=pared"], "gates"),
        (["allocator={name='fixed', every={lorra=2}}"], "unknown channel in 'every' 'lorra'; did you mean 'lora'?"),
        (["rollouts.per_item=5", "rollouts.prompts_per_item=2"], "must divide by prompts_per_item"),
        (["measure.heldout_items=0"], "measure.heldout_items = 0: expected at least 2"),
        (["tasks.largest.size.train=3"], "task 'largest' has 3 training items, fewer than the 4 of one batch"),
        (["tasks.largest.verifier='verify.py:printble'"], "did you mean 'printable'"),
        (["tasks.largest.verifier='verifi.py:printable'"], "did you mean verify.py?"),
        (["channels.prompts.proposers=['reflective']"], "needs a reflector"),
        (["reflector.callable='verify.py:none'"], "function"),
        (["sampling.temperature=0"], "temperature > 0, top_p = 1 and top_k = 0; got temperature 0.0"),
        (["sampling.top_k=5"], "got temperature 1.0, top_p 1.0, top_k 5"),
        (["rollouts.reuse=true", "channels.lora.objective='rloo'"], "has no importance weights for them"),
        (
            ["rollouts.prompts_per_item=4", "channels.lora.grouping='prompt'"],
            "needs two rollouts of an item under each",
        ),
        (
            ["channels.lora.objective='rloo'", "channels.lora.clip_low=0.1"],
            "clips nothing: leave clip_low and clip_high",
        ),
        (["channels.lora.kl_coef=0.1"], "need a form of KL"),
        (["channels.lora.objective='grp'"], "did you mean 'grpo'"),
        (["store.keep=-1"], "store.keep = -1: expected 0"),
        (["rollouts.dynamic=-1"], "rollouts.dynamic = -1: expected at least 0"),
    ],
)
def test_each_mistake_has_its_sentence(folder: Path, overrides: list[str], sentence: str) -> None:
    problems = problems_of(folder, *overrides)
    assert any(sentence in p for p in problems), problems
    assert len(problems) == 1, problems


def test_a_slow_channel_behind_an_endpoint_is_refused_at_once(folder: Path) -> None:
    (problem,) = problems_of(folder, "model.endpoint='http://127.0.0.1:9/v1'", "model.name=m")
    assert "channel 'lora' trains weights, but [model] endpoint = 'http://127.0.0.1:9/v1' is remote" in problem
    assert "remove the channel, or set [model] source to a local model" in problem


def test_a_fast_run_behind_an_endpoint_is_fine(folder: Path) -> None:
    text = TEXT.replace('[channels.lora]\nrank = 2\nlearning_rate = 0.05\ntargets = ["q_proj", "down_proj"]\n', "")
    config = parsed(folder, "model.endpoint='http://127.0.0.1:9/v1'", "model.name=m", text=text)
    assert list(build_parts(config).channels) == ["prompts"]
    policy: Any = build_policy(config)
    assert not policy.card.trainable
    policy.close()
    (problem,) = problems_of(folder, "model.endpoint='http://127.0.0.1:9/v1'", text=text)
    assert "endpoint needs [model] name" in problem


def test_numbers_without_end_are_refused_wherever_they_stand(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(folder, "sampling.temperature=inf", "channels.lora.learning_rate=nan", "tasks.largest.config.count=-inf")
    said = caught.value.problems
    assert len(said) == 3
    for place in (
        "sampling.temperature = inf",
        "channels.lora.learning_rate = nan",
        "tasks.largest.config.count = -inf",
    ):
        assert any(place in p and "finite" in p for p in said)


# ---------------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("run.seed=9", lambda c: c.run.seed == 9),
        ("run.name=my run", lambda c: c.run.name == "my run"),
        ("run.name='3'", lambda c: c.run.name == "3"),
        ("stream.1.rounds=7", lambda c: [p.rounds for p in c.stream] == [3, 7]),
        ("sampling.stop=['a', 'b']", lambda c: c.sampling.stop == ("a", "b")),
        ("channels.prompts.num_new=5", lambda c: c.channels["prompts"]["num_new"] == 5),
        ("channels.null={}", lambda c: c.channels["null"] == {}),
        ("tasks.largest.config.max_value = 50", lambda c: c.tasks["largest"]["config"]["max_value"] == 50),
        ("model.chat_template=a=b", lambda c: c.model.chat_template == "a=b"),
        ("reflector.name=x", lambda c: c.reflector is not None and c.reflector.name == "x"),
    ],
)
def test_overrides_set_what_they_name(folder: Path, override: str, read: Any) -> None:
    assert read(parsed(folder, override))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("run.seed", "--set takes a.b=value, such as --set run.seed=3; got 'run.seed'"),
        ("=3", "--set takes a.b=value"),
        ("run..seed=3", "--set takes a.b=value"),
        ("run.seed.x=3", "'run.seed' is 4, not a table"),
        ("stream.2.rounds=3", "'2' must be a number from 0 to 1 here"),
        ("stream.first.rounds=3", "'first' must be a number from 0 to 1 here"),
        ("stream.0=3", "'stream' is a list"),
        ("run.sead=3", "unknown setting 'run.sead'; did you mean seed?"),
        ("run.seed=many", "run.seed = 'many'"),
        ("stream.0.rounds=0", "stream.0.rounds = 0"),
    ],
)
def test_overrides_that_cannot_be_are_told(folder: Path, override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(folder, override)
    assert sentence in str(caught.value)


def test_later_overrides_win_and_the_text_is_left_alone(folder: Path) -> None:
    config = parsed(folder, "run.seed=1", "run.seed=2")
    assert config.run.seed == 2
    assert parsed(folder).run.seed == 4

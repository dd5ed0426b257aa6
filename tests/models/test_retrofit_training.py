"""Training a retrofit: what is read and asked, the loss against the whole model's pass, a kill in the middle, what is
refused. Only the memory's parameters move."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from retrofit_cases import retrofit_of, small

from tiny_models import make_model
from twoclock.errors import ConfigError, NumericsError
from twoclock.hashing import content_hash
from twoclock.models.retrofit.data import lesson
from twoclock.models.retrofit.model import Retrofitted
from twoclock.models.retrofit.prepared import answer_logits, batch_of, check_entered, prepare, states_after
from twoclock.models.retrofit.training import TrainSettings, measured, train_retrofit

SETTINGS = TrainSettings(steps=6, lessons=4, facts=2, sentences=1, batch=2, questions=1, checkpoint_s=0.0, warmup=2)


def model_of(**options: Any) -> Retrofitted:
    return small(segment=512, gate=1.0, **options)


def bits(model: Any) -> str:
    return content_hash([content_hash(p.detach().numpy().tobytes()) for p in model.parameters()])


def told_by(model: Retrofitted, count: int = 3) -> Any:
    lessons = [lesson(0, "train", i, facts=2, sentences=1) for i in range(count)]
    return prepare(model.model, model.tokenizer, model.retrofit.spec.layers, lessons)


# ------------------------------------------------------------------------------------------------------------- the data


def test_a_lesson_is_a_function_of_its_place_and_tests_name_other_people() -> None:
    one = lesson(3, "train", 5, facts=4, sentences=3, behind=2)
    assert one == lesson(3, "train", 5, facts=4, sentences=3, behind=2)
    assert one.text != lesson(3, "train", 6, facts=4, sentences=3, behind=2).text
    assert all(fact.stated in one.text and fact.number in fact.stated for fact in one.facts)
    assert all(fact.number not in fact.asked and fact.name in fact.asked for fact in one.facts)
    assert len(one.facts) == len({fact.name for fact in one.facts}) == 4
    people = [{f.name for i in range(60) for f in lesson(3, p, i).facts} for p in ("train", "test")]  # type: ignore[arg-type]
    assert not people[0] & people[1]
    near, far = lesson(3, "test", 0), lesson(3, "test", 0, behind=9)
    assert far.facts == near.facts
    assert far.text.startswith(near.text)
    with pytest.raises(ValueError, match="facts = 0"):
        lesson(0, "train", 0, facts=0)


# ------------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("layers", [(1,), (0, 2)])
def test_a_batch_says_what_each_question_alone_says(layers: tuple[int, ...]) -> None:
    """Against writing with the library's own write and one plain pass over the model from its tokens."""
    model = model_of(layers=layers)
    lessons = [lesson(0, "train", i, facts=2, sentences=1) for i in range(3)]
    batch = batch_of(told_by(model), [[0], [1, 0], [1]])
    with torch.no_grad():
        states = tuple(state.take(batch.owners) for state in states_after(model.retrofit, batch))
        entered, whole = (
            answer_logits(model.model, model.retrofit, states, batch, entered=way) for way in (True, False)
        )
        assert torch.allclose(entered, whole, atol=1e-3)
        assert check_entered(model.model, model.retrofit, batch)
        found, targets = list(entered), batch.targets.tolist()
        for owner, question in ((0, 0), (1, 1), (1, 0), (2, 1)):
            fact = lessons[owner].facts[question]
            ids = model.tokenizer(fact.asked + fact.number, add_special_tokens=False)["input_ids"]
            with model.reading(model.write(model.start(), lessons[owner].text)):
                alone = model.model(torch.tensor([ids])).logits[0]
            for place in range(len(ids) - 5, len(ids) - 1):
                assert torch.allclose(found.pop(0), alone[place], atol=1e-2)
                assert targets.pop(0) == ids[place + 1]
        assert not found
        base = answer_logits(model.model, None, (), batch)
    assert not torch.allclose(base, whole, atol=1e-2)


def test_the_model_is_whole_again_after_it_was_entered() -> None:
    model = model_of(layers=(1,))
    ids = torch.tensor([[5, 6, 7]])
    before, layers = model.model(ids).logits, model.model.model.layers
    batch = batch_of(told_by(model), [[0], [0], [0]])
    answer_logits(model.model, model.retrofit, tuple(states_after(model.retrofit, batch)), batch)
    assert model.model.model.layers is layers
    wrong, states = replace(batch, asked=batch.asked[..., :7]), tuple(states_after(model.retrofit, batch))
    with pytest.raises(RuntimeError):
        answer_logits(model.model, model.retrofit, states, wrong)
    assert model.model.model.layers is layers
    assert torch.equal(model.model(ids).logits, before)


def test_measured_keys_are_white_and_values_turn_back() -> None:
    model = model_of(layers=(1,), heads=1, width=16)
    told = told_by(model)
    (layer,) = measured(model.model, model.retrofit, told).layers
    hidden = torch.cat([t.hidden[0][1:] for t in told])
    x = hidden - layer.center
    keys = (x / x.square().mean(-1, keepdim=True).sqrt()) @ layer.memory.project[:32, 16:32]
    spread = keys.T @ keys / len(keys)
    assert torch.allclose(spread, torch.diag(spread.diagonal()), atol=0.02)
    assert bool(((spread.diagonal() > 0.8) & (spread.diagonal() < 1.01)).all())
    e = model.model.get_input_embeddings().weight.detach()
    e = e / e.square().mean(-1, keepdim=True).sqrt()
    values = torch.nn.functional.silu(e @ layer.memory.project[32:, 32:])
    close = 1 - (values @ layer.out - e).square().sum() / e.square().sum()
    assert 0.3 < float(close) < 1, "16 numbers say part of 32"


# ------------------------------------------------------------------------------------------------------------- training


def test_only_the_memory_is_trained_and_the_loss_falls(tmp_path: Path) -> None:
    model = model_of(layers=(1,))
    before = bits(model.model)
    settings = replace(SETTINGS, steps=30, learning_rate=5e-3, quiet=0.0, hush=0.0, lessons=2)
    said: list[str] = []
    retrofit, history = train_retrofit(
        model.model, model.tokenizer, model.retrofit, settings, start=False, progress=said.append
    )
    losses = [loss for _, loss, *_ in history["losses"]]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert retrofit.id != model.retrofit.id
    assert bits(model.model) == before
    assert all(p.grad is None for p in model.model.parameters())
    assert any("step 30 of 30" in text for text in said)
    assert Retrofitted(model.model, model.tokenizer, retrofit, base_hash=model.base_hash)


def test_killed_in_the_middle_it_comes_to_the_same_numbers(tmp_path: Path) -> None:
    model = model_of(layers=(1,))
    whole, told = train_retrofit(model.model, model.tokenizer, model.retrofit, SETTINGS)

    class Killed(BaseException):
        pass

    def kill(text: str) -> None:
        if "step 10 of" in text:
            raise Killed

    file, longer = tmp_path / "deep" / "run.pt", replace(SETTINGS, steps=12)
    with pytest.raises(Killed):
        train_retrofit(model.model, model.tokenizer, model.retrofit, longer, checkpoint=file, progress=kill)
    said: list[str] = []
    again, history = train_retrofit(
        model.model, model.tokenizer, model.retrofit, longer, checkpoint=file, progress=said.append
    )
    assert "goes on at step 9" in said
    straight, other = train_retrofit(model.model, model.tokenizer, model.retrofit, longer)
    assert again.id == straight.id
    assert history["losses"] == other["losses"]
    assert whole.id != straight.id
    assert told["step"] == 6
    train_retrofit(model.model, model.tokenizer, model.retrofit, SETTINGS, checkpoint=file, progress=said.append)
    assert any("of another run" in text for text in said)
    file.write_bytes(b"half a file")
    one, _ = train_retrofit(
        model.model, model.tokenizer, model.retrofit, SETTINGS, checkpoint=file, progress=said.append
    )
    assert any("cannot be read" in text for text in said)
    assert one.id == whole.id


def test_another_seed_trains_another_memory() -> None:
    model = model_of(layers=(1,))
    one, other = (
        train_retrofit(model.model, model.tokenizer, model.retrofit, replace(SETTINGS, seed=seed, steps=1))[0]
        for seed in (0, 1)
    )
    assert one.id != other.id


# -------------------------------------------------------------------------------------------------------------- refused


def test_settings_that_make_no_sense_tell_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainSettings(steps=0, lessons=3, questions=9, learning_rate=math.nan, quiet=-1.0, hush=math.inf)
    assert len(caught.value.problems) == 6


def test_a_loss_that_is_no_number_ends_it_before_a_step() -> None:
    model = Retrofitted(make_model("llama"), small().tokenizer, retrofit_of(layers=(1,)), base_hash="base-llama-0")
    with torch.no_grad():
        model.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(NumericsError, match="at step 0"):
        train_retrofit(model.model, model.tokenizer, model.retrofit, SETTINGS, start=False)

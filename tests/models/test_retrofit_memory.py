"""A memory beside a frozen model: closed it is the base to the bit, pieces are the whole to the bit, and what is saved
is refused where it does not belong."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from retrofit_cases import TEXTS, retrofit_of, small, spec_of

from tiny_models import SHARED, byte_tokenizer, make_model
from twoclock.errors import ConfigError, DataError, NumericsError, UnsupportedError
from twoclock.models.plain import plain_logits
from twoclock.models.retrofit.hooks import hidden_at, mounted_memory
from twoclock.models.retrofit.model import Retrofitted, open_retrofit, save_retrofit, tokens_of
from twoclock.nn.neural_memory_layer import project
from twoclock.nn.neural_memory_reference import memory_reference
from twoclock.nn.retrofit import fresh_states, read_layer, write_layer
from twoclock.nn.soft_memory import SoftMemory, dump_memory, dump_retrofit, load_memory, load_retrofit, soft_state

IDS = list(range(40, 70))


def logits(model: Retrofitted, memory: SoftMemory | None = None) -> torch.Tensor:
    with torch.no_grad():
        if memory is None:
            return plain_logits(model.model, IDS)
        with model.reading(memory):
            return plain_logits(model.model, IDS)


def generated(model: Retrofitted, memory: SoftMemory) -> list[list[int]]:
    ids = torch.tensor([IDS, IDS[::-1]])
    with model.reading(memory):
        out = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return [list(row) for row in out.tolist()]


@pytest.mark.parametrize("name", SHARED)
def test_with_the_gate_closed_the_model_is_the_base_to_the_bit(name: str) -> None:
    model = small(name)
    base = logits(model)
    silent = [model.start(), model.write(SoftMemory.start(model.retrofit), TEXTS[0])]
    closed = Retrofitted(model.model, model.tokenizer, model.retrofit.closed(), base_hash=model.base_hash)
    shut = closed.write(closed.start(), TEXTS[0])
    assert shut.is_silent
    assert soft_state(shut) is None
    assert torch.equal(logits(closed, shut), base)
    assert generated(closed, shut) == generated(model, silent[0])
    assert torch.equal(logits(model, silent[0]), base), "nothing was written"
    assert not torch.equal(logits(model, silent[1]), base), "and open it does say something"
    assert generated(model, silent[1]) != generated(model, silent[0])
    assert torch.equal(logits(model), base), "nothing is left behind"
    assert not any(m._forward_hooks for m in model.model.modules())


def test_one_write_and_one_read_by_hand() -> None:
    """Two tokens, one layer, one head, W = 2θ kᵀ(v - k·0): the read is g σ(b) (q·k) 2θ v W_o."""
    retrofit = retrofit_of(layers=(0,), heads=1, width=4)
    layer = retrofit.layers[0]
    (empty,) = fresh_states(retrofit)
    hidden, following = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(1)), torch.ones(1, 1, 32)
    state = write_layer(layer, empty, hidden, following)
    x = hidden[0, 0] / hidden.square().mean().sqrt()
    inputs = torch.cat([x, following[0, 0]])
    q, k, v = torch.nn.functional.silu(inputs @ layer.memory.project).view(3, 4)
    q_alone = torch.nn.functional.silu(x @ layer.memory.project[:32, :4])
    q, k = q_alone / q_alone.norm(), k / k.norm()
    gates = inputs @ layer.memory.gates + layer.memory.gates_bias
    theta = 0.5 * torch.sigmoid(gates[0])
    assert torch.allclose(state.weights[0][0, 0], 2 * theta * torch.outer(k, v), atol=1e-6)
    expected = 2.0 * torch.sigmoid(torch.tensor(2.0)) * (q @ k) * 2 * theta * (v @ layer.out)
    assert torch.allclose(read_layer(layer, state, hidden)[0, 0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("memory", [{}, {"depth": 2, "chunk": 4, "momentum": True, "max_rate": 0.1}])
def test_a_write_is_the_reference_rule_on_hidden_states_and_the_next_embeddings(memory: dict[str, Any]) -> None:
    model = small(layers=(1,), segment=64, **memory)
    tokens, _ = tokens_of(model.tokenizer, TEXTS[0])
    (state,) = model.write(model.start(), TEXTS[0]).states
    assert len(tokens) < 64
    ids = torch.tensor([tokens])
    (hidden,) = hidden_at(model.model, [1], ids[:, :-1])
    layer, (empty,) = model.retrofit.layers[0], fresh_states(model.retrofit)
    full = model.model(ids[:, :-1], output_hidden_states=True).hidden_states[2]
    assert torch.equal(hidden, full), "behind layer 1"
    e = model.model.get_input_embeddings()(ids[:, 1:])
    x = torch.cat([part / part.square().mean(-1, keepdim=True).add(1e-6).sqrt() for part in (hidden, e)], dim=-1)
    given = project(layer.memory, empty, x.detach())
    slow = memory_reference(empty, given.keys, given.values, None, given.gates).state
    for mine, theirs in zip(state.weights, slow.weights, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("memory", [{}, {"depth": 2, "chunk": 4, "momentum": True, "max_rate": 0.1}])
def test_pieces_are_the_whole_to_the_bit(memory: dict[str, Any]) -> None:
    model = small(**memory)
    dice = random.Random(3)
    tokens = [dice.randrange(3, 259) for _ in range(45)]
    whole = model.write(model.start(), tokens, end=False)
    ended = model.write(model.start(), tokens)
    for _ in range(6):
        cuts = sorted(dice.choices(range(46), k=5))
        memory_now = model.start()
        for a, b in zip([0, *cuts], [*cuts, 45], strict=True):
            memory_now = model.write(memory_now, tokens[a:b], end=False)
        assert dump_memory(memory_now) == dump_memory(whole)
        assert memory_now.id == whole.id
        again = model.write(memory_now, [], end=True)
        assert again == ended
        assert torch.equal(logits(model, memory_now), logits(model, ended)), "what is open is read too"
    assert len(whole.tail) <= 8 + 3 + 1
    assert ended.tail == ()
    for n in range(1, 46):
        open_text = model.write(model.start(), tokens[:n], end=False)
        assert dump_memory(model.write(open_text, tokens[n:])) == dump_memory(ended)


def test_an_old_value_stays_what_it_was_and_a_fork_goes_its_own_way() -> None:
    model = small()
    one = model.write(model.start(), TEXTS[0])
    before, said = dump_memory(one), logits(model, one)
    left, right = model.write(one, TEXTS[1]), model.write(one, "Something else.")
    assert left != right
    assert (dump_memory(one), one.tokens) == (before, len(tokens_of(model.tokenizer, TEXTS[0])[0]))
    assert torch.equal(logits(model, one), said), "rolling back is to keep the old value"
    assert not torch.equal(logits(model, left), logits(model, right))


def test_of_a_turn_only_the_answer_is_remembered() -> None:
    model = small()
    none = model.write(model.start(), [5, 6, 7])
    assert none != model.start()
    tokens, told = tokens_of(model.tokenizer, ("Where is it?", "In the box"))
    shown = model.tokenizer.decode([t for t, flag in zip(tokens, told, strict=True) if flag])
    assert shown.startswith("In the box")
    turn = model.write(model.start(), ("Where is it?", "In the box"))
    assert int(turn.states[0].written) == sum(told)
    unasked = model.write(model.start(), ("Where is it?", "In the box"))
    assert unasked == turn


def test_the_size_does_not_grow() -> None:
    model = small(segment=16)
    memory = model.start()
    sizes = set()
    for n in range(12):
        memory = model.write(memory, TEXTS[n % 2] * 3)
        sizes.add(len(dump_memory(memory)) // 64)
        memory.check_finite()
    assert len(sizes) <= 2
    longest = model.write(memory, list(range(3, 250)), end=False)
    assert len(dump_memory(longest)) < 3 * len(dump_memory(memory))


def test_rows_read_their_own_memories() -> None:
    model = small()
    memories = [model.write(model.start(), text) for text in TEXTS]
    apart = [logits(model, memory) for memory in memories]
    from twoclock.nn.neural_memory_state import join_rows

    states = [join_rows([m.states[i] for m in memories]) for i in range(2)]
    with torch.no_grad(), mounted_memory(model.model, model.retrofit, states):
        together = model.model(torch.tensor([IDS, IDS])).logits
    for row, alone in zip(together, apart, strict=True):
        assert torch.allclose(row, alone, atol=2e-3)


# ------------------------------------------------------------------------------------------------------ saved, refused


def test_saved_and_loaded_is_the_same_value(tmp_path: Path) -> None:
    model = small()
    for end in (True, False):
        memory = model.write(model.start(), list(range(30, 60)), end=end)
        model.save(memory, tmp_path / "deep" / "memory.safetensors")
        again = model.load(tmp_path / "deep" / "memory.safetensors")
        assert (again, again.id, dump_memory(again)) == (memory, memory.id, dump_memory(memory))
        assert torch.equal(logits(model, again), logits(model, memory))
        assert model.write(again, [9, 9]) == model.write(memory, [9, 9])
    save_retrofit(model.retrofit, tmp_path / "retrofit.safetensors")
    assert open_retrofit(tmp_path / "retrofit.safetensors", model.base_hash) == model.retrofit
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["memory.safetensors"]


def test_threads_may_save_to_one_file_at_once(tmp_path: Path) -> None:
    model = small()
    memories = [model.write(model.start(), text) for text in TEXTS]
    file = tmp_path / "memory.safetensors"
    model.save(memories[0], file)

    def save(n: int) -> bool:
        model.save(memories[n % 2], file)
        return model.load(file) in memories

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(save, range(24)))
    assert [p.name for p in tmp_path.iterdir()] == ["memory.safetensors"]


def test_what_is_repeated_without_end_stays_bounded() -> None:
    model = small(segment=64)
    memory = model.start()
    for _ in range(20):
        memory = model.write(memory, [7] * 200)
    assert max(float(w.abs().max()) for state in memory.states for w in state.weights) < 10


def test_what_belongs_elsewhere_is_refused_by_name() -> None:
    model = small()
    blob = dump_memory(model.write(model.start(), TEXTS[0]))
    with pytest.raises(ConfigError, match="base weights base-llama-0, and the model is other-base-h"):
        load_memory(blob, retrofit_of(base="other-base-hash"))
    with pytest.raises(ConfigError, match="chunk: the saved memory has 1, the retrofit 4"):
        load_memory(blob, retrofit_of(chunk=4))
    with pytest.raises(ConfigError, match="segment: the saved memory has 8, the retrofit 16"):
        load_memory(blob, retrofit_of(segment=16))
    with pytest.raises(ConfigError, match="the same spec but other parameters"):
        load_memory(blob, retrofit_of(seed=1))
    with pytest.raises(ConfigError, match="train a retrofit for this one"):
        load_retrofit(dump_retrofit(model.retrofit), "another base")
    with pytest.raises(ConfigError, match="train a retrofit for this one"):
        Retrofitted(make_model("llama"), byte_tokenizer(), model.retrofit, base_hash="another base")
    deep = retrofit_of(layers=(0, 7))
    with pytest.raises(ConfigError, match="layer 7; the model's layers are 0 to 2"):
        Retrofitted(make_model("llama"), byte_tokenizer(), deep, base_hash=model.base_hash)
    other = small(seed=4)
    with pytest.raises(ConfigError, match="under other projections"):
        other.write(model.start(), TEXTS[0])


@pytest.mark.parametrize("cut", [0, 1, 7, 100, -1])
def test_damaged_bytes_are_refused(cut: int) -> None:
    model = small()
    memory = model.write(model.start(), TEXTS[0])
    for blob, load in ((dump_memory(memory), load_memory), (dump_retrofit(model.retrofit), load_retrofit)):
        with pytest.raises(DataError, match="saved"):
            load(blob[:cut], model.retrofit if load is load_memory else None)  # type: ignore[operator]
    with pytest.raises(DataError, match=r"format 'twoclock.retrofit/1'; this says 'twoclock.soft_memory/1'"):
        load_retrofit(dump_memory(memory))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        small().load(tmp_path / "none.safetensors")


def test_specs_that_make_no_sense_tell_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        spec_of(layers=(2, 1), segment=1, overlap=-1, conv=4)
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError, match="layers are numbers"):
        spec_of(layers=())


@pytest.mark.parametrize("tokens", [[-1], [5, 300], [10**9]])
def test_tokens_that_are_none_are_refused(tokens: list[int]) -> None:
    model = small()
    with pytest.raises(ConfigError, match="numbers from 0 to 299"):
        model.write(model.start(), tokens)


def test_empty_texts_change_nothing_but_the_count() -> None:
    model = small()
    start = model.start()
    assert model.write(start, []) == start
    assert model.write(start, "") == start
    assert model.write(start, [7]).is_silent is False
    assert torch.equal(logits(model, model.write(start, [7])), logits(model)), "one token has nothing behind it"


def test_nan_is_refused_before_it_is_kept() -> None:
    model = small()
    layer = model.retrofit.layers[0]
    bad = replace(layer, memory=replace(layer.memory, initial=tuple(t * float("nan") for t in layer.memory.initial)))
    sick = Retrofitted(
        model.model,
        model.tokenizer,
        replace(model.retrofit, layers=(bad, *model.retrofit.layers[1:])),
        base_hash=model.base_hash,
    )
    with pytest.raises(NumericsError, match="NaN"):
        sick.write(sick.start(), TEXTS[0])


def test_a_model_without_layers_is_refused_by_name() -> None:
    from twoclock.models.retrofit.hooks import decoder_layers

    with pytest.raises(UnsupportedError, match="Linear has no list 'layers'"):
        decoder_layers(torch.nn.Linear(2, 2))

"""A memory's state as a value: saved and read back, copied, cut and joined by rows; and what is refused, with words."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from neural_memory_cases import assert_same_state, make_case, spec_of  # noqa: E402

from twoclock.errors import ConfigError, DataError, NumericsError  # noqa: E402
from twoclock.nn.neural_memory import memory_read, memory_step  # noqa: E402
from twoclock.nn.neural_memory_spec import Gates, MemorySpec, half_life_bias  # noqa: E402
from twoclock.nn.neural_memory_state import MemoryState, init_state, join_rows  # noqa: E402


def written(tokens: int, **changes: object) -> MemoryState:
    case = make_case(spec_of("network", **changes), rows=3)
    return case.run(memory_step, part=slice(0, tokens)).state


@pytest.mark.parametrize("tokens", [0, 4, 6])
@pytest.mark.parametrize("momentum", [True, False])
def test_saved_and_read_back(tokens: int, momentum: bool) -> None:
    state = written(tokens, momentum=momentum)
    back = MemoryState.from_flat(state.flat(), state.header(), state.spec)
    assert_same_state(back, state)
    assert back.spec == state.spec


def test_it_passes_through_a_file_and_goes_on(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """From inside a chunk: the text continued from the file is the text read in one go."""
    files = pytest.importorskip("safetensors.torch")
    case = make_case(spec_of("network"), rows=2)
    first = case.run(memory_step, part=slice(0, 6))
    files.save_file(first.state.flat(), tmp_path / "state.safetensors", metadata=first.state.header())
    from safetensors import safe_open

    with safe_open(tmp_path / "state.safetensors", framework="pt") as saved:
        header = saved.metadata()
    state = MemoryState.from_flat(files.load_file(tmp_path / "state.safetensors"), header)
    rest = case.run(memory_step, state, slice(6, 11))
    torch.testing.assert_close(rest.read, case.run(memory_step).read[:, :, 6:], atol=1e-12, rtol=0)  # type: ignore[index]


def test_between_chunks_the_base_costs_nothing() -> None:
    spec = spec_of("network", conv=1)
    values = 3 * 2 * spec.values * 8
    assert written(4, conv=1).bytes == 2 * values + 3 * 8
    assert written(6, conv=1).bytes == 3 * values + 3 * 8
    assert not any(name.startswith("base") for name in written(4).flat())
    assert any(name.startswith("base") for name in written(6).flat())


def test_size_does_not_grow_with_what_was_read() -> None:
    assert written(4).bytes == written(8).bytes == written(0).bytes


def test_a_clone_shares_nothing() -> None:
    state = written(6)
    twin = state.clone()
    for tensor in twin.flat().values():
        tensor.zero_()
    assert bool(state.weights[0].all())
    assert bool(state.base[0].all())
    assert twin.bytes == state.bytes
    assert written(4).clone().bytes == written(4).bytes


@pytest.mark.parametrize("rows", [1, 2])
def test_a_state_does_not_move_with_the_first_weights(rows: int) -> None:
    """Training changes W_0 in place; what has been learned from it stays."""
    case = make_case(spec_of("network"), rows=rows)
    fresh, kept = case.state(), case.state().clone()
    for weight in case.initial:
        weight.zero_()
    assert_same_state(fresh, kept)


def test_rows_are_taken_in_any_order() -> None:
    state = written(6)
    moved = state.take([2, 0, 2])
    for name, tensor in moved.flat().items():
        assert torch.equal(tensor, state.flat()[name][[2, 0, 2]])
    assert state.take([]).rows == 0


def test_one_row_is_reset_and_the_others_stay() -> None:
    state = written(6)
    fresh = written(0).take([0])
    reset = state.put([1], fresh)
    assert_same_state(reset.take([1]), fresh)
    assert_same_state(reset.take([0, 2]), state.take([0, 2]))
    assert reset.written.tolist() == [6, 0, 6]


def test_rows_joined_go_on_each_from_its_place() -> None:
    case = make_case(spec_of("network"), rows=1)
    parts = [case.run(memory_step, part=slice(0, n)).state for n in (2, 4, 7)]
    joined = join_rows(parts)
    assert joined.written.tolist() == [2, 4, 7]
    more = make_case(spec_of("network"), rows=3, seed=5)
    together = more.run(memory_step, joined)
    for b, part in enumerate(parts):
        one = make_case(spec_of("network"), rows=3, seed=5)
        for name in ("keys", "values", "queries", "rate", "momentum", "forget"):
            setattr(one, name, getattr(more, name)[b : b + 1])
        alone = one.run(memory_step, part)
        torch.testing.assert_close(together.read[b], alone.read[0], atol=1e-12, rtol=0)  # type: ignore[index]
        assert_same_state(together.state.take([b]), alone.state, atol=1e-12)


def test_an_empty_batch_is_a_batch() -> None:
    state = written(6).take([])
    none = torch.zeros(0, 2, 5, 4, dtype=torch.float64)
    found = memory_step(state, none, none, none, Gates(none[..., 0], none[..., 0], none[..., 0]))
    assert found.read is not None
    assert found.read.shape == none.shape


# --------------------------------------------------------------------------------------------------- what is refused


def test_another_function_is_refused_with_every_difference() -> None:
    state = written(6)
    other = spec_of("network", chunk=8, activation="silu")
    with pytest.raises(ConfigError, match="chunk: the state has 4, the memory 8") as caught:
        MemoryState.from_flat(state.flat(), state.header(), other)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, h: h.update(format="other/1"), "says format"),
        (lambda t, h: h.pop("spec"), "cannot be read"),
        (lambda t, h: h.update(spec="[1]"), "cannot be read"),
        (lambda t, h: h.update(spec='{"heads": 2, "width": 4, "colour": 1}'), "unknown field 'colour'"),
        (lambda t, h: t.pop("surprise.1"), "lacks surprise.1"),
        (lambda t, h: t.pop("base.0"), "inside a chunk of 4, so base.0"),
        (lambda t, h: t.update({"weights.0": t["weights.0"][:, :1]}), r"weights.0 is \[3, 2, 4, 8\]"),
        (lambda t, h: t.update({"tails": t["tails"].float()}), r"tails is \[3, 3, 24\] torch.float64; got"),
        (lambda t, h: t.update({"written": torch.tensor([1.0, 2.0, 3.0])}), "'written' counts the tokens"),
        (lambda t, h: t.update({"written": torch.tensor([1, -2, 3])}), "'written' counts the tokens"),
        (lambda t, h: t.update({n: x.half() for n, x in t.items() if n != "written"}), "float32 or float64"),
    ],
)
def test_a_damaged_save_is_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    state = written(6)
    tensors, header = dict(state.flat()), dict(state.header())
    change(tensors, header)
    with pytest.raises(DataError, match=message):
        MemoryState.from_flat(tensors, header)


def test_nan_is_found_before_a_state_is_kept() -> None:
    case = make_case(spec_of("network"), rows=3)
    case.values[1, 0, 2, 0] = math.nan
    state = case.run(memory_step).state
    with pytest.raises(NumericsError, match=r"weights.0 has NaN or infinity in row 1 after 11 tokens"):
        state.check_finite()
    state.take([0, 2]).check_finite()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 0}, "heads is a whole number from 1 on; got 0"),
        ({"width": 2.5}, "width is a whole number"),
        ({"chunk": True}, "chunk is a whole number"),
        ({"depth": -1}, "depth is"),
        ({"activation": "relu"}, "activation is one of gelu, silu; got 'relu'"),
        ({"read": "during"}, "read is 'after'"),
        ({"clip": 0.0}, "clip is a gradient norm above 0"),
        ({"clip": math.nan}, "clip is"),
        ({"max_rate": math.inf}, "max_rate is"),
        ({"momentum": 0.9}, "momentum is True or False; got 0.9"),
    ],
)
def test_a_spec_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MemorySpec(**{"heads": 2, "width": 4} | fields)  # type: ignore[arg-type]


def test_a_spec_names_all_its_mistakes() -> None:
    with pytest.raises(ConfigError) as caught:
        MemorySpec(heads=0, width=0, chunk=0)
    assert len(caught.value.problems) == 3


def test_a_spec_passes_through_json() -> None:
    spec = spec_of("read before, clipped")
    assert MemorySpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(2, 2, 11, 5)}, r"keys are \[B, H, T, D\] = \[2, 2, 11, 4\]"),
        ({"keys": torch.zeros(2, 11, 4)}, r"keys are \[B, H, T, D\]; got"),
        ({"values": torch.zeros(2, 2, 10, 4)}, "values are"),
        ({"queries": torch.zeros(2, 2, 11, 4, dtype=torch.int64)}, "queries are floating-point numbers"),
        ({"rate": torch.full((2, 2, 11), -0.1)}, r"gates.rate is a finite number from 0 on; got -0.1"),
        ({"forget": torch.full((2, 2, 11), 1.5)}, r"gates.forget is in \[0, 1\]; got 1.5"),
        ({"momentum": torch.full((2, 2, 11), math.nan)}, r"gates.momentum is in \[0, 1\]; got nan"),
        ({"rate": torch.zeros(2, 1, 11)}, r"gates.rate is \[B, H, T\]"),
        ({"momentum": None}, "this memory has momentum"),
        ({"gain": torch.ones(2, 4)}, "a gain belongs to the layer norm"),
    ],
)
def test_tokens_that_do_not_fit(change: dict[str, torch.Tensor], message: str) -> None:
    case = make_case(spec_of("network"))
    for name, value in change.items():
        setattr(case, name, value)
    with pytest.raises(ConfigError, match=message):
        case.run(memory_step)


@pytest.mark.parametrize(
    ("mask", "message"),
    [(torch.ones(2, 11), r"type: mask.bool\(\)"), (torch.ones(2, 10, dtype=torch.bool), r"\[2, 11\]; got \[2, 10\]")],
)
def test_a_mask_that_does_not_fit(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_case(spec_of("network")).run(memory_step, mask=mask)


def test_momentum_where_there_is_none() -> None:
    case = make_case(spec_of("silu, no momentum"))
    case.momentum = case.rate
    with pytest.raises(ConfigError, match=r"gates.momentum=None"):
        case.run(memory_step)


def test_other_refusals() -> None:
    state, normed = written(6), make_case(spec_of("residual and norm"))
    with pytest.raises(ValueError, match="rows are numbers from 0 to 2"):
        state.take([3])
    with pytest.raises(ValueError, match="put names each row once"):
        state.put([1, 1], state.take([0, 1]))
    with pytest.raises(ValueError, match="rows are numbers from 0 to 2"):
        state.put([5], state.take([0]))
    with pytest.raises(ConfigError, match="chunk"):
        join_rows([state, written(6, chunk=5)])
    with pytest.raises(ValueError, match="at least one"):
        join_rows([])
    with pytest.raises(ConfigError, match="first weights"):
        init_state(state.spec, [torch.zeros(2, 4, 4)], 1)
    for queries in (torch.zeros(3, 2, 5, 3), torch.zeros(3)):
        with pytest.raises(ConfigError, match=r"queries are \[B, H, T, D\] = \[3, 2, T, 4\]"):
            memory_read(state, queries)
    with pytest.raises(ConfigError, match=r"the gain is \[H, D\]"):
        memory_read(normed.state(), normed.queries, gain=torch.ones(3))


@pytest.mark.parametrize("tokens", [0.5, 1, 64, 4096, 1e6])
def test_the_half_life_is_one(tokens: float) -> None:
    forget = 1 / (1 + math.exp(-half_life_bias(tokens)))
    assert (1 - forget) ** tokens == pytest.approx(0.5, rel=1e-6)
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="half-life"):
            half_life_bias(bad)

"""``generate``, checkpoints, caches as values, saved caches, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from titans_cases import MODELS, config_of, in_pieces, model_of, text  # noqa: E402

from twoclock.errors import ConfigError, DataError, NumericsError  # noqa: E402
from twoclock.models.titans.cache import TitansCache  # noqa: E402
from twoclock.models.titans.config import TitansConfig  # noqa: E402
from twoclock.models.titans.model import TitansForCausalLM  # noqa: E402

MAIN = ["mac", "mag", "mal", "lmm", "window", "full", "delta"]


def generated(model: object, ids: torch.Tensor, mask: torch.Tensor | None = None, **more: object) -> torch.Tensor:
    settings = {"max_new_tokens": 11, "do_sample": False, "pad_token_id": 0} | more
    settings["attention_mask"] = torch.ones_like(ids) if mask is None else mask
    return model.generate(ids, **settings)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("name", MAIN)
def test_generation_with_the_cache_is_generation_without(name: str) -> None:
    model, ids = model_of(name), text(length=13)
    mask = torch.ones_like(ids)
    mask[0, :4], mask[1, :9] = 0, 0
    for more in ({}, {"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}):
        with_cache = generated(model, ids, mask, **more)
        assert torch.equal(with_cache, generated(model, ids, mask, use_cache=False, **more))
    alone = generated(model, ids[1:2, 9:])
    assert torch.equal(generated(model, ids, mask)[1, 13:], alone[0, 4:])


@pytest.mark.parametrize("name", ["mac", "mag"])
def test_generation_goes_on_from_a_cache_and_in_pieces(name: str) -> None:
    model, ids = model_of(name), text(length=13)
    expected = generated(model, ids)
    cache = model.new_cache()
    with torch.no_grad():
        model(ids[:, :9], past_key_values=cache, use_cache=True)
    assert torch.equal(generated(model, ids, past_key_values=cache.fork()), expected)
    assert torch.equal(generated(model, ids, past_key_values=cache), expected)
    assert cache.columns == 13 + 11 - 1
    assert torch.equal(generated(model, ids, prefill_chunk_size=5), expected)


@pytest.mark.parametrize("name", [*MODELS])
def test_a_checkpoint_is_the_model(name: str, tmp_path: Path) -> None:
    model, ids = model_of(name, init_seed=3), text()
    model.save_pretrained(tmp_path)
    for again in (
        TitansForCausalLM.from_pretrained(tmp_path),
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64),
    ):
        assert again.config.memory == model.config.memory
        expected, found = model.state_dict(), again.state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-12, rtol=0.0)


def test_first_values_are_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    first = model_of("mac").state_dict()
    torch.manual_seed(2)
    for name, value in model_of("mac").state_dict().items():
        assert torch.equal(value, first[name]), name
    assert not torch.equal(model_of("mac", init_seed=1).state_dict()["embedding.weight"], first["embedding.weight"])


def test_tied_weights_are_one_tensor_and_untied_are_two(tmp_path: Path) -> None:
    tied, untied = model_of("mag"), model_of("mag", tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.embedding.weight
    assert untied.lm_head.weight is not untied.embedding.weight
    for model in (tied, untied):
        model.save_pretrained(tmp_path)
        again = TitansForCausalLM.from_pretrained(tmp_path)
        assert (again.lm_head.weight is again.embedding.weight) is (model is tied)
        torch.testing.assert_close(again(text()).logits, model(text()).logits, atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("name", MAIN)
@torch.no_grad()
def test_a_saved_cache_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    model, ids = model_of(name), text()
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    whole, _ = in_pieces(model, ids, [], mask)
    _, cache = in_pieces(model, ids[:, :14], [3], mask[:, :14])
    cache.save(tmp_path / "deep" / "cache.safetensors")
    again = TitansCache.load(tmp_path / "deep" / "cache.safetensors", model.config)
    assert again.bytes == cache.bytes
    rest = model(ids[:, 14:], attention_mask=mask, past_key_values=again, use_cache=True).logits
    torch.testing.assert_close(rest, whole[:, 14:], atol=1e-10, rtol=0.0)


def test_a_memory_of_another_chunk_is_refused(tmp_path: Path) -> None:
    """The chunk length is part of the function: a state of another is no state of this model."""
    path = tmp_path / "cache.safetensors"
    model = model_of("mag")
    cache = model(text(), use_cache=True).past_key_values
    cache.save(path)
    with pytest.raises(ConfigError, match=r"memory\.chunk: the state has 4, the memory 8"):
        TitansCache.load(path, config_of("mag", memory={"chunk": 8, "expansion": 2}))
    with pytest.raises(ConfigError, match=r"architecture: the saved cache has 'mag', the model 'mal'"):
        TitansCache.load(path, config_of("mal"))
    assert config_of("mag").memory["chunk"] == 4


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    path, config = tmp_path / "cache.safetensors", config_of("mag")
    with pytest.raises(DataError, match="cannot be read"):
        TitansCache.load(path, config)
    model = model_of("mag")
    model(text(), use_cache=True).past_key_values.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        TitansCache.load(path, config)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(DataError, match=r"twoclock\.titans_cache/1"):
        TitansCache.load(path, config)


def test_a_memory_of_nan_is_not_kept(tmp_path: Path) -> None:
    model = model_of("mag")
    cache = model(text(), use_cache=True).past_key_values
    cache.layers[0].memory.weights[0][1] = float("nan")
    with pytest.raises(NumericsError, match="row 1"):
        cache.save(tmp_path / "cache.safetensors")
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_forks_do_not_know_of_each_other() -> None:
    model, ids = model_of("mac"), text()
    cache = model(ids[:, :10], use_cache=True).past_key_values
    fork = cache.fork()
    first = model(ids[:, 10:], past_key_values=cache, use_cache=True).logits
    model(ids[:, :7], past_key_values=fork.fork(), use_cache=True)
    assert torch.equal(model(ids[:, 10:], past_key_values=fork, use_cache=True).logits, first)
    turned = fork.take([2, 0])
    assert turned.rows == 2
    a = model(ids[:, :4], past_key_values=fork.fork(), use_cache=True).logits
    b = model(ids[[2, 0], :4], past_key_values=turned, use_cache=True).logits
    torch.testing.assert_close(b, a[[2, 0]], atol=1e-12, rtol=0.0)


@torch.no_grad()
def test_another_texts_memory_is_felt_and_its_own_is_not() -> None:
    model, ids = model_of("mag"), text()
    cache = model(ids, use_cache=True).past_key_values
    expected = model(ids[:, :3], past_key_values=cache.fork(), use_cache=True).logits
    own = model(ids[:, :3], past_key_values=cache.with_memory_of(cache.fork()), use_cache=True).logits
    assert torch.equal(own, expected)
    other = model(ids[:, :3], past_key_values=cache.with_memory_of(cache.take([1, 2, 0])), use_cache=True).logits
    assert float((other - expected).abs().max()) > 1e-4


@torch.no_grad()
def test_a_memory_may_fall_silent_in_the_middle() -> None:
    """Zeroed after a text was read, in every architecture and at any place of a segment: the window goes on."""
    for name in ("mac", "mag", "mal", "lmm"):
        model, ids = model_of(name), text()
        cache = model(ids[:, :15], use_cache=True).past_key_values
        model.config.memory_zeroed = True
        assert bool(model(ids[:, 15:17], past_key_values=cache, use_cache=True).logits.isfinite().all())
        model.config.memory_zeroed = False
        assert bool(model(ids[:, 17:], past_key_values=cache, use_cache=True).logits.isfinite().all())


@torch.no_grad()
def test_the_state_of_a_memory_does_not_grow() -> None:
    for name in ("mac", "mag", "mal", "lmm", "window", "delta"):
        model, cache = model_of(name), None
        sizes = []
        for _ in range(3):
            cache = model(text(length=24), past_key_values=cache, use_cache=True).past_key_values
            sizes.append(cache.bytes)
        assert sizes[0] == sizes[2] or name == "mac", name
        assert max(sizes) < 2 * sizes[0]


def test_a_config_names_all_its_mistakes() -> None:
    with pytest.raises(ConfigError) as found:
        TitansConfig(architecture="mga", hidden_size=0, memory={"chunks": 3}, memory_gate="none")
    said = str(found.value)
    for part in ("unknown architecture 'mga'", "hidden_size", "chunks", "memory_gate"):
        assert part in said
    with pytest.raises(ConfigError, match="chunk is a whole number from 1 on; got 0"):
        TitansConfig(memory={"chunk": 0})
    for layers in ([0, 2], [], [0, 0], [0.5], "01"):
        with pytest.raises(ConfigError, match="memory_layers is a list of layers from 0 to 1"):
            TitansConfig(memory_layers=layers)
    for wrong in (
        {"memory": [1]},
        {"rms_norm_eps": -1.0},
        {"memory_half_life": 0.0},
        {"memory_start_momentum": 1.0},
        {"memory_start_rate": 3.0},
        {"forgetting": None},
        {"window": True},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            TitansConfig(**wrong)
    with pytest.raises(ConfigError, match=r"no multiple of memory_heads"):
        TitansConfig(memory_heads=3)
    with pytest.raises(ConfigError, match="positions turn pairs"):
        TitansConfig(hidden_size=6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "either input_ids"),
        ({"input_ids": torch.zeros(2, 3)}, "whole numbers"),
        ({"input_ids": torch.full((1, 3), 40)}, "from 0 to 39; got 40 to 40"),
        ({"input_ids": torch.zeros(2, 3).long(), "attention_mask": torch.ones(2, 4)}, "attention_mask is"),
        ({"input_ids": torch.zeros(2, 3).long(), "labels": torch.zeros(2, 2).long()}, "labels are"),
        ({"input_ids": torch.zeros(2, 3).long(), "past_key_values": ()}, "is a TitansCache"),
        ({"input_ids": torch.zeros(2, 3).long(), "encoder_states": 1}, "no argument encoder_states"),
        ({"inputs_embeds": torch.zeros(2, 3, 5)}, "inputs_embeds are"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        model_of("mag")(**given)


@torch.no_grad()
def test_nan_is_named_and_the_cache_is_as_it_was() -> None:
    model = model_of("mag")
    cache = model(text(), use_cache=True).past_key_values
    kept = cache.fork()
    with pytest.raises(NumericsError, match="was given NaN"):
        model(inputs_embeds=torch.full((3, 2, 16), float("nan")).double(), past_key_values=cache, use_cache=True)
    assert cache.columns == 23
    assert all(a is b for a, b in zip(cache.layers, kept.layers, strict=True))


def test_a_cache_of_other_rows_is_refused_and_unharmed() -> None:
    model = model_of("mag")
    cache = model(text(), use_cache=True).past_key_values
    with pytest.raises(ConfigError, match="of 3 rows, the input has 2"):
        model(text(rows=2), past_key_values=cache, use_cache=True)
    with pytest.raises(ConfigError, match="fork"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="rows are numbers from 0 to 2"):
        cache.take([3])
    with pytest.raises(ConfigError, match="cache_implementation"):
        generated(model, text(), cache_implementation="static")
    assert cache.columns == 23


@torch.no_grad()
def test_nothing_at_all_and_rows_of_padding() -> None:
    for name in MAIN:
        model = model_of(name)
        assert model(torch.zeros(2, 0, dtype=torch.long)).logits.shape == (2, 0, 40)
        ids = text(rows=2)
        mask = torch.ones_like(ids)
        mask[0] = 0
        found = model(ids, attention_mask=mask, labels=ids)
        assert bool(found.loss.isfinite())
        torch.testing.assert_close(found.logits[1:], model(ids[1:]).logits, atol=1e-10, rtol=0.0)

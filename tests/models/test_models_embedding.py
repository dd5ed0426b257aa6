"""A local model's own states as an encoder."""

from __future__ import annotations

import numpy as np
import pytest

from tiny_models import byte_tokenizer, make_model
from twoclock.errors import ConfigError, NumericsError
from twoclock.memory.encoders import Encoder
from twoclock.models.embedding import PolicyEncoder, mean_states
from twoclock.models.local import LocalPolicy
from twoclock.models.scripted import ScriptedPolicy

TEXTS = ["open the door", "close the window", "", "é" * 3000, "\ud800"]


def policy(name: str = "llama", seed: int = 0) -> LocalPolicy:
    return LocalPolicy(make_model(name, seed=seed), byte_tokenizer(), name=name, base_hash=f"base-{name}-{seed}")


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_mean_of_the_states_behind_a_start_token(name: str) -> None:
    import torch

    own = policy(name)
    ids = [own.tokenizer.bos_token_id, *own.tokenizer("open it", add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        states = own.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    for layer in (0, 2):
        expected = states[layer][0, 1:].float().mean(0).numpy()
        assert mean_states(own, "open it", layer=layer, max_tokens=64) == pytest.approx(expected, abs=1e-5)


def test_the_laws_of_an_encoder() -> None:
    encoder = PolicyEncoder(policy(), max_tokens=50)
    assert isinstance(encoder, Encoder)
    rows = encoder.encode(TEXTS)
    assert rows.dtype == np.float32
    assert rows.shape == (len(TEXTS), 32)
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1, 0, 1, 1], abs=1e-5)
    for row, text in zip(rows, TEXTS, strict=True):
        assert np.array_equal(row, encoder.encode([text])[0])


def test_the_common_direction_is_taken_off() -> None:
    own = policy()
    raw, centred = (PolicyEncoder(own, centre=c).encode(TEXTS[:2]) for c in ((), ("a text", "another one")))
    offset = np.mean([mean_states(own, t, layer=2, max_tokens=256) for t in ("a text", "another one")], axis=0)
    states = mean_states(own, TEXTS[0], layer=2, max_tokens=256)
    assert raw[0] == pytest.approx(states / np.linalg.norm(states), abs=1e-5)
    states = states - offset
    assert centred[0] == pytest.approx(states / np.linalg.norm(states), abs=1e-5)


def test_the_id_follows_from_weights_and_settings() -> None:
    own = policy()
    ids = {
        PolicyEncoder(own).id,
        PolicyEncoder(own, layer=1).id,
        PolicyEncoder(own, max_tokens=7).id,
        PolicyEncoder(own, centre=()).id,
        PolicyEncoder(policy(seed=1)).id,
    }
    assert len(ids) == 5
    assert PolicyEncoder(policy()).id == PolicyEncoder(own).id


def test_what_a_user_does_wrong() -> None:
    with pytest.raises(ConfigError, match="has layers 0 to 3"):
        PolicyEncoder(policy(), layer=4)
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        PolicyEncoder(policy(), max_tokens=0)
    scripted = ScriptedPolicy.__new__(ScriptedPolicy)
    with pytest.raises(ConfigError, match="not of ScriptedPolicy"):
        PolicyEncoder(scripted)  # type: ignore[arg-type]
    broken = policy()
    broken.model.get_decoder().embed_tokens.weight.fill_(float("nan"))
    with pytest.raises(NumericsError, match="NaN or infinite"):
        mean_states(broken, "open", layer=1, max_tokens=9)

"""Counting parameters and bytes, and making one model as large as another."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from titans_cases import MODELS, config_of, model_of, text  # noqa: E402

from twoclock.errors import ConfigError  # noqa: E402
from twoclock.models.titans.sizes import (  # noqa: E402
    changed,
    count_parameters,
    matched,
    state_bytes,
    window_of_bytes,
)


@pytest.mark.parametrize("name", MODELS)
def test_counting_needs_no_memory_and_is_right(name: str) -> None:
    assert count_parameters(config_of(name)) == sum(p.numel() for p in model_of(name).parameters())


def test_a_model_is_matched_to_a_number_of_parameters() -> None:
    for name in ("mac", "mag", "mal", "lmm", "window", "delta"):
        config = matched(config_of(name), 12_000)
        # One unit of the two gated networks is 2 · 3 · 16 parameters.
        assert abs(count_parameters(config) - 12_000) <= 48
        assert config.architecture == MODELS[name]["architecture"]
        assert config.memory == config_of(name).memory
    with pytest.raises(ConfigError, match="cannot be reached"):
        matched(config_of("mag"), 1_000)


def test_a_window_is_matched_to_a_number_of_bytes() -> None:
    size = state_bytes(config_of("mag"), 32)
    window = window_of_bytes(config_of("mag"), size)
    assert window.architecture == "window"
    one_token = 2 * 16 * 4 * 2
    assert abs(state_bytes(window, window.window + 8) - size) <= one_token
    assert window_of_bytes(config_of("mag"), 1).window == config_of("mag").window


def test_the_state_is_counted_once() -> None:
    """By hand: window keys and values, weights and surprise, convolution tails, and a count, in float32."""
    model = model_of("mag").float()
    cache = model(text(rows=1, length=4 * 4 + 1), use_cache=True).past_key_values  # 3 persistent: 20 = a chunk's end
    weights = 2 * (8 * 16 + 16 * 8)
    values = 2 * weights + 3 * 3 * 16 + 2 * 4 * 16
    assert cache.bytes == 2 * (4 * values + 8)


def test_a_changed_config_is_checked() -> None:
    assert changed(config_of("mag"), window=9).window == 9
    with pytest.raises(ConfigError, match="window"):
        changed(config_of("mag"), window=0)

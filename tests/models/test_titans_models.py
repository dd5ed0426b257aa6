"""Every architecture: pieces are the whole, rows do not know of each other, padding and the future change nothing."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from titans_cases import MODELS, in_pieces, model_of, text  # noqa: E402

CUTS = {
    "token by token": list(range(1, 23)),
    "a long head": [17],
    "around chunks and segments": [3, 4, 6, 12, 13],
    "empty pieces too": [0, 9, 9],
}
CLOSE = {"atol": 1e-10, "rtol": 0.0}
every = pytest.mark.parametrize("name", MODELS)


@every
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@torch.no_grad()
def test_pieces_are_the_whole(name: str, cuts: list[int]) -> None:
    model, ids = model_of(name), text()
    logits, cache = in_pieces(model, ids, cuts)
    torch.testing.assert_close(logits, model(ids).logits, **CLOSE)
    assert cache.columns == 23


@every
@torch.no_grad()
def test_pieces_are_the_whole_with_padding_anywhere(name: str) -> None:
    model, ids = model_of(name), text()
    mask = torch.ones_like(ids)
    mask[0, :9], mask[1, 4:8], mask[1, -1] = 0, 0, 0
    whole = model(ids, attention_mask=mask).logits
    for cuts in CUTS.values():
        logits, _ = in_pieces(model, ids, cuts, mask)
        torch.testing.assert_close(logits[mask.bool()], whole[mask.bool()], **CLOSE)


@every
@torch.no_grad()
def test_padding_changes_nothing_and_rows_are_independent(name: str) -> None:
    model, ids = model_of(name), text()
    mask = torch.ones_like(ids)
    mask[0, :9], mask[1, 4:8] = 0, 0
    ids[mask == 0] = 7
    logits = model(ids, attention_mask=mask).logits
    for row in range(3):
        kept = mask[row].bool()
        alone = model(ids[row : row + 1, kept]).logits
        torch.testing.assert_close(logits[row : row + 1, kept], alone, **CLOSE)


@every
@torch.no_grad()
def test_later_tokens_change_nothing_earlier(name: str) -> None:
    model, ids = model_of(name), text()
    before = model(ids).logits
    for place in (1, 4, 7, 15, 22):
        other = ids.clone()
        other[:, place:] = (other[:, place:] + 11) % 40
        after = model(other).logits
        torch.testing.assert_close(after[:, :place], before[:, :place], atol=0.0, rtol=0.0)
        assert float((after[:, place] - before[:, place]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["mac", "mag", "mal", "lmm", "delta"])
@torch.no_grad()
def test_the_memory_reaches_beyond_the_window(name: str) -> None:
    """Two layers of window 5 see 9 tokens back, segments of 6 do not meet; with the memory a change 20 tokens ago is
    felt, and without it it is not."""
    ids = text()
    other = ids.clone()
    other[:, 0] = (other[:, 0] + 11) % 40

    def felt(**changes: object) -> float:
        model = model_of(name, persistent_tokens=0, **changes)
        return float((model(ids).logits[:, -1] - model(other).logits[:, -1]).abs().max())

    assert felt() > 1e-6
    assert felt(memory_zeroed=True) == 0.0


@torch.no_grad()
def test_the_window_is_as_long_as_it_says() -> None:
    model, ids = model_of("window", num_hidden_layers=1), text()
    before = model(ids).logits[:, -1]
    for place, felt in ((17, False), (18, True)):
        other = ids.clone()
        other[:, place] = (other[:, place] + 11) % 40
        assert bool(((model(other).logits[:, -1] - before).abs() > 1e-6).any()) is felt


@torch.no_grad()
def test_window_attention_longer_than_the_text_is_full_attention() -> None:
    ids = text()
    window, full = model_of("window", window=64), model_of("full")
    full.load_state_dict(window.state_dict())
    torch.testing.assert_close(window(ids).logits, full(ids).logits, **CLOSE)


@torch.no_grad()
def test_zeroing_the_memory_is_the_model_without_one() -> None:
    """Of a gated model the attention alone is left, with the attention's norm before its output."""
    ids, zeroed, alive = text(), model_of("mag", memory_zeroed=True), model_of("mag")
    alive.load_state_dict(zeroed.state_dict())
    assert float((zeroed(ids).logits - alive(ids).logits).abs().max()) > 1e-3
    alive.config.memory_zeroed = True
    torch.testing.assert_close(zeroed(ids).logits, alive(ids).logits, atol=0.0, rtol=0.0)


@every
def test_every_parameter_learns(name: str) -> None:
    """A gradient reaches all of them but those that the config switches off."""
    model, ids = model_of(name).train(), text(length=40)
    model(ids, labels=ids).loss.backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)}
    if model.config.memory_zeroed:
        silent = {n for n in silent if not any(part in n for part in ("memory", "read_norm", "context"))}
    if model.config.kind(0) == "lmm" or model.config.architecture == "lmm":
        silent = {n for n in silent if not n.endswith("norm.weight") or "read" in n}
    assert not silent


@pytest.mark.parametrize("name", ["mac", "mag", "delta"])
def test_the_loss_is_that_of_the_next_token(name: str) -> None:
    model, ids = model_of(name), text()
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    labels = ids.clone()
    labels[2, 10:] = -100
    found = model(ids, attention_mask=mask, labels=labels)
    terms = []
    for row in range(3):
        for t in range(22):
            if bool(mask[row, t]) and int(labels[row, t + 1]) != -100:
                terms.append(-found.logits[row, t].log_softmax(-1)[labels[row, t + 1]])
    torch.testing.assert_close(found.loss, torch.stack(terms).mean())
    short = model(ids, attention_mask=mask, logits_to_keep=2).logits
    torch.testing.assert_close(short, found.logits[:, -2:], **CLOSE)


@torch.no_grad()
def test_half_precision_keeps_its_memory_in_float32() -> None:
    model = model_of("mag").to(torch.bfloat16)
    found = model(text(), use_cache=True)
    assert found.logits.dtype == torch.bfloat16
    assert bool(found.logits.isfinite().all())
    assert {m.dtype for m in found.past_key_values.memories} == {torch.float32}

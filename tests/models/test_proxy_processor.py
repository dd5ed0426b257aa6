"""The drop-in for ``generate`` against recomputation without any cache, row by row, for the installed transformers.

Promises: the same tokens as a processor that reads every row anew without padding, under greedy search, sampling, beam
search, beam sampling, several returned sequences, left padding, rows that end early, models with a sliding window and
assisted decoding; the identities; one processor serves several calls; a model that fails in between corrupts nothing.
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from steered_cases import lora, other_tokenizer  # noqa: E402

from tiny_models import byte_tokenizer, make_model, make_policy  # noqa: E402
from twoclock.errors import ConfigError, UnsupportedError  # noqa: E402
from twoclock.models.proxy_processor import ProxyProcessor  # noqa: E402
from twoclock.nn.proxy import Difference, normalized, shifted  # noqa: E402

PROMPTS = [[5, 9, 30, 41, 77, 120], [8, 200], [33, 60, 61, 62, 63, 64, 65, 66, 67], [99]]
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 40, "temperature": 0.8},
    "beams": {"num_beams": 3, "do_sample": False, "num_return_sequences": 2},
    "beams, sampled": {"num_beams": 3, "do_sample": True, "temperature": 1.3},
    "several": {"do_sample": True, "num_return_sequences": 3, "top_p": 0.9},
    "penalized": {"do_sample": False, "repetition_penalty": 1.7, "bad_words_ids": [[7], [11]]},
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())


class Naive:
    """Every row alone, without padding and without a cache."""

    def __init__(
        self, expert: Any, anti: Any, mask: torch.Tensor, *, alphas: tuple[float, ...] = (1.0,), plausible: float = 0.0
    ) -> None:
        self.expert, self.anti, self.mask, self.alphas, self.plausible = expert, anti, mask, alphas, plausible
        self.side_prompts: list[list[int]] | None = None

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        width = self.mask.shape[1]
        each = len(input_ids) // len(self.mask)
        step = input_ids.shape[1] - width
        alpha = torch.full((1,), self.alphas[min(step, len(self.alphas) - 1)])
        rows = []
        for n, row in enumerate(input_ids):
            own = row[:width][self.mask[n // each].bool()]
            if self.side_prompts is not None:
                own = torch.tensor(self.side_prompts[n // each])
            read = torch.cat([own, row[width:]])[None]
            here = normalized(scores[n : n + 1])
            expert, anti = (
                here if m is None else normalized(m(read, use_cache=False).logits[:, -1])
                for m in (self.expert, self.anti)
            )
            rows.append(shifted(scores[n : n + 1], [Difference(expert, anti, alpha, self.plausible)]))
        return torch.log_softmax(torch.cat(rows), dim=-1)


def batch(prompts: list[list[int]] = PROMPTS) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (width - len(p)) + p for p in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }


def generate(model: Any, processor: Any, inputs: dict[str, torch.Tensor], mode: dict[str, Any], **more: Any) -> Any:
    transformers.set_seed(5)
    options = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": 2, **mode, **more}
    listed = transformers.LogitsProcessorList([] if processor is None else [processor])
    return model.generate(**inputs, logits_processor=listed, **options)


@pytest.fixture(scope="module")
def base() -> Any:
    return make_model("llama", seed=1)


@pytest.fixture(scope="module")
def sides() -> tuple[Any, Any]:
    return make_model("qwen2", seed=2), make_model("qwen2", seed=3)


@modes
def test_the_tokens_are_those_of_recomputation(base: Any, sides: tuple[Any, Any], mode: dict[str, Any]) -> None:
    inputs = batch()
    mask = inputs["attention_mask"]
    expected = generate(base, Naive(*sides, mask), inputs, mode)
    found = generate(base, ProxyProcessor(*sides, attention_mask=mask), inputs, mode)
    assert found.tolist() == expected.tolist()
    assert found.tolist() != generate(base, None, inputs, mode).tolist()


@modes
def test_rows_that_end_early(base: Any, sides: tuple[Any, Any], mode: dict[str, Any]) -> None:
    """A fifth of the vocabulary ends an answer."""
    inputs = batch()
    mask, ends = inputs["attention_mask"], list(range(2, 300, 5))
    expected = generate(base, Naive(*sides, mask), inputs, mode, eos_token_id=ends)
    found = generate(base, ProxyProcessor(*sides, attention_mask=mask), inputs, mode, eos_token_id=ends)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("mode", [MODES["sampled"], MODES["beams, sampled"]], ids=["sampled", "beams"])
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gptj"])
def test_windows_and_attention_of_their_own(base: Any, kind: str, mode: dict[str, Any]) -> None:
    expert, anti = make_model(kind, seed=4), make_model(kind, seed=5)
    inputs = batch()
    mask = inputs["attention_mask"]
    expected = generate(base, Naive(expert, anti, mask), inputs, mode)
    found = generate(base, ProxyProcessor(expert, anti, attention_mask=mask), inputs, mode)
    assert found.tolist() == expected.tolist()


@modes
def test_schedules_and_restrictions(base: Any, sides: tuple[Any, Any], mode: dict[str, Any]) -> None:
    inputs = batch()
    mask = inputs["attention_mask"]
    alphas = (1.5, 0.0, 0.0, 0.7)  # without the sides for a while: they catch up
    expected = generate(base, Naive(*sides, mask, alphas=alphas, plausible=0.02), inputs, mode)
    processor = ProxyProcessor(*sides, attention_mask=mask, alpha=alphas, plausible=0.02)
    assert generate(base, processor, inputs, mode).tolist() == expected.tolist()


@modes
def test_the_identities(base: Any, sides: tuple[Any, Any], mode: dict[str, Any]) -> None:
    inputs = batch()
    mask = inputs["attention_mask"]
    alone = generate(base, None, inputs, mode).tolist()
    expert, _ = sides
    for processor in (
        ProxyProcessor(*sides, attention_mask=mask, alpha=0.0, plausible=0.5),
        ProxyProcessor(expert, expert, attention_mask=mask, alpha=3.0),
        ProxyProcessor(None, None, attention_mask=mask),
    ):
        assert generate(base, processor, inputs, mode).tolist() == alone
    plain = {k: v for k, v in mode.items() if k not in ("repetition_penalty", "bad_words_ids")}
    there = generate(expert, None, inputs, plain).tolist()
    for anti in (None, base):
        assert generate(base, ProxyProcessor(expert, anti, attention_mask=mask), inputs, plain).tolist() == there


def test_a_batch_of_sixteen_is_sixteen_rows(base: Any, sides: tuple[Any, Any]) -> None:
    prompts = [[10 + n, *range(20, 20 + n % 5)] for n in range(16)]
    together = generate(
        base, ProxyProcessor(*sides, attention_mask=batch(prompts)["attention_mask"]), batch(prompts), {}
    )
    for n, prompt in enumerate(prompts):
        inputs = batch([prompt])
        alone = generate(base, ProxyProcessor(*sides, attention_mask=inputs["attention_mask"]), inputs, {})
        mine = together[n][batch(prompts)["attention_mask"].shape[1] :].tolist()
        theirs = alone[0][len(prompt) :].tolist()
        assert mine[: len(theirs)] == theirs
        assert not any(mine[len(theirs) :])


def test_padding_known_by_its_token_and_one_processor_for_many_calls(base: Any, sides: tuple[Any, Any]) -> None:
    processor = ProxyProcessor(*sides, pad_token_id=0)
    for prompts in (PROMPTS[:1], [PROMPTS[2], PROMPTS[0]], PROMPTS):
        for mode in (MODES["beams"], MODES["sampled"]):
            inputs = batch(prompts)
            expected = generate(base, Naive(*sides, inputs["attention_mask"]), inputs, mode)
            assert generate(base, processor, inputs, mode).tolist() == expected.tolist()
    processor.forget()


def test_prompts_of_their_own_for_the_sides(base: Any, sides: tuple[Any, Any]) -> None:
    own = [[44, 45], [46, 47, 48, 49, 50], [51], [52, 53]]
    inputs = batch()
    mask = inputs["attention_mask"]
    for mode in (MODES["beams"], MODES["several"]):
        naive = Naive(*sides, mask)
        naive.side_prompts = own
        expected = generate(base, naive, inputs, mode)
        processor = ProxyProcessor(*sides, attention_mask=mask, side_prompts=own)
        assert generate(base, processor, inputs, mode).tolist() == expected.tolist()


def test_changes_of_one_model_as_sides(base: Any) -> None:
    policy = make_policy("qwen2", seed=6)
    one, two = lora(policy, 1), lora(policy, 2)
    inputs = batch()
    mask = inputs["attention_mask"]

    class Under:
        def __init__(self, change: Any) -> None:
            self.change = change

        def __call__(self, *args: Any, **more: Any) -> Any:
            with policy._forcing.mount(self.change):
                return policy.model(*args, **more)

    expected = generate(base, Naive(Under(one.payload), Under(two.payload), mask), inputs, MODES["beams"])
    processor = ProxyProcessor(
        policy.model, policy.model, attention_mask=mask, expert_change=one.payload, anti_change=two.payload
    )
    assert generate(base, processor, inputs, MODES["beams"]).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["qwen2", "mistral"])
def test_assisted_decoding_asks_again_about_what_was_taken_back(base: Any, kind: str) -> None:
    sides = make_model(kind, seed=2), make_model(kind, seed=3)
    inputs = batch(PROMPTS[:1])
    mask = inputs["attention_mask"]
    expected = generate(base, Naive(*sides, mask), inputs, MODES["greedy"], max_new_tokens=9)
    assistant = make_model("llama", seed=9)
    processor = ProxyProcessor(*sides, attention_mask=mask)
    found = generate(base, processor, inputs, MODES["greedy"], max_new_tokens=9, assistant_model=assistant)
    assert found.tolist() == expected.tolist()


def test_the_caches_are_used(base: Any, sides: tuple[Any, Any]) -> None:
    """One token a row and step, in every mode: nothing is read twice."""
    expert, anti = sides
    inputs = batch()
    for mode in MODES.values():
        widths: list[int] = []
        handle = expert.get_input_embeddings().register_forward_hook(
            lambda _, args, __, w=widths: w.append(args[0].shape[1])
        )
        generate(base, ProxyProcessor(expert, anti, attention_mask=inputs["attention_mask"]), inputs, mode)
        handle.remove()
        assert widths[0] == 9
        assert set(widths[1:]) == {1}


def test_a_pass_that_fails_leaves_no_false_cache(base: Any, sides: tuple[Any, Any]) -> None:
    expert, anti = sides
    inputs = batch()
    mask = inputs["attention_mask"]
    processor = ProxyProcessor(expert, anti, pad_token_id=0)
    count = 0

    def fail(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise MemoryError("no room")

    handle = expert.get_output_embeddings().register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        generate(base, processor, inputs, MODES["beams"])
    handle.remove()
    expected = generate(base, Naive(expert, anti, mask), inputs, MODES["beams"])
    assert generate(base, processor, inputs, MODES["beams"]).tolist() == expected.tolist()


def test_a_longer_and_a_shorter_head(base: Any, sides: tuple[Any, Any]) -> None:
    expert, anti = make_model("qwen2", seed=2), make_model("qwen2", seed=3)
    inputs = batch()
    mask = inputs["attention_mask"]
    expected = generate(base, ProxyProcessor(*sides, attention_mask=mask, tokens=260), inputs, MODES["greedy"])
    expert.resize_token_embeddings(350)
    anti.resize_token_embeddings(280)
    found = generate(base, ProxyProcessor(expert, anti, attention_mask=mask, tokens=260), inputs, MODES["greedy"])
    assert found.tolist() == expected.tolist()


def test_mistakes_are_refused(base: Any, sides: tuple[Any, Any]) -> None:
    mask = batch()["attention_mask"]
    policy = make_policy("llama")
    change = lora(policy, 1).payload
    for options, told in (
        ({"alpha": float("nan")}, "finite number"),
        ({"plausible": 2.0}, "share from 0 to 1"),
        ({"alpha": (1.0, 0.5)}, "a schedule of alpha needs attention_mask"),
        ({"side_prompts": [[1]]}, "side_prompts needs attention_mask"),
        ({"side_prompts": [[1]], "attention_mask": mask}, "1 side_prompts for 4 prompts"),
        ({"attention_mask": mask[0]}, "expected \\[batch, tokens\\]"),
    ):
        with pytest.raises(ConfigError, match=told):
            ProxyProcessor(*sides, **options)
    with pytest.raises(ConfigError, match="give the model, not None"):
        ProxyProcessor(None, sides[1], expert_change=change)
    with pytest.raises(UnsupportedError, match="ids differ"):
        ProxyProcessor(*sides, tokenizers=(byte_tokenizer(), other_tokenizer()))
    with pytest.raises(ConfigError, match="make a processor for each call"):
        generate(base, ProxyProcessor(*sides, attention_mask=mask), batch(PROMPTS[:3]), {})

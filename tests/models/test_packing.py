"""The packed tree: masks and positions by hand, and each token's view of its own sequence."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from twoclock.models.packing import Packed, common_prefix, pack  # noqa: E402


def view_of(packed: Packed, index: int) -> list[tuple[int, int]]:
    """(position, token) of everything that a row index sees."""
    seen = packed.mask[index].nonzero()[:, 0].tolist()
    return sorted((int(packed.positions[i]), int(packed.tokens[i])) for i in seen)


def assert_every_token_has_its_own_sequence(
    prompts: list[list[int]], completions: list[list[list[int]]], packed: Packed
) -> None:
    for prompt, answers, rows in zip(prompts, completions, packed.predicted_from, strict=True):
        assert len(rows) == len(answers)
        for answer, at in zip(answers, rows, strict=True):
            assert len(at) == len(answer)
            for offset, index in enumerate(at):
                before = [*prompt, *answer][: len(prompt) + offset]
                assert view_of(packed, index) == list(enumerate(before))


def test_a_small_tree_by_hand() -> None:
    packed = pack([[1, 2, 3], [1, 2, 4, 5]], [[[7, 8], [9, 10, 11]], [[12, 13]]])
    #                 root    stem 0  leaf 0.0  leaf 0.1  stem 1  leaf 1.0
    assert packed.tokens.tolist() == [1, 2, 3, 7, 9, 10, 4, 5, 12]
    assert packed.positions.tolist() == [0, 1, 2, 3, 3, 4, 2, 3, 4]
    assert packed.mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1, 1, 1],
    ]
    assert packed.predicted_from == (((2, 3), (2, 4, 5)), ((7, 8),))


@pytest.mark.parametrize(
    ("prompts", "completions"),
    [
        ([[1, 2], [1, 2, 3, 4]], [[[5, 6]], [[7, 8], [9]]]),
        ([[1, 2, 3, 4], [1, 2], [1]], [[[5, 6]], [[7, 8], [9]], [[4, 4, 4]]]),
        ([[1, 2, 3]] * 3, [[[5, 6]], [[5, 6]], []]),
        ([[1, 2], [3, 4]], [[[5, 6, 7]], [[8]]]),
        ([[4]], [[[1, 2, 3], [1, 2, 3]]]),
        ([[1, 2, 3]], [[[], [4], [5, 6], []]]),
        ([[1, 2, 3], [1, 9]], [[], [[4]]]),
    ],
    ids=[
        "prefix of another",
        "chain of prefixes",
        "identical",
        "nothing shared",
        "one token",
        "empty ones",
        "no answer",
    ],
)
def test_each_token_sees_its_own_sequence(prompts: list[list[int]], completions: list[list[list[int]]]) -> None:
    assert_every_token_has_its_own_sequence(prompts, completions, pack(prompts, completions))


def test_random_trees() -> None:
    g = torch.Generator().manual_seed(0)

    def some(low: int, high: int) -> list[int]:
        return torch.randint(0, 3, (int(torch.randint(low, high, (), generator=g)),), generator=g).tolist()

    for _ in range(200):
        root = some(0, 5)
        prompts = [[*root, *some(1, 5)] for _ in range(int(torch.randint(1, 5, (), generator=g)))]
        completions = [[some(0, 5) for _ in range(int(torch.randint(0, 4, (), generator=g)))] for _ in prompts]
        packed = pack(prompts, completions)
        assert_every_token_has_its_own_sequence(prompts, completions, packed)
        assert bool(packed.mask.diagonal().all())
        assert not bool(packed.mask.triu(1).any())


def test_what_is_shared_stands_once() -> None:
    prompts = [[*range(100), 200 + i] for i in range(5)]
    packed = pack(prompts, [[[1, 2, 3]] * 4] * 5)
    # 100 of root, 5 stems of 1, 20 leaves of 2: the last token of a completion predicts nothing.
    assert len(packed.tokens) == 100 + 5 + 40
    assert len(pack(prompts, [[[1]] * 4] * 5).tokens) == 105


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="has no tokens"):
        pack([[1], []], [[[2]], [[3]]])


def test_a_completion_list_for_each_prompt() -> None:
    with pytest.raises(ValueError, match="zip"):
        pack([[1], [2]], [[[2]]])


def test_common_prefix() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert common_prefix([[1, 2], [2, 2]]) == 0
    assert common_prefix([[5, 6]]) == 2
    assert common_prefix([[], [1]]) == 0

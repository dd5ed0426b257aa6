"""Own families: gold passes, mutations do not, splits share no latent, feedback tells format from value."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest

from twoclock.errors import ConfigError
from twoclock.tasks import CONVENTIONS, FAMILIES, FamilyTask, SplitSizes
from twoclock.types import Item

SMALL = SplitSizes(train=30, trial=10, heldout=20)


def mutations(gold: str, rng: Random) -> list[str]:
    """Texts near the gold answer that are not it."""
    near = [
        gold + "x",
        "x" + gold,
        gold + gold,
        gold + " " + gold,
        gold + "1",
        "1" + gold,
        gold[:-1],
        gold[1:],
        gold[::-1],
        "The answer is " + gold,
        gold + "\nand more",
        "0",
        "7",
        "yes",
        "None",
        "nan",
        "[]",
        "(",
        "zq zq",
        "-",
        "".join(rng.sample(gold, len(gold))),
    ]
    return [text for text in near if text.strip() != gold.strip()][:20]


def families_and_conventions() -> list[tuple[str, str]]:
    return [(family, "plain") for family in FAMILIES] + [("mod_sum", c) for c in CONVENTIONS if c != "plain"]


@pytest.mark.parametrize(("family", "form"), families_and_conventions())
def test_gold_passes_and_mutations_do_not(family: str, form: str) -> None:
    task = FamilyTask(family, convention=form, sizes=SMALL, seed=3)
    items = task.split("train")
    assert [g.reward for g in task.grade(items, [i.reference or "" for i in items])] == [1.0] * len(items)
    rng = Random(0)
    for item in items:
        wrong = mutations(item.reference or "", rng)
        assert len(wrong) >= 15
        grades = task.grade([item] * len(wrong), wrong)
        assert {g.reward for g in grades} == {0.0}
        assert all(g.failure is None and (item.reference or "") in g.feedback for g in grades)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_template_words_the_same_latent(family: str) -> None:
    made = FAMILIES[family]
    latent = made.sample({}, Random(1))
    prompts = {made.render(latent, template) for template in range(len(made.templates))}
    assert len(prompts) == len(made.templates) >= 4
    assert not any("{" in prompt for prompt in prompts)


def test_answers_by_hand() -> None:
    answer = {name: family.answer for name, family in FAMILIES.items()}
    assert answer["mod_sum"]({"numbers": [7, 8, 9], "modulus": 10}) == "4"
    assert answer["sum"]({"numbers": [7, -8], "modulus": 0}) == "-1"
    assert answer["compare"]({"numbers": [9, 10], "want": "largest"}) == "10"
    assert answer["compare"]({"numbers": [9, 10], "want": "smallest"}) == "9"
    assert answer["next_number"]({"start": 2, "step": 3, "shown": 4}) == "14"
    assert answer["sort_digits"]({"digits": [3, 1, 2]}) == "123"
    assert answer["count_letter"]({"word": "banana", "letter": "a"}) == "3"
    assert answer["letter_position"]({"word": "banana", "position": 3}) == "n"
    assert answer["reverse_word"]({"word": "abc"}) == "cba"
    assert answer["pick_word"]({"words": ["a", "b"], "position": 2}) == "b"
    assert answer["lookup"]({"words": ["a", "b"], "values": [4, 5], "asked": 0}) == "4"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_constant_answer_does_not_pay(family: str) -> None:
    task = FamilyTask(family, sizes=SplitSizes(train=200, trial=1, heldout=1))
    answers = [item.reference for item in task.split("train")]
    assert max(answers.count(answer) for answer in set(answers)) <= 0.4 * len(answers)


def latents(items: tuple[Item, ...]) -> set[str]:
    return {str(item.metadata["latent"]) for item in items}


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_share_no_latent_and_neighbouring_seeds_little(family: str) -> None:
    tasks = {seed: FamilyTask(family, sizes=SMALL, seed=seed) for seed in (42, 43)}
    for task in tasks.values():
        splits = [latents(task.split(name)) for name in ("train", "trial", "heldout")]
        assert [len(s) for s in splits] == [30, 10, 20]
        assert not any(a & b for a, b in combinations(splits, 2))
        ids = [item.id for name in ("train", "trial", "heldout") for item in task.split(name)]
        assert len(set(ids)) == len(ids)
    shared = latents(tasks[42].split("train")) & latents(tasks[43].split("train"))
    assert len(shared) <= 10  # adding seeds would share 29 of 30


def test_more_training_items_leave_heldout_as_it_was() -> None:
    few = FamilyTask("compare", sizes=SMALL, seed=5)
    many = FamilyTask("compare", sizes=SplitSizes(train=300, trial=10, heldout=20), seed=5)
    assert few.split("heldout") == many.split("heldout")
    assert few.split("train") == many.split("train")[:30]


def test_feedback_tells_format_from_value() -> None:
    task = FamilyTask("mod_sum", convention="arrow", sizes=SMALL)
    item = task.split("train")[0]
    value = item.metadata["value"]
    other = str((int(value) + 1) % 10)
    texts = [f"=> {value};", value, f"The answer is {value}.", f"=> {other};", other, ""]
    said = [grade.feedback for grade in task.grade([item] * len(texts), texts)]
    assert said[0] == "Correct."
    assert said[1].startswith("The value is right, but the format is wrong")
    assert said[2].startswith("The value is right, but the format is wrong")
    assert said[3].startswith("The format is right, but the value is wrong")
    assert said[4].startswith("Both")
    assert all(f"=> {value};" in text for text in said[1:])


def test_graded_scoring_pays_the_parts() -> None:
    task = FamilyTask("mod_sum", convention="arrow", scoring="graded", sizes=SMALL)
    item = task.split("train")[0]
    value = item.metadata["value"]
    other = str((int(value) + 1) % 10)
    rewards = [g.reward for g in task.grade([item] * 4, [f"=> {value};", value, f"=> {other};", other])]
    assert rewards == [1.0, pytest.approx(0.7), pytest.approx(0.3), 0.0]


def test_conventions_by_hand() -> None:
    wrapped = {name: form.wrap("12") for name, form in CONVENTIONS.items()}
    assert wrapped["arrow"] == "=> 12;"
    assert wrapped["spelled_arrow"] == "=> one two;"
    assert CONVENTIONS["upper"].wrap("door") == "DOOR"
    assert CONVENTIONS["spelled"].inner("nine zero", "12") == "nine zero"
    assert CONVENTIONS["spelled"].inner("12", "12") is None
    assert CONVENTIONS["upper"].inner("door", "door") is None


def test_the_prompt_never_names_the_convention() -> None:
    plain = FamilyTask("lookup", sizes=SMALL)
    arrow = FamilyTask("lookup", sizes=SMALL, convention="<<{answer}>>")
    assert [i.prompt for i in plain.split("train")] == [i.prompt for i in arrow.split("train")]
    assert arrow.split("train")[0].reference == f"<<{plain.split('train')[0].reference}>>"


def test_templates_and_instruction() -> None:
    task = FamilyTask("sum", templates=[2], instruction="Be brief.", instruction_at="start", sizes=SMALL)
    assert all(item.prompt.startswith("Be brief.\nCalculate ") for item in task.split("train"))


@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "é" * 50, "9" * 100_000, "\ud800", "=> ;", "=>;", "[[", "\n\n", "NaN"]
)
@pytest.mark.parametrize("form", ["plain", "arrow", "spelled", "upper"])
def test_odd_texts_never_raise_nor_score(text: str, form: str) -> None:
    for family in ("mod_sum", "pick_word"):
        task = FamilyTask(family, convention=form, sizes=SMALL)
        item = task.split("train")[0]
        assert task.grade([item], [text])[0].reward == 0.0


def test_a_space_too_small_says_what_fits() -> None:
    task = FamilyTask("mod_sum", {"min_terms": 2, "max_terms": 2}, sizes=SplitSizes(train=200, trial=10, heldout=20))
    with pytest.raises(ConfigError, match=r"only 100 distinct items .* ask for 230.*sizes that fit") as e:
        task.split("train")
    assert "widen its config" in str(e.value)
    fitting = SplitSizes(train=78, trial=3, heldout=7)
    assert f"{{ {fitting} }}" in str(e.value)
    assert len(FamilyTask("mod_sum", {"min_terms": 2, "max_terms": 2}, sizes=fitting).split("train")) == 78


def test_all_mistakes_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        FamilyTask("mod_sum", {"min_term": 2, "max_value": "9"}, convention="arow", extract="lastline", scoring="soft")
    text = "\n".join(caught.value.problems)
    for part in ("'min_term'; did you mean 'min_terms'", "'max_value'", "'arrow'", "'last_line'", "scoring 'soft'"):
        assert part in text


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("mod_sum", {"min_terms": 5}, "min_terms = 5, max_terms = 3"),
        ("mod_sum", {"modulus": 0}, "modulus must be at least 2"),
        ("compare", {"count": 9, "max_value": 3}, "do not fit between 0 and 3"),
        ("compare", {"want": "biggest"}, "got 'biggest'"),
        ("count_letter", {"max_count": 9}, "do not fit into min_length"),
        ("reverse_word", {"alphabet": "aa"}, "two different letters"),
        ("pick_word", {"max_words": 99}, "max_words = 99"),
        ("modsum", {}, "did you mean 'mod_sum'"),
    ],
)
def test_bad_parameters(family: str, config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FamilyTask(family, config)


def test_extraction_that_loses_the_convention_is_refused() -> None:
    with pytest.raises(ConfigError, match="extract = 'last_number' loses the form"):
        FamilyTask("mod_sum", convention="arrow", extract="last_number")
    FamilyTask("mod_sum", extract="last_number")


@pytest.mark.parametrize("templates", [[], [9], [-1], [True], ["0"]])
def test_bad_templates(templates: list[object]) -> None:
    with pytest.raises(ConfigError, match="templates must be some of 0 to 4"):
        FamilyTask("mod_sum", templates=templates)  # type: ignore[arg-type]

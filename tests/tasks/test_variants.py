"""Variants: pairs share latents, N±1 differ by one element, nothing measured was learned from, mistakes are told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest

from twoclock.errors import ConfigError, DataError, MissingExtraError
from twoclock.tasks import FAMILIES, build_task
from twoclock.tasks.parametric import PARAMETRIC
from twoclock.tasks.rg_source import check_source, config_defaults
from twoclock.tasks.text import normalised
from twoclock.tasks.variants import VariantSuite, build_variants
from twoclock.tasks.variants_base import check_disjoint
from twoclock.tasks.variants_gym import SIZES
from twoclock.tasks.variants_task import VARIANTS, VariantItem
from twoclock.types import Completion, Grade, Group, Item, Rollout

SIZE = {"train": 200, "trial": 20, "heldout": 40}
CONFIGS: Mapping[str, dict[str, Any]] = {
    "mod_sum": {"max_value": 99},
    "sum": {"min_value": -50, "max_value": 50},
    "compare": {"count": 4},
    "next_number": {"max_start": 400},
}


def family_spec(family: str, **more: Any) -> dict[str, Any]:
    return {"source": "family", "family": family, "config": CONFIGS.get(family, {}), "size": SIZE, **more}


def suite(family: str, count: int = 200, **more: Any) -> VariantSuite:
    return build_variants(family_spec(family, **more), name=family, seed=3, count=count)


def item_of(entry: VariantItem) -> Item:
    return entry.item


# --------------------------------------------------------------------------------------------------------- own families


def test_every_own_family_has_operators() -> None:
    assert set(PARAMETRIC) == set(FAMILIES)


@pytest.mark.parametrize("family", PARAMETRIC)
def test_pairs_share_their_latent_and_sizes_differ_by_one(family: str) -> None:
    made, shape = suite(family), PARAMETRIC[family]
    base = {entry.item.id: entry.item for entry in made["id"].items}
    params = FAMILIES[family].complete(CONFIGS.get(family, {}))
    assert len(base) == 200
    assert list(made) == [v for v in VARIANTS if v != "rule" or family != "lookup"]
    for variant in ("template", "distractor", "n-1", "n+1", "rule"):
        for entry in made[variant].items if variant in made else ():
            item, partner = entry.item, base[str(entry.partner)]
            sizes = shape.size(item.metadata["latent"]), shape.size(partner.metadata["latent"])
            if variant in ("template", "distractor"):
                assert item.metadata["latent"] == partner.metadata["latent"]
                assert item.reference == partner.reference
                assert item.prompt != partner.prompt
            elif variant == "n+1":
                assert sizes == (params[shape.high] + 1, params[shape.high])
            else:
                assert sizes[0] == sizes[1] - 1
            if variant == "n-1":
                assert sizes[0] == params[shape.low] - 1
    assert all(entry.partner == entry.item.id for entry in made["id"].items)


@pytest.mark.parametrize("family", PARAMETRIC)
def test_the_stale_answer_is_the_partners_and_telling_says_whether_it_is_wrong(family: str) -> None:
    made = suite(family)
    base = {entry.item.id: entry.item for entry in made["id"].items}
    for variant in ("n-1", "n+1", "rule"):
        for entry in made[variant].items if variant in made else ():
            item = entry.item
            assert item.metadata["stale"] == base[str(entry.partner)].metadata["value"]
            assert item.metadata["value"] == FAMILIES[family].answer(item.metadata["latent"])
            assert entry.telling == (item.metadata["stale"] != item.metadata["value"]) == (entry.stale is not None)
    share = sum(entry.telling for entry in made["n-1"].items) / len(made["n-1"].items)
    assert share > 0.8  # nearly every item can tell a template from the skill


@pytest.mark.parametrize("family", PARAMETRIC)
def test_rows_tell_right_from_stale_from_tempted_from_unreadable(family: str) -> None:
    made = suite(family, count=60)
    for variant, key, column in (("n-1", "stale", "stale"), ("distractor", "tempting", "tempted")):
        task = made[variant]
        entries = [e for e in task.items if e.telling][:10]
        for entry in entries:
            texts = [str(entry.item.metadata[k]) for k in ("value", key)] + ["?! no idea ?!"]
            (row,) = task.rows([group(task, entry.item, texts)])
            assert (row["right"], row[column]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
            assert row["parsed"] == pytest.approx(2 / 3)
            assert (row["partner"], row["samples"], row["variant"]) == (entry.partner, 3, variant)
            json.dumps(row, allow_nan=False)


def group(task: Any, item: Item, texts: list[str], finish: str = "stop") -> Group:
    grades = task.grade([item] * len(texts), texts) if finish != "error" else [Grade(reward=0.0, failure="x")]
    done = [
        Completion(tokens=(1, 2), logprobs=(), text=t, finish=finish, prompt_tokens=1)  # type: ignore[arg-type]
        for t in texts
    ]
    return Group(
        item=item,
        rollouts=tuple(
            Rollout(item_id=item.id, conditioning_id="", seed=i, completion=c, grade=g)
            for i, (c, g) in enumerate(zip(done, grades, strict=True))
        ),
    )


def test_rows_of_failed_and_cut_off_completions() -> None:
    task = suite("mod_sum", count=20)["n-1"]
    item = task.items[0].item
    (failed,) = task.rows([group(task, item, [str(item.metadata["stale"])], "error")])
    assert (failed["right"], failed["parsed"], failed["stale"] or 0.0) == (0.0, 0.0, 0.0)
    (cut,) = task.rows([group(task, item, ["1"], "length")])
    assert (cut["truncated"], cut["tokens"]) == (1.0, 2.0)
    with pytest.raises(ValueError, match="no rollouts"):
        task.rows([Group(item=item, rollouts=())])
    with pytest.raises(ValueError, match="not one of variant"):
        task.rows([group(task, suite("sum", count=20)["n-1"].items[0].item, ["1"])])


@pytest.mark.parametrize("family", ["mod_sum", "pick_word", "lookup"])
@pytest.mark.parametrize("extract", ["text", "tag", "first_line"])
def test_conventions_instructions_and_extraction_carry_over(family: str, extract: str) -> None:
    made = suite(family, count=30, convention="arrow", extract=extract, instruction="Be brief.", instruction_at="start")
    for task in made.values():
        items = task.split("heldout")
        assert all(g.reward == 1.0 for g in task.grade(items, [i.reference or "" for i in items]))
        assert all(i.prompt.startswith("Be brief.\n") and "=> " in (i.reference or "") for i in items)
    task = made["n-1"]
    entry = next(e for e in task.items if e.stale)
    assert entry.stale is not None
    (row,) = task.rows([group(task, entry.item, [entry.stale.reference or "", str(entry.item.metadata["value"])])])
    assert (row["stale"], row["right"], row["parsed"]) == (0.5, 0.0, 0.5)  # the bare value lacks the form


@pytest.mark.parametrize("family", PARAMETRIC)
def test_gold_passes_and_mutations_do_not(family: str) -> None:
    made = suite(family, count=30)
    for task in made.values():
        for entry in task.items[:8]:
            gold = entry.item.reference or ""
            wrong = [gold + "x", "x" + gold, gold * 2, f"{gold} {gold}", gold + "1", "1" + gold, gold[:-1], gold[1:]]
            wrong += ["The answer is " + gold, gold + "\nand more", "yes", "None", "nan", "[]", "(", "zq zq", "-", ""]
            wrong += ["0" * 10_000, "\x00", "".join(Random(1).sample(gold, len(gold)))]
            wrong = [text for text in wrong if text.strip() != gold.strip()]
            assert len(wrong) >= 18
            assert {g.reward for g in task.grade([entry.item] * len(wrong), wrong)} == {0.0}
            assert task.grade([entry.item], [gold])[0].reward == 1.0


@pytest.mark.parametrize("family", PARAMETRIC)
def test_probe_wordings_are_no_training_wordings(family: str) -> None:
    shape = PARAMETRIC[family]
    assert len(set(shape.wordings)) == len(shape.wordings) >= 3
    assert not set(shape.wordings) & set(FAMILIES[family].templates)
    made = suite(family)
    trained = {i.metadata["template"] for i in build_task(family, family_spec(family), 3).split("train")}
    assert trained == set(range(len(FAMILIES[family].templates)))
    assert len({re.sub(r"[\w-]*\d[\w-]*", "#", i.item.prompt)[:6] for i in made["template"].items}) >= 3


@pytest.mark.parametrize("family", PARAMETRIC)
def test_nothing_measured_was_learned_from(family: str) -> None:
    made = suite(family)
    task = build_task(family, family_spec(family), 3)
    learned = {normalised(i.prompt) for split in ("train", "trial") for i in task.split(split)}  # type: ignore[arg-type]
    latents = {str(i.metadata["latent"]) for split in ("train", "trial") for i in task.split(split)}  # type: ignore[arg-type]
    for variant, variant_task in made.items():
        items = variant_task.split("heldout")
        assert len({i.id for i in items}) == len(items)
        assert len({normalised(i.prompt) for i in items}) == len(items)
        if variant == "seen":
            assert {i.id for i in items} <= {i.id for i in task.split("train")}
        else:
            assert not {normalised(i.prompt) for i in items} & learned
        assert variant_task.split("train") == variant_task.split("trial") == ()
    assert not {str(i.item.metadata["latent"]) for i in made["id"].items} & latents
    # The first of them are the run's own held-out items.
    assert [item_of(entry) for entry in made["id"].items][: len(task.split("heldout"))] == list(task.split("heldout"))


def test_overlapping_splits_fail_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever draws the base items: handing out training items must not go through."""
    from twoclock.tasks import variants, variants_base

    def careless(name: str, spec: Any, seed: int, base_dir: Path, **more: Any) -> variants_base.Base:
        task = build_task(name, spec, seed, base_dir)
        return variants_base.Base(task=task, seen=task.split("train"), items=task.split("train")[:50], grader=task)

    monkeypatch.setattr(variants, "draw_base", careless)
    with pytest.raises(ConfigError, match="50 of its items are training or trial items too"):
        suite("mod_sum")
    one = Item(id="a", prompt="What is  2+2?")
    with pytest.raises(ConfigError, match="it would measure memory"):
        check_disjoint([one], [Item(id="b", prompt="what IS 2+2?\n")], "this variant")
    check_disjoint([one], [Item(id="b", prompt="What is 2+3?")], "this variant")


MATCHED = ("mod_sum", "sum", "sort_digits", "lookup", "next_number")
SHIFTED = ("compare",)


@pytest.mark.parametrize("family", [*MATCHED, *SHIFTED])
def test_value_distributions_match_where_one_element_can_go_without_moving_them(family: str) -> None:
    """At n = 2,000. Without its largest number a list is smaller throughout: there the shift is seen."""
    from scipy.stats import ks_2samp

    room = {"mod_sum": {"max_value": 99}, "sum": {"max_value": 99}, "sort_digits": {"min_digits": 5, "max_digits": 5}}
    room |= {"lookup": {"min_words": 4, "max_words": 4, "digits": 2}, "next_number": {"max_start": 900}}
    spec = {**family_spec(family), "config": room.get(family, {"count": 4})}
    made = build_variants(spec, ["n-1", "n+1"], name=family, seed=1, count=2000)
    assert len(made["id"].items) == 2000
    for variant in ("n-1", "n+1"):
        values = [[v for e in made[name].items for v in e.values] for name in (variant, "id")]
        p = ks_2samp(*values).pvalue
        assert (p > 0.01) == (family in MATCHED), (family, variant, p)


def test_only_what_the_run_learned_from_counts_as_seen() -> None:
    task = build_task("t", family_spec("mod_sum"), 3)
    ids = [item.id for item in task.split("train")[10:30]]
    made = build_variants(family_spec("mod_sum"), name="t", seed=3, count=50, seen=ids)
    assert [e.item.id for e in made["seen"].items] == ids
    with pytest.raises(ConfigError, match="none of the 1 item ids"):
        build_variants(family_spec("mod_sum"), name="t", seed=3, seen=["nothing"])


def test_chance_is_what_another_items_answer_scores() -> None:
    made = suite("mod_sum", count=200)
    assert made["id"].chance == pytest.approx(0.1, abs=0.02)
    answers = [e.item.reference for e in made["id"].items]
    pairs = [(a, b) for i, a in enumerate(answers) for j, b in enumerate(answers) if i != j]
    assert made["id"].chance == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def test_ranges_make_n_minus_one_smaller_than_anything_trained() -> None:
    made = suite("sort_digits")  # three to five digits are trained
    assert {len(e.item.metadata["latent"]["digits"]) for e in made["n-1"].items} == {2}
    assert {len(e.item.metadata["latent"]["digits"]) for e in made["n+1"].items} == {6}
    assert any("'n-1' has" in note and "smallest trained size" in note for note in made.notes)


def test_a_small_space_gives_what_it_has_and_says_so() -> None:
    made = build_variants(family_spec("mod_sum", config={"max_value": 7}), name="t", seed=3)
    assert 40 <= len(made["id"].items) < 360
    assert any(note.startswith("t: 'id' has") for note in made.notes)


MAKE = """
import hashlib, sys
from twoclock.tasks.parametric import PARAMETRIC
from twoclock.tasks.variants import build_variants
out = hashlib.sha256()
for family in PARAMETRIC:
    size = {"train": 60, "trial": 10, "heldout": 30}
    made = build_variants({"source": "family", "family": family, "size": size}, name=family, seed=9, count=50)
    for task in made.values():
        out.update(repr([(e.item, e.partner, e.stale) for e in task.items]).encode())
gym = {"source": "reasoning_gym", "family": "chain_sum", "size": {"train": 20, "trial": 5, "heldout": 10}}
for task in build_variants(gym, name="gym", seed=9, count=20).values():
    out.update(repr([(e.item.id, e.item.prompt, e.partner) for e in task.items]).encode())
print(out.hexdigest())
"""


def test_the_same_items_in_every_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", MAKE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "random")
    }
    assert len(found) == 1


# -------------------------------------------------------------------------------------------------------- reasoning-gym


def gym_spec(family: str, **config: Any) -> dict[str, Any]:
    return {"source": "reasoning_gym", "family": family, "config": config, "size": SIZE, "instruction": "Answer only."}


def test_a_reasoning_gym_suite() -> None:
    made = build_variants(gym_spec("chain_sum", min_terms=4, max_terms=4), name="g", seed=2, count=80)
    assert list(made) == ["seen", "id", "n-1", "n+1", "template", "distractor"]
    assert any("no variant 'rule'" in note for note in made.notes)
    terms = {v: {len(re.findall(r"\d+", e.item.metadata["question"])) for e in made[v].items} for v in made}
    assert (terms["n-1"], terms["id"], terms["n+1"]) == ({3}, {4}, {5})
    base = {e.item.id: e.item for e in made["id"].items}
    for variant in ("template", "distractor"):
        for entry in made[variant].items:
            partner = base[str(entry.partner)]
            assert partner.metadata["question"] in entry.item.prompt
            assert entry.item.prompt != partner.prompt
    assert all(e.partner is None for v in ("seen", "n-1", "n+1") for e in made[v].items)
    for task in made.values():
        items = task.split("heldout")
        assert len(items) == 80
        assert {g.reward for g in task.grade(items, [i.reference or "" for i in items])} == {1.0}
        assert {g.reward for g in task.grade(items, ["zq"] * 80)} == {0.0}
    row = made["n-1"].rows([group(made["n-1"], made["n-1"].items[0].item, ["who knows", "12"])])[0]
    assert (row["parsed"], row["partner"], row["stale"]) == (0.5, None, None)
    made.close()


def test_rewordings_replace_the_instruction() -> None:
    words = ["Kindly solve: {question} Only the result.", "{question}\nResult?"]
    made = build_variants(gym_spec("chain_sum"), ["template"], name="g", seed=2, count=30, rewordings=words)
    prompts = [e.item.prompt for e in made["template"].items]
    assert not any("Answer only." in p for p in prompts)
    assert {p.startswith("Kindly") for p in prompts} == {True, False}
    with pytest.raises(ConfigError, match=r"\{question\} once"):
        build_variants(gym_spec("chain_sum"), name="g", rewordings=["Solve it."])


@pytest.mark.parametrize("family", SIZES)
def test_the_table_of_sizes_names_options_that_count(family: str) -> None:
    defaults = config_defaults(family)
    assert all(type(defaults[key]) is int for key in SIZES[family])
    high = defaults[SIZES[family][-1]]
    assert check_source(family, dict.fromkeys(SIZES[family], high + 1)) == []


def test_families_without_n_say_what_to_type() -> None:
    with pytest.raises(ConfigError, match=r"no N that is known.*n_parameter.*or leave 'n-1' out"):
        build_variants(gym_spec("syllogism"), ["n-1"], name="g")
    with pytest.raises(ConfigError, match=r"'max_holez'.*max_holes"):
        build_variants(gym_spec("modulo_grid"), ["n+1"], name="g", n_parameter=["max_holez"])
    made = build_variants(gym_spec("count_bits"), name="g", count=30)
    assert "n-1" not in made
    assert any("no N that is known" in note for note in made.notes)
    named = build_variants(
        gym_spec("calendar_arithmetic", offset_upper_bound=50),
        ["n+1"],
        name="g",
        count=30,
        n_parameter=["offset_upper_bound"],
    )
    assert len(named["n+1"].items) == 30
    with pytest.raises(ConfigError, match=r"'n-1' of min_numbers = 1, max_numbers = 1 does not exist: .*refuses"):
        build_variants(gym_spec("gcd"), ["n-1"], name="g")


# ----------------------------------------------------------------------------------------------------------- JSON lines


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def base_rows() -> list[dict[str, Any]]:
    splits = ["train"] * 20 + ["trial"] * 5 + ["heldout"] * 15
    return [{"id": f"q{i}", "prompt": f"{i} + 1 = ?", "answer": i + 1, "split": s} for i, s in enumerate(splits)]


def jsonl_spec(path: Path, **more: Any) -> dict[str, Any]:
    write(path / "base.jsonl", base_rows())
    return {"source": "jsonl", "path": "base.jsonl", **more}


def test_user_files_are_paired_with_held_out_rows(tmp_path: Path) -> None:
    spec = jsonl_spec(tmp_path, verifier="number", instruction="Answer with a number.")
    rows = [{"prompt": f"{i} = ?", "answer": i, "of": f"q{i}", "stale": i + 1} for i in range(18, 40)]
    rows.append({"prompt": "39 plus nothing?", "answer": 39, "of": "39 + 1 = ?"})
    write(tmp_path / "fewer.jsonl", rows)
    made = build_variants(spec, name="j", base_dir=tmp_path, files={"n-1": "fewer.jsonl"})
    assert list(made) == ["seen", "id", "n-1", "template", "distractor"]
    assert (len(made["id"].items), len(made["n-1"].items)) == (15, 16)
    base = {e.item.id: e.item.metadata["id"] for e in made["id"].items}
    assert [base[str(e.partner)] for e in made["n-1"].items][:2] == ["q25", "q26"]
    assert base[str(made["n-1"].items[-1].partner)] == "q39"
    assert any("7 of 23 rows were left out" in note for note in made.notes)
    task = made["n-1"]
    entry = task.items[0]
    assert entry.item.prompt.endswith("Answer with a number.")
    (row,) = task.rows([group(task, entry.item, ["It is 25.", "It is 26.", "no"])])
    assert [row[k] for k in ("right", "stale", "parsed")] == [pytest.approx(x / 3) for x in (1, 1, 2)]


def test_without_a_verifier_and_without_pairs(tmp_path: Path) -> None:
    write(tmp_path / "harder.jsonl", [{"prompt": f"{i} + 1 + 1 = ?", "answer": i + 2} for i in range(30)])
    made = build_variants(jsonl_spec(tmp_path), ["n+1"], name="j", base_dir=tmp_path, files={"n+1": "harder.jsonl"})
    assert list(made) == ["id", "n+1"]
    assert all(e.partner is None for e in made["n+1"].items)
    assert any("nothing is paired" in note for note in made.notes)
    items = made["n+1"].split("heldout")
    assert {g.reward for g in made["n+1"].grade(items, [i.reference or "" for i in items])} == {1.0}


def test_bad_variant_files(tmp_path: Path) -> None:
    spec = jsonl_spec(tmp_path)

    def build(rows: list[dict[str, Any]]) -> VariantSuite:
        write(tmp_path / "v.jsonl", rows)
        return build_variants(spec, ["n-1"], name="j", base_dir=tmp_path, files={"n-1": "v.jsonl"})

    with pytest.raises(DataError, match=r"2 rows whose 'of' names nothing\n  line 1: .*'q999'"):
        build([{"prompt": "a", "answer": 1, "of": "q999"}, {"prompt": "b", "answer": 1, "of": "q998"}])
    with pytest.raises(DataError, match="1 of 2 rows have no 'of'"):
        build([{"prompt": "a", "answer": 1, "of": "q30"}, {"prompt": "b", "answer": 1}])
    with pytest.raises(DataError, match=r"line 1: 'of' must be a text or a number"):
        build([{"prompt": "a", "answer": 1, "of": ["q30"]}])
    with pytest.raises(DataError, match="training or trial items too"):
        build([{"prompt": "3  +  1 = ?", "answer": 4}])
    with pytest.raises(ConfigError, match="none of its 1 rows can be used"):
        build([{"prompt": "a", "answer": 1, "of": "q3"}])
    with pytest.raises(DataError, match="there is no file"):
        build_variants(spec, ["n-1"], name="j", base_dir=tmp_path, files={"n-1": "missing.jsonl"})
    with pytest.raises(ConfigError, match=r"only from a file of yours; give files = \{ 'n-1'"):
        build_variants(spec, ["n-1"], name="j", base_dir=tmp_path)


# ------------------------------------------------------------------------------------------------------------- mistakes


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build_variants(
            family_spec("mod_sum"), ["n-2", "tempalte"], name="t", count=1, files={"id": "x"}, n_parameter=["a"]
        )
    text = str(caught.value)
    assert "'n-2'; did you mean 'n-1'" in text
    assert "did you mean 'template'" in text
    assert "count must be a whole number of at least 2" in text
    assert "files is for source jsonl" in text
    assert "n_parameter is for source reasoning_gym" in text
    with pytest.raises(ConfigError, match=r"write \['n-1'\]"):
        build_variants(family_spec("mod_sum"), "n-1", name="t")
    with pytest.raises(ConfigError, match=r"count = 2 has no n-1.*count of at least 3"):
        build_variants(family_spec("compare", config={"count": 2}), ["n-1"], name="t")
    with pytest.raises(ConfigError, match="no rule can be stated"):
        build_variants(family_spec("lookup"), ["rule"], name="t")
    with pytest.raises(ConfigError, match="unknown source"):
        build_variants({"source": "familly", "family": "mod_sum"}, name="t")


# ---------------------------------------------------------------------------------------------------------- power grids


@pytest.mark.parametrize(("question", "level"), [("path", 1), ("connectivity", 1), ("flow", 1), ("flow", 2)])
def test_power_networks(question: str, level: int) -> None:
    pytest.importorskip("pandapower")
    size = {"train": 30, "trial": 5, "heldout": 20}
    spec = {"source": "grid", "family": question, "config": {"level": level}, "size": size}
    try:
        made = build_variants(spec, name="grid", seed=1, count=40)
    except MissingExtraError as error:
        pytest.skip(str(error))
    of_a_bus = (question, level) == ("flow", 1)
    assert list(made) == [v for v in VARIANTS if not (of_a_bus and v == "n+1")]
    assert any("'n+1' tells nothing" in note and "level 2" in note for note in made.notes) == of_a_bus
    base = {e.item.id for e in made["id"].items}
    for variant, task in made.items():
        items = task.split("heldout")
        assert {g.reward for g in task.grade(items, [i.reference or "" for i in items])} == {1.0}
        assert variant == "seen" or {e.partner for e in task.items} <= base
    for variant in (v for v in ("n-1", "n+1", "rule") if v in made):
        entry = next(e for e in made[variant].items if e.telling)
        stale = str(entry.item.metadata["stale"])
        (row,) = made[variant].rows([group(made[variant], entry.item, [stale, "?!"])])
        assert (row["right"], row["stale"], row["parsed"]) == (0.0, 0.5, 0.5)

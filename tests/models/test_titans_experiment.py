"""experiments/neural_memory: its texts say what they ask, its arms are of one size, a killed cell goes on to the same
numbers, and the rules of the surprise experiment spend one budget."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from twoclock.errors import ConfigError, DataError, NumericsError  # noqa: E402
from twoclock.models.titans.sizes import count_parameters  # noqa: E402

FOLDER = Path(__file__).parents[2] / "experiments" / "neural_memory"
BESIDE = ("arms", "data")
"""Names by which the folder's scripts know each other."""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"neural_memory_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(FOLDER))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
        for other in BESIDE:
            sys.modules.pop(other, None)
    return module


@pytest.fixture(scope="module")
def data() -> Any:
    return script("data")


@pytest.fixture(scope="module")
def run() -> Any:
    return script("run")


@pytest.mark.parametrize("purpose", ["train", "test"])
@pytest.mark.parametrize("length", [16, 64, 1024])
def test_each_pair_asked_was_said(data: Any, length: int, purpose: str) -> None:
    batch = data.make("mqar", length, 8, 0, purpose, 0)
    for ids, labels in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True):
        asked = [t for t, label in enumerate(labels) if label != -100]
        assert len(asked) == data.PAIRS
        for t in asked:
            assert t > batch.split
            assert ids[t] == labels[t]
            said = [s for s in range(batch.split) if ids[s] == ids[t - 1]]
            assert [ids[s + 1] for s in said] == [labels[t]]


@pytest.mark.parametrize("purpose", ["train", "test"])
@pytest.mark.parametrize("task", ["passkey", "number", "word"])
def test_the_needle_holds_the_answer(data: Any, task: str, purpose: str) -> None:
    batch = data.make(task, 64, 8, 0, purpose, 0)
    for ids, labels in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True):
        marks = [t for t, token in enumerate(ids) if token == data.MARK]
        needle, *questions = marks
        assert needle < batch.split <= questions[0]
        assert len(questions) == (data.QUESTIONS if purpose == "train" else 1)
        for question in questions:
            assert labels[question + 1 : question + 4] == ids[needle + 1 : needle + 4]
        assert sum(label != -100 for label in labels) == 3 * len(questions)
    if purpose == "test":
        assert batch.split == 60
        assert float(batch.depth.max()) <= 1.0


def test_a_batch_is_a_function_of_what_names_it(data: Any) -> None:
    for task in (*data.NEEDLES, "mqar"):
        first = data.make(task, 64, 4, 0, "train", 3)
        assert torch.equal(first.ids, data.make(task, 64, 4, 0, "train", 3).ids)
        for other in ((1, "train", 3), (0, "test", 3), (0, "train", 4)):
            assert not torch.equal(first.ids, data.make(task, 64, 4, *other).ids)
    with pytest.raises(ConfigError, match="do not fit"):
        data.make("mqar", 8, 4, 0, "train", 0)
    with pytest.raises(ConfigError, match="did you mean 'mqar'"):
        data.make("mqars", 64, 4, 0, "train", 0)


def test_text_comes_from_files_and_parts_do_not_meet(data: Any, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for n in range(60):
        (tmp_path / "deep" / f"{n}.txt").write_bytes(bytes([n]) * 4000)
    parts = {p: set(data.corpus((tmp_path,), p).tolist()) - {10} for p in ("train", "tune", "test")}
    assert all(parts.values())
    assert not parts["train"] & parts["test"]
    assert not parts["train"] & parts["tune"]
    batch = data.make("text", 50, 3, 0, "train", 0, (tmp_path,))
    assert torch.equal(batch.labels, batch.ids)
    one = tmp_path / "one.txt"
    one.write_bytes(b"".join(bytes([n]) * 10_000 for n in range(10)))
    single = {p: set(data.corpus((one,), p).tolist()) for p in ("train", "tune", "test")}
    assert single == {"train": {*range(8)}, "tune": {8}, "test": {9}}
    with pytest.raises(DataError, match="too few"):
        data.corpus((tmp_path / "deep" / "1.txt",), "train")
    with pytest.raises(DataError, match="is not there"):
        data.corpus((tmp_path / "none",), "train")


def test_all_arms_are_of_one_size(run: Any) -> None:
    sizes = {arm: count_parameters(run.config_of(arm, 64, 0)) for arm in run.ARMS}
    assert max(sizes.values()) - min(sizes.values()) < 0.01 * min(sizes.values()), sizes


def tiny(run: Any, **changes: Any) -> Any:
    return run.Setting(**{"steps": 6, "batch": 2, "length": 16, "test_rows": 8, "warmup": 2} | changes)


def test_a_killed_cell_goes_on_to_the_same_numbers(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, setting = run.Cell("mqar", "mag", 0, 1e-2), tiny(run)
    whole, history = run.train(cell, setting, tmp_path / "whole.pt", 0.0)
    make = run.make

    def killed(*given: Any) -> Any:
        if given[5] == 4:
            raise KeyboardInterrupt
        return make(*given)

    monkeypatch.setattr(run, "make", killed)
    with pytest.raises(KeyboardInterrupt):
        run.train(cell, setting, tmp_path / "cut.pt", 0.0)
    seen = []
    monkeypatch.setattr(run, "make", lambda *given: (seen.append(given[5]), make(*given))[1])
    again, later = run.train(cell, setting, tmp_path / "cut.pt", 0.0)
    assert seen == [4, 5]
    assert later["smooth"] == history["smooth"]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    # Another cell's checkpoint, or a damaged one, is not gone on from.
    run.train(run.Cell("mqar", "mag", 1, 1e-2), setting, tmp_path / "cut.pt", 0.0)
    assert seen[2:] == [*range(6)]
    (tmp_path / "cut.pt").write_bytes(b"half")
    run.train(cell, setting, tmp_path / "cut.pt", 0.0)
    assert seen[8:] == [*range(6)]


def test_a_cell_is_written_once_and_by_one(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell, setting, out = run.Cell("number", "mac", 0, 1e-2), tiny(run, length=32), tmp_path / "results"
    with run.alone(tmp_path / "runs" / "number-mac-seed0.lock", "it"), pytest.raises(ConfigError, match="at work"):
        run.run_cell(cell, setting, out, tuning=False)
    found = run.run_cell(cell, setting, out, tuning=False)
    written = json.loads((out / "number-mac-seed0.json").read_text())
    assert written == json.loads(json.dumps(found))
    assert set(found["tests"]) == {"1", "4", "16", "64", "zeroed", "other"}
    assert not list((tmp_path / "runs").glob("*.pt"))
    assert run.run_cell(cell, setting, out, tuning=False) == written
    assert "is there already" in capsys.readouterr().out


def test_a_cell_that_diverges_says_so(run: Any, tmp_path: Path) -> None:
    found = run.run_cell(run.Cell("mqar", "full", 0, 1e30), tiny(run), tmp_path / "results", tuning=True)
    assert "NaN or infinite" in found["diverged"]
    assert run.summary(found).startswith("diverged")


def test_the_learning_rate_is_the_best_of_those_tried(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "results"
    with pytest.raises(ConfigError, match="--task number --arm mac --tune"):
        run.best_rate("passkey", "mac", out)
    (out / "tune").mkdir(parents=True)
    for rate, tests in zip(run.RATES, ({"1": {"loss": 2.0}}, {"1": {"loss": 1.0}}, None), strict=True):
        record = {"diverged": "at step 3"} if tests is None else {"tests": tests}
        (out / "tune" / f"number-mac-lr{rate:g}.json").write_text(json.dumps(record))
    assert run.best_rate("passkey", "mac", out) == run.RATES[1]


def test_the_controls_change_the_memory_and_nothing_else(run: Any, data: Any) -> None:
    model = run.TitansForCausalLM(run.config_of("mag", 64, 0)).eval()
    batch = data.make("mqar", 64, 4, 0, "test", 0)
    own = run.answers(model, batch)
    assert own.shape == (4, 32, 64)
    for control in ("zeroed", "other"):
        assert float((run.answers(model, batch, control) - own).abs().max()) > 1e-3
    assert model.config.memory_zeroed is False
    with torch.no_grad():
        whole = model(batch.ids).logits
    torch.testing.assert_close(own, whole[:, 31:-1])
    # A batch of one row has only its own memory to get.
    one = data.make("mqar", 64, 1, 0, "test", 0)
    torch.testing.assert_close(run.answers(model, one, "other"), run.answers(model, one), atol=1e-5, rtol=0)


def test_scores_by_hand(run: Any, data: Any) -> None:
    batch = data.make("number", 64, 2, 0, "test", 0)
    logits = torch.nn.functional.one_hot(batch.ids[:, 60:], 64).float() * 9
    assert run.score(logits, batch, "number")[0].tolist() == [1.0, 1.0]
    logits[1, 2] = 0.0
    assert run.score(logits, batch, "number")[0].tolist() == [1.0, 0.0]
    assert run.score(logits, batch, "mqar")[0][1] == pytest.approx(2 / 3)


def test_tables_of_what_there_is(tmp_path: Path) -> None:
    tables = script("tables")
    assert "no cells yet" in tables.markdown(tables.cells(tmp_path))
    tests = {t: {"score": 0.5} for t in tables.LENGTHS} | {"other": {"1": {"score": 0.1}}, "zeroed": {}}
    common = {"task": "mqar", "arm": "mag", "rate": 0.005, "parameters": 9, "setting": {"length": 64}}
    for seed, more in enumerate(({"tests": tests, "bytes": {"1": 2048, "4": 2048}}, {"diverged": "NaN"})):
        (tmp_path / f"{seed}.json").write_text(json.dumps(common | {"seed": seed} | more))
    said = tables.markdown(tables.cells(tmp_path))
    assert "| mag | 0.25 [" in said
    assert "| 2 / 2 | 9 | 0.005 | 2, 1 diverged |" in said
    tables.html(tables.cells(tmp_path), tmp_path / "out.html")
    assert "plotly" in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_the_rules_spend_one_budget_and_see_one_stream() -> None:
    surprise = script("surprise")
    setting = surprise.Setting(width=8, frequent=4, rare=2, rounds=4, filler=1)
    stream = surprise.stream_of(setting, 0)
    counts = torch.bincount(stream.order).tolist()
    assert counts == [5, 5, 5, 5, 1, 1]
    first = surprise.play(setting, stream, "surprise", setting.rate, 0)
    even = surprise.play(setting, stream, "constant", [first.written / 22] * 22, 0)
    assert even.written == pytest.approx(first.written)
    assert len(set(even.sizes)) > 1 or min(even.sizes) == pytest.approx(max(even.sizes))
    found = surprise.measured(setting, 2)
    assert found["surprise"]["difference"] == [0.0, 0.0]
    sizes = surprise.surprises(setting, 0)
    assert sizes["last sight"] < sizes["first sight"] < sizes["changed"]


def test_nan_in_training_is_named(run: Any, tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match="step"):
        run.train(run.Cell("mqar", "window", 0, 1e30), tiny(run), tmp_path / "a.pt")

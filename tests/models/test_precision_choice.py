"""The choice of a compute dtype, and the machine report."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from twoclock.models import precision
from twoclock.models.precision import choose_dtype, machine_report, measure_dtypes

torch = pytest.importorskip("torch")

FAST = {"float32_forward": 4.0, "float32_train": 8.0, "bfloat16_forward": 1.0, "bfloat16_train": 2.0}
SLOW = {"float32_forward": 1.0, "float32_train": 2.0, "bfloat16_forward": 9.0, "bfloat16_train": 9.0}
TIE = {"float32_forward": 1.0, "float32_train": 2.0, "bfloat16_forward": 0.95, "bfloat16_train": 1.9}


@pytest.mark.parametrize(("seconds", "chosen"), [(FAST, "bfloat16"), (SLOW, "float32"), (TIE, "float32")])
def test_the_faster_one_wins_and_a_tie_goes_to_the_exact_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], chosen: str
) -> None:
    monkeypatch.setattr(precision, "measure_dtypes", lambda: seconds)
    assert choose_dtype("cpu", cache_dir=tmp_path)[0] == chosen


def test_forward_and_training_both_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_forward = {"float32_forward": 2.0, "float32_train": 2.0, "bfloat16_forward": 1.0, "bfloat16_train": 20.0}
    monkeypatch.setattr(precision, "measure_dtypes", lambda: only_forward)
    chosen, reason = choose_dtype("cpu", cache_dir=tmp_path)
    assert chosen == "float32"
    assert "2.0× as fast as float32 forward, 0.1× in training" in reason


def test_it_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first, reason = choose_dtype("cpu", cache_dir=tmp_path, progress=said.append)
    assert "measured now" in reason
    assert len(said) == 1
    monkeypatch.setattr(precision, "measure_dtypes", lambda: pytest.fail("measured again"))
    again, reason = choose_dtype("cpu", cache_dir=tmp_path)
    assert (again, "measured earlier" in reason) == (first, True)


@pytest.mark.parametrize("content", ["{", "[]", '{"KEY": 3}', '{"KEY": {"float32_forward": 1.0}}'])
def test_a_damaged_answer_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    (tmp_path / "precision.json").write_text(content.replace("KEY", precision._machine_key()))
    monkeypatch.setattr(precision, "measure_dtypes", lambda: FAST)
    assert choose_dtype("cpu", cache_dir=tmp_path)[0] == "bfloat16"
    assert json.loads((tmp_path / "precision.json").read_text())[precision._machine_key()] == FAST


def test_another_thread_count_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    key = precision._machine_key()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 999)
    assert precision._machine_key() != key


def test_a_cache_that_cannot_be_written_does_not_stop_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert choose_dtype("cpu", cache_dir=tmp_path / "file")[0] in ("float32", "bfloat16")


def test_the_measurement_is_short_and_positive() -> None:
    measure_dtypes()
    began = time.perf_counter()
    seconds = measure_dtypes()
    assert time.perf_counter() - began < 4.0  # 2 s and as much again for a busy machine
    assert len(seconds) == 4
    assert all(value > 0 for value in seconds.values())


def test_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_dtype("mps")[0] == "float32"
    for native, name in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert choose_dtype("cuda:0")[0] == name


def test_the_machine_report_is_plain_json_with_numbers(tmp_path: Path) -> None:
    report = json.loads(json.dumps(machine_report(tmp_path)))
    assert report["cores"] >= 1
    assert report["copy_gb_per_s"] > 0.1
    assert min(report["torch"]["matmul_tflops"].values()) > 0
    assert report["torch"]["dtype"]["chosen"] in ("float32", "bfloat16")
    assert report["cache"]["path"] == str(tmp_path)
    assert report["cache"]["models"] == []
    assert report["versions"]["twoclock"]


def test_the_report_works_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = precision.importlib.util.find_spec
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda n: None if n in ("torch", "gepa") else find(n))
    report = machine_report(tmp_path, measure=False)
    assert report["torch"] is None
    assert "torch" in report["extras"]["local"]
    assert report["extras"]["gepa"] == ["gepa"]

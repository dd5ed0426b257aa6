"""The cache of decompositions: one file a matrix, whole or not there, found again and never taken for another's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import twoclock.models.svd as module  # noqa: E402
from twoclock.errors import NumericsError, UnsupportedError  # noqa: E402
from twoclock.models.svd import Spectra  # noqa: E402
from twoclock.nn.svf import Factoring, SingularChange  # noqa: E402

FULL = Factoring()


@pytest.fixture(autouse=True)
def everything_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOMENT", 0.0)


def linears(seed: int = 0, count: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    found = {}
    for n in range(count):
        layer = torch.nn.Linear(7, 5 + n, bias=False)
        layer.weight = torch.nn.Parameter(torch.randn(5 + n, 7, generator=g).bfloat16().to(dtype))
        found[f"layer.{n}"] = layer
    return found


def files(root: Path) -> list[Path]:
    return sorted((root / "svd").iterdir())


def test_made_once_and_found_again(tmp_path: Path) -> None:
    layers = linears()
    first = Spectra(layers, cache_dir=tmp_path)
    made = first.factors([*layers], FULL)
    assert first.computed == 3
    for name, f in made.items():
        torch.testing.assert_close((f.u * f.s) @ f.vh, layers[name].weight.detach(), atol=2e-6, rtol=2e-6)
        assert f.error < 1e-5
    assert len(files(tmp_path)) == 3
    assert first.factors([*layers], FULL)["layer.0"] is made["layer.0"]
    second = Spectra(linears(), cache_dir=tmp_path)
    found = second.factors([*layers], FULL)
    assert second.computed == 0
    for name in made:
        assert all(torch.equal(getattr(found[name], p), getattr(made[name], p)) for p in ("u", "s", "vh"))
        assert found[name].error == made[name].error


def test_one_file_a_matrix_whatever_model_and_dtype_it_is_in(tmp_path: Path) -> None:
    Spectra(linears(), cache_dir=tmp_path).factors(["layer.1"], FULL)
    renamed = {"another.name": linears(dtype=torch.bfloat16)["layer.1"]}
    spectra = Spectra(renamed, cache_dir=tmp_path)
    found = spectra.factors(["another.name"], FULL)["another.name"]
    assert spectra.computed == 0
    assert (found.u.dtype, found.s.dtype) == (torch.bfloat16, torch.float32)
    changed = linears(seed=1)
    spectra = Spectra(changed, cache_dir=tmp_path)
    spectra.factors([*changed], FULL)
    assert spectra.computed == 3


def test_a_part_comes_from_the_whole_where_that_is_there(tmp_path: Path) -> None:
    layers = linears()
    part = Factoring(rank=2, precision="bfloat16")
    alone = Spectra(layers, cache_dir=tmp_path / "a")
    expected = alone.factors([*layers], part)
    after = Spectra(layers, cache_dir=tmp_path / "b")
    after.factors([*layers], FULL)
    found = after.factors([*layers], part)
    assert (alone.computed, after.computed) == (3, 3)
    for name, f in found.items():
        assert len(f.s) == 2
        assert f.error == pytest.approx(expected[name].error, rel=1e-5)
        assert torch.equal(f.s, expected[name].s)


def test_weights_that_have_changed_are_not_mistaken(tmp_path: Path) -> None:
    layers = linears()
    spectra = Spectra(layers, cache_dir=tmp_path)
    before, named = spectra.factors(["layer.0"], FULL)["layer.0"], spectra.identity(["layer.0"], FULL)
    with torch.no_grad():
        layers["layer.0"].weight.mul_(2)
    after = spectra.factors(["layer.0"], FULL)["layer.0"]
    torch.testing.assert_close(after.s, 2 * before.s)
    assert spectra.identity(["layer.0"], FULL) != named
    assert spectra.identity(["layer.1"], FULL) != spectra.identity(["layer.1"], Factoring(rank=2))


def test_a_change_for_other_matrices_is_refused(tmp_path: Path) -> None:
    layers = linears()
    spectra = Spectra(layers, cache_dir=tmp_path)
    mine = SingularChange({"layer.0": torch.zeros(5)}, FULL, spectra.identity(["layer.0"], FULL))
    assert set(spectra.of(mine)) == {"layer.0"}
    with pytest.raises(UnsupportedError, match="belongs to the matrices"):
        Spectra(linears(seed=1), cache_dir=tmp_path).of(mine)
    with pytest.raises(UnsupportedError, match="a linear layer 'elsewhere', which this model has not"):
        spectra.of(SingularChange({"elsewhere": torch.zeros(5)}, FULL, "id"))


@pytest.mark.parametrize("damage", ["cut", "empty", "nonsense", "other shape"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    layers = linears()
    made = Spectra(layers, cache_dir=tmp_path).factors(["layer.0"], FULL)["layer.0"]
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    if damage == "other shape":
        other = Spectra(layers, cache_dir=tmp_path / "other")
        other.factors(["layer.1"], FULL)
        path.write_bytes(files(tmp_path / "other")[0].read_bytes())
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "nonsense": b"x" * 999}[damage])
    again = Spectra(layers, cache_dir=tmp_path)
    assert torch.equal(again.factors(["layer.0"], FULL)["layer.0"].u, made.u)
    assert again.computed == 1
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    said: list[str] = []
    spectra = Spectra(linears(), cache_dir=tmp_path / "file", progress=said.append)
    assert len(spectra.factors(["layer.0", "layer.1"], FULL)) == 2
    assert any("cannot be kept" in line and "TWOCLOCK_CACHE" in line for line in said)


def test_what_takes_a_moment_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOMENT", 1e8)
    Spectra(linears(), cache_dir=tmp_path).factors(["layer.0"], FULL)
    assert not (tmp_path / "svd").exists()


def test_layers_that_have_no_plain_matrix(tmp_path: Path) -> None:
    layers = linears()
    with torch.no_grad():
        layers["layer.0"].weight[0, 0] = float("nan")
    quantised = torch.nn.Module()
    quantised.register_buffer("weight", torch.zeros(3, 3, dtype=torch.int8))
    spectra = Spectra({**layers, "q": quantised}, cache_dir=tmp_path)
    with pytest.raises(NumericsError, match=r"layer\.0: the matrix has NaN"):
        spectra.factors(["layer.0"], FULL)
    with pytest.raises(UnsupportedError, match=r"q is no plain linear layer .* leave it out of targets"):
        spectra.factors(["q"], FULL)


SLOW = """
import sys, time, torch
import twoclock.models.svd as module
sys.path.insert(0, {tests!r})
from test_svd import linears
module.MOMENT = 0.0
made = module.factorise
def slowly(*args):
    time.sleep(0.15)
    return made(*args)
module.factorise = slowly
layers = linears(count=12)
spectra = module.Spectra(layers, cache_dir={root!r})
spectra.factors([*layers], module.Factoring())
print(spectra.computed)
"""


def worker(root: Path) -> subprocess.Popen[str]:
    code = SLOW.format(tests=str(Path(__file__).parent), root=str(root))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_what_it_had_done_and_nothing_half_made(tmp_path: Path) -> None:
    with worker(tmp_path) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("svd/*.safetensors"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    done = len(list(tmp_path.glob("svd/*.safetensors")))
    assert 3 <= done < 12
    (tmp_path / "svd" / ".half-made").write_text("half")
    spectra = Spectra(linears(count=12), cache_dir=tmp_path)
    spectra.factors([*linears(count=12)], FULL)
    assert spectra.computed == 12 - done
    assert len(files(tmp_path)) == 12


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    both = [worker(tmp_path), worker(tmp_path)]
    counts = [int(p.communicate(timeout=100)[0]) for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert sum(counts) == 12
    assert len(files(tmp_path)) == 12

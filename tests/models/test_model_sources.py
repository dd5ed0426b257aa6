"""Loading a model: each source, each thing that can be wrong with one, and the identity of its weights."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from model_files import CHATML, write_folder, write_gguf

from twoclock.errors import ConfigError, MissingExtraError, ModelError
from twoclock.models import hf, sources
from twoclock.models.cache import remembered_sha256
from twoclock.models.sources import LoadedModel, base_hash_of, load_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tiny-llama"))


def load(source: Path | str, tmp_path: Path, **options: str) -> LoadedModel:
    return load_model(str(source), cache_dir=tmp_path / "cache", **{"dtype": "float32", "device": "cpu", **options})


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# -------------------------------------------------------------------------------------------------- the ordinary road


def test_a_folder_loads_frozen_and_computes_what_transformers_computes(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = load(folder, tmp_path)
    assert (loaded.name, loaded.dtype, loaded.device) == ("tiny-llama", "float32", "cpu")
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer.pad_token is not None
    ids = torch.tensor([loaded.tokenizer.encode("hello")])
    plain = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    assert torch.equal(loaded.model(ids).logits, plain(ids).logits)


@pytest.mark.parametrize(("asked", "given"), [("bf16", torch.bfloat16), ("float16", torch.float16)])
def test_the_dtype_asked_for_wins(folder: Path, tmp_path: Path, asked: str, given: torch.dtype) -> None:
    loaded = load(folder, tmp_path, dtype=asked)
    assert {p.dtype for p in loaded.model.parameters()} == {given}
    assert "as asked" in loaded.notes[0]
    assert not (tmp_path / "cache" / "precision.json").exists()


def test_auto_measures_and_says_why(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder, tmp_path, dtype="auto", device="auto")
    assert loaded.dtype in ("bfloat16", "float32")
    assert f"compute dtype {loaded.dtype}" in loaded.notes[0]


def test_nothing_of_transformers_is_printed(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_gguf(tmp_path / "m.gguf")
    capfd.readouterr()
    load(folder, tmp_path)
    load(tmp_path / "m.gguf", tmp_path)
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------------- hashes


def test_the_base_hash_names_the_weights(folder: Path, tmp_path: Path) -> None:
    first = load(folder, tmp_path)
    assert load(folder, tmp_path, dtype="bfloat16").base_hash == first.base_hash
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert base_hash_of(copy, tmp_path / "other cache") == first.base_hash
    edit_config(copy, transformers_version="0.0.0", dtype="bfloat16")
    assert base_hash_of(copy, tmp_path / "cache") == first.base_hash, "what says nothing of the numbers does not count"
    edit_config(copy, rms_norm_eps=0.5)
    assert base_hash_of(copy, tmp_path / "cache") != first.base_hash


def test_one_flipped_bit_is_another_base(folder: Path, tmp_path: Path) -> None:
    before = base_hash_of(folder, tmp_path / "cache")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert base_hash_of(folder, tmp_path / "cache") != before


def test_a_remembered_hash_is_not_used_for_a_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    old = time.time() - 100
    os.utime(path, (old, old))
    first = remembered_sha256(path, tmp_path)
    assert first in (tmp_path / "hashes.json").read_text()
    assert remembered_sha256(path, tmp_path) == first
    path.write_bytes(b"two")
    assert remembered_sha256(path, tmp_path) == hashlib.sha256(b"two").hexdigest()
    assert hashlib.sha256(b"two").hexdigest() not in (tmp_path / "hashes.json").read_text(), "may change within a tick"


def test_a_copy_of_a_converted_folder_keeps_its_hash_until_it_is_edited(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    loaded = load(tmp_path / "m.gguf", tmp_path)
    (converted,) = (tmp_path / "cache" / "models").iterdir()
    copy = Path(shutil.copytree(converted, tmp_path / "copy"))
    assert load(copy, tmp_path).base_hash == loaded.base_hash
    edit_config(copy, rms_norm_eps=0.5)
    assert base_hash_of(copy, tmp_path / "cache") != loaded.base_hash


# ------------------------------------------------------------------------------------------- what is wrong with a model


def test_arguments_that_are_no_choice(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown dtype 'bfloat61'; did you mean 'bfloat16'"):
        load(folder, tmp_path, dtype="bfloat61")
    with pytest.raises(ConfigError, match="unknown device 'cuda:x'"):
        load(folder, tmp_path, device="cuda:x")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="sees 0 CUDA devices"):
            load(folder, tmp_path, device="cuda")


def test_a_path_that_is_not_there_names_the_nearest(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no model at .*tiny-lama; did you mean .*tiny-llama\?"):
        load(tmp_path / "tiny-lama", tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        load("./no/such/model.gguf", tmp_path)


def test_a_file_that_is_no_gguf(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"give a \.gguf file, or the folder"):
        load(folder / "model.safetensors", tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("rm config.json", "has no config.json, so it holds no model"),
        ("only gguf", "has no config.json but it has a GGUF file; give that file"),
        ("adapter", "holds a PEFT adapter, no whole model"),
        ("rm model.safetensors", "has a config.json but no weights"),
        ("rm tokenizer.json", "has no tokenizer: expected tokenizer.json"),
        ("cut model.safetensors", "weights in .* cannot be read"),
        ("cut tokenizer.json", "the tokenizer in .* cannot be read"),
        ("cut config.json", "config.json cannot be read"),
        ("missing shard", "1 of 2 weight files are missing"),
    ],
)
def test_a_folder_with_something_missing_or_damaged(folder: Path, tmp_path: Path, damage: str, message: str) -> None:
    verb, _, name = damage.partition(" ")
    if verb == "rm":
        (folder / name).unlink()
    elif verb == "cut":
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    elif verb == "only":
        shutil.rmtree(folder)
        folder.mkdir()
        write_gguf(folder / "m.gguf")
    elif verb == "adapter":
        (folder / "config.json").unlink()
        (folder / "adapter_config.json").write_text("{}")
    else:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=message):
        load(folder, tmp_path)


def test_weights_that_lack_tensors_are_refused_and_not_made_up(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(str(folder / "model.safetensors"))
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 of the model's tensors, such as model\.layers\.1\.mlp\.up_proj"):
        load(folder, tmp_path)


def test_weights_of_another_shape_are_refused(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, intermediate_size=128)
    with pytest.raises(ModelError, match=r"weights in .* cannot be read"):
        load(folder, tmp_path)


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_tokens(["<more>", "<and more>"])
    tokenizer.save_pretrained(str(folder))
    with pytest.raises(ModelError, match=r"262 tokens but the model has embeddings for 260"):
        load(folder, tmp_path)


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "T5ForConditionalGeneration"])
def test_what_is_no_causal_model(folder: Path, tmp_path: Path, architecture: str) -> None:
    import transformers

    config = getattr(transformers, architecture.split("For")[0] + "Config")(architectures=[architecture])
    config.save_pretrained(str(folder))
    with pytest.raises(ModelError, match=f"holds a {architecture}.*no causal language model"):
        load(folder, tmp_path)


def test_a_missing_extra_names_the_install_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf.importlib.util, "find_spec", lambda name: None if name == "transformers" else name)
    with pytest.raises(
        MissingExtraError, match=r"needs the package 'transformers'; type: pip install 'twoclock\[local"
    ):
        load(folder, tmp_path)


# ----------------------------------------------------------------------------------------------------- chat templates


def test_a_model_without_a_chat_template(tmp_path: Path) -> None:
    bare = write_folder(tmp_path / "bare", template=None)
    with pytest.raises(ModelError, match=r'bare has no chat template.*chat_template = "chatml"'):
        load(bare, tmp_path)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    loaded = load(bare, tmp_path, chat_template="chatml")
    text = loaded.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    loaded = load(bare, tmp_path, chat_template="plain")
    text = loaded.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "S\n\nQuestion: U\nAnswer:"
    assert any("stop" in note for note in loaded.notes)


def test_a_chat_template_from_a_file_or_as_text(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    for given in (str(path), path.read_text()):
        loaded = load(folder, tmp_path, chat_template=given)
        assert loaded.tokenizer.apply_chat_template([{"role": "user", "content": "U"}], tokenize=False) == "[U]"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("chatlm", "did you mean 'chatml'"),
        ("{% for m in messages %}", "cannot render a conversation"),
        ("{{ raise_exception('not today') }}", "not today"),
        ("{{ 'always this' }}", "drops the user's message"),
    ],
)
def test_a_chat_template_that_does_not_work(folder: Path, tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(folder, tmp_path, chat_template=template)


def test_a_template_without_system_messages_is_noted(folder: Path, tmp_path: Path) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    dropping = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    for template in (refusing, dropping):
        notes = load(folder, tmp_path, chat_template=template).notes
        assert any("does not take a system message" in note for note in notes)
    assert not any("system message" in note for note in load(folder, tmp_path).notes)


# ------------------------------------------------------------------------------------------------------------ the hub

SHA = "a" * 40


class HubHandler(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as its client asks for: one repository, org/tiny."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def do_GET(self) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        files = {p.name: p for p in self.folder.iterdir()}
        headers: dict[str, str] = {}
        if parts[:4] == ["api", "models", "org", "tiny"]:
            listing = [{"type": "file", "path": n, "size": p.stat().st_size, "oid": SHA} for n, p in files.items()]
            info = {"id": "org/tiny", "sha": SHA, "siblings": [{"rfilename": n} for n in files]}
            body = json.dumps(listing if "tree" in parts else info).encode()
        elif parts[:3] == ["org", "tiny", "resolve"] and parts[-1] in files:
            body = files[parts[-1]].read_bytes()
            headers = {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
        else:
            body, headers = b"{}", {"X-Error-Code": "RepoNotFound"}
        self.send_response(404 if "X-Error-Code" in headers else 200)
        for name, value in {**headers, "Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 — the name is http.server's

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(pristine: Path) -> Iterator[str]:
    handler = type("Handler", (HubHandler,), {"folder": pristine})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


LOAD = """
import sys
from twoclock.errors import ModelError
from twoclock.models.sources import load_model
for name in sys.argv[1:]:
    try:
        loaded = load_model(name, dtype="float32", device="cpu")
        print(loaded.name, loaded.base_hash)
    except ModelError as error:
        print(error)
"""


def load_in_a_process(tmp_path: Path, names: list[str], **environment: str) -> list[str]:
    """The hub client reads its settings when it is imported, so each setting needs a process."""
    here = {"HF_HOME": str(tmp_path / "hf"), "TWOCLOCK_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", LOAD, *names]
    done = subprocess.run(command, env={**os.environ, **here, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_hub_model_online_and_then_offline(pristine: Path, hub: str, tmp_path: Path) -> None:
    expected = f"org/tiny {base_hash_of(pristine, tmp_path / 'cache')}"
    found, unknown = load_in_a_process(tmp_path, ["org/tiny", "org/none"], HF_ENDPOINT=hub)
    assert found == expected
    assert unknown.startswith("the hub has no public model 'org/none'")
    offline, absent = load_in_a_process(tmp_path, ["org/tiny", "pakaged"], HF_ENDPOINT="http://127.0.0.1:9")
    assert offline == expected, "what was fetched once is found again without the hub"
    assert "neither a local path nor in the hub's local cache" in absent
    assert "did you mean 'packaged'?" in absent


def test_sources_are_imported_without_torch() -> None:
    code = "import sys, twoclock.models.sources, twoclock.models.remote; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    assert sources.SMOLLM2.version == "0.1.2"

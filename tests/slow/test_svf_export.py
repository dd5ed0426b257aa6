"""An exported ``svf`` state says elsewhere what it says here: vectors, an adapter that PEFT loads, a merged model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from lora_world import bench  # noqa: E402

from tiny_world import gather, model_folder, open_tiny, tiny_task  # noqa: E402
from twoclock.errors import ConfigError, DataError, UnsupportedError  # noqa: E402
from twoclock.models.plain import plain_logits  # noqa: E402
from twoclock.nn.svf import materialised  # noqa: E402
from twoclock.slow.svf import SvfChannel, SvfConfig, SvfState  # noqa: E402
from twoclock.slow.svf_export import export_adapter, export_merged, export_vectors, read_vectors  # noqa: E402
from twoclock.types import Budget, Proposal  # noqa: E402

# PEFT asks transformers by a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

TOKENS = list(range(40, 60))
CONFIG = SvfConfig(learning_rate=0.2, targets=("k_proj", "gate_proj", "down_proj"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("svf") / "llama")


@pytest.fixture(scope="module")
def policy(folder: Path) -> Any:
    return open_tiny(folder)


@pytest.fixture(scope="module")
def state(policy: Any) -> SvfState:
    channel = SvfChannel(CONFIG)
    found = channel.init(policy.card, 0)
    for number in (1, 2):
        offer = channel.propose(bench(policy), found, gather(policy, tiny_task(), round=number), Budget(), number)
        assert isinstance(offer, Proposal), offer
        found = offer.state
    return found


@torch.no_grad()
def logits(policy: Any, delta: Any) -> torch.Tensor:
    with policy._forcing.mount(delta.payload if delta else None):
        return plain_logits(policy.model, TOKENS)


def factors(policy: Any, state: SvfState) -> Any:
    assert state.delta is not None
    return policy.spectra.of(state.delta.payload, as_kept=True)


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_vectors_come_back_to_the_bit(policy: Any, state: SvfState, tmp_path: Path) -> None:
    written = export_vectors(state, tmp_path / "z", "some/model")
    for place in (written, written / "svf.safetensors"):
        delta = read_vectors(place, policy.base_hash)
        assert delta == state.delta
        assert all(torch.equal(delta.payload.offsets[n], t) for n, t in state.offsets.items())
        assert torch.equal(logits(policy, delta), logits(policy, state.delta))
    assert float((logits(policy, state.delta) - logits(policy, None)).abs().max()) > 0.1


def test_vectors_are_refused_on_other_weights(state: SvfState, tmp_path: Path) -> None:
    written = export_vectors(state, tmp_path / "z", "some/model")
    other = open_tiny(model_folder(tmp_path / "other", seed=5))
    with pytest.raises(UnsupportedError, match=r"some/model\), but the model is .* mean nothing on other weights"):
        read_vectors(written, other.base_hash)
    # The hash of the base is a promise; the matrices themselves are asked too.
    delta = replace(read_vectors(written), base=other.base_hash)
    with pytest.raises(UnsupportedError, match="belongs to the matrices"):
        logits(other, delta)


def test_files_that_are_no_vectors(state: SvfState, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    written = export_vectors(state, tmp_path / "z", "m") / "svf.safetensors"
    whole = written.read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2]):
        (tmp_path / "wrong").write_bytes(content)
        with pytest.raises(DataError, match="holds no scaled singular values"):
            read_vectors(tmp_path / "wrong")
    with pytest.raises(DataError, match="holds no scaled"):
        read_vectors(tmp_path / "nowhere")
    save_file(load_file(written), tmp_path / "bare.safetensors")
    with pytest.raises(DataError, match="holds no scaled"):
        read_vectors(tmp_path / "bare.safetensors")
    broken = replace(state, offsets={n: t * math.nan for n, t in state.offsets.items()})
    export_vectors(broken, tmp_path / "nan", "m")
    with pytest.raises(DataError, match="no vector of finite"):
        read_vectors(tmp_path / "nan")


def test_an_adapter_of_full_rank_is_exact_and_peft_loads_it(
    folder: Path, policy: Any, state: SvfState, tmp_path: Path
) -> None:
    """The layers are of different full ranks; a smaller one is filled up with zeros."""
    most = max(len(t) for t in state.offsets.values())
    assert min(len(t) for t in state.offsets.values()) < most
    error = export_adapter(state, tmp_path / "whole", "some/model", factors(policy, state), most)
    assert error == pytest.approx(0.0, abs=1e-6)
    theirs = peft.PeftModel.from_pretrained(load(folder), tmp_path / "whole").eval()
    with torch.no_grad():
        loaded = theirs(input_ids=torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(loaded, logits(policy, state.delta), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_the_truncation_error_is_what_is_missing(
    folder: Path, policy: Any, state: SvfState, tmp_path: Path, rank: int
) -> None:
    made = factors(policy, state)
    error = export_adapter(state, tmp_path / "cut", "some/model", made, rank)
    theirs = peft.PeftModel.from_pretrained(load(folder), tmp_path / "cut").eval()
    left = whole = 0.0
    for name, offset in state.offsets.items():
        module = theirs.get_submodule(f"base_model.model.{name}")
        there = module.lora_B["default"].weight @ module.lora_A["default"].weight
        change = materialised(made[name], offset)
        left += float((change - there).square().sum())
        whole += float(change.square().sum())
    assert 0.01 < error < 1
    assert error == pytest.approx(math.sqrt(left / whole), rel=1e-3)


def test_the_merged_model_says_the_same(folder: Path, policy: Any, state: SvfState, tmp_path: Path) -> None:
    made = export_merged(state, tmp_path / "merged", str(folder), factors(policy, state), "float32")
    with torch.no_grad():
        found = load(made)(input_ids=torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(found, logits(policy, state.delta), atol=2e-4, rtol=1e-4)
    assert (made / "tokenizer.json").is_file()


def test_a_matrix_that_is_shared_is_not_merged(tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    folder = model_folder(tmp_path / "tied")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    kept = {n: t for n, t in load_file(folder / "model.safetensors").items() if n != "lm_head.weight"}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    policy = open_tiny(folder)
    channel = SvfChannel(SvfConfig(targets=("lm_head",), learning_rate=0.1))
    offer = channel.propose(bench(policy), channel.init(policy.card, 0), gather(policy, tiny_task()), Budget(), 0)
    assert isinstance(offer, Proposal)
    with pytest.raises(ConfigError, match="lm_head shares its matrix with another part"):
        export_merged(offer.state, tmp_path / "merged", str(folder), factors(policy, offer.state), "float32")
    assert not (tmp_path / "merged").exists()


def test_what_cannot_be_exported(folder: Path, policy: Any, state: SvfState, tmp_path: Path) -> None:
    made, nothing = factors(policy, state), SvfChannel(CONFIG).init(policy.card, 0)
    for write in (
        lambda s, t: export_vectors(s, t, "m"),
        lambda s, t: export_adapter(s, t, "m", made, 2),
        lambda s, t: export_merged(s, t, str(folder), made),
    ):
        with pytest.raises(ConfigError, match="has taken no step"):
            write(nothing, tmp_path / "new")
        assert not (tmp_path / "new").exists()
        (tmp_path / "used").mkdir(exist_ok=True)
        (tmp_path / "used" / "precious").write_text("mine")
        with pytest.raises(ConfigError, match="not an empty folder; name a new one"):
            write(state, tmp_path / "used")
        assert [p.name for p in (tmp_path / "used").iterdir()] == ["precious"]
    for rank in (0, -1, 10_000):
        with pytest.raises(ConfigError, match="rank must be a whole number from 1 to"):
            export_adapter(state, tmp_path / "new", "m", made, rank)

"""Where a local model comes from: the packaged default, a folder, a GGUF file or a hub id, each checked at the door.

``load_model`` gives the model ready for the rollout engine: frozen, in eval mode, on its device and in its compute
dtype, with a tokenizer that has a working chat template, and with the content hash of its base weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twoclock.errors import ConfigError, ModelError, nearest, unknown_name
from twoclock.hashing import content_hash
from twoclock.models.cache import Progress, cache_root, damage, read_json, read_record, remembered_sha256
from twoclock.models.gguf_files import ensure_gguf, is_gguf
from twoclock.models.hf import quiet_transformers, read_config, read_model, read_tokenizer, require_local, weight_files
from twoclock.models.packaged import SMOLLM2, ensure_packaged
from twoclock.models.precision import choose_dtype
from twoclock.models.templates import apply_template

__all__ = ["LoadedModel", "base_hash_of", "load_model", "locate"]

DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
VOLATILE_CONFIG = ("transformers_version", "_name_or_path", "_model_name_or_path", "dtype", "torch_dtype")
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A local model, ready to use."""

    model: Any = field(repr=False)
    """The transformers causal language model: eval mode, no gradients, on ``device``."""
    tokenizer: Any = field(repr=False)
    """With a padding token and a chat template that renders."""
    name: str
    base_hash: str
    """Content hash of the base weights and their configuration, whatever the compute dtype."""
    dtype: str
    """The compute dtype: ``float32``, ``bfloat16`` or ``float16``."""
    device: str
    notes: tuple[str, ...] = ()
    """Sentences for the user: why this dtype, what the chat template cannot do."""


def load_model(
    source: str = "packaged",
    *,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
    chat_template: str | None = None,
    cache_dir: Path | None = None,
) -> LoadedModel:
    """Load ``source``: ``"packaged"``, a folder, a ``.gguf`` file, or a hub id such as ``org/name``.

    ``dtype``: ``auto`` (measured once on a CPU, see ``precision``), ``float32``, ``bfloat16``, ``float16``.
    ``device``: ``auto`` (CUDA where there is any), ``cpu``, ``cuda``, ``cuda:1``, ``mps``. ``chat_template``: see
    ``templates``. Raises ConfigError for a wrong dtype or device name, ModelError for a model that cannot be found,
    fetched, read or used, MissingExtraError where torch or transformers are not installed.
    """
    require_local()
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(unknown_name("dtype", dtype, ["auto", *DTYPES]))
    device = _choose_device(device)
    folder, name = locate(str(source), cache_dir=cache_dir, progress=progress)
    read_config(folder)
    tokenizer = read_tokenizer(folder)
    notes = apply_template(tokenizer, chat_template, str(source) if source != "packaged" else name)
    if dtype == "auto":
        chosen, reason = choose_dtype(device, cache_dir=cache_dir, progress=progress)
    else:
        chosen, reason = DTYPES[dtype], "as asked"
    model = read_model(folder, chosen)
    _check_vocabulary(model, tokenizer, folder)
    return LoadedModel(
        model=model.to(device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        name=name,
        base_hash=base_hash_of(folder, cache_dir),
        dtype=chosen,
        device=device,
        notes=(f"compute dtype {chosen}: {reason}", *notes),
    )


def locate(source: str, *, cache_dir: Path | None = None, progress: Progress | None = None) -> tuple[Path, str]:
    """The folder that holds ``source`` (fetched and converted where needed) and the model's name."""
    if source == "packaged":
        return ensure_packaged(cache_dir, progress), SMOLLM2.title
    path = Path(source).expanduser()
    if path.is_dir():
        return path.absolute(), path.absolute().name
    if path.is_file():
        if path.suffix.lower() == ".gguf" or is_gguf(path):
            return ensure_gguf(path.absolute(), cache_dir=cache_dir, progress=progress), path.stem
        raise ModelError(
            f"{path} is a file but no GGUF; give a .gguf file, or the folder that holds config.json and the weights "
            f"(such as {path.absolute().parent})"
        )
    if _means_a_path(source):
        raise ModelError(_no_such_path(path))
    return _from_hub(source, progress), source


def base_hash_of(folder: Path, cache_dir: Path | None = None) -> str:
    """The content hash of a folder's weights: of the bytes of its weight files and of what its config says.

    A folder that twoclock converted from a GGUF file keeps the hash that was recorded then, also when it was copied
    elsewhere, as long as its content is the recorded one.
    """
    root = cache_root(cache_dir)
    record = read_record(folder)
    recorded = str(record.get("base_hash", ""))
    if recorded and folder.parent == root / "models" and damage(folder) is None:
        return recorded
    weights = {p.name: remembered_sha256(p, root) for p in weight_files(folder)}
    if recorded:
        files = record.get("files", {})
        actual = {**weights, "config.json": remembered_sha256(folder / "config.json", root)}
        if all(files.get(name, {}).get("sha256") == digest for name, digest in actual.items()):
            return recorded
    config = {k: v for k, v in (read_json(folder / "config.json") or {}).items() if k not in VOLATILE_CONFIG}
    return content_hash({"weights": weights, "config": config})


# ----------------------------------------------------------------------------------------------------- device and size


def _choose_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise ConfigError(unknown_name("device", device, ["auto", "cpu", "cuda", "cuda:0", "mps"]))
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= count:
            raise ModelError(
                f"device '{device}' was asked for but torch {torch.__version__} sees {count} CUDA devices; "
                'use device = "cpu", or install a torch build with CUDA'
            )
    if device == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device 'mps' was asked for but this machine has none; use device = \"cpu\"")
    return device


def _check_vocabulary(model: Any, tokenizer: Any, folder: Path) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer in {folder} has {len(tokenizer):,} tokens but the model has embeddings for {rows:,}: "
            "they belong to different models"
        )


# ------------------------------------------------------------------------------------------------------- paths and hub


def _means_a_path(source: str) -> bool:
    return (
        not HUB_ID.fullmatch(source)
        or source.startswith(("/", ".", "~"))
        or "\\" in source
        or source.lower().endswith((".gguf", ".safetensors", ".bin"))
        or ("/" in source and Path(source).parent.is_dir())
    )


def _no_such_path(path: Path) -> str:
    parent = path.absolute().parent
    if not parent.is_dir():
        return f"there is no model at {path}: the folder {parent} does not exist"
    close = nearest(path.name, (p.name for p in parent.iterdir()))
    hint = f"; did you mean {' or '.join(str(path.parent / c) for c in close)}?" if close else ""
    return f"there is no model at {path}{hint or f'; {parent} has nothing of a similar name'}"


def _from_hub(source: str, progress: Progress | None) -> Path:
    """The folder of a hub model, fetched through the hub client with whatever cache, token and proxy the user set."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    if progress:
        progress(f"looking for {source} on the model hub and in its local cache")
    known = nearest(source, ["packaged"])
    typo = "; did you mean 'packaged'?" if known else ""
    ways = f'give a local folder, a .gguf file or "packaged" instead{typo}'
    try:
        return _download(huggingface_hub.snapshot_download, source)
    except GatedRepoError as error:
        raise ModelError(
            f"the model {source} is gated: accept its conditions on the hub, then type: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no public model '{source}' (private ones need: hf auth login); {ways}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"the model '{source}' is neither a local path nor in the hub's local cache, and the hub could not be "
            f"reached; check the network, or {ways}"
        ) from error
    except Exception as error:  # the hub client, its transports and a damaged answer each raise their own kind
        text = " ".join(str(error).split())[:300]
        raise ModelError(f"the model '{source}' could not be fetched from the hub: {text}; {ways}") from error


def _download(snapshot: Callable[..., Any], source: str) -> Path:
    with quiet_transformers():
        folder = Path(snapshot(source, allow_patterns=list(HUB_FILES), ignore_patterns=["*/*"]))
        if not weight_files(folder):
            folder = Path(snapshot(source, allow_patterns=[*HUB_FILES, "pytorch_model*.bin"], ignore_patterns=["*/*"]))
    return folder

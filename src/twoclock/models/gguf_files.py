"""GGUF files: checking that one is whole, and turning it into a plain safetensors folder that any tool can load.

The header is read here rather than by the ``gguf`` package because that maps the tensors first, and so answers a
truncated file with a reshape error; the layout is that of the GGUF specification, versions 2 and 3: magic, version,
counts, key-value pairs, tensor names with type and offset, then the data from an aligned position on.
"""

from __future__ import annotations

import importlib.metadata
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from twoclock.errors import ModelError
from twoclock.hashing import content_hash
from twoclock.models.cache import Progress, cache_root, ensure_folder, file_sha256, remembered_sha256
from twoclock.models.hf import quiet_transformers, read_model, read_tokenizer, require_local, weight_files

__all__ = ["GgufHeader", "convert_gguf", "ensure_gguf", "folder_name", "is_gguf", "read_header"]

CONVERSION = 1
"""Part of the cached folder's name; raise it when the conversion changes what it writes."""

MAX_STRING = 1 << 26  # a longer key or value means that the file is damaged, not that it is large
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY, UINT32 = 8, 9, 4
STORED_AS_IS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What a GGUF file says of itself."""

    architecture: str
    name: str
    tensor_types: Mapping[str, str]
    """Type by tensor name, such as ``Q4_1``."""
    expected_bytes: int
    """How large the file must be for every tensor to be whole."""
    num_values: int

    @property
    def stored_dtype(self) -> str:
        """The dtype to keep the weights in: an unquantised file's own, else bfloat16.

        Dequantised values have more digits than bfloat16 keeps (scale times level plus minimum, each in float16), so
        they are rounded once, here: by half a unit in the last of 8 bits, 0.14 % of a tensor's norm for Q4_1 weights,
        which is far below the error of quantising them. Every compute dtype then starts from the same numbers.
        """
        types = set(self.tensor_types.values())
        if not types <= set(STORED_AS_IS):
            return "bfloat16"
        matrices = [t for name, t in self.tensor_types.items() if "norm" not in name and not name.endswith(".bias")]
        return next((STORED_AS_IS[t] for t in ("F32", "F16", "BF16") if t in matrices), "float32")


class _TruncatedError(Exception):
    """The file ended where more was due."""


def _take(handle: IO[bytes], count: int) -> bytes:
    data = handle.read(count)
    if len(data) != count:
        raise _TruncatedError
    return data


def _number(handle: IO[bytes], form: str) -> int:
    return int(struct.unpack(f"<{form}", _take(handle, struct.calcsize(form)))[0])


def _string(handle: IO[bytes]) -> str:
    length = _number(handle, "Q")
    if length > MAX_STRING:
        raise _TruncatedError
    return _take(handle, length).decode("utf-8", errors="replace")


def _value(handle: IO[bytes], kind: int) -> str | int | None:
    """A key's value where it is text or an unsigned integer; anything else is stepped over."""
    if kind == STRING:
        return _string(handle)
    if kind == UINT32:
        return _number(handle, "I")
    if kind == ARRAY:
        inner, count = _number(handle, "I"), _number(handle, "Q")
        if inner in SCALAR_BYTES:
            handle.seek(SCALAR_BYTES[inner] * count, 1)
        else:
            for _ in range(count):
                _value(handle, inner)
        return None
    if kind not in SCALAR_BYTES:
        raise _TruncatedError
    _take(handle, SCALAR_BYTES[kind])
    return None


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does."""
    with path.open("rb") as handle:
        return handle.read(4) == b"GGUF"


def read_header(path: Path) -> GgufHeader:
    """Read a file's header and compare its size with what its tensors need.

    Raises ModelError for a file that is no GGUF, is of an unknown version, or is truncated (saying how much of it is
    there).
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise ModelError(
                f"{path} is no GGUF file (it does not begin with 'GGUF'; {size:,} bytes); expected a .gguf file, "
                "or a folder that save_pretrained wrote"
            )
        try:
            header = _parse(handle, path)
        except (_TruncatedError, struct.error, OverflowError) as error:
            raise ModelError(
                f"{path} is truncated or damaged: its header does not end within its {size:,} bytes; get it again"
            ) from error
    if size < header.expected_bytes:
        raise ModelError(
            f"{path} is truncated: it has {size:,} bytes but its {header.num_values} header values and "
            f"{len(header.tensor_types)} tensors need {header.expected_bytes:,} "
            f"({header.expected_bytes - size:,} are missing); get it again"
        )
    return header


def _parse(handle: IO[bytes], path: Path) -> GgufHeader:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    version = _number(handle, "I")
    if version not in (2, 3):
        raise ModelError(f"{path} is a GGUF file of version {version}; versions 2 and 3 (little-endian) can be read")
    num_tensors, num_values = _number(handle, "Q"), _number(handle, "Q")
    values: dict[str, str | int | None] = {}
    for _ in range(num_values):
        key = _string(handle)
        values[key] = _value(handle, _number(handle, "I"))
    types: dict[str, str] = {}
    ends = [0]
    for _ in range(num_tensors):
        name, dims = _string(handle), _number(handle, "I")
        elements = 1
        for _ in range(dims):
            elements *= _number(handle, "Q")
        code, offset = _number(handle, "I"), _number(handle, "Q")
        try:
            kind = GGMLQuantizationType(code)
        except ValueError as error:
            raise ModelError(f"{path}: tensor {name} has the unknown type {code}; update the gguf package") from error
        block, block_bytes = GGML_QUANT_SIZES[kind]
        types[name] = kind.name
        ends.append(offset + elements // block * block_bytes)
    alignment = values.get("general.alignment") or 32
    if not isinstance(alignment, int):
        raise _TruncatedError
    data_start = -(-handle.tell() // alignment) * alignment
    return GgufHeader(
        architecture=str(values.get("general.architecture", "")),
        name=str(values.get("general.name") or path.stem),
        tensor_types=types,
        expected_bytes=data_start + max(ends),
        num_values=num_values,
    )


# --------------------------------------------------------------------------------------------------------- conversion


def folder_name(sha256: str) -> str:
    """The cached folder of a GGUF file, by its content."""
    return f"gguf-{sha256[:16]}-{CONVERSION}"


def ensure_gguf(path: Path, *, cache_dir: Path | None = None, progress: Progress | None = None) -> Path:
    """The prepared folder of a GGUF file, converted on first use; see :func:`convert_gguf` for the errors."""
    require_local("gguf", purpose="reading a GGUF file")
    header = read_header(path)
    root = cache_root(cache_dir)
    sha256 = remembered_sha256(path, root)

    def build(scratch: Path, out: Path) -> dict[str, Any]:
        return convert_gguf(path, out, sha256=sha256, title=path.stem, progress=progress or _silent)

    return ensure_folder(
        root,
        folder_name(sha256),
        build,
        what=path.name,
        need_bytes=converted_bytes(header),
        progress=progress or _silent,
    )


def converted_bytes(header: GgufHeader) -> int:
    """A bound for the disk space of the converted folder: quantised weights take at least 2 bits a value."""
    widest = 4 if header.stored_dtype == "float32" else 2
    packed = {"F32": 4, "F16": 2, "BF16": 2, "Q8_0": 1.06, "Q4_1": 0.625}
    per_value = min((packed.get(kind, 0.55) for kind in header.tensor_types.values() if kind != "F32"), default=4)
    return int(header.expected_bytes / per_value * widest) + 20_000_000


def convert_gguf(path: Path, out: Path, *, sha256: str, title: str, progress: Progress) -> dict[str, Any]:
    """Dequantise a GGUF file into ``out``: config.json, model.safetensors, the tokenizer with its chat template.

    Returns the facts for the record, ``base_hash`` among them: the hash of the weight files and of the GGUF file they
    came from, which holds the configuration too. transformers refuses to save what it marked as quantised, so the
    model is rebuilt from the tensors with a config that carries no quantisation. The result is read back and compared.
    Raises ModelError where transformers cannot read the file.
    """
    require_local("gguf", purpose="reading a GGUF file")
    header = read_header(path)
    progress(f"converting {path.name} to {header.stored_dtype} safetensors; this is done once")
    try:
        with quiet_transformers():
            tokenizer = _tokenizer_from_gguf(path)
            model = _model_from_gguf(path, header.stored_dtype)
            tokenizer.save_pretrained(str(out))
            model.save_pretrained(str(out))
    except (OSError, ModelError):
        raise
    except Exception as error:
        if "os error 28" in str(error):
            raise  # a full disk, for the cache to report
        raise ModelError(
            f"transformers cannot convert {path} (architecture '{header.architecture}'): "
            f"{' '.join(str(error).split())[:300] or type(error).__name__}"
        ) from error
    progress(f"checking the converted {path.name}")
    _check_conversion(model, out, header.stored_dtype)
    return {"title": title, "base_hash": _base_hash(out, sha256), "gguf_sha256": sha256, "versions": _versions()}


def _tokenizer_from_gguf(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)


def _model_from_gguf(path: Path, dtype: str) -> Any:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # versions without it always dequantise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    torch_dtype = getattr(torch, dtype)
    loaded, info = AutoModelForCausalLM.from_pretrained(
        str(path.parent),
        gguf_file=path.name,
        dtype=torch_dtype,
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    if info.get("missing_keys"):
        missing = sorted(info["missing_keys"])
        raise ModelError(f"{path} lacks {len(missing)} of the model's tensors, such as {missing[0]}")
    values = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        values.pop(key, None)
    with torch.device("meta"):  # no second copy of the weights: the tensors are taken over as they are
        plain = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(values), dtype=torch_dtype)
    tensors = {name: tensor.to(torch_dtype) for name, tensor in loaded.state_dict().items()}
    plain.load_state_dict(tensors, assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    return plain


def _check_conversion(model: Any, out: Path, dtype: str) -> None:
    """Read the folder back and compare every tensor, then see that the model computes finite numbers."""
    import torch

    again = read_model(out, dtype)
    tokenizer = read_tokenizer(out)
    before, after = model.state_dict(), again.state_dict()
    wrong = sorted(set(before) ^ set(after)) or [k for k in before if not torch.equal(before[k], after[k])]
    if wrong:
        raise ModelError(f"the converted model differs from what was read, in {len(wrong)} tensors such as {wrong[0]}")
    ids = torch.tensor([tokenizer.encode("Hello, world") or [0]])
    with torch.inference_mode():
        logits = again(ids).logits
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("the converted model computes NaN or infinity; the GGUF file holds damaged numbers")


def _base_hash(out: Path, sha256: str) -> str:
    return content_hash({"gguf": sha256, "weights": {p.name: file_sha256(p) for p in weight_files(out)}})


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "gguf")
    return {**{name: importlib.metadata.version(name) for name in packages}, "conversion": str(CONVERSION)}


def _silent(message: str) -> None:
    """The progress of one who does not want to know."""

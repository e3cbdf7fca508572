"""Where compiled code is kept: in this machine's cache, and in the store for other machines that may trust it.

    code = CompiledCode(artifacts, launch, program(model.config, device, rows=16))
    code.prepare()     # before torch.compile: PyTorch keeps its code in the cache, and finds there what others stored
    code.share()       # once all is compiled: it is stored, in the background

Code is native, and what PyTorch keeps beside it is pickled: whoever loads it runs it. So it crosses machines only
between those that have the same NANOCHAT_CODE_KEY, from a Secret of their namespace: its name in the store and its
signature (HMAC-SHA256, RFC 2104) are made with the key, and nothing is unpacked that was signed without it. Without a
key it stays on its machine. In all else it is a hint: what is missing, late or damaged is compiled.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import logging
import os
import sys
import threading
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import nanochat
from nanochat.model.sizes import ModelConfig
from nanochat.spec.errors import NanochatError
from nanochat.storage.artifacts import Artifacts

log = logging.getLogger(__name__)

PLACE = "TORCHINDUCTOR_CACHE_DIR"  # names PyTorch's folder
KEY = "NANOCHAT_CODE_KEY"
SHORTEST = 32  # characters of a key
KIND = "code"  # of artifacts. No run refers to one, so that `nanochat gc` removes it when it is a day old
ARCHIVE = "code.zip"
LARGEST = 64 << 20  # bytes in an archive; a model's for CPUs has 4 MB
SECONDS = 10.0  # that a start waits for the store: a third of what compiling takes
ASKED, WHOLE = "asked", "whole"  # files beside the code: the store was asked; all that the program needs is there


def program(model: ModelConfig, device: torch.device, **settings: Any) -> dict[str, Any]:
    """All that decides what is compiled, and for which machine, as JSON."""
    return {
        "torch": str(torch.__version__),
        "python": sys.version,
        "package": _sources(),
        "cpu": _instructions(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "threads": torch.get_num_threads(),
        "model": model.to_dict(),
        **settings,
    }


@dataclass(frozen=True, slots=True)
class CompiledCode:
    """The code of one program, on this machine and in the store."""

    artifacts: Artifacts
    launch: str
    program: Mapping[str, Any]

    def prepare(self) -> None:
        """Let PyTorch keep code in the cache, which bounds it, unless the environment names another place; put there
        what the store has."""
        if not self.program["gpu"]:  # a worker takes half a gigabyte, which no pod asks for, to save seconds
            os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        folder, key = self._folder(), _key()
        if os.environ.setdefault(PLACE, str(folder)) != str(folder):
            return
        if key is not None:
            with self.artifacts.cache.once(f"asking for {folder}"):  # the other ranks of this node wait
                if not (folder / ASKED).exists():
                    (folder / ASKED).touch()
                    archive = self._fetch_in_time(key)
                    if archive is not None:
                        unpack(archive, self.artifacts.cache.scratch("compiled-code"), folder)
        if (folder / WHOLE).exists():
            skip_headers()

    def share(self) -> None:
        """Store the code where the store has none, in the background. A failure is told, and that is all."""
        threading.Thread(target=self._share, name="compiled-code", daemon=True).start()

    def _folder(self) -> Path:
        return self.artifacts.cache.fetch(f"compiled code for {self._digest()}", (), _nothing)

    def _fetch_in_time(self, key: bytes) -> bytes | None:
        pool = ThreadPoolExecutor(1, thread_name_prefix="compiled-code")
        found = pool.submit(self._fetch, key)
        pool.shutdown(wait=False)
        try:
            return found.result(SECONDS)
        except TimeoutError:
            log.warning("compiled code is not waited for any longer: the store has not given it in %.0f s", SECONDS)
            return None

    def _fetch(self, key: bytes) -> bytes | None:
        """The archive, if the store has one that was signed with the key."""
        try:
            manifest = self.artifacts.find(KIND, self._name(key))
            if manifest is None:
                return None
            if manifest.size > LARGEST:
                log.warning(
                    "compiled code is passed over: %s has more than %s bytes",
                    self.artifacts.uri(manifest),
                    f"{LARGEST:,}",
                )
                return None
            with (self.artifacts.fetch(manifest, [ARCHIVE]) / ARCHIVE).open("rb") as file:
                archive = file.read(LARGEST)
            self.artifacts.release(manifest)
        except (NanochatError, OSError) as error:
            log.warning("compiled code is passed over: %s", error)
            return None
        signature = str(manifest.metadata.get("signature", ""))
        if not hmac.compare_digest(signature.encode(), self._sign(key, archive).encode()):
            log.warning("compiled code is passed over: %s was not signed with %s", self.artifacts.uri(manifest), KEY)
            return None
        return archive

    def _share(self) -> None:
        try:
            folder, key = self._folder(), _key()
            if os.environ[PLACE] != str(folder):
                return
            (folder / WHOLE).touch()
            if key is None or self.artifacts.find(KIND, self._name(key)) is not None:
                return
            archive = pack(folder)
            if archive is None:
                return
            with self.artifacts.writer(KIND, self._name(key), self.launch) as writer:
                (writer.folder / ARCHIVE).write_bytes(archive)
                signature = self._sign(key, archive)
                writer.commit(recipe=dict(self.program), inputs={}, metadata={"signature": signature})
        except (NanochatError, OSError) as error:
            log.warning("compiled code could not be stored, so that other machines compile it too: %s", error)

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.program, sort_keys=True).encode()).hexdigest()

    def _name(self, key: bytes) -> str:
        """The artifact's key. Those who have another NANOCHAT_CODE_KEY have others."""
        return hmac.new(key, b"name " + self._digest().encode(), "sha256").hexdigest()

    def _sign(self, key: bytes, archive: bytes) -> str:
        return hmac.new(key, b"code " + self._digest().encode() + archive, "sha256").hexdigest()


def skip_headers() -> None:
    """Keep PyTorch from compiling its headers (156 MB, 14 s) before it looks whether a kernel is missing at all.

    One that is missing is compiled without, some seconds slower. PyTorch's own option for that renames all kernels.
    """
    from torch._inductor import codecache  # takes a while, and torch.compile imports it anyway

    codecache._precompile_header = lambda *_, **__: None


def pack(folder: Path) -> bytes | None:
    """A folder's files as an archive; None where they are too large."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    kept = [path for path in found if path.suffix != ".lock" and path.name != ASKED]
    if sum(path.stat().st_size for path in kept) > LARGEST:
        log.warning("compiled code is not stored: %s has more than %s bytes", folder, f"{LARGEST:,}")
        return None
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in kept:
            archive.write(path, path.relative_to(folder))
    return buffer.getvalue()


def unpack(data: bytes, scratch: Path, folder: Path) -> None:
    """Put an archive's files into a folder, each whole or not at all, by way of another that is empty."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(item.file_size for item in archive.infolist())
        if size > LARGEST:
            log.warning("compiled code is passed over: it has %s bytes, more than %s", f"{size:,}", f"{LARGEST:,}")
            return
        archive.extractall(scratch)
    for path in sorted(scratch.rglob("*")):
        target = folder / path.relative_to(scratch)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            path.replace(target)
    log.info("compiled code of another machine is used: %s bytes", f"{size:,}")


def _key() -> bytes | None:
    """The key; None where there is none, or one that can be guessed, which is told."""
    text = os.environ.get(KEY, "")
    if 0 < len(text) < SHORTEST:
        log.warning("%s is not used, so that each machine compiles anew: give it %s characters or more", KEY, SHORTEST)
    return text.encode() if len(text) >= SHORTEST else None


def _sources() -> str:
    """A digest of this package's sources."""
    digest, root = hashlib.sha256(), Path(nanochat.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _instructions() -> str:
    """The instructions that this machine's CPU has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return torch.backends.cpu.get_cpu_capability()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _nothing(*_: object) -> None:
    raise AssertionError("nothing is to be fetched")

"""The libraries of others that the pages use, kept beside them as their packages have them.

    python -m nanochat.serving.vendored                     # fetches them again, by the versions in vendored.json
    python -m nanochat.serving.vendored marked=18.2.1       # and takes another version of one of them

It runs `npm pack`, of which nothing is executed, and writes each file with its hash into vendored.json. A package of a
version that is listed already has to have the listed hashes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from nanochat.spec.errors import NanochatError, UserError

MAX_FILE = 2 << 20  # bytes
FOLDER = Path(str(resources.files("nanochat.serving"))) / "static" / "vendor"
INDEX = "vendored.json"


def read_index(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The libraries: package, version, license, and of each file its `name`, that in its package (`from`), `sha256`."""
    return json.loads((folder / INDEX).read_text(encoding="utf-8"))


def refresh(folder: Path, versions: dict[str, str]) -> None:
    """Fetch every library, those in `versions` in another version; NanochatError where a package is not as listed."""
    libraries = read_index(folder)
    if unknown := versions.keys() - {library["package"] for library in libraries}:
        raise UserError(f"The pages use no library {min(unknown)!r}; name one of those in {folder / INDEX}.")
    contents: dict[str, bytes] = {}
    for library in libraries:
        version: str = versions.get(library["package"]) or library["version"]
        for file, content in zip(library["files"], _fetch(library, version), strict=True):
            digest = hashlib.sha256(content).hexdigest()
            if version == library["version"] and digest != file["sha256"]:
                subject = f"{file['from']} of {library['package']} {version}"
                raise NanochatError(f"{subject} has another hash than {folder / INDEX} lists; find out why.")
            file["sha256"] = digest
            contents[file["name"]] = content
        library["version"] = version
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / INDEX).write_text(json.dumps(libraries, indent=2) + "\n", encoding="utf-8")


def _fetch(library: dict[str, Any], version: str) -> Iterator[bytes]:
    """The contents of a library's files, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = f"{library['package']}@{version}"
        packed = subprocess.run(["npm", "pack", "--silent", wanted], cwd=folder, capture_output=True, text=True)
        if packed.returncode:
            raise NanochatError(f"npm could not fetch {wanted}: {packed.stderr.strip()[-500:]}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            described = json.loads(_read(archive, "package.json"))
            if (described["version"], described["license"]) != (version, library["license"]):
                raise NanochatError(
                    f"{wanted} is version {described['version']} under {described['license']}, not under "
                    f"{library['license']}; change NOTICE and {INDEX} first."
                )
            for file in library["files"]:
                yield _read(archive, file["from"])


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.getmember(f"package/{name}")
    content = archive.extractfile(member) if member.size <= MAX_FILE else None
    if content is None:
        raise NanochatError(f"{name} is no file of at most {MAX_FILE:,} bytes.")
    return content.read()


def main(arguments: Sequence[str]) -> int:
    """The command; each argument is PACKAGE=VERSION."""
    try:
        pairs = [argument.rpartition("=") for argument in arguments]
        refresh(FOLDER, {package: version for package, _, version in pairs})
    except NanochatError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

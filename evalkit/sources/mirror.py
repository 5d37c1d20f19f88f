"""A folder that replaces the network: MANIFEST.csv files give each local file's upstream URL."""

from dataclasses import dataclass, field
from pathlib import Path

from evalkit.core.errors import FetchError, InputError
from evalkit.core.files import file_sha256, parse_table, read_text

MANIFEST = "MANIFEST.csv"
_COLUMNS = ("local_path", "sha256", "upstream_url")


@dataclass(frozen=True, slots=True)
class MirroredFile:
    """One line of a manifest."""

    path: Path
    sha256: str
    manifest: Path


@dataclass(frozen=True)
class Mirror:
    """Every MANIFEST.csv at or below a folder; `local_path` is relative to its manifest."""

    root: Path
    files: dict[str, tuple[MirroredFile, ...]] = field(repr=False)

    @classmethod
    def open(cls, root: Path) -> "Mirror":
        """Reads the manifests.

        Raises:
            InputError: no such folder, no manifest below it, or a malformed one.
        """
        manifests = sorted(root.rglob(MANIFEST)) if root.is_dir() else []
        if not manifests:
            what = f"no {MANIFEST} at or below the mirror folder" if root.is_dir() else "no such folder"
            raise InputError(what, where=f"mirror={root}")
        files: dict[str, tuple[MirroredFile, ...]] = {}
        for manifest in manifests:
            for url, found in _read(root, manifest):
                files[url] = (*files.get(url, ()), found)
        return cls(root, files)

    def find(self, url: str) -> tuple[Path, str] | None:
        """The local copy of `url` and its sha256, checked against the manifest; None: not mirrored.

        Raises:
            FetchError: the copy is missing or its bytes are not those of the manifest.
        """
        problem = None
        for file in self.files.get(url, ()):
            try:
                digest = file_sha256(file.path)
            except OSError as error:
                problem = FetchError(
                    f"a file of the mirror cannot be read: {error.strerror}", where=f"{file.path} ({url})"
                )
                continue
            if digest == file.sha256:
                return file.path, digest
            problem = FetchError(
                f"a file of the mirror has a wrong hash: sha256 expected {file.sha256}, got {digest}",
                where=f"{file.path}\n  from:  {url}",
                fix=f"copy the file again, or correct {file.manifest}",
            )
        if problem:
            raise problem
        return None


def _read(root: Path, manifest: Path) -> list[tuple[str, MirroredFile]]:
    found = []
    text = read_text(manifest, "the manifest")
    for place, row in parse_table(text, manifest, columns=_COLUMNS, exact=False):
        if not all(row[column] for column in _COLUMNS):
            raise InputError("an incomplete line", where=place)
        path = _inside(root, manifest, row["local_path"], place)
        found.append((row["upstream_url"], MirroredFile(path, row["sha256"].lower(), manifest)))
    return found


def _inside(root: Path, manifest: Path, local_path: str, place: str) -> Path:
    relative = Path(local_path)
    if relative.is_absolute() or ".." in relative.parts or "\0" in local_path:
        raise InputError(f"the path {local_path!r} leads out of the mirror", where=place)
    path = manifest.parent / relative
    # A link may lead out as well. The mirror's own folder may be a link.
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"the path {local_path!r} leads out of the mirror by a link",
            where=place,
            fix="copy the file into the mirror",
        )
    return path

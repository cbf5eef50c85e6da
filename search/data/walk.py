"""Which files below a folder are the images of a split, and which are left out."""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from spaces.errors import DataError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# What systems leave in folders of images; compared in lower case.
LEFT_BY_SYSTEMS = frozenset({"@eadir", "__macosx", "desktop.ini", "thumbs.db"})
_MOST_SUFFIXES = 4  # that a note counts one by one


def is_hidden(name: str) -> bool:
    """Return whether files and folders of that name are passed over without a word.

    >>> [is_hidden(name) for name in (".ipynb_checkpoints", "__MACOSX", "cat")]
    [True, True, False]
    """
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


def scan(folder: Path) -> list["os.DirEntry[str]"]:
    """Return what a folder holds and is not hidden, by name; DataError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from None


def leads_to_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder or a link to one; a link that leads in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def has_suffix(name: str) -> bool:
    """Return whether a file's name ends as that of an image that is read."""
    return Path(name).suffix.lower() in SUFFIXES


@dataclass
class LeftOut:
    """What a split leaves out, apart from what is hidden.

    Attributes:
        root: the folder of the split.
        other: files without the suffix of an image that is read.
        misplaced: files and folders outside those that are read.
        links: links that lead back to a folder above, or to what is read already.
        special: pipes, sockets and devices.
        shared: images that are in two classes, through links; these are read all the same.
    """

    root: Path
    other: list[Path] = field(default_factory=list)
    misplaced: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    special: list[Path] = field(default_factory=list)
    shared: list[Path] = field(default_factory=list)

    def file(self, path: Path) -> None:
        """Note a file that is left out."""
        try:
            mode = path.stat().st_mode
        except OSError:  # a dead link
            mode = stat.S_IFREG
        (self.other if stat.S_ISREG(mode) else self.special).append(path)

    def notes(self) -> list[str]:
        """Return a line on what is left out and why, and one on what is read twice; none if there is nothing."""
        reasons = []
        if self.other:
            images = sum(map(_is_image, self.other))
            hint = f" ({images} of them images by their content: rename them to .jpg or .png)" if images else ""
            reasons.append(f"{_by_suffix(self.other)}{hint}")
        if self.misplaced:
            reasons.append(f"{len(self.misplaced)} in the wrong place, such as {self.misplaced[0].name!r}")
        if self.links:
            reasons.append(f"{_count(self.links, 'link')} back, or to what is read already")
        if self.special:
            reasons.append(f"{len(self.special)} that are no regular files, such as {self.special[0].name!r}")
        total = sum(map(len, (self.other, self.misplaced, self.links, self.special)))
        notes = [f"{self.root}: {total} left out: {'; '.join(reasons)}"] if reasons else []
        if self.shared:
            first = self.shared[0].relative_to(self.root)
            notes.append(f"{self.root}: {_count(self.shared, 'image')} in two classes, by a link, such as {first}")
        return notes


class ClassWalk:
    """Lists the images of one class after another, in folders at any depth.

    Links are followed, but each folder and each file is taken in once a class.

    Args:
        root: the folder of the split.

    Attributes:
        left_out: what was not taken in so far.
    """

    def __init__(self, root: Path) -> None:
        self.left_out = LeftOut(root)
        self._root = root
        self._real_root = _real(root)
        self._class_of: dict[Path, str] = {}  # of what links led to, by its real path

    def images(self, class_name: str) -> list[Path]:
        """Return the images of a class, sorted.

        Raises:
            DataError: a folder cannot be read, or the class's own is a link that leads back.
        """
        top = self._root / class_name
        if self._real_root.is_relative_to(_real(top)):
            raise DataError(f"{top}: a link that leads back to {self._root}; remove it")
        found: list[Path] = []
        linked: list[tuple[Path, Path]] = []
        for folder, real in self._folders(top):
            behind_link = real != self._expected(folder)
            for entry in self._files(folder):
                path = folder / entry.name
                if entry.is_symlink():
                    linked.append((path, _real(path)))
                elif behind_link:
                    linked.append((path, real / entry.name))
                else:
                    found.append(path)
        if linked:
            found += self._new(linked, set(map(self._expected, found)), class_name)
        return sorted(found)

    def _folders(self, top: Path) -> Iterator[tuple[Path, Path]]:
        """Yield each folder with its real path, those behind links last."""
        visited: set[Path] = set()
        pending, behind_links = [top], list[Path]()
        while pending or behind_links:
            folder = pending.pop() if pending else behind_links.pop(0)
            real = _real(folder)
            if real in visited:
                self.left_out.links.append(folder)
                continue
            visited.add(real)
            yield folder, real
            for entry in filter(leads_to_folder, scan(folder)):
                path = folder / entry.name
                if not entry.is_symlink():
                    pending.append(path)
                elif real.is_relative_to(_real(path)):
                    self.left_out.links.append(path)
                else:
                    behind_links.append(path)

    def _files(self, folder: Path) -> Iterator["os.DirEntry[str]"]:
        for entry in scan(folder):
            if leads_to_folder(entry):
                continue
            if has_suffix(entry.name) and is_readable(entry):
                yield entry
            else:
                self.left_out.file(folder / entry.name)

    def _new(self, linked: list[tuple[Path, Path]], taken: set[Path], class_name: str) -> Iterator[Path]:
        """Yield those of the linked files that are not taken yet, which are pairs of path and real path."""
        for path, real in sorted(linked):
            if real in taken:
                self.left_out.links.append(path)
                continue
            taken.add(real)
            owner = self._class_of.setdefault(real, class_name)
            if real.is_relative_to(self._real_root):
                owner = real.relative_to(self._real_root).parts[0]
            if owner != class_name:
                self.left_out.shared.append(path)
            yield path

    def _expected(self, path: Path) -> Path:
        """Return the real path of what no link leads to."""
        return self._real_root / path.relative_to(self._root)


def is_readable(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a file, or a dead link, which is named when it is read. A pipe would never end."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:  # links in a circle
        return True


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises if links lead in a circle


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except Exception:  # Pillow has no base class for what a broken file makes it raise
        return False


def _by_suffix(paths: Sequence[Path]) -> str:
    counted = Counter(path.suffix.lower() for path in paths)
    counts = sorted(counted.items(), key=lambda one: (-one[1], one[0]))
    shown = [f"{count} {suffix or 'without a suffix'}" for suffix, count in counts[:_MOST_SUFFIXES]]
    rest = sum(count for _, count in counts[_MOST_SUFFIXES:])
    return ", ".join([*shown, *([f"{rest} others"] if rest else [])])


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"

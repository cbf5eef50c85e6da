"""Results that the database did not take, in a file of JSON lines until a resume takes them in.

Each line is on the disk before the next result is taken. A driver locks its file while it runs, so that others take
in finished files only.
"""

import base64
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from io import FileIO
from pathlib import Path
from types import UnionType
from typing import IO, Any, TypeVar, get_args, get_origin, get_type_hints
from uuid import uuid4

from results import Evaluation, Study
from results.records import UNFINISHED, Confirmation
from results.store.database import parse_address
from results.store.store import Store
from search.driver.study_identity import IDENTITY
from search.settings import LARGEST_INT
from spaces import PruningSchedule
from spaces.errors import PrunefrontError, StoreError

FORMAT = 1
Record = TypeVar("Record", Evaluation, Confirmation)
MOST_BYTES = 2**30  # of a file that is read; a driver spools far less than this
_SET_BY_STORE = ("number", "finetuned", "metric", "confirmed")  # fields of an evaluation


class Spool:
    """A file for the results of one study, made with the first result.

    Args:
        study: whose results.
        url: address of its database.

    Attributes:
        path: of the file, once there is one.
        count: results in it.
        lost: results that no file could take.
        reason: why the last of them was lost.
    """

    def __init__(self, study: Study, url: str) -> None:
        self._study = study
        address = parse_address(url)
        folders = [Path.cwd()]
        where: list[Any] = [address.host, address.port, address.database, address.query.get("host")]  # no password
        if address.get_backend_name() == "sqlite":
            where = [Path(address.database or "").resolve()]
            folders.insert(0, where[0].parent)
        self._folders = list(dict.fromkeys(folders))
        slug = re.sub(r"[^\w.-]+", "_", study.name)[:40]
        digest = hashlib.sha256(f"{where}\n{study.name}".encode()).hexdigest()[:12]
        self._stem = f"prunefront-spool.{slug}.{digest}"
        self._file: FileIO | None = None
        self.path: Path | None = None
        self.count = self.lost = 0
        self.reason = ""

    def add(self, record: Evaluation | Confirmation) -> None:
        """Keep a result; when this returns it is on the disk, or counted in `lost`."""
        kind = "evaluation" if isinstance(record, Evaluation) else "confirmation"
        line = json.dumps({kind: as_json(record)}, allow_nan=False)
        try:
            if self._file is None:
                self._file, self.path = self._open(line)
            else:
                self._write(self._file, line)
            self.count += 1
        except OSError as error:
            self.lost += 1
            self.reason = error.strerror or str(error)

    def close(self) -> None:
        """Close the file; it stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def take_in(self, store: Store, note: Callable[[str], None]) -> None:
        """Write what earlier drivers spooled into the store, each result once, and remove their files.

        Raises:
            StoreError: a file is damaged, or its results are from other settings; it is left unchanged.
        """
        for path in sorted(path for folder in self._folders for path in folder.glob(f"{self._stem}.*.jsonl")):
            with self._opened(path) as file:
                if file is None:
                    continue
                records, cut = self._read(file, path)
                new = sum(self._take(store, record) for record in records)
                held = sum(self._is_held(store, record) for record in records)
                orphans = sum(self._is_orphan(store, record) for record in records)
                if not held:
                    path.unlink()
            damage = "; its last line was cut short and is left out" if cut else ""
            wait = f"; {held} are still claimed by another driver: the file stays for the next start" if held else ""
            gone = f"; {orphans} confirmed scores are left out, their schedules have no result" if orphans else ""
            known = len(records) - new - held - orphans
            note(f"took {new} results in from {path} ({known} were known){gone}{damage}{wait}")

    @contextmanager
    def _opened(self, path: Path) -> Iterator[IO[str] | None]:
        """Open a file and lock it; None if its driver still writes to it, or another one took it in."""
        try:
            file = path.open(encoding="utf-8")
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            raise StoreError(f"spool {path}: cannot be read: {error.strerror or error}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = os.fstat(file.fileno()).st_nlink > 0  # it may have been removed since it was opened
            except BlockingIOError:
                held = False
            yield file if held else None

    def _take(self, store: Store, record: Evaluation | Confirmation) -> bool:
        if isinstance(record, Evaluation):
            return store.record(self._study, record) is not None
        if store.confirmation(self._study, record.schedule_hash) is not None or self._is_orphan(store, record):
            return False
        store.confirm(self._study, record)
        return True

    def _is_orphan(self, store: Store, record: Evaluation | Confirmation) -> bool:
        """Return whether this is the confirmed score of a schedule whose result the database has lost."""
        if isinstance(record, Evaluation) or record.schedule_hash == PruningSchedule().hash:
            return False
        known = store.evaluation(self._study, record.schedule_hash)
        return known is None or known.state != "done"

    def _is_held(self, store: Store, record: Evaluation | Confirmation) -> bool:
        """Return whether a schedule still has no result, since a driver that may be at work has claimed it."""
        if isinstance(record, Confirmation):
            return False
        known = store.evaluation(self._study, record.hash)
        return known is not None and known.state in UNFINISHED

    @property
    def _header(self) -> dict[str, Any]:
        facts = json.dumps([str(getattr(self._study.spec, name)) for name in IDENTITY])  # what a resume must share
        settings = hashlib.sha256(facts.encode()).hexdigest()
        return {"prunefront-spool": FORMAT, "study": self._study.name, "settings": settings}

    def _open(self, line: str) -> tuple[FileIO, Path]:
        """Make the file, with its header and first line, in the first folder that allows it."""
        failure = OSError("no folder to write to")
        for folder in self._folders:
            path = folder / f"{self._stem}.{uuid4().hex[:8]}.jsonl"
            temporary = path.with_suffix(".part")
            try:
                file = FileIO(temporary, "x")
            except OSError as error:
                failure = error
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._write(file, json.dumps(self._header))
                self._write(file, line)
                temporary.rename(path)
            except OSError as error:
                failure = error
                temporary.unlink(missing_ok=True)
                file.close()
                continue
            return file, path
        raise failure

    def _write(self, file: FileIO, line: str) -> None:
        """Append a line, whole or not at all."""
        size = file.tell()
        rest = f"{line}\n".encode()
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            file.seek(size)
            raise

    def _read(self, file: IO[str], path: Path) -> tuple[list[Evaluation | Confirmation], bool]:
        """Return the results in a file, and whether its last line was cut short when its driver ended."""
        if os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise StoreError(f"spool {path}: is larger than {MOST_BYTES:,} bytes; move it away")
        advice = "; move it away to go on without it"
        try:
            lines = file.read().split("\n")
            cut = lines.pop() != ""  # a whole line ends with a line break
            header = json.loads(lines[0]) if lines else {}
            if not isinstance(header, dict) or header.get("prunefront-spool") != FORMAT:
                raise ValueError("is not of this version")
            if header != self._header:
                raise ValueError(f"is of study {header.get('study')!r} with other settings")
        except (ValueError, RecursionError) as error:
            raise StoreError(f"spool {path}: {error}{advice}") from None
        records: list[Evaluation | Confirmation] = []
        for number, line in enumerate(lines[1:], 2):
            try:
                records.append(from_json(json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError, PrunefrontError) as error:
                raise StoreError(f"spool {path}: line {number} is damaged: {error}{advice}") from None
        return records, cut


def as_json(record: Evaluation | Confirmation) -> dict[str, Any]:
    """Return a result as values that JSON takes."""
    values = {f.name: getattr(record, f.name) for f in fields(record) if f.name not in _SET_BY_STORE}
    return {name: _plain(value) for name, value in values.items()}


def from_json(line: dict[str, Any]) -> Evaluation | Confirmation:
    """Return the result that a line holds.

    Raises:
        ValueError, TypeError, KeyError: the line holds no result.
    """
    ((kind, values),) = line.items()
    values = dict(values)
    if values.get("finished_at"):
        values["finished_at"] = datetime.fromisoformat(values["finished_at"])
    if values.get("outcomes") is not None:
        values["outcomes"] = base64.b64decode(values["outcomes"], validate=True)
    if kind == "confirmation":
        return _checked(Confirmation(**values))
    if kind != "evaluation":
        raise ValueError(f"kind {kind!r}")
    values["schedule"] = PruningSchedule.parse(values["schedule"])
    return _checked(Evaluation(**values))


def _checked(record: Record) -> Record:
    """Return a record; ValueError if a field is of another type than it is declared with, or no database takes it."""
    for name, hint in get_type_hints(type(record)).items():
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        allowed: tuple[Any, ...] = tuple(get_origin(kind) or kind for kind in kinds)
        if float in allowed:
            allowed = (*allowed, int)
        value = getattr(record, name)
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise ValueError(f"{name} is a {type(value).__name__}")
        if isinstance(value, int) and abs(value) > LARGEST_INT:
            raise ValueError(f"{name} is too large")
        if isinstance(value, str):
            value.encode()  # raises a ValueError for what is not UTF-8
    return record


def _plain(value: object) -> object:
    if isinstance(value, PruningSchedule):
        return value.text
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime):
        return value.isoformat()
    return value if not hasattr(value, "items") else dict(value.items())

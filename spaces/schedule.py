"""What a schedule is: where tokens are dropped, how many stay, and by which method."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

from spaces.errors import ScheduleError

FORMAT = "prunefront.schedule"
VERSION = 1
MAX_STEPS = 4096  # far above any model's depth; guards against hostile files

IMPORTANCE = ("clip", "l1", "l2", "sum", "forward", "backward", "delta", "random")
ALIGNMENT = ("on", "off", "hold", "neighbour")  # `on` is the Δ policy `bias`
REDUCTION = ("prune", "merge")
CONTEXT = ("drop", "zeros", "conv", "freeze")


def kept_tokens(tokens: int, keep: float) -> int:
    """Return round-half-up(keep · tokens), at least 1.

    The product is taken in decimal, as a person reads the ratio: 0.29 of 50 is 14.5 and gives 15.
    """
    exact = Decimal(repr(keep)) * tokens
    return max(1, int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP)))


@dataclass(frozen=True, order=True)
class PruningStep:
    """After `after` blocks (counted from 1) keep the share `keep` in (0, 1] of the patch tokens.

    Raises:
        ScheduleError: a block below 1 or a ratio outside (0, 1].
    """

    after: int
    keep: float

    def __post_init__(self) -> None:
        if isinstance(self.after, bool) or not isinstance(self.after, int) or self.after < 1:
            raise ScheduleError(f"step after={self.after!r}: a block is a whole number from 1")
        if isinstance(self.keep, bool) or not isinstance(self.keep, int | float):
            raise ScheduleError(f"step after block {self.after}: keep={self.keep!r} is not a number")
        object.__setattr__(self, "keep", float(self.keep))
        if not (math.isfinite(self.keep) and 0.0 < self.keep <= 1.0):
            raise ScheduleError(f"step after block {self.after}: keep ratio {self.keep!r} is not in (0, 1]")

    def __str__(self) -> str:
        return f"{self.after}:{self.keep!r}"


@dataclass(frozen=True)
class PruningMethod:
    """How tokens are scored, dropped and remembered.

    Attributes:
        importance: score by which patch tokens are ranked, one of `IMPORTANCE`.
        alignment: Δ that a pruned position gives to the hidden state: `on` (softplus of the dt bias,
            the Δ of a token of zero feature), `hold` (the Δ it had when it was pruned), `neighbour`
            (the mean Δ of the kept tokens around the gap), or `off` (no alignment).
        reduction: `prune` drops a token, `merge` averages it into the most similar kept one.
        context: what later blocks see of a pruned token: `drop` nothing, `zeros` its place in the local
            convolution, `conv` its input to it, `freeze` its last feature, in convolution and state.

    Raises:
        ScheduleError: a value that is none of the above.
    """

    importance: str = "clip"
    alignment: str = "on"
    reduction: str = "prune"
    context: str = "drop"

    def __post_init__(self) -> None:
        for name, known in METHOD_CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise ScheduleError(f"method {name}={value!r}: expected one of {', '.join(known)}")
        if self.context == "freeze":  # no position is skipped, so there is nothing to align
            object.__setattr__(self, "alignment", "on")

    @property
    def carries(self) -> bool:
        """Whether the features of pruned tokens travel on through the blocks."""
        return self.context in ("conv", "freeze")

    @property
    def changes(self) -> dict[str, str]:
        """The choices that differ from the default, in a fixed order."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def as_dict(self) -> dict[str, str]:
        """All choices by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


METHOD_CHOICES: Mapping[str, tuple[str, ...]] = {
    "importance": IMPORTANCE,
    "alignment": ALIGNMENT,
    "reduction": REDUCTION,
    "context": CONTEXT,
}
# Another spelling of a choice: the policy that `on` stands for may be called by its name.
METHOD_ALIASES: Mapping[str, Mapping[str, str]] = {"alignment": {"bias": "on"}}


@dataclass(frozen=True)
class PruningSchedule:
    """An immutable schedule in canonical form.

    Steps are sorted by block and steps of ratio 1 vanish, so that schedules that do the same compare
    equal and have one `hash`. A schedule without steps is dense, and its method is the default.

    Raises:
        ScheduleError: two steps after the same block, or too many steps.
    """

    steps: tuple[PruningStep, ...] = ()
    method: PruningMethod = field(default_factory=PruningMethod)

    def __post_init__(self) -> None:
        if len(self.steps) > MAX_STEPS:
            raise ScheduleError(f"steps: {len(self.steps)} of them, at most {MAX_STEPS} are read")
        ordered = sorted(self.steps)
        for one, other in pairwise(ordered):
            if one.after == other.after:
                raise ScheduleError(f"steps: block {one.after} stands twice; one step a block")
        steps = tuple(step for step in ordered if step.keep < 1.0)
        object.__setattr__(self, "steps", steps)
        if not steps:
            object.__setattr__(self, "method", PruningMethod())

    @classmethod
    def of(cls, steps: Iterable[tuple[int, float]], **method: str) -> "PruningSchedule":
        """Build a schedule from (after, keep) pairs and method choices."""
        return cls(tuple(PruningStep(after, keep) for after, keep in steps), PruningMethod(**method))

    @classmethod
    def parse(cls, text: str) -> "PruningSchedule":
        """Read the text form, such as `5:0.8,10:0.8;importance=l2;context=freeze`; empty is dense.

        Raises:
            ScheduleError: the text is malformed; the message names the part.
        """
        if text.count(",") >= MAX_STEPS:
            raise ScheduleError(f"steps: more than {MAX_STEPS} of them")
        head, *options = text.split(";")
        steps = [_parse_step(part) for part in head.split(",")] if head.strip() else []
        return cls(tuple(steps), _parse_method(options))

    @property
    def text(self) -> str:
        """The canonical text form; empty if dense."""
        return ";".join([",".join(map(str, self.steps)), *(f"{k}={v}" for k, v in self.method.changes.items())])

    def __str__(self) -> str:
        return self.text

    @property
    def hash(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def dense(self) -> bool:
        """Whether no token is ever dropped."""
        return not self.steps

    def as_dict(self) -> dict[str, Any]:
        """The parts of the JSON form that the schedule itself determines."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "steps": [{"after": step.after, "keep": step.keep} for step in self.steps],
            "method": self.method.as_dict(),
        }

    @classmethod
    def from_dict(cls, data: object, where: str = "schedule") -> "PruningSchedule":
        """Read the JSON form, already decoded.

        Raises:
            ScheduleError: a field that is missing or wrong; the message names `where` and the field.
        """
        if not isinstance(data, dict):
            raise ScheduleError(f"{where}: expected a JSON object, found {type(data).__name__}")
        if data.get("format") != FORMAT:
            raise ScheduleError(f"{where}: format is {data.get('format')!r}, expected {FORMAT!r}")
        version = data.get("version")
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise ScheduleError(f"{where}: version is {version!r}, expected {VERSION}")
        if version > VERSION:
            raise ScheduleError(f"{where}: version {version} is newer than {VERSION}; upgrade prunefront")
        steps, method = data.get("steps"), data.get("method", {})
        if not isinstance(steps, list):
            raise ScheduleError(f"{where}: steps must be a list of {{after, keep}} objects")
        if len(steps) > MAX_STEPS:
            raise ScheduleError(f"{where}: {len(steps)} steps, at most {MAX_STEPS} are read")
        if not isinstance(method, dict):
            raise ScheduleError(f"{where}: method must be an object of names and choices")
        try:
            return cls(
                tuple(_step_from_dict(i, step) for i, step in enumerate(steps)),
                _method_from_pairs(list(method.items())),
            )
        except ScheduleError as error:
            raise ScheduleError(f"{where}: {error}") from None

    @classmethod
    def from_file(cls, path: str | Path) -> "PruningSchedule":
        """Read the JSON form from a file.

        Raises:
            ScheduleError: the file cannot be read or is not a schedule.
        """
        return cls.from_dict(read_schedule_file(path), str(path))


def read_schedule_file(path: str | Path) -> dict[str, Any]:
    """Return the decoded JSON of a schedule file, unchecked but for being an object.

    Raises:
        ScheduleError: the file cannot be read or holds no JSON object.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ScheduleError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ScheduleError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ScheduleError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


_STEP = re.compile(r"\s*(\d{1,9})\s*:\s*([0-9.eE+\-]+)\s*\Z")


def _parse_step(part: str) -> PruningStep:
    match = _STEP.match(part)
    if not match:
        raise ScheduleError(f"step {part.strip()[:40]!r}: expected BLOCK:RATIO, such as 5:0.8")
    try:
        keep = float(match[2])
    except ValueError:
        raise ScheduleError(f"step {part.strip()[:40]!r}: {match[2]!r} is not a number") from None
    return PruningStep(int(match[1]), keep)


def _parse_method(options: list[str]) -> PruningMethod:
    pairs: list[tuple[str, object]] = []
    for option in options:
        name, separator, value = (piece.strip() for piece in option.partition("="))
        if not separator:
            raise ScheduleError(f"method {option.strip()[:40]!r}: expected NAME=CHOICE, such as importance=l2")
        pairs.append((name, value))
    return _method_from_pairs(pairs)


def _method_from_pairs(pairs: list[tuple[str, object]]) -> PruningMethod:
    choices: dict[str, str] = {}
    for name, value in pairs:
        if name not in METHOD_CHOICES:
            raise ScheduleError(f"method {str(name)[:40]!r}: expected one of {', '.join(METHOD_CHOICES)}")
        if name in choices:
            raise ScheduleError(f"method {name}: stands twice")
        if not isinstance(value, str):
            raise ScheduleError(f"method {name}={value!r}: expected one of {', '.join(METHOD_CHOICES[name])}")
        choices[name] = METHOD_ALIASES.get(name, {}).get(value, value)
    return PruningMethod(**choices)


def _step_from_dict(index: int, step: object) -> PruningStep:
    if not isinstance(step, dict) or not {"after", "keep"} <= step.keys():
        raise ScheduleError(f"steps[{index}]: expected an object with after and keep")
    try:
        return PruningStep(step["after"], step["keep"])
    except ScheduleError as error:
        raise ScheduleError(f"steps[{index}]: {error}") from None

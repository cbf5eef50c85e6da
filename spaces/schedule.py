"""Pruning schedules: where tokens are dropped, how many stay, and by which method; with a text and a JSON form."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

from spaces.errors import ScheduleError
from spaces.json_files import read_object

FORMAT = "prunefront.schedule"
VERSION = 1
MAX_STEPS = 4096  # far above any model's depth; bounds what a hostile file can cost

IMPORTANCE = ("clip", "l1", "l2", "sum", "forward", "backward", "delta", "random")
ALIGNMENT = ("on", "off", "hold", "neighbour")  # `on` is the Δ policy `bias`
REDUCTION = ("prune", "merge")
CONTEXT = ("drop", "zeros", "conv", "freeze")


def kept_tokens(tokens: int, keep: float) -> int:
    """Return round-half-up(keep · tokens), at least 1.

    The product is exact in decimal, so it rounds as a reader of the ratio expects.

    >>> kept_tokens(196, 0.8), kept_tokens(3, 0.01)
    (157, 1)
    >>> kept_tokens(50, 0.29)  # 14.5; in binary floating point 14.499999999999998
    15

    Args:
        tokens: patch tokens before the step.
        keep: the keep ratio, in (0, 1].
    """
    exact = Decimal(repr(keep)) * tokens
    return max(1, int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP)))


@dataclass(frozen=True)
class PruningStep:
    """Drops patch tokens after a block.

    >>> str(PruningStep(5, 0.8, context="conv"))
    '5:0.8:conv'

    Attributes:
        after: the block after which tokens are dropped, counted from 1 over all stages.
        keep: the share of the remaining patch tokens that is kept, in (0, 1].
        context: what later blocks see of the tokens dropped here, one of `CONTEXT`; None for the method's context.

    Raises:
        ScheduleError: a block below 1, a ratio outside (0, 1], or an unknown context.
    """

    after: int
    keep: float
    context: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.after, bool) or not isinstance(self.after, int) or self.after < 1:
            raise ScheduleError(f"step after={self.after!r}: a block is a whole number from 1")
        if isinstance(self.keep, bool) or not isinstance(self.keep, int | float):
            raise ScheduleError(f"step after block {self.after}: keep={self.keep!r} is not a number")
        try:
            object.__setattr__(self, "keep", float(self.keep))
        except OverflowError:  # an integer too large for a float
            object.__setattr__(self, "keep", math.inf)
        if not (math.isfinite(self.keep) and 0.0 < self.keep <= 1.0):
            raise ScheduleError(f"step after block {self.after}: keep ratio {self.keep!r} is not in (0, 1]")
        if self.context is not None and self.context not in CONTEXT:
            raise ScheduleError(
                f"step after block {self.after}: context={self.context!r}: expected one of {', '.join(CONTEXT)}"
            )

    def __str__(self) -> str:
        return f"{self.after}:{self.keep!r}" + ("" if self.context is None else f":{self.context}")


@dataclass(frozen=True)
class PruningMethod:
    """How tokens are scored and dropped, and what later blocks see of them.

    >>> PruningMethod(importance="l2", context="freeze").changes
    {'importance': 'l2', 'context': 'freeze'}

    Attributes:
        importance: the score by which patch tokens are ranked, one of `IMPORTANCE`.
        alignment: the Δ by which the hidden state advances over a pruned position: `on` (softplus of the dt bias,
            which is the Δ of a token whose feature is zero), `hold` (the token's Δ when it was pruned), `neighbour`
            (the mean Δ of the kept tokens around the gap), or `off` (the state does not advance).
        reduction: `prune` drops a token, `merge` averages it into the most similar kept one.
        context: what later blocks see of a pruned token, unless its step has a context of its own: `drop` (nothing),
            `zeros` (its position in the local convolution, with zeros), `conv` (its last input to the local
            convolution), or `freeze` (its last feature, in convolution and state).

    Raises:
        ScheduleError: an unknown choice.
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

    @property
    def changes(self) -> dict[str, str]:
        """The choices that differ from the defaults, in a fixed order."""
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
# Other spellings of a choice: `on` is the Δ policy `bias`, and may be called so.
METHOD_ALIASES: Mapping[str, Mapping[str, str]] = {"alignment": {"bias": "on"}}


@dataclass(frozen=True)
class PruningSchedule:
    """An immutable schedule in canonical form: equivalent schedules are equal and have the same `hash`.

    Steps are sorted by block, and steps that keep everything are removed. A schedule without steps is dense, and its
    method is the default one. If all steps have the same context, it is the method's, and no step names it. Otherwise
    the method's context is the default, and each step with another context names it.

    >>> schedule = PruningSchedule.parse("10:0.8, 5:0.80, 15:1")
    >>> schedule.text
    '5:0.8,10:0.8'
    >>> schedule == PruningSchedule.of([(5, 0.8), (10, 0.8)])
    True
    >>> schedule.hash
    'c7066b81b9512e2d'

    Attributes:
        steps: sorted by block.
        method: how tokens are scored and dropped.

    Raises:
        ScheduleError: two steps after the same block, too many steps, or `zeros` together with another context.
    """

    steps: tuple[PruningStep, ...] = ()
    method: PruningMethod = field(default_factory=PruningMethod)

    def __post_init__(self) -> None:
        if len(self.steps) > MAX_STEPS:
            raise ScheduleError(f"steps: {len(self.steps)} of them; the maximum is {MAX_STEPS}")
        ordered = sorted(self.steps, key=lambda step: step.after)
        for one, other in pairwise(ordered):
            if one.after == other.after:
                raise ScheduleError(f"steps: block {one.after} is given twice; write one step per block")
        steps = [step for step in ordered if step.keep < 1.0]
        steps, method = _canonical(steps, self.method) if steps else ([], PruningMethod())
        object.__setattr__(self, "steps", tuple(steps))
        object.__setattr__(self, "method", method)

    @classmethod
    def of(
        cls, steps: Iterable[tuple[int, float] | tuple[int, float, str | None]], **method: str
    ) -> "PruningSchedule":
        """Build a schedule from tuples (after, keep) or (after, keep, context), and choices of the method.

        >>> PruningSchedule.of([(5, 0.8), (10, 0.8)], importance="l2").text
        '5:0.8,10:0.8;importance=l2'
        """
        return cls(tuple(PruningStep(*step) for step in steps), PruningMethod(**method))

    @classmethod
    def parse(cls, text: str) -> "PruningSchedule":
        """Read the text form; the empty text is dense.

        >>> schedule = PruningSchedule.parse("5:0.8,10:0.8;importance=l2;context=freeze")
        >>> [(step.after, step.keep) for step in schedule.steps]
        [(5, 0.8), (10, 0.8)]
        >>> PruningSchedule.parse("5:0.8:conv,10:0.8").contexts
        ('conv', 'drop')
        >>> PruningSchedule.parse("").dense
        True

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
    def contexts(self) -> tuple[str, ...]:
        """The context of each step: its own, or the method's."""
        return tuple(step.context or self.method.context for step in self.steps)

    @property
    def dense(self) -> bool:
        """Whether no token is ever dropped."""
        return not self.steps

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, without the fields that an export adds (model, metrics, provenance).

        >>> PruningSchedule.parse("5:0.8").as_dict()["steps"]
        [{'after': 5, 'keep': 0.8}]
        """
        return {
            "format": FORMAT,
            "version": VERSION,
            "steps": [_step_as_dict(step) for step in self.steps],
            "method": self.method.as_dict(),
        }

    @classmethod
    def from_dict(cls, data: object, where: str = "schedule") -> "PruningSchedule":
        """Read the decoded JSON form; fields that `as_dict` does not write are ignored.

        >>> schedule = PruningSchedule.parse("5:0.8;context=conv")
        >>> PruningSchedule.from_dict(schedule.as_dict()) == schedule
        True

        Args:
            data: the decoded JSON.
            where: what messages call it, such as a file's path.

        Raises:
            ScheduleError: a field is missing or wrong; the message names `where` and the field.
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
            raise ScheduleError(f"{where}: {len(steps)} steps; the maximum is {MAX_STEPS}")
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


def as_schedule(schedule: PruningSchedule | str | None) -> PruningSchedule:
    """Return a schedule that is given as itself, as text, or as None, which is dense.

    >>> as_schedule("5:0.8") == PruningSchedule.parse("5:0.8"), as_schedule(None).dense
    (True, True)

    Raises:
        ScheduleError: the text is malformed, or it is none of the three.
    """
    if schedule is None:
        return PruningSchedule()
    if isinstance(schedule, str):
        return PruningSchedule.parse(schedule)
    if not isinstance(schedule, PruningSchedule):
        raise ScheduleError(
            f"schedule {schedule!r}: expected a PruningSchedule, its text such as '5:0.8,10:0.8', or None for dense"
        )
    return schedule


def read_schedule_file(path: str | Path) -> dict[str, Any]:
    """Return the decoded JSON object of a schedule file, without checking its fields.

    Raises:
        ScheduleError: the file cannot be read or is not a JSON object.
    """
    return read_object(path, ScheduleError)


def _canonical(steps: list[PruningStep], method: PruningMethod) -> tuple[list[PruningStep], PruningMethod]:
    """Return equivalent steps and an equivalent method in canonical form."""
    contexts = [step.context or method.context for step in steps]
    if len(set(contexts)) == 1:
        method = replace(method, context=contexts[0])
        if method.context == "freeze":  # the scan skips no position, so there is nothing to align
            method = replace(method, alignment="on")
        return [replace(step, context=None) for step in steps], method
    if "zeros" in contexts:  # the convolution sees the positions of either all pruned tokens or none
        raise ScheduleError("steps: the context zeros does not go together with others; give it to all steps or none")
    method = replace(method, context=PruningMethod.context)
    own = [None if context == method.context else context for context in contexts]
    return [replace(step, context=context) for step, context in zip(steps, own, strict=True)], method


_STEP = re.compile(r"\s*(\d{1,9})\s*:\s*([0-9.eE+\-]+)\s*(?::(.*))?\Z", re.DOTALL)


def _parse_step(part: str) -> PruningStep:
    match = _STEP.match(part)
    if not match:
        raise ScheduleError(f"step {part.strip()[:40]!r}: expected BLOCK:RATIO or BLOCK:RATIO:CONTEXT, such as 5:0.8")
    try:
        keep = float(match[2])
    except ValueError:
        raise ScheduleError(f"step {part.strip()[:40]!r}: {match[2]!r} is not a number") from None
    return PruningStep(int(match[1]), keep, None if match[3] is None else match[3].strip()[:40])


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
            raise ScheduleError(f"method {name}: given twice")
        if not isinstance(value, str):
            raise ScheduleError(f"method {name}={value!r}: expected one of {', '.join(METHOD_CHOICES[name])}")
        choices[name] = METHOD_ALIASES.get(name, {}).get(value, value)
    return PruningMethod(**choices)


def _step_as_dict(step: PruningStep) -> dict[str, Any]:
    return {f.name: value for f in fields(step) if (value := getattr(step, f.name)) is not None}


def _step_from_dict(index: int, step: object) -> PruningStep:
    if not isinstance(step, dict) or not {"after", "keep"} <= step.keys():
        raise ScheduleError(f"steps[{index}]: expected an object with after and keep")
    try:
        return PruningStep(step["after"], step["keep"], step.get("context"))
    except ScheduleError as error:
        raise ScheduleError(f"steps[{index}]: {error}") from None

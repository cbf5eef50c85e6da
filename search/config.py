"""The settings of a search: from a TOML file, with flags on top, checked, and stored with the study."""

import math
import re
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from results.metrics import METRICS
from results.objectives import OBJECTIVES as OBJECTIVES  # for those who read settings
from spaces import FlopsBudget
from spaces.errors import UnknownNameError, UsageError

SAMPLERS = ("gp", "nsga2", "tpe", "random")
BESIDE = ("db", "mirror", "track")  # what a file may say that is not of the study
REQUIRED = ("model", "study", "data", "flops_budget", "trials")

WHOLES = ("trials", "images", "batch_size", "workers", "cpus_per_trial", "seed", "brood", "confirm_images")
REALS = ("gpus_per_trial", "race_error", "db_patience")
LONGEST_NAME = 200  # of a study, as the store's schema has it
REST = "rest"  # of val, beyond what a search runs over
CONFIRM_SPLITS = ("val", REST, "test")
MOST_RACE_ERROR = 0.5
LEAST_TIMEOUT = 600.0  # seconds for one candidate, unless told otherwise
TIMEOUT_FACTOR = 30.0  # times the dense model's time: no pruned one takes longer than it, but a node may be slow

_BYTES = re.compile(r"(\d{1,15}(?:\.\d+)?)\s*([KMGTkmgt]?)[bB]?\Z")
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?\Z")


def parse_duration(text: str, what: str = "time budget") -> float:
    """Return the seconds in `90`, `90s`, `30m`, `2h` or `1h30m`; `what` names the setting in an error.

    Raises:
        UsageError: the text is none of these, or 0.
    """
    match = _DURATION.match(text.strip())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if not 0 < total < math.inf:
        raise UsageError(f"{what} {text!r}: expected a time such as 90s, 30m or 1h30m")
    return total


def parse_bytes(text: str) -> int:
    """Return the bytes in `0`, `500M` or `2G`; K, M, G and T are powers of 1024.

    Raises:
        UsageError: the text is none of these.
    """
    match = _BYTES.match(text.strip())
    if not match:
        raise UsageError(f"prefix_cache={text!r}: expected memory such as 500M or 2G, or 0 for none")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


@dataclass(frozen=True)
class SearchConfig:
    """All settings of one search, resolved.

    Attributes:
        model: registered name.
        study: name of the study.
        data: the data set, as `search.data.open_data` takes it.
        flops_budget: share of the dense FLOPs, or FLOPs, or a range of either, as `FlopsBudget.parse` takes it.
        trials: evaluations that the study has in all when the search is done.
        checkpoint: file of weights, `random`, or None for the shipped ones.
        space: text of the search space.
        sampler: one of `SAMPLERS`.
        objective: names from `OBJECTIVES`; the score may be named by its metric, such as miou.
        images: how many of the val split an evaluation runs over; None for all.
        batch_size: images in a forward pass.
        workers: evaluations at a time; None for as many as the CPUs allow.
        cpus_per_trial: CPU cores of one evaluation, which is its number of threads.
        gpus_per_trial: GPUs of one evaluation, or a share of one.
        ray_address: a running Ray cluster; None starts one on this machine.
        seed: of the sampler.
        time_budget: after which nothing new is evaluated, such as `30m`.
        brood: candidates that a worker takes at a time.
        prefix_cache: memory in which each worker keeps what candidates share, such as `1G`; `0` for none.
        race_error: bound on the probability that a candidate is stopped early which would have joined the front;
            0 runs every candidate over all images.
        confirm_images: images on which the front is measured again in the end; None for all, 0 for none.
        confirm_split: the split that they are of, or `rest`: the images of val that the search does not see.
        trial_timeout: longest time of one candidate, such as `10m`, after which its worker is killed; None takes
            `LEAST_TIMEOUT`, or `TIMEOUT_FACTOR` times what the dense model took if that is longer.
        db_patience: seconds to wait for a database that is away.

    Raises:
        UsageError: a value that makes no sense; the message names it.
    """

    model: str
    study: str
    data: str
    flops_budget: str
    trials: int
    checkpoint: str | None = None
    space: str = "stages"
    sampler: str = "gp"
    objective: tuple[str, ...] = ("top1", "flops")
    images: int | None = None
    batch_size: int = 100
    workers: int | None = None
    cpus_per_trial: int = 1
    gpus_per_trial: float = 0.0
    ray_address: str | None = None
    seed: int = 0
    time_budget: str | None = None
    brood: int = 4
    prefix_cache: str = "1G"
    race_error: float = 0.05
    confirm_images: int | None = None
    confirm_split: str = "val"
    trial_timeout: str | None = None
    db_patience: float = 600.0

    def __post_init__(self) -> None:
        FlopsBudget.parse(self.flops_budget)
        if self.sampler not in SAMPLERS:
            raise UnknownNameError("sampler", self.sampler, SAMPLERS)
        for name in self.objective:
            if name not in OBJECTIVES and name not in METRICS:
                raise UnknownNameError("objective", name, dict.fromkeys([*OBJECTIVES, *METRICS]))
        if not self.objective or len(set(self.objective)) < len(self.objective):
            raise UsageError(f"objective {', '.join(self.objective)!r}: name each objective once")
        for name in ("trials", "images", "batch_size", "workers", "cpus_per_trial", "brood"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: must be at least 1")
        if not (math.isfinite(self.gpus_per_trial) and self.gpus_per_trial >= 0):
            raise UsageError(f"gpus_per_trial={self.gpus_per_trial}: must be 0 or more")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed={self.seed}: must be a whole number from 0")
        for name in ("model", "study", "data"):
            if not getattr(self, name).strip():
                raise UsageError(f"{name}: must not be empty")
        for name in ("study", "data", "checkpoint"):
            value = getattr(self, name) or ""
            if value.encode(errors="replace").decode() != value or "\0" in value:
                raise UsageError(f"{name}={value!r}: is no text in UTF-8, which a database could keep")
        if any(unicodedata.category(character) == "Cc" for character in self.study):
            raise UsageError(f"study {self.study[:40]!r}: holds control characters")
        if len(self.study) > LONGEST_NAME:
            raise UsageError(
                f"study {self.study[:40]!r}…: is {len(self.study)} characters long, at most {LONGEST_NAME}"
            )
        if self.time_budget is not None:
            parse_duration(self.time_budget)
        if self.trial_timeout is not None:
            parse_duration(self.trial_timeout, "trial timeout")
        if not (math.isfinite(self.db_patience) and self.db_patience >= 0):
            raise UsageError(f"db_patience={self.db_patience}: must be seconds, 0 or more")
        parse_bytes(self.prefix_cache)
        if not 0 <= self.race_error <= MOST_RACE_ERROR:
            raise UsageError(f"race_error={self.race_error}: must be from 0 (no race) to {MOST_RACE_ERROR}")
        if self.confirm_images is not None and self.confirm_images < 0:
            raise UsageError(f"confirm_images={self.confirm_images}: must be 0 (none) or more")
        if self.confirm_split not in CONFIRM_SPLITS:
            raise UnknownNameError("split", self.confirm_split, CONFIRM_SPLITS)
        if self.confirm_split == REST and self.images is None:
            raise UsageError(
                "confirm_split=rest: there is no rest, for the search runs over all images; give --images"
            )

    @property
    def seconds(self) -> float | None:
        """The time budget in seconds; None if there is none."""
        return None if self.time_budget is None else parse_duration(self.time_budget)

    def timeout(self, dense_seconds: float) -> float:
        """Return the longest time of one candidate in seconds, where the dense model took `dense_seconds`."""
        if self.trial_timeout is not None:
            return parse_duration(self.trial_timeout)
        return max(LEAST_TIMEOUT, TIMEOUT_FACTOR * dense_seconds)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON takes them."""
        return {**asdict(self), "objective": list(self.objective)}


def resolve(flags: Mapping[str, Any], file: str | Path | None = None) -> SearchConfig:
    """Return the settings of a TOML file with the flags on top; a flag that is None was not given.

    A key of the file is a flag's name, with `-` or `_`, at the top level: `flops-budget = "0.6"`.

    Raises:
        UsageError: the file cannot be read, a key is unknown, a value is of the wrong kind or makes no
            sense, or a setting that has no default is missing.
    """
    settings = {k: v for k, v in (read_toml(file) if file is not None else {}).items() if k not in BESIDE}
    settings.update({name: value for name, value in flags.items() if value is not None})
    for name in REQUIRED:
        if name not in settings:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is missing: give it as a flag, or as {flag} in the file of --config")
    return SearchConfig(**settings)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the settings in a TOML file, by field of SearchConfig or name of `BESIDE`; raises as `resolve` does."""
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"config {path}: cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"config {path}: not valid TOML: {error}") from None
    kinds = [*(field.name for field in fields(SearchConfig)), *BESIDE]
    settings: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in kinds:
            raise UnknownNameError(f"setting in {path}:", key, [known.replace("_", "-") for known in kinds])
        settings[name] = _value(name, value, str(path))
    return settings


def _value(name: str, value: object, where: str) -> Any:
    """Check a value's kind by the field's default and what a TOML file can hold."""
    if name in ("objective", "track"):
        names = [value] if isinstance(value, str) else value
        if isinstance(names, list) and all(isinstance(one, str) for one in names):
            return tuple(names)
        raise UsageError(f"config {where}: {name}={value!r}: expected a list of names")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in REALS and number:
        return float(value)  # type: ignore[arg-type]
    if name in ("flops_budget", "time_budget", "trial_timeout", "prefix_cache") and number:
        return str(value)
    kind: type = int if name in WHOLES else float if name in REALS else str
    if not isinstance(value, kind) or isinstance(value, bool):
        word = {int: "a whole number", float: "a number", str: "a text"}[kind]
        raise UsageError(f"config {where}: {name.replace('_', '-')}={value!r}: expected {word}")
    return value

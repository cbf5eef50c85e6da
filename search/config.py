"""The settings of a search: each is one entry here, which gives its flag, its TOML key, its check and its help."""

import math
import re
import unicodedata
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from results.metrics import METRICS
from results.objectives import OBJECTIVES as OBJECTIVES  # for those who read settings
from search.settings import InvalidValueError, check_settings, setting
from spaces import FlopsBudget
from spaces.errors import UsageError

SAMPLERS = ("gp", "nsga2", "tpe", "random")
LONGEST_NAME = 200  # of a study, as the store's schema has it
REST = "rest"  # of val, beyond what a search runs over
CONFIRM_SPLITS = ("val", REST, "test")
MOST_RACE_ERROR = 0.5
LEAST_TIMEOUT = 600.0  # seconds for one candidate, unless told otherwise
TIMEOUT_FACTOR = 30.0  # times the dense model's time: no pruned one takes longer than it, but a node may be slow
DEFAULT_DB = "sqlite:///prunefront.db"

_BYTES = re.compile(r"(\d{1,15}(?:\.\d+)?)\s*([KMGTkmgt]?)[bB]?\Z")
_IMG_SIZE = re.compile(r"(\d{1,6})(?:[xX×](\d{1,6}))?\Z", re.ASCII)
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?\Z")


def parse_duration(text: str) -> float:
    """Return the seconds in `90`, `90s`, `30m`, `2h` or `1h30m`.

    >>> parse_duration("1h30m")
    5400.0

    Raises:
        UsageError: the text is none of these, or 0.
    """
    match = _DURATION.match(text.strip())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if not 0 < total < math.inf:
        raise InvalidValueError(text, "expected a time such as 90s, 30m or 1h30m")
    return total


def parse_bytes(text: str) -> int:
    """Return the bytes in `0`, `500M` or `2G`; K, M, G and T are powers of 1024.

    >>> parse_bytes("1.5K")
    1536

    Raises:
        UsageError: the text is none of these.
    """
    match = _BYTES.match(text.strip())
    if not match:
        raise InvalidValueError(text, "expected memory such as 500M or 2G, or 0 for none")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def parse_img_size(text: str) -> tuple[int, int]:
    """Return the (height, width) in `224` or `32x72`.

    >>> parse_img_size("32x72"), parse_img_size("224")
    ((32, 72), (224, 224))

    Raises:
        UsageError: the text is neither.
    """
    match = _IMG_SIZE.match(text.strip())
    sides = [int(side) for side in match.groups() if side] if match else []
    if not sides or 0 in sides:
        raise InvalidValueError(
            sides[0] if len(sides) == 1 else text, "expected pixels such as 224, or HEIGHTxWIDTH such as 32x72"
        )
    return sides[0], sides[-1]


def given_size(text: str | None) -> tuple[int, int] | None:
    """Return the (height, width) of an option's text or a study's stored setting; None leaves it to the weights."""
    return None if text is None else parse_img_size(text)


def _not_empty(text: str) -> None:
    if not text.strip():
        raise InvalidValueError(text, "must not be empty")


def _storable(text: str) -> None:
    if text.encode(errors="replace").decode() != text or "\0" in text:
        raise InvalidValueError(text, "is not valid UTF-8, or holds a NUL, and no database could keep it")


def _study_name(text: str) -> None:
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise InvalidValueError(text[:40], "holds control characters")
    if len(text) > LONGEST_NAME:
        raise InvalidValueError(f"{text[:40]}…", f"is {len(text)} characters long, at most {LONGEST_NAME}")


def _distinct(names: tuple[str, ...]) -> None:
    if not names or len(set(names)) < len(names):
        raise InvalidValueError(", ".join(names), "name each objective once")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """All settings of one search, resolved.

    The help of each field says what it means; `search.settings.Setting` explains the entries. A new setting is one
    more field: `prunefront search` gets its flag, the file of `--config` its key, and the report repeats it.

    >>> SearchConfig(model="vim_nano", study="s", data="embedded", flops_budget="0.6", trials=0)
    Traceback (most recent call last):
    spaces.errors.UsageError: trials=0: must be at least 1

    Raises:
        UsageError: a value that makes no sense; the message names it.
    """

    model: str = setting(help="Name of a model; see `prunefront models`.", metavar="M", checks=(_not_empty,))
    data: str = setting(
        help="Data set: embedded, folder:PATH, torchvision:NAME[:ROOT], hf:NAME or segmentation:PATH.",
        metavar="D",
        checks=(_not_empty, _storable),
    )
    flops_budget: str = setting(
        help="A share of the dense FLOPs (0.6), FLOPs (3.6G, 900M), or a range (0.5:0.7).",
        metavar="B",
        parse=FlopsBudget.parse,
    )
    trials: int = setting(help="Total evaluations of the study when the search ends.", metavar="N", least=1)
    study: str = setting(
        help="Name of the study; one that exists is resumed.",
        metavar="S",
        checks=(_not_empty, _storable, _study_name),
    )
    checkpoint: str | None = setting(
        None,
        help="Weights: a file (FILE#model_ema names one of several in it), hf:OWNER/REPO[/FILE][@REVISION], "
        "`authors` for theirs on the hub, or `random`.",
        metavar="F",
        default_help="those that the model ships, if it does",
        checks=(_not_empty, _storable),
    )
    class_order: str | None = setting(
        None,
        help="Order of the classes, which says which output is which: text (10 before 2), natural (2 before 10), or "
        "a file of class names.",
        metavar="K",
        default_help="what the weights or the data set say",
        checks=(_not_empty, _storable),
        after="data",
    )
    img_size: str | None = setting(
        None,
        help="Size of the images: pixels of a side (224), or height and width (32x72).",
        metavar="PIXELS",
        default_help="what the weights' file or the model says",
        parse=parse_img_size,
    )
    space: str = setting(
        "stages",
        help="Search space: stages, stages:4 or per-block, or with choices, 'stages:3;importance=clip,l2'.",
        metavar="K",
    )
    sampler: str = setting(
        "gp", help=f"Sampler: {', '.join(SAMPLERS)}.", metavar="K", choices=SAMPLERS, choice="sampler"
    )
    objective: tuple[str, ...] = setting(
        ("top1", "flops"),
        help=f"Objective: miou, {', '.join(OBJECTIVES)}; repeat the option for each.",
        metavar="K",
        choices=tuple(dict.fromkeys([*OBJECTIVES, *METRICS])),
        choice="objective",
        checks=(_distinct,),
    )
    images: int | None = setting(
        None, help="Use the first N images of val.", metavar="N", default_help="all", least=1
    )
    batch_size: int = setting(100, help="Images in a forward pass.", metavar="N", least=1)
    workers: int | None = setting(
        None, help="Evaluations that run in parallel.", metavar="W", default_help="as many as the CPUs allow", least=1
    )
    cpus_per_trial: int = setting(
        1, help="CPU cores, and threads, for each evaluation.", metavar="C", least=1, reproduce=False
    )
    gpus_per_trial: float = setting(
        0.0, help="GPUs for each evaluation, or a share of one.", metavar="G", least=0, reproduce=False
    )
    ray_address: str | None = setting(
        None,
        help="A running Ray cluster, HOST:PORT.",
        metavar="A",
        default_help="Ray on this machine",
        reproduce=False,
    )
    seed: int = setting(0, help="Seed of the sampler.", metavar="I", least=0)
    time_budget: str | None = setting(
        None,
        help="Start no evaluation after this time, such as 30m.",
        metavar="T",
        parse=parse_duration,
        reproduce=False,
    )
    group: int = setting(
        4, help="Candidates that a worker evaluates together.", metavar="N", least=1, aliases=("brood",)
    )
    prefix_cache: str = setting(
        "1G",
        help="Memory of each worker for features that candidates share; 0 for none.",
        metavar="M",
        parse=parse_bytes,
        reproduce=False,
    )
    race_error: float = setting(
        0.05,
        help="Bound on the probability of stopping a candidate early that would have joined the front; "
        "0 for no early stopping.",
        metavar="X",
        least=0,
        most=MOST_RACE_ERROR,
    )
    confirm_images: int | None = setting(
        None,
        help="Images on which the front is confirmed at the end; 0 for none.",
        metavar="N",
        default_help="all",
        least=0,
    )
    confirm_split: str = setting(
        "val",
        help="Split of those images: val, test, or rest (images of val that the search does not use).",
        metavar="K",
        choices=CONFIRM_SPLITS,
        choice="split",
    )
    trial_timeout: str | None = setting(
        None,
        help="Longest time for one candidate, after which its worker is killed.",
        metavar="T",
        default_help=f"{LEAST_TIMEOUT / 60:g}m, or {TIMEOUT_FACTOR:g} times what the dense model took if that is "
        "longer",
        parse=parse_duration,
        reproduce=False,
    )
    db_patience: float = setting(
        600.0,
        help="How long to wait for a database that is unavailable.",
        metavar="SECONDS",
        least=0,
        reproduce=False,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.confirm_split == REST and self.images is None:
            raise UsageError(
                "--confirm-split rest: no image of val is left, for the search runs over all of them; give --images"
            )

    @cached_property
    def budget(self) -> FlopsBudget:
        """The FLOPs budget."""
        return FlopsBudget.parse(self.flops_budget)

    @cached_property
    def sides(self) -> tuple[int, int] | None:
        """The (height, width) of the images in pixels, if given."""
        return given_size(self.img_size)

    @cached_property
    def prefix_cache_bytes(self) -> int:
        """The memory of each worker for what candidates share."""
        return parse_bytes(self.prefix_cache)

    @cached_property
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


@dataclass(frozen=True, kw_only=True)
class SearchOutputs:
    """Where a search writes. None of it is stored with the study, for an address may hold a password."""

    db: str | None = setting(
        None,
        help="Database address.",
        metavar="URL",
        default_help=f"$PRUNEFRONT_DB, then {DEFAULT_DB}",
        checks=(_not_empty,),
        after="study",
        secret=True,
    )
    mirror: str | None = setting(
        None,
        help="Keep an Optuna storage up to date, for optuna-dashboard.",
        metavar="URL",
        checks=(_not_empty,),
        after="confirm_split",
        secret=True,
    )
    track: tuple[str, ...] = setting(
        (), help="Log to mlflow or wandb; repeat the option for both.", metavar="K", after="mirror"
    )

"""Settings as dataclass fields: one entry each, from which flags, TOML keys, checks and help texts are made.

    @dataclass(frozen=True, kw_only=True)
    class SearchConfig:
        trials: int = setting(help="Total evaluations of the study.", metavar="N", least=1)

        def __post_init__(self) -> None:
            check_settings(self)

`search.commands.flags` turns such a class into options of a command.
"""

import math
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from spaces.errors import UnknownNameError, UsageError

LARGEST_INT = 2**63 - 1  # of a SQL database
_ENTRY = "setting"

T = TypeVar("T")


class InvalidValueError(UsageError):
    """A value that makes no sense; whoever catches it puts the name of the setting in front."""

    def __init__(self, value: object, problem: str) -> None:
        super().__init__(f"{value!r}: {problem}")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of a settings class, with all that is known about it.

    Attributes:
        name: the field.
        kind: `int`, `float`, `str`, or `tuple` for a list of names.
        default: the value if none is given; `MISSING` if one must be.
        help: a sentence for `--help`, which appends the default.
        metavar: stands for the value in `--help`.
        default_help: the default in words, where the value itself does not say it.
        least: lower bound of a number, inclusive.
        most: upper bound of a number, inclusive.
        choices: the names that are allowed, if not all are.
        choice: what one of them is called in an error.
        parse: reads the text of a quantity, such as `30m`; TOML may then hold a number as well.
        checks: functions of the value that raise a UsageError.
        aliases: former names, which the command line, TOML files and stored studies may still use.
        after: name of the setting that it follows in `--help`; None keeps the order of the fields.
        reproduce: whether the command that a report shows repeats it, because it can change what a search finds.
        secret: whether errors leave the value out, for it may hold a password.
    """

    name: str
    kind: type
    default: Any
    help: str
    metavar: str
    default_help: str | None = None
    least: float | None = None
    most: float | None = None
    choices: Collection[str] = ()
    choice: str = ""
    parse: Callable[[str], object] | None = None
    checks: tuple[Callable[[Any], object], ...] = ()
    aliases: tuple[str, ...] = ()
    after: str | None = None
    reproduce: bool = True
    secret: bool = False

    @property
    def spellings(self) -> tuple[str, ...]:
        """The name and its aliases."""
        return (self.name, *self.aliases)

    @property
    def help_text(self) -> str:
        """The help with the default."""
        default = self.default_help or _default_text(self.default)
        return f"{self.help} Default: {default}." if default else self.help

    def check(self, value: Any) -> None:
        """Raise a UsageError if the value makes no sense: an InvalidValueError, or what a parser or check raises."""
        if value is None and self.default is None:
            return
        if self.kind in (int, float):
            self._check_bounds(value)
        if self.choices:
            for name in value if self.kind is tuple else (value,):
                if name not in self.choices:
                    raise UnknownNameError(self.choice, name, self.choices)
        for check in (*self.checks, *((self.parse,) if self.parse else ())):
            check(value)

    def _check_bounds(self, value: float) -> None:
        least = -math.inf if self.least is None else self.least
        most = math.inf if self.most is None else self.most
        if not least <= value <= most or abs(value) == math.inf:  # NaN is in no range
            limits = f"at least {least:g}" if self.most is None else f"from {least:g} to {most:g}"
            raise InvalidValueError(value, f"must be {limits}")
        if self.kind is int and value > LARGEST_INT:
            raise InvalidValueError(value, f"must be at most {LARGEST_INT}")

    def from_toml(self, value: object) -> Any:
        """Return the value of a TOML key as the field holds it.

        Raises:
            InvalidValueError: it is of another kind.
        """
        number = isinstance(value, int | float) and not isinstance(value, bool)
        shown = "…" if self.secret and not number else value
        if self.kind is tuple:
            names = [value] if isinstance(value, str) else value
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                return tuple(names)
            raise InvalidValueError(shown, "expected a list of names")
        if number and self.parse is not None:
            return str(value)
        if isinstance(value, int) and number and self.kind is float:
            if abs(value) > LARGEST_INT:
                raise InvalidValueError(value, "is too large")
            return float(value)
        if not isinstance(value, self.kind) or isinstance(value, bool):
            expected = {int: "a whole number", float: "a number", str: "a string"}[self.kind]
            raise InvalidValueError(shown, f"expected {expected}")
        return value


def setting(default: Any = MISSING, *, help: str, metavar: str, **entry: Any) -> Any:
    """Return a dataclass field that is a setting.

    Args:
        default: without one, a value must be given.
        help, metavar: as in `Setting`.
        entry: any other attribute of `Setting`; name and kind are those of the field.
    """
    return field(default=default, metadata={_ENTRY: {"help": help, "metavar": metavar, **entry}})


def settings_of(settings_class: type) -> tuple[Setting, ...]:
    """Return the settings of a dataclass in the order of its fields.

    >>> @dataclass(frozen=True, kw_only=True)
    ... class Pause:
    ...     seconds: int = setting(5, help="How long.", metavar="N", least=1)
    >>> [(one.name, one.kind.__name__, one.help_text) for one in settings_of(Pause)]
    [('seconds', 'int', 'How long. Default: 5.')]
    """
    hints = get_type_hints(settings_class)
    return tuple(
        Setting(name=one.name, kind=_kind(hints[one.name]), default=one.default, **one.metadata[_ENTRY])
        for one in fields(settings_class)
        if _ENTRY in one.metadata
    )


def setting_named(settings_class: type, name: str) -> Setting:
    """Return one setting of a dataclass."""
    return next(one for one in settings_of(settings_class) if one.name == name)


def check_settings(settings: Any) -> None:
    """Check each setting of a dataclass on its own; call it from `__post_init__`.

    Raises:
        UsageError: a value makes no sense; the message names the field.
    """
    for one in settings_of(type(settings)):
        try:
            one.check(getattr(settings, one.name))
        except InvalidValueError as error:
            raise UsageError(f"{one.name}={error}") from None


@dataclass(frozen=True)
class Given:
    """A value that a user gave, and where: `--trials`, or `config search.toml: trials`."""

    value: Any
    where: str


def flag_of(name: str) -> str:
    """Return the flag of a setting, such as `--flops-budget`."""
    return f"--{name.replace('_', '-')}"


@contextmanager
def named(where: str) -> Iterator[None]:
    """Put the name by which a user gave a value in front of the error that it raises."""
    try:
        yield
    except InvalidValueError as error:
        raise UsageError(f"{where}{' ' if where.startswith('--') else '='}{error}") from None
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def given_flags(flags: Mapping[str, Any], *classes: type) -> dict[str, Given]:
    """Return the flags that were given, by setting.

    Args:
        flags: by name or alias of a setting; None was not given.
        classes: whose settings they are.

    Raises:
        UsageError: a setting was given by two names.
    """
    given = {name: Given(value, flag_of(name)) for name, value in flags.items() if value is not None}
    return _by_setting(((name, value, value.where) for name, value in given.items()), classes)


def given_keys(path: str | Path, *classes: type) -> dict[str, Given]:
    """Return the settings in a TOML file, by setting.

    A key is a flag's name, with `-` or `_`, at the top level: `flops-budget = "0.6"`.

    Args:
        path: the file.
        classes: whose settings it may hold.

    Raises:
        UsageError: the file cannot be read, a key is unknown or there twice, or a value is of the wrong kind.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"config {path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"config {path}: not valid TOML: {error}") from None
    known = {spelling: one for kind in classes for one in settings_of(kind) for spelling in one.spellings}
    spelled = []
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in known:
            names = [one.name.replace("_", "-") for one in known.values()]
            raise UnknownNameError(f"setting in {path}:", key, dict.fromkeys(names))
        where = f"config {path}: {key}"
        with named(where):
            spelled.append((name, Given(known[name].from_toml(value), where), key))
    return _by_setting(spelled, classes)


def build(settings_class: type[T], given: Mapping[str, Given]) -> T:
    """Return the settings that were given, with defaults for the rest; settings of other classes are left out.

    Raises:
        UsageError: a value makes no sense, or one without a default is missing. The message says where it was given.
    """
    values: dict[str, Any] = {}
    for one in settings_of(settings_class):
        if one.name in given:
            with named(given[one.name].where):
                one.check(given[one.name].value)
            values[one.name] = given[one.name].value
        elif one.default is MISSING:
            key = one.name.replace("_", "-")
            raise UsageError(f"--{key} is missing: give it as a flag, or as {key} in the file of --config")
    return settings_class(**values)


def reproducing_settings(stored: Mapping[str, Any], settings_class: type) -> dict[str, Any]:
    """Return those settings that can change what a search finds, under their current names, in the fields' order.

    >>> @dataclass(frozen=True, kw_only=True)
    ... class Pace:
    ...     group: int = setting(4, help="Candidates.", metavar="N", aliases=("brood",))
    ...     patience: float = setting(9.0, help="Seconds.", metavar="S", reproduce=False)
    >>> reproducing_settings({"brood": 8, "patience": 1.0, "colour": "red"}, Pace)
    {'group': 8}

    Args:
        stored: settings by name, as a study keeps them; an earlier version may have stored them by a former name.
        settings_class: the class that they are settings of.
    """
    return {
        one.name: next(stored[name] for name in one.spellings if name in stored)
        for one in settings_of(settings_class)
        if one.reproduce and not stored.keys().isdisjoint(one.spellings)
    }


def _by_setting(spelled: Iterable[tuple[str, Given, str]], classes: Iterable[type]) -> dict[str, Given]:
    """Return given values by setting, from triples of name or alias, value, and how the name was written."""
    names = {spelling: one.name for kind in classes for one in settings_of(kind) for spelling in one.spellings}
    found: dict[str, Given] = {}
    for spelling, given, written in spelled:
        name = names[spelling]
        if name in found:
            raise UsageError(f"{found[name].where} and {written} are the same setting; give one of them")
        found[name] = given
    return found


def _kind(hint: Any) -> type:
    """Return `int` for `int | None`, and `tuple` for `tuple[str, ...]`."""
    if isinstance(hint, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    kind: type = get_origin(hint) or hint
    return kind


def _default_text(default: object) -> str:
    if default is MISSING or default is None:
        return ""
    if isinstance(default, tuple):
        return " and ".join(default)
    return f"{default:g}" if isinstance(default, float) else str(default)

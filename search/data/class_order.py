"""The order of class names, which gives each class its label.

Folders have no order, and readers do not agree on one: torchvision sorts their names as text (10 before 2), timm in
natural order (2 before 10, and letters without regard to case). Labels in another order than that of a model's
outputs make its accuracy meaningless, so where the two differ one must be chosen, or be known from the weights.
"""

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from spaces.errors import DataError, UsageError

TEXT, NATURAL = "text", "natural"

_DIGITS = re.compile(r"(\d+)")


def sorted_names(names: Sequence[str], order: str) -> list[str]:
    """Return names in an order: `text`, `natural`, or that of a file with a name in each line.

    >>> sorted_names(["2", "10", "1"], "text"), sorted_names(["2", "10", "1"], "natural")
    (['1', '10', '2'], ['1', '2', '10'])

    Raises:
        UsageError: the order is none of these.
        DataError: the file cannot be read, or does not name each class once.
    """
    if order == TEXT:
        return sorted(names)
    if order == NATURAL:
        return sorted(names, key=lambda name: (natural_key(name), name))
    return _listed(names, Path(order).expanduser())


def is_ambiguous(names: Sequence[str]) -> bool:
    """Return whether names are in text order, and natural order would be another.

    >>> is_ambiguous(["1", "10", "2"]), is_ambiguous(["n01440764", "n01443537"]), is_ambiguous(["2", "10", "1"])
    (True, False, False)
    """
    return list(names) == sorted_names(names, TEXT) != sorted_names(names, NATURAL)


def natural_key(name: str) -> list[str | int | Decimal]:
    """Return what timm sorts class names by: lower case, with digits as numbers.

    >>> natural_key("Class10b")
    ['class', 10, 'b']
    """
    parts = _DIGITS.split(name.lower())
    return [_number(part) if place % 2 else part for place, part in enumerate(parts)]


def _number(digits: str) -> int | Decimal:
    """Return the value of digits; an int takes quadratic time, and Python refuses more than 4,300 digits."""
    return int(digits) if len(digits) < 4_000 else Decimal(digits)


def agrees(names: Sequence[str], trained: Sequence[str]) -> bool:
    """Return whether the names that both lists have are at the same places.

    >>> agrees(["cat", "dog"], ["cat", "cow"]), agrees(["cat", "dog"], ["dog", "cat"])
    (True, False)
    """
    return misplaced(names, trained) is None


def misplaced(names: Sequence[str], trained: Sequence[str]) -> int | None:
    """Return the first place in `names` of a name that `trained` has elsewhere; None if there is none.

    Several classes may have one name, as ImageNet's two cranes: each must be where one of them is.

    >>> misplaced(["crane", "cat", "crane"], ["crane", "dog", "crane"]), misplaced(["crane", "cat"], ["cat", "crane"])
    (None, 0)
    """
    known = set(trained)
    there = [index < len(trained) and trained[index] == name for index, name in enumerate(names)]
    return next((index for index, name in enumerate(names) if not there[index] and name in known), None)


def choices_text(names: Sequence[str]) -> str:
    """Return where text order and natural order first differ, for a message.

    >>> choices_text(["1", "10", "2"])
    "'10' is number 2 in text order (torchvision) and number 3 in natural order (timm)"
    """
    text, natural = (sorted_names(names, order) for order in (TEXT, NATURAL))
    name = next(one for one, other in zip(text, natural, strict=True) if one != other)
    return (
        f"{name!r} is number {text.index(name) + 1} in text order (torchvision) "
        f"and number {natural.index(name) + 1} in natural order (timm)"
    )


def _listed(names: Sequence[str], path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UsageError(f"--class-order {path}: expected text, natural, or a file of class names") from None
    except OSError as error:
        raise DataError(f"--class-order {path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"--class-order {path}: is no text in UTF-8") from None
    listed = [line.strip() for line in lines if line.strip()]
    count, known = Counter(listed), set(names)
    if twice := next((name for name in listed if count[name] > 1), None):
        raise DataError(f"--class-order {path}: names class {twice!r} twice")
    if missing := next((name for name in names if name not in count), None):
        raise DataError(f"--class-order {path}: does not name class {missing!r}; it must list each class of the data")
    if extra := next((name for name in listed if name not in known), None):
        raise DataError(f"--class-order {path}: names {extra!r}, which is no class of the data")
    return listed

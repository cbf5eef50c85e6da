"""The FLOPs budget of a search: how much a candidate may cost, and where the range of targets begins."""

import math
import re
from dataclasses import dataclass

from spaces.errors import BudgetError

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_TEXT = re.compile(r"\s*((?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*([KMGTkmgt]?)\s*\Z")
_LOWEST = 0.5  # share of the limit at which targets begin if the budget is not a range


@dataclass(frozen=True)
class FlopsBudget:
    """A range of FLOPs, absolute or as shares of the dense model's FLOPs.

    >>> FlopsBudget.parse("0.5:0.7").limit(dense_flops=1_000_000)
    700000
    >>> str(FlopsBudget(3.6e9, absolute=True))
    '3.6G'

    Attributes:
        value: the most that a candidate may cost: a share in (0, 1], or FLOPs.
        absolute: whether `value` and `low` are FLOPs instead of shares.
        low: the lowest target, in the unit of `value`; None for half of `value`.

    Raises:
        BudgetError: `low` is above `value`.
    """

    value: float
    absolute: bool = False
    low: float | None = None

    def __post_init__(self) -> None:
        if self.low is not None and self.low > self.value:
            raise BudgetError(f"FLOPs budget {str(self)!r}: the range begins above its end; write LOW:HIGH")

    @classmethod
    def parse(cls, text: str) -> "FlopsBudget":
        """Read a share of the dense FLOPs, absolute FLOPs with a unit (K, M, G or T), or a range LOW:HIGH of either.

        >>> FlopsBudget.parse("0.6")
        FlopsBudget(value=0.6, absolute=False, low=None)
        >>> FlopsBudget.parse("900M:3.6G")
        FlopsBudget(value=3600000000.0, absolute=True, low=900000000.0)

        Raises:
            BudgetError: a part is malformed, a share lies outside (0, 1], or the ends of a range are of different
                kinds or in the wrong order.
        """
        parts = text.split(":")
        if len(parts) > 2:
            raise BudgetError(f"FLOPs budget {text!r}: a range has two ends, such as 0.5:0.7")
        bounds = [_bound(part, text) for part in parts]
        if len({absolute for _, absolute in bounds}) > 1:
            raise BudgetError(f"FLOPs budget {text!r}: the ends must both be shares or both FLOPs")
        high, absolute = bounds[-1]
        return cls(high, absolute, bounds[0][0] if len(bounds) > 1 else None)

    def limit(self, dense_flops: int) -> int:
        """Return the most FLOPs that a candidate may cost, which is never more than the dense model costs.

        >>> FlopsBudget.parse("0.6").limit(1000), FlopsBudget.parse("3.6G").limit(1000)
        (600, 1000)
        """
        return min(dense_flops, self._flops(self.value, dense_flops))

    def least(self, dense_flops: int) -> int:
        """Return the lowest target in FLOPs; targets range from here to `limit`.

        >>> FlopsBudget.parse("0.6").least(1000), FlopsBudget.parse("0.5:0.6").least(1000)
        (300, 500)

        Raises:
            BudgetError: the range begins above the dense model's FLOPs.
        """
        if self.low is None:
            return math.floor(_LOWEST * self.limit(dense_flops))
        least = self._flops(self.low, dense_flops)
        if least > dense_flops:
            raise BudgetError(
                f"FLOPs budget {str(self)!r}: the range begins above the dense model's {dense_flops:,} FLOPs"
            )
        return least

    def _flops(self, value: float, dense_flops: int) -> int:
        return math.floor(value if self.absolute else value * dense_flops)

    def __str__(self) -> str:
        ends = [self.value] if self.low is None else [self.low, self.value]
        return ":".join(_absolute_text(end) if self.absolute else _number(end) for end in ends)


def _bound(part: str, text: str) -> tuple[float, bool]:
    """Return the value of one end and whether it is in FLOPs."""
    where = f"FLOPs budget {text!r}" + (f", part {part.strip()!r}" if part != text else "")
    match = _TEXT.match(part)
    if not match:
        raise BudgetError(f"{where}: expected a share such as 0.6, or FLOPs such as 3.6G or 900M")
    number, unit = float(match[1]), match[2].upper()
    value = number * _UNITS[unit]
    if unit and math.isfinite(value):
        value = float(round(value))  # whole FLOPs, so that the text form reads back exactly
    if not (math.isfinite(value) and value > 0):
        raise BudgetError(f"{where}: must be above 0")
    if not unit and value > 1:
        raise BudgetError(f"{where}: a share is at most 1; for FLOPs write 3.6G or 900M")
    return value, bool(unit)


def _absolute_text(value: float) -> str:
    unit = max((u for u, scale in _UNITS.items() if u and value >= scale), key=_UNITS.__getitem__, default="K")
    return f"{_number(value / _UNITS[unit])}{unit}"


def _number(value: float) -> str:
    """Return the shortest text that reads back as `value`."""
    return repr(value).removesuffix(".0")

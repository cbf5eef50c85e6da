"""How many FLOPs a candidate may cost, and from how many on candidates are tried."""

import math
import re
from dataclasses import dataclass

from spaces.errors import BudgetError

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_TEXT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([KMGTkmgt]?)\s*\Z")
_LOWEST = 0.5  # share of the bound from which candidates are tried if the budget is no range


@dataclass(frozen=True)
class FlopsBudget:
    """A range of FLOPs, as shares of the dense model's or absolute.

    Attributes:
        value: the most that a candidate may cost: a share in (0, 1], or FLOPs.
        absolute: whether `value` and `low` count FLOPs.
        low: from how much on candidates are tried, in the unit of `value`; None for half of it.

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
        """Read `0.6` (a share of the dense FLOPs), `3.6G` or `900M` (absolute), or a range `0.5:0.7` of two such.

        Raises:
            BudgetError: a part is neither, a share lies outside (0, 1], or the two are not alike or not in order.
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
        """Return the most FLOPs that a candidate may cost."""
        return min(dense_flops, self._flops(self.value, dense_flops))

    def least(self, dense_flops: int) -> int:
        """Return the FLOPs from which candidates are tried, up to `limit`.

        Raises:
            BudgetError: the dense model costs less.
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
    """Return a bound's value and whether it counts FLOPs."""
    where = f"FLOPs budget {text!r}" + (f", part {part.strip()!r}" if part != text else "")
    match = _TEXT.match(part)
    if not match:
        raise BudgetError(f"{where}: expected a share such as 0.6, or FLOPs such as 3.6G or 900M")
    number, unit = float(match[1]), match[2].upper()
    value = number * _UNITS[unit]
    if unit and math.isfinite(value):
        value = float(round(value))  # FLOPs are whole, so that their text reads back exactly
    if not (math.isfinite(value) and value > 0):
        raise BudgetError(f"{where}: must be above 0")
    if not unit and value > 1:
        raise BudgetError(f"{where}: a share is at most 1; for FLOPs write 3.6G or 900M")
    return value, bool(unit)


def _absolute_text(value: float) -> str:
    unit = max((u for u, scale in _UNITS.items() if u and value >= scale), key=_UNITS.__getitem__, default="K")
    return f"{_number(value / _UNITS[unit])}{unit}"


def _number(value: float) -> str:
    """The shortest text that reads back as `value`."""
    return repr(value).removesuffix(".0")

"""How many FLOPs a candidate may cost."""

import math
import re
from dataclasses import dataclass

from spaces.errors import BudgetError

_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_TEXT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([KMGTkmgt]?)\s*\Z")


@dataclass(frozen=True)
class FlopsBudget:
    """A bound on FLOPs, as a share of the dense model's or absolute.

    Attributes:
        value: the share in (0, 1], or FLOPs.
        absolute: whether `value` counts FLOPs.
    """

    value: float
    absolute: bool = False

    @classmethod
    def parse(cls, text: str) -> "FlopsBudget":
        """Read `0.6` (a share of the dense FLOPs) or `3.6G`, `900M` (absolute).

        Raises:
            BudgetError: the text is neither, or the share lies outside (0, 1].
        """
        match = _TEXT.match(text)
        if not match:
            raise BudgetError(f"FLOPs budget {text!r}: expected a share such as 0.6, or FLOPs such as 3.6G or 900M")
        number, unit = float(match[1]), match[2].upper()
        value = number * _UNITS.get(unit, 1.0)
        if not (math.isfinite(value) and value > 0):
            raise BudgetError(f"FLOPs budget {text!r}: must be above 0")
        if not unit and value > 1:
            raise BudgetError(f"FLOPs budget {text!r}: a share is at most 1; for FLOPs write 3.6G or 900M")
        return cls(value, bool(unit))

    def limit(self, dense_flops: int) -> int:
        """Return the most FLOPs that a candidate may cost."""
        return min(dense_flops, math.floor(self.value if self.absolute else self.value * dense_flops))

    def __str__(self) -> str:
        if not self.absolute:
            return f"{self.value:g}"
        unit = max((u for u, scale in _UNITS.items() if self.value >= scale), key=_UNITS.__getitem__, default="K")
        return f"{self.value / _UNITS[unit]:g}{unit}"

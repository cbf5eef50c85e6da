"""Canonical keep ratios: one for each number of kept tokens, so that equivalent schedules have the same text."""

from dataclasses import replace
from functools import lru_cache

from spaces.layout import TokenLayout
from spaces.schedule import PruningSchedule

DIGITS = 3  # the most decimals of a ratio; enough to tell all counts of up to 1,000 tokens apart


@lru_cache(maxsize=2**16)
def keep_ratio(tokens: int, kept: int) -> tuple[float, int]:
    """Return the canonical ratio that keeps `kept` of `tokens`, and the number of tokens that it keeps.

    Of all decimals with which `kept_tokens` gives `kept`, the ratio is the one with the fewest digits; among several,
    the nearest to `kept / tokens`, or the lower of two that are equally near. Above 1,000 tokens, no decimal of
    `DIGITS` digits may give exactly `kept`. Then the ratio is the nearest decimal, and the second value says how many
    tokens that keeps.

    >>> keep_ratio(196, 157)
    (0.8, 157)
    >>> keep_ratio(4000, 1999)
    (0.5, 2000)

    Args:
        tokens: patch tokens before the step.
        kept: patch tokens after the step, in 1 … tokens.

    Raises:
        ValueError: `kept` is out of range.
    """
    if not 1 <= kept <= tokens:
        raise ValueError(f"kept={kept}: outside 1 … {tokens}")
    ratio, count = 1.0, tokens
    for digits in range(1, DIGITS + 1):
        scale = 10**digits
        # The multiple of 1/scale nearest to kept/tokens. The ratios that keep `kept` are an interval around
        # kept/tokens, so if any multiple lies in it, this one does.
        numerator = max(1, -((tokens - 2 * kept * scale) // (2 * tokens)))
        ratio, count = numerator / scale, max(1, (2 * numerator * tokens + scale) // (2 * scale))
        if count == kept:
            break
    return ratio, count


def canonical(schedule: PruningSchedule, layout: TokenLayout) -> PruningSchedule:
    """Return the schedule that keeps the same numbers of tokens, with canonical ratios.

    Steps that drop nothing are removed, such as those at the end of a stage.

    >>> from spaces import Stage
    >>> layout = TokenLayout("tiny", (28, 28), (Stage(12, 7, 7),))
    >>> canonical(PruningSchedule.parse("3:0.8012,6:0.999"), layout).text
    '3:0.8'

    Raises:
        ScheduleError: the schedule does not fit the model.
    """
    before, left, steps = layout.worked_on(schedule), layout.tokens(schedule), []
    for step in schedule.steps:
        block = step.after - 1
        steps.append(replace(step, keep=keep_ratio(before[block], left[block])[0]))
    return PruningSchedule(tuple(steps), schedule.method)

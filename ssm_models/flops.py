"""What a forward pass costs, counted by fvcore and, for a search, read from a table.

One multiply-accumulate is one FLOP. Counted are convolutions, matrix products, the selective scan (in each
direction 9·L·D·N, + L·D each for the D skip, the z gate and the gap), the sums of scores and of held gaps, an
operation an element. Directions that share their Δ (PlainMamba's) share the gap too, and their one gate is
elementwise. Elementwise functions, norms, ranking and gathering cost nothing, as in the literature; they
stand in `FREE`, and an operator in neither list is an error, not a zero.

Conventions: `full` counts everything that runs. `published` counts one of Vim's two directions, as
the figures that are quoted for Vim do; for the other families the two agree.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from math import prod
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from spaces import PruningSchedule
from spaces.errors import FlopsError, UnknownNameError
from ssm_models.base import PrunableModel
from ssm_models.importance import image_seeds
from ssm_models.pruning import TokenView

CONVENTIONS = ("full", "published")

_FREE_ATEN = """
    abs add add_ arange argmax argsort batch_norm bitwise_and __and__ __xor__ __rshift__ bitwise_xor
    bitwise_right_shift cat clamp clamp_min clone constant_pad_nd pad div div_ embedding eq exp expand expand_as
    fill_ flip flatten full gather gelu index index_put_ layer_norm lift_fresh masked_fill mean mul mul_ ne neg
    new_zeros new_full ones ones_like permute pow relu reshape rms_norm round rsub scatter scatter_add select
    sigmoid silu slice softplus sort split split_with_sizes square squeeze stack sub transpose unflatten unsqueeze
    view where zeros zeros_like
"""
FREE = frozenset(f"aten::{name}" for name in _FREE_ATEN.split()) | {"prim::PythonOp.Identity"}


def _shape(value: Any) -> list[int] | None:
    sizes = value.type().sizes() if value.isCompleteTensor() else None
    return None if sizes is None else list(sizes)


def _scan_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count one selective scan; the arguments are those of `ssm_models.scan.ops`."""
    u, A = _shape(inputs[0]), _shape(inputs[2])
    assert u is not None and A is not None
    batch, length, channels = u
    states = A[1]
    skip, gate, gap = (_shape(inputs[i]) is not None for i in (5, 6, 8))
    emit, orders = _shape(inputs[9]), _shape(inputs[10])
    emits, directions = length if emit is None else emit[1], 1
    if orders is not None:  # the one gate of all directions is elementwise, outside the authors' kernel
        directions, gate = orders[1], False
    # Of the nine operations a state, two are the product with C, which only positions that emit need.
    recurrence = 7 * length * channels * states + 2 * emits * channels * states
    each = recurrence + skip * emits * channels
    return batch * (directions * each + gate * emits * channels + gap * length * channels)


def _nothing(inputs: list[Any], outputs: list[Any]) -> int:
    return 0


def _input_elements(inputs: list[Any], outputs: list[Any]) -> int:
    shape = _shape(inputs[0])
    assert shape is not None
    return prod(shape)


_HANDLES: dict[str, Callable[[list[Any], list[Any]], int]] = {
    "prunefront::selective_scan": _scan_flops,
    "aten::sum": _input_elements,
    "aten::cumsum": _input_elements,
}


def _count(module: nn.Module, inputs: tuple[Any, ...]) -> Counter[str]:
    """Count a module's FLOPs by operator.

    Raises:
        FlopsError: an operator is neither counted nor free.
    """
    analysis = FlopCountAnalysis(module, inputs)
    analysis.set_op_handle(**dict.fromkeys(FREE, _nothing), **_HANDLES)  # fvcore has a price for norms
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's deprecation of the tracer that fvcore stands on
        found = analysis.by_operator()
        unknown = sorted(set(analysis.unsupported_ops()) - FREE)
    if unknown:
        raise FlopsError(
            f"FLOPs of {type(module).__name__}: no cost is stated for {', '.join(unknown)}; "
            "add a handle or list it as free in ssm_models/flops.py"
        )
    return Counter({name: int(number) for name, number in found.items()})


@contextmanager
def _counting(model: PrunableModel, convention: str) -> Iterator[None]:
    """Put the model into the state that a count needs, and back."""
    if convention not in CONVENTIONS:
        raise UnknownNameError("FLOPs convention", convention, CONVENTIONS)
    training, schedule, directions = model.training, model.schedule, model.directions
    model.eval()
    if convention == "published":
        model.use_directions(model.published_directions)
    try:
        yield
    finally:
        model.train(training)
        model.use_directions(directions)
        model.set_schedule(schedule)


def _image(model: PrunableModel) -> Tensor:
    parameter = next(model.parameters())
    return torch.zeros(1, 3, *model.img_size, device=parameter.device, dtype=parameter.dtype)


def count_flops(model: PrunableModel, schedule: PruningSchedule | str | None = None, convention: str = "full") -> int:
    """Count one image's forward pass under a schedule with fvcore, over the whole model.

    Raises:
        ScheduleError: the schedule does not fit the model.
        FlopsError: an operator's cost is not stated.
    """
    if isinstance(schedule, str):
        schedule = PruningSchedule.parse(schedule)
    with _counting(model, convention):
        model.set_schedule(schedule)

        def run(images: Tensor) -> Any:  # the tracer drops what no output needs, so the choices are outputs too
            x, view, kept = model.run_blocks(images)
            return model.classify(x, view), *kept, *view.held

        return sum(_count(_Unit(model, run), (_image(model),)).values())


class _Unit(nn.Module):
    """One part of the forward pass as a module of its own, for fvcore to trace."""

    def __init__(self, owner: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.owner, self.run = owner, run

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(*inputs)


class CostTable:
    """The FLOPs of any schedule on one model, from parts that fvcore has counted.

    A part is a block, alone or with the step after it, at a number of kept tokens. Its cost is a
    polynomial of that number (of degree 2 where there is attention), so three counts determine it and
    a fourth must agree. Parts are counted when first asked for; equal blocks are counted once.

    Attributes:
        dense: FLOPs of the dense model.
        embedding, head: FLOPs before the first and after the last block.
        seeding: FLOPs that the random score adds before the first block.
    """

    def __init__(self, model: PrunableModel, convention: str = "full") -> None:
        self._model, self._convention = model, convention
        self._polynomials: dict[tuple[Any, ...], tuple[Fraction, ...]] = {}
        self._memo: dict[tuple[Any, ...], int] = {}
        self._signatures = [_signature(block) for block in model.blocks]
        image = _image(model)
        with _counting(model, convention), torch.no_grad():
            model.set_schedule(None)
            self.embedding = sum(_count(_Unit(model, model.embed), (image,)).values())
            self.seeding = sum(_count(_Unit(model, image_seeds), (image,)).values())
            features, view = model.embed(image), model.first_view(image)
            self._features = features.shape[2]
            self.head = sum(_count(_Unit(model, lambda x: model.classify(x, view)), (features,)).values())
        self.dense = self.flops(PruningSchedule())

    def flops(self, schedule: PruningSchedule) -> int:
        """Return the FLOPs of one image's forward pass under `schedule`.

        Raises:
            ScheduleError: the schedule does not fit the model.
        """
        seeding = self.seeding if schedule.method.importance == "random" else 0
        return self.embedding + seeding + sum(self.by_block(schedule)) + self.head

    def by_block(self, schedule: PruningSchedule) -> list[int]:
        """Return the FLOPs of each block, with those of the pruning step after it."""
        after = self._model.layout.tokens(schedule)
        total = self._model.layout.stages[0].tokens
        keeps = {step.after for step in schedule.steps}
        before = [total, *after[:-1]]
        return [
            self._part(index, tokens, index + 1 in keeps, tokens < total, schedule)
            for index, tokens in enumerate(before)
        ]

    def _part(self, index: int, patches: int, step: bool, pruned: bool, schedule: PruningSchedule) -> int:
        method = schedule.method if pruned or step else PruningSchedule().method
        key = (self._signatures[index], step, pruned, method)
        found = self._memo.get((*key, patches))
        if found is None:
            kept = patches + self._model.layout.protected
            found = self._value(index, kept, step, pruned, schedule, key)
            self._memo[(*key, patches)] = found
        return found

    def _value(
        self, index: int, kept: int, step: bool, pruned: bool, schedule: PruningSchedule, key: tuple[Any, ...]
    ) -> int:
        if not pruned:
            return self._measure(index, kept, step, None, schedule)
        if key not in self._polynomials:
            length = self._model.layout.stages[0].tokens + self._model.layout.protected
            nodes = sorted({2, (length + 2) // 2, max(2, length - 1)})
            counts = {n: self._measure(index, n, step, length, schedule) for n in nodes}
            self._polynomials[key] = _interpolate(counts)
            probe = max(2, length // 3)
            if _evaluate(self._polynomials[key], probe) != self._measure(index, probe, step, length, schedule):
                raise FlopsError(f"block {index + 1}: its cost is no polynomial of degree 2 of its tokens")
        value = _evaluate(self._polynomials[key], kept)
        assert value.denominator == 1
        return int(value)

    def _measure(self, index: int, kept: int, step: bool, length: int | None, schedule: PruningSchedule) -> int:
        """Count block `index` with `kept` of `length` tokens left; None: all are."""
        model = self._model
        full = kept if length is None else length
        travelling = full if schedule.method.carries else kept
        parameter = next(model.parameters())
        x = torch.zeros(1, travelling, self._features, device=parameter.device, dtype=parameter.dtype)
        protected = [p for p in model.protected if p < full]
        others = [p for p in range(full) if p not in protected]
        kept_list = sorted([*protected, *others[: kept - len(protected)]])
        positions = torch.tensor([kept_list], device=x.device) if length is not None else None
        seeds = torch.zeros(1, dtype=torch.int64, device=x.device)
        with _counting(model, self._convention), torch.no_grad():
            held: tuple[Tensor, ...] = ()
            if positions is not None and schedule.method.alignment == "hold":
                held = tuple(x.new_zeros(1, kept, c) for c in model.scan_channels(index))
            view = TokenView(full, seeds, schedule.method, positions, held)

            def run(x: Tensor) -> Any:  # all that is used later is returned: the tracer drops what is not
                x, after = model.step(index, x, view, 0.5 if step else None)
                return (x, after.all_positions(), *after.held) if step else x

            return sum(_count(_Unit(model, run), (x,)).values())


def cost_table(model: PrunableModel, convention: str = "full") -> CostTable:
    """Return the model's cost table; see `CostTable`."""
    return CostTable(model, convention)


def _signature(block: nn.Module) -> tuple[Any, ...]:
    """Return what makes two blocks cost the same."""
    return (str(block), tuple((name, tuple(p.shape)) for name, p in block.named_parameters()))


def _interpolate(counts: dict[int, int]) -> tuple[Fraction, ...]:
    """Return the coefficients, lowest first, of the polynomial through the points (Lagrange, exact)."""
    total = [Fraction(0)] * len(counts)
    for x, y in counts.items():
        basis = [Fraction(1)]
        for other in counts:
            if other != x:  # multiply by (t - other) / (x - other)
                basis = [
                    (a - other * b) / (x - other)
                    for a, b in zip([Fraction(0), *basis], [*basis, Fraction(0)], strict=True)
                ]
        total = [a + y * b for a, b in zip(total, basis, strict=True)]
    return tuple(total)


def _evaluate(coefficients: tuple[Fraction, ...], x: int) -> Fraction:
    value = Fraction(0)
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value

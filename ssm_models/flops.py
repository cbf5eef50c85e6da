"""The FLOPs of a forward pass: counted by fvcore, and for a search looked up in a table.

One multiply-accumulate is one FLOP. Counted are convolutions, matrix products, the selective scan, and the sums of
scores and of held gaps at one operation per element. A scan costs 9·L·D·N per direction, and L·D each for the D skip,
the z gate and the gap. Directions that share their Δ (PlainMamba's) share the gap too, and their one gate is
elementwise. Elementwise functions, norms, ranking and gathering are free, as in the literature: `FREE` lists them. An
operator without a price in either list is an error, not a zero.

Conventions: `full` counts everything that runs. `published` counts one of Vim's two directions, as the figures quoted
for Vim do; for the other families the two agree.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from timm.layers.drop import DropPath
from torch import Tensor, nn

from spaces import PruningMethod, PruningSchedule, PruningStep
from spaces.errors import FlopsError, UnknownNameError, UsageError
from spaces.schedule import as_schedule
from ssm_models.base import PrunableModel
from ssm_models.importance import image_seeds
from ssm_models.polynomials import DEGREE, Polynomial, fitted
from ssm_models.scan.arguments import ARGUMENT_NAMES
from ssm_models.token_sets import SETS_LEFT, TokenSets
from ssm_models.token_view import TokenView

CONVENTIONS = ("full", "published")

_FREE_ATEN = """
    abs add add_ amax amin __and__ arange argmax argsort batch_norm bitwise_and bitwise_or bitwise_right_shift
    bitwise_xor cat clamp clamp_min clone constant_pad_nd div div_ embedding eq exp expand expand_as fill_ flatten
    flip floor_divide full gather gelu index index_add index_copy index_put_ index_select layer_norm lift_fresh
    linalg_vector_norm masked_fill mean mul_ mul ne neg new_full new_ones new_zeros numel ones ones_like __or__
    pad permute pow relu remainder reshape rms_norm round __rshift__ rsub scatter scatter_add select sigmoid silu
    slice softmax softplus sort split split_with_sizes square squeeze stack sub t transpose unflatten unsqueeze
    view where __xor__ zeros zeros_like
"""
FREE = frozenset(f"aten::{name}" for name in _FREE_ATEN.split()) | {"prim::PythonOp.Identity"}


def _shape(value: Any) -> list[int] | None:
    sizes = value.type().sizes() if value.isCompleteTensor() else None
    return None if sizes is None else list(sizes)


def _scan_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count one selective scan, from the inputs of the operator."""
    shapes = dict(zip(ARGUMENT_NAMES, map(_shape, inputs), strict=False))  # the operator takes the backend as well
    u, A, emit, orders = (shapes[name] for name in ("u", "A", "emit", "orders"))
    assert u is not None and A is not None
    batch, length, channels = u
    states = A[1]
    skip, gate, gap = (shapes[name] is not None for name in ("D", "z", "gap"))
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


def _output_elements(inputs: list[Any], outputs: list[Any]) -> int:
    shape = _shape(outputs[0])
    assert shape is not None
    return prod(shape)


_HANDLES: dict[str, Callable[[list[Any], list[Any]], int]] = {
    "prunefront::selective_scan": _scan_flops,
    "aten::sum": _input_elements,
    "aten::addcmul_": _output_elements,  # a tap of a convolution at some positions
    "aten::cumsum": _input_elements,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence fvcore's log, and torch's deprecation of the tracer that fvcore uses, for the length of a count."""
    logger = logging.getLogger("fvcore")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _count(module: nn.Module, inputs: tuple[Any, ...]) -> Counter[str]:
    """Count a module's FLOPs by operator.

    Raises:
        FlopsError: an operator is neither counted nor free.
    """
    with _quiet(), torch.no_grad():
        analysis = FlopCountAnalysis(module, inputs)
        analysis.set_op_handle(**dict.fromkeys(FREE, _nothing), **_HANDLES)  # fvcore has a price for norms
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
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
    """Put the model into the state that a count needs, and restore it."""
    if convention not in CONVENTIONS:
        raise UnknownNameError("FLOPs convention", convention, CONVENTIONS)
    training, schedule, directions = model.training, model.schedule, model.directions
    threads = torch.get_num_threads()
    model.eval()
    torch.set_num_threads(1)  # one image is little work; on a busy machine threads would mostly wait
    if convention == "published":
        model.use_directions(model.published_directions)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        model.train(training)
        model.use_directions(directions)
        model.set_schedule(schedule)


def _image(model: PrunableModel) -> Tensor:
    parameter = next(model.parameters())
    return torch.zeros(1, model.in_chans, *model.img_size, device=parameter.device, dtype=parameter.dtype)


class _Current:
    """The schedule that is set on the model, whichever it is."""

    def __repr__(self) -> str:
        return "<the model's>"


CURRENT = _Current()


def count_flops(
    model: PrunableModel, schedule: PruningSchedule | str | _Current | None = CURRENT, convention: str = "full"
) -> int:
    """Count the forward pass of one image under a schedule, with fvcore over the whole model.

    Args:
        model: its schedule and mode are left as they are.
        schedule: a schedule or its text; None is dense. By default the schedule that is set on the model.
        convention: `full` or `published`; see the module.

    Returns:
        Multiply-accumulates of one image.

    Raises:
        ScheduleError: the schedule does not fit the model, or has a method or context that its family does not offer.
        UsageError: the model is not one of this package.
        UnknownNameError: there is no such convention.
        FlopsError: the model uses an operator without a stated cost.

    >>> import ssm_models
    >>> model = ssm_models.create_model("vim_nano")
    >>> count_flops(model, "4:0.5")
    30082944
    >>> model.set_schedule("4:0.5")
    >>> count_flops(model), count_flops(model, None)
    (30082944, 44080768)
    """
    _check_family(model)
    if isinstance(schedule, _Current):
        schedule = model.schedule
    with _counting(model, convention):
        model.set_schedule(schedule)

        def run(images: Tensor) -> Any:  # the tracer drops what no output needs, so the chosen tokens are outputs too
            x, view, kept = model.run_blocks(images)
            return model.classify(x, view), x, *kept, *view.gap_sums

        return sum(_count(_Unit(model, run), (_image(model),)).values())


def _check_family(model: object) -> None:
    if not isinstance(model, PrunableModel):
        raise UsageError(
            f"{type(model).__name__} is not a state-space model of this package, so no schedule applies to it; the "
            "models are those of ssm_models.list_models()"
        )


class _Unit(nn.Module):
    """One part of the forward pass as a module of its own, for fvcore to trace."""

    def __init__(self, owner: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.owner, self.run = owner, run

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(*inputs)


@dataclass(frozen=True)
class _Load:
    """The token counts of a view on which the cost of a part depends, protected tokens included.

    Attributes:
        length: tokens of the whole sequence.
        sizes: K, S and T of `token_sets`.
        indexed: for each of these sets, whether it has an index in the view, so that it is gathered.
    """

    length: int
    sizes: tuple[int, int, int]
    indexed: tuple[bool, bool, bool] = (False, False, False)

    @classmethod
    def of(cls, length: int, indexed: tuple[bool, bool, bool], counts: Sequence[int]) -> "_Load":
        """Return the load in which the indexed sets have these sizes, the innermost first."""
        sizes, given, around = [], list(counts), length
        for has_index in reversed(indexed):
            around = given.pop() if has_index else around
            sizes.append(around)
        kept, scanned, travelling = reversed(sizes)
        return cls(length, (kept, scanned, travelling), indexed)

    @property
    def counts(self) -> tuple[int, ...]:
        """The sizes of the indexed sets, the innermost first."""
        return tuple(size for size, has_index in zip(self.sizes, self.indexed, strict=True) if has_index)

    def after(self, kept: int, context: str) -> "_Load":
        """Return the load after a step that keeps `kept` tokens; see `TokenSets.without`."""
        sets, gone = SETS_LEFT[context], self.sizes[0] - kept
        sizes = [size - gone if depth < sets else size for depth, size in enumerate(self.sizes)]
        has_index = [flag or depth + 1 == sets for depth, flag in enumerate(self.indexed)]
        return _Load(self.length, (sizes[0], sizes[1], sizes[2]), (has_index[0], has_index[1], has_index[2]))

    def view(
        self, dense: TokenView, method: PruningMethod, model: PrunableModel, block: int, like: Tensor
    ) -> TokenView:
        """Return a view of one image with these token counts before a block; `dense` is the view with all tokens."""
        first = list(model.protected)
        order = list(dict.fromkeys([*first, *range(self.length)]))
        around, chain = list(range(self.length)), list[Tensor | None]()
        for size, has_index in zip(reversed(self.sizes), reversed(self.indexed), strict=True):
            inside = set(order[:size])
            places = [[place for place, position in enumerate(around) if position in inside]]
            chain.append(torch.tensor(places, device=like.device) if has_index else None)
            around = sorted(inside)
        gap_sums: tuple[Tensor, ...] = ()
        if method.alignment == "hold" and (self.indexed[1] or self.indexed[2]):
            gap_sums = tuple(like.new_zeros(1, self.sizes[1], c) for c in model.scan_channels(block))
        sets, last_features = TokenSets(self.length, *chain), None
        if dense.returning and sets.travelling_idx is not None:
            last_features = like.new_zeros(1, self.length, like.shape[2])
        return replace(dense, sets=sets, method=method, gap_sums=gap_sums, last_features=last_features)


@dataclass(frozen=True)
class _Part:
    """A block, alone or with the step after it: what has one polynomial of the token counts.

    Attributes:
        block: stands for all blocks that cost the same.
        method: the schedule's.
        indexed: as in `_Load`.
        context: of the step after the block; None: there is none.
    """

    block: int
    method: PruningMethod
    indexed: tuple[bool, bool, bool]
    context: str | None


class CostTable:
    """The FLOPs of any schedule on one model, interpolated exactly from parts that fvcore has counted.

    A part is a block, alone or with the step after it. Its cost is a polynomial of its token counts: the travelling,
    scanned and kept tokens, as far as they differ, and those kept after the step. The degree is 1, or 2 where tokens
    are compared with one another. fvcore's counts at as many points as there are coefficients determine it, and two
    more must agree. Parts are counted on first use; equal blocks are counted once.

    >>> import ssm_models
    >>> model = ssm_models.create_model("vim_nano")
    >>> table, schedule = CostTable(model), PruningSchedule.parse("4:0.7,8:0.5")
    >>> round(table.flops(schedule) / table.dense, 2)
    0.69

    Attributes:
        dense: FLOPs of the dense model.
        embedding, head: FLOPs before the first and after the last block.
        between: FLOPs of the downsampling after each stage but the last; they do not depend on the schedule.
        seeding: FLOPs that the random score adds before the first block.
    """

    def __init__(self, model: PrunableModel, convention: str = "full") -> None:
        _check_family(model)
        self._model, self._convention = model, convention
        self._polynomials: dict[_Part, Polynomial] = {}
        self._memo: dict[tuple[PruningMethod, _Load], dict[tuple[int, str | None, int], int]] = {}
        layout = model.layout
        self._stages = [layout.stage_of(index + 1) for index in range(layout.depth)]
        signatures = [(stage, *_signature(block)) for stage, block in zip(self._stages, model.blocks, strict=True)]
        self._like = [signatures.index(signature) for signature in signatures]  # the first block that costs the same
        image = _image(model)
        with _counting(model, convention), torch.no_grad():
            model.set_schedule(None)
            self.embedding = sum(_count(_Unit(model, model.embed), (image,)).values())
            self.seeding = sum(_count(_Unit(model, image_seeds), (image,)).values())
            self.between, self._features, self._views = list[int](), list[int](), list[TokenView]()
            x, view = model.begin(image)
            for index, stage in enumerate(self._stages):
                self._features.append(x.shape[2])  # width of what travels into each block
                x, view = model.prune_block(index, x, view, None)
                if index + 1 in layout.ends:
                    self._views.append(view)
                    if index + 1 < layout.depth:
                        passage = _Unit(model, partial(model.downsample, stage, aside=view.aside))
                        self.between.append(sum(_count(passage, (x,)).values()))
                x, view = model.end_stage(index, x, view)
            head = _Unit(model, lambda x: model.classify(x, self._views[-1]))
            self.head = sum(_count(head, (x,)).values())
        self.dense = self.flops(PruningSchedule())

    def flops(self, schedule: PruningSchedule | str | None) -> int:
        """Return the FLOPs of one image's forward pass under a schedule or its text; None is dense.

        Raises:
            ScheduleError: the schedule does not fit the model, or has a method or context that its family does not
                offer.
        """
        schedule = as_schedule(schedule)
        seeding = self.seeding if schedule.method.importance == "random" else 0
        return self.embedding + seeding + sum(self.by_block(schedule)) + self.head

    def by_block(self, schedule: PruningSchedule | str | None) -> list[int]:
        """Return the FLOPs of each block, with the pruning step and the downsampling after it; raises as `flops`."""
        schedule = self._model.check_schedule(schedule)
        layout, method, found = self._model.layout, schedule.method, list[int]()
        steps = zip(schedule.steps, schedule.contexts, strict=True)
        contexts = {step.after: context for step, context in steps if layout.prunes(step.after)}
        left = layout.tokens(schedule)
        for stage, end in enumerate(layout.ends):
            length = layout.stages[stage].tokens + layout.protected
            load = _Load(length, (length, length, length))
            memo = self._memo.setdefault((method, load), {})
            for index in range(len(found), end):
                context = contexts.get(index + 1)
                like, kept = self._like[index], left[index] + layout.protected
                key = (like, context, kept)
                if key not in memo:
                    memo[key] = self._cost(_Part(like, method, load.indexed, context), load, kept)
                found.append(memo[key])
                if context is not None:
                    load = load.after(kept, context)
                    memo = self._memo.setdefault((method, load), {})
        for end, cost in zip(layout.ends, self.between, strict=False):
            found[end - 1] += cost
        return found

    def _cost(self, part: _Part, load: _Load, kept: int) -> int:
        """Return the FLOPs of a part at a load, if the step after it leaves `kept` tokens."""
        if part.context is None:
            # Scores and merging only matter in steps, the rest of the method only in blocks after a step.
            rest = replace(part.method, importance=PruningMethod.importance, reduction=PruningMethod.reduction)
            part = replace(part, method=rest if any(part.indexed) else PruningMethod())
        if part not in self._polynomials:
            self._polynomials[part] = self._fitted(part, load.length)
        return self._polynomials[part]((kept, *load.counts) if part.context else load.counts)

    def _fitted(self, part: _Part, length: int) -> Polynomial:
        def count(point: tuple[int, ...]) -> int:
            kept, counts = (point[0], point[1:]) if part.context else (None, point)
            return self._measure(part, _Load.of(length, part.indexed, counts), kept)

        found = fitted(
            count, sum(part.indexed) + (part.context is not None), 1 + self._model.layout.protected, length
        )
        if found is None:
            raise FlopsError(f"block {part.block + 1}: its cost is no polynomial of degree {DEGREE} of its tokens")
        return found

    def _measure(self, part: _Part, load: _Load, kept: int | None) -> int:
        """Count a part at a load; `kept` tokens are left by the step after it, if there is one."""
        model, protected = self._model, self._model.layout.protected
        stage, parameter = self._stages[part.block], next(model.parameters())
        x = torch.zeros(1, load.sizes[2], self._features[part.block], device=parameter.device, dtype=parameter.dtype)
        step = None
        if kept is not None:
            ratio = (kept - protected) / (load.sizes[0] - protected)
            step = PruningStep(part.block + 1, ratio, part.context)
        with _counting(model, self._convention), torch.no_grad():
            view = load.view(self._views[stage], part.method, model, part.block, x)

            def run(x: Tensor) -> Any:  # all that is used later is returned: the tracer drops what is not
                x, after = model.prune_block(part.block, x, view, step)
                return x if step is None else (x, after.all_positions(), *after.gap_sums)

            return sum(_count(_Unit(model.blocks[part.block], run), (x,)).values())


def cost_table(model: PrunableModel, convention: str = "full") -> CostTable:
    """Return the cost table of a model; arguments and errors as of `count_flops`, shapes as of `CostTable`.

    >>> import ssm_models
    >>> table = cost_table(ssm_models.create_model("vim_nano"))
    >>> table.dense == table.flops(None)
    True
    >>> table.flops("6:0.5") < table.dense
    True
    """
    return CostTable(model, convention)


def _signature(block: nn.Module) -> tuple[Any, ...]:
    """Return what determines the cost of a block: its modules and shapes, without those that only act in training."""
    idle = (DropPath, nn.Dropout, nn.Identity)
    modules = [(name, type(m), m.extra_repr()) for name, m in block.named_modules() if not isinstance(m, idle)]
    return (tuple(modules), tuple((name, tuple(p.shape)) for name, p in block.named_parameters()))

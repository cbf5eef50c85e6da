"""A model under its schedule as one graph, for runtimes that do not know this package: `torch.export` and ONNX.

The schedule is part of the graph: how many tokens each block works on is a constant, which ones is computed from the
image. The size of the images is fixed, the number of images is not. Selective scans become loops of plain operations
(`scan/traced.py`). What the exporters do not take is refused with their reason; there is no list of what works.
The files are for handing on: they hold neither paths of the machine that made them nor any of its images.
"""

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spaces.errors import ExportError, UsageError
from ssm_models.base import PrunableModel

if TYPE_CHECKING:
    from torch.export import ExportedProgram

TARGETS = {"pt2": "model.pt2", "onnx": "model.onnx"}
SAME_ANSWERS = 0.99  # the least share of images on which an export has to answer as the model does
OPSET = 20


@dataclass(frozen=True)
class Parity:
    """How an exported file compares with the model it came from, on the same images.

    Attributes:
        target: `pt2` or `onnx`.
        runtime: what ran the file, with its version.
        images: how many images both were given.
        max_difference: the largest difference of two logits.
        largest_logit: the largest logit of the model, to set the difference beside.
        same_answers: share of images with the same highest logit.
        nodes: of the graph; bodies of loops count once.
        bytes: of the file.
        seconds: that the export took.
    """

    target: str
    runtime: str
    images: int
    max_difference: float
    largest_logit: float
    same_answers: float
    nodes: int
    bytes: int
    seconds: float


def check_target(target: str) -> None:
    """Raise a UsageError unless `target` is one that can be exported to with what is installed."""
    if target not in TARGETS:
        raise UsageError(f"export to {target!r}: expected one of {', '.join(TARGETS)}")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if target == "onnx" and not find_spec(name)]
    if missing:
        raise UsageError(f"export to onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")


def export(model: PrunableModel, target: str, folder: str | Path, images: Tensor) -> Parity:
    """Write the model under its schedule as FOLDER/model.pt2 or FOLDER/model.onnx, and compare it with the model.

    Args:
        model: on the CPU; it is not changed.
        target: one of `TARGETS`.
        folder: is there.
        images: (n, 3, H, W) normalised, of the model's size; n at least 1.

    Raises:
        UsageError: no such target, or what it needs is not installed.
        ExportError: the exporter refuses, or what came out does not answer as the model does; no file is left.
    """
    check_target(target)
    path = Path(folder) / TARGETS[target]
    began = time.monotonic()
    evaluated = deepcopy(model).eval()
    try:
        with _quiet(), torch.no_grad():
            program = _program(evaluated, images)
            nodes = _write_pt2(program, path) if target == "pt2" else _write_onnx(program, path)
            seconds = time.monotonic() - began
            expected = evaluated(images)
            runtime, given = _run_pt2(path, images) if target == "pt2" else _run_onnx(path, images)
    except Exception as error:  # the exporters have errors of many kinds, and all of them mean the same
        path.unlink(missing_ok=True)
        raise ExportError(f"{_described(model)} cannot be exported to {target}: {_reason(error)}") from error
    same = (given.argmax(1) == expected.argmax(1)).double().mean().item()
    parity = Parity(
        target=target,
        runtime=runtime,
        images=len(images),
        max_difference=(given - expected).abs().max().item(),
        largest_logit=expected.abs().max().item(),
        same_answers=same,
        nodes=nodes,
        bytes=path.stat().st_size,
        seconds=seconds,
    )
    if not same >= SAME_ANSWERS:
        path.unlink()
        raise ExportError(
            f"{_described(model)} exported to {target} gives the same answer for {100 * same:.1f} % of {len(images)} "
            f"images only (logits differ by up to {parity.max_difference:.3g}): the file is not kept"
        )
    return parity


def _program(model: PrunableModel, images: Tensor) -> "ExportedProgram":
    batch = torch.export.Dim("batch", min=1)
    # Zeros, since the file keeps the example; two, since a batch of one would be taken for a constant.
    example = torch.zeros(2, *images.shape[1:])
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},), strict=False)
    for node in _nodes(program):
        node.meta.pop("stack_trace", None)  # the file would keep it, and with it this machine's paths
    return program


def _nodes(program: "ExportedProgram") -> list[torch.fx.Node]:
    """Return the nodes of a program, those in the bodies of loops among them."""
    modules = [module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    return [node for module in modules for node in module.graph.nodes]


def _write_pt2(program: "ExportedProgram", path: Path) -> int:
    torch.export.save(program, path)
    return len(_nodes(program))


def _run_pt2(path: Path, images: Tensor) -> tuple[str, Tensor]:
    logits: Tensor = torch.export.load(path).module()(images)
    return f"torch {torch.__version__}", logits


def _write_onnx(program: "ExportedProgram", path: Path) -> int:
    import onnx
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    made = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["logits"],
        custom_translation_table={torch.ops.aten.sort.stable: _sorted},
    )
    assert made is not None
    ClearMetadataAndDocStringPass()(made.model)  # the exporter adds stack traces of its own
    made.save(path, external_data=False)
    return _count(onnx.load(path, load_external_data=False).graph)


def _sorted(x: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:
    """A stable sort: of equal values ONNX's TopK puts that of the lower index first, whichever way it sorts."""
    from onnxscript import opset20

    op: Any = opset20
    count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def _count(graph: Any) -> int:
    """Return the nodes of an ONNX graph, those in the bodies of loops among them."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return len(graph.node) + sum(_count(body) for body in inner)


def _run_onnx(path: Path, images: Tensor) -> tuple[str, Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    return f"onnxruntime {onnxruntime.__version__}", torch.from_numpy(logits)


def _described(model: PrunableModel) -> str:
    return f"{model.model_name} under {model.schedule.text or 'no schedule'}"


def _reason(error: BaseException) -> str:
    """Return the first line that says something of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters print of their progress from a user who can do nothing about it."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

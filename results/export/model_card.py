"""The model card of a bundle: the model, its figures, its provenance, and how to load it."""

from collections.abc import Mapping, Sequence
from typing import Any

from results.image_sets import images_text
from results.metrics import METRICS
from results.records import FineTune, FineTuned


def model_card(
    form: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    digest: str,
    *,
    finetune: FineTune | None = None,
    runs: FineTuned | None = None,
    measured: bool = True,
    exports: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the model card as Markdown, with the YAML header that model hubs read.

    Args:
        form: the result of `export_schedule`.
        preprocessing: the images that the model expects, by timm's names, such as `input_size`.
        digest: SHA-256 of the weights.
        finetune: the fine-tuning that produced the weights; None if they are those of the search, or others.
        runs: the runs that the fine-tuning is one of, if there are several.
        measured: whether the figures in `form` are of these weights, or of the weights before fine-tuning.
        exports: for each exported file, the fields of its comparison with the model: `target`, `runtime`, …
    """
    metrics, provenance = form["metrics"], form["provenance"]
    schedule = provenance["schedule"] or "none: the dense model"
    task = METRICS[metrics["metric"]].task
    parts = [
        f"---\nlicense: unknown\nlibrary_name: prunefront\npipeline_tag: image-{task}\n"
        f"tags:\n- image-{task}\n- token-pruning\n- state-space-model\n---",
        f"# {_text(form['model'])} at {metrics['flops_ratio']:.3f} of its FLOPs",
        f"`{_code(form['model'])}` for {form['num_classes']} classes, under a token-pruning schedule that "
        f"prunefront found: {_code_span(schedule)}. “5:0.8” means: after block 5, keep 0.8 of the current "
        "patch tokens.",
        "## Figures",
        _figures(metrics, provenance, finetune, runs) if measured else _not_measured(),
        "## How to load it",
        _loading(exports),
        "## Images",
        _table(["", ""], [[_text(name), _code_span(value)] for name, value in preprocessing.items()]),
    ]
    if exports:
        rows = [
            [
                _text(one["target"]),
                _text(one["runtime"]),
                f"{one['max_difference']:.2g} (logits up to {one['largest_logit']:.3g})",
                f"{100 * one['same_answers']:.1f} % of {one['images']}",
            ]
            for one in exports
        ]
        heading = ["file", "runtime", "largest difference of a logit", "same predictions"]
        parts += ["## Exports", _table(heading, rows)]
    parts += [
        "## Provenance",
        _table(["", ""], _provenance(provenance, digest, finetune)),
        "## Licence",
        "prunefront does not know the licence of the weights. Whoever trained them decides it, and it may depend on "
        "the training images. State it here before you pass the weights on.",
        "## Limits",
        "The figures hold for the images named above only. The schedule was found for these weights and images; for "
        "others, search again.",
    ]
    return "\n\n".join(parts) + "\n"


def _figures(
    metrics: Mapping[str, Any], provenance: Mapping[str, Any], finetune: FineTune | None, runs: FineTuned | None
) -> str:
    kind = "confirmed" if metrics["confirmed"] else "as measured in the search"
    low, high = metrics["top1_low"], metrics["top1_high"]
    interval = "" if low is None else f" ({100 * low:.2f} to {100 * high:.2f} at 95 %)"
    measured_on = _text(_measured_on(metrics, provenance))
    rows = [
        ["dense model", "1", f"{100 * metrics['dense_top1']:.2f} %", measured_on],
        [
            f"under the schedule, without fine-tuning, {kind}",
            f"{metrics['flops_ratio']:.3f}",
            f"{100 * metrics['top1']:.2f} %{interval}",
            measured_on,
        ],
    ]
    share = f"{metrics['flops_ratio']:.3f}"
    if finetune is not None:
        on = _text(finetune.scored_on)
        for label, cost, top1 in (
            ("dense model, on the images below", "1", finetune.dense_top1),
            ("before fine-tuning, on the images below", share, finetune.before_top1),
        ):
            if top1 is not None:
                rows.append([label, cost, f"{100 * top1:.2f} %", on])
        own = f"**this model: fine-tuned for {finetune.epochs} epochs**"
        rows.append([own, share, f"**{100 * finetune.top1:.2f} %**", on])
        if runs is not None and runs.runs > 1:
            rows.append(
                [
                    f"mean of {runs.runs} such runs; this one is the best of them by this score",
                    share,
                    f"{100 * runs.top1:.2f} % ({100 * runs.low:.2f} to {100 * runs.high:.2f})",
                    on,
                ]
            )
    flops = f"One image takes {metrics['flops']:,} FLOPs, scans included; the dense model {metrics['dense_flops']:,}."
    return _table(["", "FLOPs of dense", METRICS[metrics["metric"]].label, "images"], rows) + "\n\n" + flops


def _measured_on(metrics: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Return the images that the score without fine-tuning is of."""
    split = provenance["confirm_split"] if metrics["confirmed"] else "val"
    if split == "rest":
        return images_text("val", metrics["images"], metrics["search_images"])
    return images_text(split, metrics["images"])


def _not_measured() -> str:
    return (
        "None. The weights are neither those of the study nor those of a fine-tuning that it records. Nothing was "
        "measured with them."
    )


def _loading(exports: Sequence[Mapping[str, Any]]) -> str:
    code = [
        "import ssm_models, timm",
        "",
        'model = ssm_models.load_bundle("DIR")  # checks every file and sets the schedule',
        'model = timm.create_model("local-dir:DIR", pretrained=True).eval()  # the same through timm',
    ]
    targets = {one["target"] for one in exports}
    if "pt2" in targets:
        code += ["", "import torch", 'program = torch.export.load("DIR/model.pt2").module()  # needs only torch']
    if "onnx" in targets:
        code += [
            "",
            "import onnxruntime",
            'session = onnxruntime.InferenceSession("DIR/model.onnx")',
            'session.run(None, {"images": images})',
        ]
    return "```python\n" + "\n".join(code) + "\n```"


def _provenance(provenance: Mapping[str, Any], digest: str, finetune: FineTune | None) -> list[list[str]]:
    rows = [["weights SHA-256", _code_span(digest)]]
    if finetune is not None:
        rows += [
            ["fine-tuned", f"{finetune.epochs} epochs in {finetune.seconds:.0f} s"],
            ["from weights", _code_span(provenance["weights_digest"])],
        ]
    names = {
        "study": "study",
        "hash": "schedule hash",
        "origin": "proposed by",
        "data": "data",
        "data_digest": "data SHA-256",
        "confirm_split": "confirmed on",
        "confirm_digest": "split SHA-256",
        "budget": "budget",
        "space": "space",
        "sampler": "sampler",
        "seed": "seed",
        "evaluated": "evaluated",
    }
    rows += [[label, _code_span(provenance[name])] for name, label in names.items() if provenance[name] is not None]
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    return [*rows, ["versions", _code_span(versions)]]


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: object) -> str:
    """Return a name on one line, with Markdown and HTML escaped."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>()#+!|&$~" else letter for letter in _line(value))


def _code(value: object) -> str:
    return _line(value).replace("`", "'").replace("|", "¦")


def _code_span(value: object) -> str:
    return f"`{_code(value)}`"


def _line(value: object) -> str:
    return " ".join(str(value).split())

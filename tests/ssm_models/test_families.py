"""What every family of models must hold; a new one is found by its registration and tested like the rest."""

import re
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache, partial
from itertools import cycle

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ssm_models
from spaces import PruningSchedule
from spaces.errors import CheckpointError, ScheduleError
from spaces.schedule import ALIGNMENT, CONTEXT, IMPORTANCE, METHOD_CHOICES, REDUCTION
from ssm_models import CostTable, PrunableModel, flops
from ssm_models.importance import SCORES
from ssm_models.token_view import TokenView
from tests.ssm_models.conftest import FAMILIES, pictures


def schedule_of(steps: str, method: str) -> PruningSchedule:
    """Return the schedule with the steps and a method, before which the steps' contexts may stand, joined by +."""
    contexts, *choices = method.split(";")
    parts = [f"{step}:{c}" if c else step for step, c in zip(steps.split(","), cycle(contexts.split("+")))]
    return PruningSchedule.parse(";".join([",".join(parts), *choices]))


def within(model: PrunableModel, schedule: PruningSchedule) -> PruningSchedule:
    """Return the schedule with its steps at the model's own places, block n at the n-th: none ends a stage."""
    places = model.layout.places
    steps = [replace(step, after=places[min(step.after, len(places)) - 1]) for step in schedule.steps]
    return PruningSchedule(tuple(steps), schedule.method)


def pixels(model: PrunableModel) -> tuple[int, ...]:
    """Return how the outputs of an image go on behind the classes."""
    return model.img_size if model.task == "segmentation" else ()


def offered(model: PrunableModel, method: str) -> bool:
    schedule = schedule_of("1:0.5,2:0.5", method)
    chosen = schedule.method
    return (
        set(schedule.contexts) <= set(model.contexts)
        and chosen.importance in model.importances
        and chosen.reduction in model.reductions
        and chosen.alignment in model.alignments
    )


# GroupMamba's last block scans the mean alone: nothing decays before the first token.
WITHOUT_EFFECT = "post_network.*.A_logs"

METHODS = [
    "",
    "freeze+conv+drop",
    "drop+freeze;alignment=hold",
    "conv+freeze;alignment=neighbour",
    ";reduction=merge",
    ";reduction=merge;context=conv",
    "freeze+drop;reduction=merge;importance=l1",
    ";context=zeros",
    ";context=conv",
    ";context=freeze",
    ";importance=random",
    ";importance=forward",
    ";importance=backward",
    ";alignment=off",
    ";alignment=hold",
    ";alignment=neighbour;importance=delta",
    ";alignment=hold;context=conv",
]


def test_what_a_family_offers(any_model: PrunableModel) -> None:
    layout, depth = any_model.layout, any_model.layout.depth
    images = pictures(any_model)
    assert len(any_model.blocks) == depth and any_model.img_size == layout.img_size
    tokens = any_model.embed(images)
    assert tokens.shape[:2] == (5, layout.stages[0].tokens + layout.protected)
    assert len(any_model.protected) == layout.protected
    assert all(0 <= place < tokens.shape[1] for place in any_model.protected)
    assert all(len(any_model.scan_channels(i)) == len(any_model.directions) for i in range(depth))
    assert set(any_model.published_directions) <= set(any_model.directions)
    assert any_model(images).shape == (5, any_model.num_classes, *pixels(any_model))
    assert {"drop", "freeze"} <= set(any_model.contexts) and "prune" in any_model.reductions


@pytest.mark.parametrize("field", METHOD_CHOICES)
def test_what_a_family_does_not_offer_is_refused_alike(any_model: PrunableModel, field: str) -> None:
    """By the model, the count and the table: as the method of all steps, and as the context of one."""
    table, offered = CostTable(any_model), any_model.offers[field]
    for choice in set(METHOD_CHOICES[field]) - set(offered):
        texts = [f"3:0.5;{field}={choice}"]
        if field == "context" and choice != "zeros":  # `zeros` is always the context of all steps
            texts.append(f"2:0.5,3:0.5:{choice}")
        for text in texts:
            schedule = PruningSchedule.parse(text)
            message = re.escape(f"method {field}={choice!r}: {any_model.model_name} offers {', '.join(offered)}")
            for ask in (
                any_model.set_schedule,
                partial(ssm_models.count_flops, any_model),
                table.flops,
                table.by_block,
            ):
                with pytest.raises(ScheduleError, match=f"^{message}$"):
                    ask(schedule)
        assert any_model.schedule.dense


def test_timm_knows_every_model() -> None:
    known = set(timm.list_models())
    assert set(ssm_models.list_models()) <= known
    for name in FAMILIES.values():
        info = ssm_models.model_info(name)
        model = timm.create_model(name, num_classes=7, img_size=2 * info.img_size, drop_path_rate=0.2)
        assert model(torch.zeros(1, 3, *model.img_size)).shape == (1, 7, *pixels(model))
        assert model.pretrained_cfg["input_size"] == (3, 2 * info.img_size, 2 * info.img_size)
        rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
        assert max(rates) == pytest.approx(0.2, abs=0.03)


@torch.inference_mode()
def test_ratio_one_is_dense_to_the_bit(any_model: PrunableModel) -> None:
    images = pictures(any_model)
    dense = any_model(images)
    for text in ("3:1.0,7:1.0", "12:1;context=freeze", "1:1;context=conv;importance=l2"):
        any_model.set_schedule(PruningSchedule.parse(text))
        assert torch.equal(any_model(images), dense)
    for context in any_model.contexts:  # 0.999 of the tokens are all of them, by the way of the pruned
        for reduction in any_model.reductions:
            any_model.set_schedule(PruningSchedule.parse(f"5:0.999;context={context};reduction={reduction}"))
            assert torch.allclose(any_model(images), dense, atol=1e-5 * dense.abs().max().item())


@torch.inference_mode()
@pytest.mark.parametrize("method", METHODS)
def test_images_do_not_see_each_other(any_model: PrunableModel, method: str) -> None:
    if not offered(any_model, method):
        pytest.skip("the family does not offer it")
    images = pictures(any_model)
    any_model.set_schedule(within(any_model, schedule_of("2:0.6,6:0.5,9:0.3", method)))
    together = any_model(images)
    alone = torch.cat([any_model(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-4 * max(1, together.abs().max().item()))


@torch.inference_mode()
@pytest.mark.parametrize("method", METHODS)
def test_kept_tokens(any_model: PrunableModel, method: str) -> None:
    if not offered(any_model, method):
        pytest.skip("the family does not offer it")
    schedule = within(any_model, schedule_of("4:0.5,6:0.25", method))
    any_model.set_schedule(schedule)
    layout, counts = any_model.layout, any_model.layout.tokens(schedule)
    first, second = any_model.kept_patches(pictures(any_model))
    blocks = [step.after for step in schedule.steps]
    assert [first.shape[1], second.shape[1]] == [counts[block - 1] for block in blocks]
    assert not torch.equal(first[0], first[1])  # each image has its own
    stages = [layout.stage_of(block) for block in blocks]
    assert stages[0] == stages[1], "the smallest model of a family has a stage with room for two steps"
    total = layout.stages[stages[0]].tokens
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        assert a == sorted(set(a)) and set(b) <= set(a) and min(a) >= 0 and max(a) < total


@torch.inference_mode()
@pytest.mark.parametrize("importance", IMPORTANCE)
def test_the_highest_scores_stay(any_model: PrunableModel, importance: str) -> None:
    if importance not in any_model.importances:
        pytest.skip("the family does not offer it")
    schedule = within(any_model, PruningSchedule.parse(f"2:0.3;importance={importance}"))
    any_model.set_schedule(schedule)
    images = pictures(any_model)
    kept = any_model.kept_patches(images)[0]
    (x, view), last = any_model.begin(images), schedule.steps[0].after - 1
    for index in range(last):
        x, view = any_model.step(index, x, view, None)
    _, signals = any_model.blocks[last](x, view, True)
    scores = SCORES[importance](signals)
    patches = [i for i in range(scores.shape[1]) if i not in any_model.protected]
    expected = scores[:, patches].topk(kept.shape[1]).indices.sort().values
    assert torch.equal(kept, expected)


@dataclass(frozen=True)
class Masked(TokenView):
    """A view of all tokens in which only some of them, `stays` (b, L), are ever updated."""

    stays: Tensor = field(default_factory=lambda: torch.empty(0))

    def update(self, x: Tensor, change: Tensor) -> Tensor:
        return torch.where(self.stays[..., None], x + change, x)

    def overwrite(self, x: Tensor, grid: Tensor) -> Tensor:
        return torch.where(self.stays[..., None], grid.flatten(2).transpose(1, 2), x)


@torch.inference_mode()
def test_freeze_is_a_dense_pass_whose_pruned_updates_are_masked(any_model: PrunableModel) -> None:
    schedule = within(any_model, PruningSchedule.parse("3:0.5,5:0.8,9:0.4;context=freeze"))
    images, layout = pictures(any_model), any_model.layout
    any_model.set_schedule(schedule)
    found, (_, _, kept) = any_model(images), any_model.run_blocks(images)
    any_model.set_schedule(None)
    x, view = any_model.begin(images)
    stays = torch.ones(x.shape[:2], dtype=torch.bool)
    for index, block in enumerate(any_model.blocks):
        x, _ = block(x, Masked(view.sets, view.seeds, view.method, grid=view.grid, stays=stays), False)
        for step, positions in zip(schedule.steps, kept, strict=True):
            if step.after == index + 1:
                stays = torch.zeros_like(stays).scatter(1, positions, True)
        if layout.returning and index + 1 in layout.ends:
            x, view = any_model.end_stage(index, x, view)
            stays = torch.ones(x.shape[:2], dtype=torch.bool)
    expected = any_model.classify(x, view)
    assert torch.allclose(found, expected, atol=1e-5 * max(1, expected.abs().max().item()))


@torch.inference_mode()
def test_every_choice_of_the_method_matters(any_model: PrunableModel) -> None:
    images, results = pictures(any_model), []
    for method in filter(lambda method: offered(any_model, method), METHODS):
        any_model.set_schedule(within(any_model, schedule_of("2:0.5,6:0.5", method)))
        results.append(any_model(images))
    for i, one in enumerate(results):
        for other in results[i + 1 :]:
            assert (one - other).abs().max() > 1e-5


@pytest.mark.parametrize(
    "method",
    ["", ";context=freeze", ";context=conv", ";alignment=hold", "freeze+conv;alignment=hold;reduction=merge"],
)
def test_gradients_reach_every_weight(any_model: PrunableModel, method: str) -> None:
    if not offered(any_model, method):
        pytest.skip("the family does not offer it")
    any_model.set_schedule(within(any_model, schedule_of("2:0.5,6:0.5", method)))
    with torch.inference_mode():  # what a model keeps from an evaluation must not stop a training
        any_model(pictures(any_model))
    any_model(pictures(any_model)).square().sum().backward()
    for name, parameter in any_model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert (parameter.grad.abs().max() > 0) != fnmatch(name, WITHOUT_EFFECT), name


def test_a_schedule_that_does_not_fit_changes_nothing(any_model: PrunableModel) -> None:
    good = PruningSchedule.parse("2:0.5")
    any_model.set_schedule(good)
    wrong = [f"{any_model.layout.depth + 1}:0.5"]
    wrong += [f"2:0.5;context={c}" for c in CONTEXT if c not in any_model.contexts]
    wrong += [f"2:0.5:{c},3:0.5:{c}" for c in CONTEXT if c not in any_model.contexts]
    wrong += [f"2:0.5;reduction={r}" for r in REDUCTION if r not in any_model.reductions]
    wrong += [f"2:0.5;importance={i}" for i in IMPORTANCE if i not in any_model.importances]
    wrong += [f"2:0.5;alignment={a}" for a in ALIGNMENT if a not in any_model.alignments]
    for text in wrong:
        with pytest.raises(ScheduleError, match=any_model.model_name):
            any_model.set_schedule(PruningSchedule.parse(text))
        assert any_model.schedule == good


@cache
def dense(family: str) -> PrunableModel:
    """A member of the family, for what counts and never changes it."""
    return ssm_models.create_model(FAMILIES[family]).eval()


@cache
def table_of(family: str, convention: str) -> CostTable:
    return ssm_models.cost_table(dense(family), convention)


blocks = st.lists(st.integers(0, 99), max_size=4)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8)
@given(data=st.data(), after=blocks, convention=st.sampled_from(flops.CONVENTIONS))
def test_the_table_is_fvcore_s_whole_count(
    family: str, after: list[int], convention: str, data: st.DataObject
) -> None:
    model = dense(family)
    choices = {"importance": model.importances, "alignment": model.alignments, "reduction": model.reductions}
    method = {name: data.draw(st.sampled_from(names)) for name, names in choices.items()}
    mixing = [context for context in model.contexts if context != "zeros"]
    contexts = data.draw(st.sampled_from([*([context] for context in model.contexts), mixing]))
    steps = st.tuples(st.integers(1, 99).map(lambda p: p / 100), st.sampled_from(contexts))
    blocks = sorted({1 + block % model.layout.depth for block in after})
    schedule = PruningSchedule.of([(block, *data.draw(steps)) for block in blocks], **method)
    assert table_of(family, convention).flops(schedule) == ssm_models.count_flops(model, schedule, convention)


def alike(model: PrunableModel, stage: int) -> bool:
    """Whether all blocks of a stage have the same shapes; in ViM2 each one averages more outputs."""
    blocks = [block for i, block in enumerate(model.blocks) if model.layout.stage_of(i + 1) == stage]
    return len({tuple(tuple(p.shape) for p in block.parameters()) for block in blocks}) == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reduction", REDUCTION)
def test_counts_of_tokens_are_not_counted_one_by_one(family: str, reduction: str, monkeypatch) -> None:
    """Schedules of other places and ratios are answered from the polynomials: a search asks for ten thousand."""
    if reduction not in dense(family).reductions:
        pytest.skip("the family does not offer it")
    table, layout = table_of(family, "full"), dense(family).layout
    start = max(layout.places, key=lambda place: layout.ends[layout.stage_of(place)] - place) - 1  # room behind it

    def cost(after: tuple[int, int, int], keeps: tuple[float, float, float]) -> int:
        steps = zip((start + block for block in after), keeps, ("freeze", "drop", "conv"), strict=True)
        return table.flops(PruningSchedule.of(list(steps), reduction=reduction))

    cost((1, 3, 4), (0.5, 0.5, 0.5))
    if not alike(dense(family), layout.stage_of(start)):  # then each block has polynomials of its own
        for i in (1, 2, 3):
            cost((i, i + 1, i + 2), (0.5, 0.5, 0.5))
    monkeypatch.setattr(flops, "_count", None)
    found = [cost((i, i + 1, i + 2), (0.9, k / 100, 0.7)) for i in (1, 2, 3) for k in range(30, 90, 5)]
    assert len(set(found)) > len(found) // 2


@pytest.mark.parametrize("family", FAMILIES)
def test_contexts_cost_in_their_order(family: str) -> None:
    table = table_of(family, "full")
    drop, conv, freeze = (
        table.flops(within(dense(family), PruningSchedule.parse(f"3:0.5;context={context}")))
        for context in ("drop", "conv", "freeze")
    )
    assert drop < conv < freeze < table.dense


def test_weights_of_another_image_size_and_number_of_classes(any_model: PrunableModel) -> None:
    side = any_model.img_size[0]
    other = ssm_models.create_model(any_model.model_name, img_size=(side + side // 7 * 2, side))
    state, own = any_model.state_dict(), other.state_dict()
    differs = any(value.shape != own[key].shape for key, value in state.items())
    with pytest.warns(UserWarning, match="resized") if differs else nullcontext():
        ssm_models.load_checkpoint(other, state)
    assert other(pictures(other, 2)).isfinite().all()
    fewer = ssm_models.create_model(any_model.model_name, num_classes=3)
    with pytest.raises(CheckpointError, match="misshapen"):
        ssm_models.load_checkpoint(fewer, any_model.state_dict())
    own = fewer.state_dict()
    with pytest.warns(UserWarning, match=rf"are for {any_model.num_classes} classes, the model has 3: .* new head"):
        ssm_models.load_checkpoint(fewer, any_model.state_dict(), new_head=True)
    heads = tuple(f"{name}." for name in fewer.class_layers)
    for key, value in fewer.state_dict().items():
        assert torch.equal(value, own[key] if key.startswith(heads) else any_model.state_dict()[key]), key
    headless = {key: value for key, value in any_model.state_dict().items() if not key.startswith(heads)}
    with pytest.raises(CheckpointError, match="missing"):
        ssm_models.load_checkpoint(any_model, headless)
    with pytest.warns(UserWarning, match="the weights have no head"):
        ssm_models.load_checkpoint(fewer, headless, new_head=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ssm_models.load_checkpoint(any_model, any_model.state_dict(), new_head=True)  # of as many classes: kept


@pytest.mark.parametrize("name", ssm_models.list_models())
def test_a_checkpoint_says_what_it_is_for(name: str) -> None:
    """Number of classes and number of patches are read off the shapes."""
    info = ssm_models.model_info(name)
    with torch.device("meta"):
        model = ssm_models.create_model(name, num_classes=11)
    state, patches = model.state_dict(), model.layout.stages[0].tokens
    assert info.family.settings_of(info.config, state) == {"num_classes": 11}
    assert info.family.patches_of(state) == (patches if any("pos_embed" in key for key in state) else None)


@torch.inference_mode()
def test_half_precision(any_model: PrunableModel) -> None:
    images = pictures(any_model)
    expected = any_model(images)
    any_model.to(torch.bfloat16)
    found = any_model(images.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().mean() < 0.1 * expected.abs().mean()
    for method in filter(
        lambda method: offered(any_model, method), METHODS
    ):  # rounding changes ranks, so that no value can be expected
        any_model.set_schedule(within(any_model, schedule_of("2:0.5,6:0.5", method)))
        assert any_model(images.to(torch.bfloat16)).isfinite().all()

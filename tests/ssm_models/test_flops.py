"""FLOPs: the published figures, the closed form, and the table against fvcore's whole count."""

import logging
import warnings

import pytest
import torch
from torch import Tensor, nn

import ssm_models
from spaces import PruningSchedule
from spaces.errors import FlopsError, UnknownNameError, UsageError
from ssm_models import flops
from ssm_models.scan_paths import BACKWARD, FORWARD

NANO = ssm_models.create_model("vim_nano").eval()


@pytest.mark.parametrize(
    ("name", "full", "published"),
    [
        ("vim_tiny", 1.823, 1.449),
        ("vim_small", 5.912, 5.077),
        ("vim_base", 20.887, 18.868),
        ("plain_mamba_l1", 3.013, 3.013),
        ("plain_mamba_l2", 8.075, 8.075),
        ("plain_mamba_l3", 14.433, 14.433),
    ],
)
def test_dense_counts_are_the_published_ones(name: str, full: float, published: float) -> None:
    model = ssm_models.create_model(name)
    assert ssm_models.cost_table(model, "full").dense / 1e9 == pytest.approx(full, abs=1e-3)
    assert ssm_models.cost_table(model, "published").dense / 1e9 == pytest.approx(published, abs=1e-3)


def closed_form(schedule: PruningSchedule) -> int:
    """The full count of vim_nano under a `drop` schedule of the clip score with alignment, by hand."""
    d, inner, n, rank, conv = 64, 128, 16, 4, 4
    total = 49 * d * 3 * 16 + 10 * d
    before = [49, *NANO.layout.tokens(schedule)[:-1]]
    for block, patches in enumerate(before, 1):
        length = patches + 1
        total += length * d * 2 * inner + length * inner * d
        each = length * inner * conv + length * inner * (rank + 2 * n) + length * rank * inner
        each += 9 * length * inner * n + 2 * length * inner
        if patches < 49:
            each += length * inner  # the gap
        total += 2 * each
        if block in {step.after for step in schedule.steps}:
            total += length * inner  # the score's sum
    return total


@pytest.mark.parametrize("text", ["", "3:0.5", "3:0.8,5:0.8,8:0.8", "1:0.1,11:0.9", "12:0.5"])
def test_counts_written_out(text: str) -> None:
    schedule = PruningSchedule.parse(text)
    assert ssm_models.count_flops(NANO, schedule) == closed_form(schedule)


@pytest.mark.parametrize("text", ["5:0.99", "5:0.99,8:0.5:conv", "3:0.99;context=freeze"])
def test_a_step_that_keeps_all_tokens_costs_what_it_computes(text: str) -> None:
    schedule = PruningSchedule.parse(text)
    assert NANO.layout.tokens(schedule)[4] == 49
    assert ssm_models.cost_table(NANO).flops(schedule) == ssm_models.count_flops(NANO, schedule)


def test_merging_costs_the_products_of_those_that_go_with_those_that_stay() -> None:
    cost = {text: ssm_models.count_flops(NANO, text) for text in ("3:0.5", "3:0.5,12:0.2", "3:0.5;context=freeze")}
    merged = {text: ssm_models.count_flops(NANO, text + ";reduction=merge") for text in cost}
    first, last = 24 * 26 * 64, 20 * 6 * 64  # of 50 tokens 26 stay, then 6: 25 and 5 patches and cls
    assert merged["3:0.5"] - cost["3:0.5"] == merged["3:0.5;context=freeze"] - cost["3:0.5;context=freeze"] == first
    assert merged["3:0.5,12:0.2"] - cost["3:0.5,12:0.2"] == first + last


def test_blocks_that_differ_in_training_alone_are_counted_once() -> None:
    model = ssm_models.create_model("vim_nano", drop_path_rate=0.3)
    table = ssm_models.cost_table(model)
    assert len(set(table._like)) == 1


def test_counting_leaves_the_model_as_it_was() -> None:
    model = ssm_models.create_model("vim_nano")
    model.set_schedule(PruningSchedule.parse("2:0.5"))
    ssm_models.count_flops(model, "3:0.5", "published")
    assert (model.schedule.text, model.training, model.directions) == ("2:0.5", True, (FORWARD, BACKWARD))
    assert model.blocks[0].mixer.directions == (FORWARD, BACKWARD)


def test_the_schedule_that_is_set_is_counted_unless_another_is_named() -> None:
    model = ssm_models.create_model("vim_nano", schedule="3:0.5")
    pruned, dense = closed_form(PruningSchedule.parse("3:0.5")), closed_form(PruningSchedule())
    assert ssm_models.count_flops(model) == pruned
    assert ssm_models.count_flops(model, None) == ssm_models.count_flops(model, "") == dense
    assert ssm_models.cost_table(model).flops("3:0.5") == pruned


def test_a_model_of_another_library_is_refused_in_one_line() -> None:
    for count in (ssm_models.count_flops, ssm_models.cost_table):
        with pytest.raises(UsageError, match="Linear is not a state-space model of this package"):
            count(nn.Linear(2, 2))


def test_counting_silences_fvcore_only_while_it_counts() -> None:
    logger, filters = logging.getLogger("fvcore"), warnings.filters[:]
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        ssm_models.count_flops(NANO)
        assert logger.level == logging.DEBUG and warnings.filters == filters
    finally:
        logger.setLevel(level)


def test_an_operator_without_a_cost_is_an_error() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i0(x)

    with pytest.raises(FlopsError, match="i0"):
        flops._count(Odd(), (torch.ones(3),))


def test_an_unknown_convention() -> None:
    with pytest.raises(UnknownNameError, match="convention"):
        ssm_models.count_flops(NANO, None, "honest")

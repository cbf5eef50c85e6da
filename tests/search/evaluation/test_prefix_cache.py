"""Sharing the beginnings of forward passes changes no number, and stays within its bound."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ssm_models
from search.evaluation.prefix_cache import PrefixCache, SharedRun, State, Stem, branches
from spaces import PruningSchedule, PruningStep
from spaces.schedule import PruningMethod
from ssm_models import PrunableModel

NAMES = ("vim_nano", "plain_mamba_nano", "vmamba_nano")
STAGED = "vmamba_nano"  # which offers no merging
MODELS = {name: ssm_models.build(name, "random", num_classes=10).eval() for name in NAMES}


@st.composite
def schedules(draw: st.DrawFn) -> PruningSchedule:
    places = draw(st.lists(st.integers(1, 12), min_size=0, max_size=3, unique=True))
    context = st.sampled_from([None, "drop", "conv", "freeze"])
    steps = [PruningStep(after, draw(st.sampled_from([0.3, 0.5, 0.8])), draw(context)) for after in places]
    method = PruningMethod(
        context=draw(st.sampled_from(["drop", "conv", "freeze"])),
        importance=draw(st.sampled_from(["clip", "random", "delta"])),
        alignment=draw(st.sampled_from(["on", "hold", "neighbour"])),
        reduction=draw(st.sampled_from(["prune", "merge"])),
    )
    return PruningSchedule(tuple(steps), method)


@pytest.mark.parametrize("name", NAMES)
@given(group=st.lists(schedules(), min_size=1, max_size=5), room=st.sampled_from([0, 40_000, 10**9]))
@settings(max_examples=12)
@torch.inference_mode()
def test_shared_runs_give_the_same_numbers_to_the_bit(name: str, group: list[PruningSchedule], room: int) -> None:
    model = MODELS[name]
    group = [replace(s, method=replace(s.method, reduction="prune")) for s in group] if name == STAGED else group
    size = model.img_size
    images = [torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    cache = PrefixCache(room)
    paths = [branches(schedule, model.layout) for schedule in group]
    for _ in range(2):  # the second time from what the first one left
        for path in paths:
            cache.expect(path)
        for batch, pixels in enumerate(images):
            shared = SharedRun(model, cache, batch, pixels, paths)
            found = [shared.logits(schedule, path) for schedule, path in zip(group, paths, strict=True)]
            for schedule, logits in zip(group, found, strict=True):
                model.set_schedule(schedule)
                assert torch.equal(logits, model(pixels))
        assert cache.bytes <= room


def blocks_run(model: PrunableModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    ran: list[int] = []
    original = model.step

    def step(index: int, *arguments: Any) -> Any:
        ran.append(index)
        return original(index, *arguments)

    monkeypatch.setattr(model, "step", step)
    return ran


@torch.inference_mode()
def test_only_what_differs_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["vim_nano"]
    ran = blocks_run(model, monkeypatch)
    cache, images = PrefixCache(10**9), torch.randn(2, 3, 28, 28)

    def blocks_of(text: str) -> list[int]:
        schedule = PruningSchedule.parse(text)
        path = branches(schedule, model.layout)
        cache.expect(path)
        ran.clear()
        SharedRun(model, cache, 0, images, [path]).logits(schedule, path)
        return list(ran)

    assert blocks_of("4:0.5,8:0.5") == list(range(12))
    assert blocks_of("4:0.5,8:0.3") == list(range(7, 12))  # alike up to the second step
    assert blocks_of("4:0.51,8:0.3") == list(range(7, 12))  # 0.51 and 0.5 of 49 tokens are both 25
    assert blocks_of("4:0.8,8:0.5") == list(range(3, 12))  # alike up to the first
    assert blocks_of("6:0.5") == list(range(3, 12))  # from the farthest point that is known of the way
    assert blocks_of("5:0.5;context=freeze") == list(range(3, 12))  # before the first step no choice matters
    assert blocks_of("4:0.5,9:0.5;importance=l2") == list(range(3, 12))  # after it they all do


@torch.inference_mode()
def test_a_group_shares_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["vim_nano"]
    ran = blocks_run(model, monkeypatch)
    group = [PruningSchedule.parse(text) for text in ("6:0.5", "6:0.3", "6:0.5,9:0.5")]
    paths = [branches(schedule, model.layout) for schedule in group]
    shared = SharedRun(model, PrefixCache(0), 0, torch.randn(2, 3, 28, 28), paths)
    for schedule, path in zip(group, paths, strict=True):
        shared.logits(schedule, path)
    assert len(ran) == 12 + 7 + 7


def test_what_is_worth_most_stays() -> None:
    layout = MODELS["vim_nano"].layout

    def path(text: str) -> Any:
        return branches(PruningSchedule.parse(text), layout)

    def state() -> State:
        return State(torch.zeros(250), None)  # 1,000 bytes

    cache = PrefixCache(2500)
    often, seldom = path("9:0.5"), path("3:0.5")
    for _ in range(5):
        cache.expect(often)
    cache.expect(seldom)
    cache.offer(0, seldom[0], state())
    cache.offer(1, seldom[0], state())
    cache.offer(0, often[0], state())
    assert cache.find(1, seldom) is None  # the later batch went first
    assert cache.find(0, seldom) is not None
    cache.offer(1, often[0], state())
    cache.offer(1, seldom[0], state())
    assert cache.find(0, seldom) is None
    assert cache.find(1, seldom) is None
    assert cache.find(1, often) is not None
    assert cache.bytes == 2000
    cache.offer(2, often[0], State(torch.zeros(1000), None))  # larger than there is room for at all
    assert cache.bytes == 2000
    cache.clear()
    assert (cache.bytes, cache.find(0, often)) == (0, None)


def test_the_past_is_forgotten() -> None:
    layout = MODELS["vim_nano"].layout
    once, now = (branches(PruningSchedule.parse(text), layout) for text in ("6:0.5", "7:0.5"))
    cache = PrefixCache(1000)
    for _ in range(20):
        cache.expect(once)
    cache.offer(0, once[0], State(torch.zeros(250), None))
    for _ in range(100):
        cache.expect(now)
    cache.offer(0, now[0], State(torch.zeros(250), None))
    found = cache.find(0, now)
    assert found is not None
    assert found[0] == 6


def test_branching_points_name_what_was_done_before() -> None:
    layout = MODELS["vim_nano"].layout  # 49 tokens
    first, second = branches(PruningSchedule.parse("4:0.5,8:0.5;context=conv"), layout)
    assert (first.stem, first.block, first.work) == (Stem(), 3, 3.0)
    assert second.stem.steps == ((4, 25, "conv"),)
    assert second.block == 7
    assert second.work == pytest.approx(1 + 3 * 25 / 49)


def test_the_work_before_a_branching_point_counts_each_block_by_its_own_grid() -> None:
    layout = MODELS[STAGED].layout  # stages of 2, 6 and 4 blocks
    first, second = branches(PruningSchedule.parse("3:0.5,10:0.5"), layout)
    assert (first.work, second.work) == (2.0, 1 + 5 * 0.5 + 1)

import json
from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces import PruningMethod, PruningSchedule, PruningStep
from spaces.errors import ScheduleError
from spaces.schedule import CONTEXT, METHOD_CHOICES, kept_tokens

ratios = st.floats(min_value=1e-6, max_value=1.0, allow_nan=False)
steps = st.lists(st.tuples(st.integers(1, 60), ratios), max_size=8, unique_by=lambda pair: pair[0])
MIXING = tuple(context for context in CONTEXT if context != "zeros")
mixed_steps = st.lists(st.tuples(st.integers(1, 60), ratios, st.sampled_from(MIXING)), max_size=8,
                       unique_by=lambda step: step[0])  # fmt: skip
methods = st.fixed_dictionaries({name: st.sampled_from(choices) for name, choices in METHOD_CHOICES.items()})


@given(steps, methods)
def test_text_and_json_round_trip(pairs, method):
    schedule = PruningSchedule.of(pairs, **method)
    assert PruningSchedule.parse(schedule.text) == schedule
    assert PruningSchedule.from_dict(json.loads(json.dumps(schedule.as_dict()))) == schedule
    assert PruningSchedule.parse(schedule.text).hash == schedule.hash


@given(mixed_steps, methods)
def test_text_and_json_round_trip_with_mixed_contexts(triples, method):
    schedule = PruningSchedule.of(triples, **method)
    assert PruningSchedule.parse(schedule.text) == schedule
    assert PruningSchedule.from_dict(json.loads(json.dumps(schedule.as_dict()))) == schedule
    assert PruningSchedule(schedule.steps, schedule.method) == schedule
    assert schedule.contexts == tuple(c for _, keep, c in sorted(triples) if keep < 1.0)


@given(mixed_steps, mixed_steps, methods, methods, st.data())
def test_schedules_are_equal_if_and_only_if_they_do_the_same(one, other, method, another, data):
    """However the contexts are divided between the steps and the method."""

    def does(triples, choices):
        left = sorted(step for step in triples if step[1] < 1.0)
        rest = {name: choice for name, choice in choices.items() if name != "context"} if left else {}
        if left and all(context == "freeze" for _, _, context in left):
            del rest["alignment"]
        return left, rest

    def written(triples, choices):
        default = data.draw(st.sampled_from(MIXING))
        steps = [(a, k, None if c == default and data.draw(st.booleans()) else c) for a, k, c in triples]
        return PruningSchedule.of(steps, **{**choices, "context": default})

    schedule = written(one, method)
    for triples, choices in ((one, method), (other, another)):
        again = written(triples, choices)
        same = does(one, method) == does(triples, choices)
        assert (again == schedule) == (again.text == schedule.text) == (again.hash == schedule.hash) == same


@given(steps, methods)
def test_a_context_that_all_steps_share_becomes_the_methods(pairs, method):
    """So schedules whose steps name no context keep the text and hash that they had before steps could name one."""
    context = method["context"]
    schedule = PruningSchedule.of([(after, keep, context) for after, keep in pairs], **{**method, "context": "drop"})
    assert schedule == PruningSchedule.of(pairs, **method)
    assert all(step.context is None for step in schedule.steps)


@given(steps, st.randoms())
def test_the_order_of_steps_and_steps_of_ratio_one_do_not_matter(pairs, rnd):
    shuffled = [*pairs, (61, 1.0)]
    rnd.shuffle(shuffled)
    assert PruningSchedule.of(shuffled) == PruningSchedule.of(pairs)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", ""),
        ("  ", ""),
        ("5:1,7:1.0", ""),
        (";importance=l2", ""),
        ("10:0.8, 5:.80", "5:0.8,10:0.8"),
        ("5:0.8;alignment=bias", "5:0.8"),
        ("5:0.8;importance=clip;context=drop", "5:0.8"),
        ("5:0.8;context=freeze;importance=l2", "5:0.8;importance=l2;context=freeze"),
        ("5:0.8;context=freeze;alignment=off", "5:0.8;context=freeze"),
        ("5:5e-1", "5:0.5"),
        ("5:0.8: conv ,10:0.8", "5:0.8:conv,10:0.8"),
        ("5:0.8,10:0.8:drop;context=conv", "5:0.8:conv,10:0.8"),
        ("5:0.8:conv,10:0.8:conv", "5:0.8,10:0.8;context=conv"),
        ("5:0.8:conv,10:1", "5:0.8;context=conv"),
        ("5:0.8:drop,10:0.8:drop;context=freeze", "5:0.8,10:0.8"),
        ("5:0.8,10:0.8:conv;context=freeze;alignment=off", "5:0.8:freeze,10:0.8:conv;alignment=off"),
        ("5:0.8:freeze,10:0.8:freeze;alignment=off", "5:0.8,10:0.8;context=freeze"),
        ("5:0.8:zeros,10:0.8:zeros", "5:0.8,10:0.8;context=zeros"),
        ("5:1:zeros,10:0.8:conv", "10:0.8;context=conv"),
    ],
)
def test_there_is_one_canonical_text(text, canonical):
    assert PruningSchedule.parse(text).text == canonical


@given(st.integers(1, 5000), st.integers(1, 1000))
def test_kept_tokens_rounds_half_up_in_decimal(tokens, thousandths):
    exact = (Decimal(thousandths) / 1000 * tokens).quantize(Decimal(1), rounding=ROUND_HALF_UP)
    assert kept_tokens(tokens, thousandths / 1000) == max(1, int(exact))


def test_kept_tokens_of_a_ratio_without_an_exact_binary_form():
    assert kept_tokens(50, 0.29) == 15  # 14.5; in binary 14.499999999999998
    assert kept_tokens(196, 0.8) == 157
    assert kept_tokens(3, 0.01) == 1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("5", "BLOCK:RATIO"),
        ("5:0.8,", "BLOCK:RATIO"),
        ("0:0.5", "after=0"),
        ("-1:0.5", "BLOCK:RATIO"),
        ("5:0", "keep ratio"),
        ("5:1.5", "keep ratio"),
        ("5:nan", "BLOCK:RATIO"),
        ("5:1e999", "keep ratio"),
        ("5:0.5,5:0.6", "given twice"),
        ("5:1,5:0.5", "given twice"),
        ("5:0.5,5:0.5:conv", "given twice"),
        ("5:0.5:", "block 5: context=''"),
        ("5:0.5:keep", "block 5: context='keep': expected one of drop"),
        ("5:0.5:conv:drop", "block 5: context='conv:drop'"),
        ("5:0.5:a\nb", "block 5: context="),
        ("5:0.5:zeros,6:0.5", "zeros does not go together"),
        ("5:0.5:conv;context=none", "context='none'"),
        ("5:0.8;importance=best", "importance"),
        ("5:0.8;colour=red", "colour"),
        ("5:0.8;importance", "NAME=CHOICE"),
        ("5:0.8;importance=l1;importance=l2", "given twice"),
        ("99999999999999999999:0.5", "BLOCK:RATIO"),
        (",".join(f"{i}:0.9" for i in range(1, 6000)), "steps"),
    ],
)
def test_the_message_names_the_malformed_part_of_a_text(text, names):
    with pytest.raises(ScheduleError, match=names) as caught:
        PruningSchedule.parse(text)
    assert "\n" not in str(caught.value)


GOOD = PruningSchedule.parse("5:0.8").as_dict()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"format": "other"}, "format"),
        ({"version": 2}, "newer"),
        ({"version": 0}, "version"),
        ({"version": True}, "version"),
        ({"version": "1"}, "version"),
        ({"steps": None}, "steps"),
        ({"steps": [{"after": 5}]}, r"steps\[0\]"),
        ({"steps": [{"after": 5, "keep": float("nan")}]}, r"steps\[0\].*keep ratio"),
        ({"steps": [{"after": 5, "keep": 10**400}]}, r"steps\[0\].*keep ratio"),
        ({"steps": [{"after": 5, "keep": "0.8"}]}, r"steps\[0\].*not a number"),
        ({"steps": [{"after": 5.0, "keep": 0.8}]}, r"steps\[0\].*whole number"),
        ({"steps": [{"after": i, "keep": 0.8} for i in range(1, 5000)]}, "steps"),
        ({"steps": [{"after": 5, "keep": 0.8, "context": "gone"}]}, r"steps\[0\].*context='gone'"),
        ({"steps": [{"after": 5, "keep": 0.8, "context": ["conv"]}]}, r"steps\[0\].*context="),
        ({"method": []}, "method"),
        ({"method": {"importance": 3}}, "importance"),
        ({"method": {"context": "keep"}}, "context"),
    ],
)
def test_the_message_names_the_malformed_field_of_a_file(tmp_path, change, names):
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ScheduleError, match=names) as caught:
        PruningSchedule.from_file(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_not_a_schedule(tmp_path, content):
    file = tmp_path / "schedule.json"
    file.write_bytes(content)
    with pytest.raises(ScheduleError, match=r"schedule\.json"):
        PruningSchedule.from_file(file)


def test_a_missing_file():
    with pytest.raises(ScheduleError, match="cannot be read"):
        PruningSchedule.from_file("no/such.json")


def test_schedules_are_immutable():
    schedule = PruningSchedule((PruningStep(5, 0.8),), PruningMethod())
    with pytest.raises(AttributeError):
        schedule.steps = ()  # type: ignore[misc]
    assert len({schedule, PruningSchedule.parse("5:0.8")}) == 1

"""The text of a search space: what it says, its canonical form, and its errors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.errors import SpaceError, UnknownNameError
from spaces.schedule import METHOD_CHOICES
from spaces.space_spec import DEFAULT_CHOICES, SpaceSpec

kinds = st.just(("per-block", None)) | st.tuples(st.just("stages"), st.integers(0, 9999))


@st.composite
def specs(draw) -> SpaceSpec:
    kind, steps = draw(kinds)
    choices = {
        name: tuple(draw(st.lists(st.sampled_from(known), min_size=1, unique=True)))
        for name, known in METHOD_CHOICES.items()
    }
    mixable = len(choices["context"]) > 1 and "zeros" not in choices["context"]
    return SpaceSpec(kind, steps, choices, context_per_step=mixable and draw(st.booleans()))


@given(specs())
def test_the_canonical_text_gives_the_spec_back(spec):
    assert SpaceSpec.parse(spec.text) == spec
    assert SpaceSpec.parse(spec.text).text == spec.text


@given(specs(), st.randoms())
def test_spaces_and_the_order_of_the_options_do_not_matter(spec, rnd):
    kind, *options = spec.text.split(";")
    rnd.shuffle(options)
    spread = [option.replace("=", " = ").replace(":", ": ").replace(",", " , ") for option in options]
    assert SpaceSpec.parse(" ; ".join([kind, *spread])) == spec


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("stages", "stages:3;context=drop,conv,freeze"),
        ("stages:", "stages:3;context=drop,conv,freeze"),
        ("per-block;context=drop", "per-block;context=drop"),
        ("stages:07;context=drop,drop,conv", "stages:7;context=drop,conv"),
        ("stages;importance=clip;context=conv", "stages:3;context=conv"),
        ("stages;context=each:conv,drop;importance=l2", "stages:3;importance=l2;context=each:conv,drop"),
        ("stages;context=each:drop", "stages:3;context=drop"),
        ("stages;context=each:zeros", "stages:3;context=zeros"),
        ("stages;context\t=\teach:drop,conv", "stages:3;context=each:drop,conv"),
    ],
)
def test_there_is_one_canonical_text(text, canonical):
    assert SpaceSpec.parse(text).text == canonical


def test_what_is_not_stated_is_the_default():
    assert SpaceSpec.parse("stages").choices == DEFAULT_CHOICES
    assert SpaceSpec.parse("stages;importance=l1,l2").choices == {**DEFAULT_CHOICES, "importance": ("l1", "l2")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages:x", "expected stages:K with a whole number K"),
        ("stages:-1", "expected stages:K with a whole number K"),
        ("stages:10000", "expected stages:K with a whole number K"),
        ("per-block:3", "expected stages:K with a whole number K"),
        ("stages;context", "'context' is not one of importance, alignment, reduction, context=CHOICE"),
        ("stages;", "'' is not one of importance"),
        ("stages;colour=red", "'colour=red' is not one of importance"),
        ("stages;context=gone", "method context='gone': expected one of drop"),
        ("stages;context=", "method context='': expected one of drop"),
        ("stages;context=each:", "method context='': expected one of drop"),
        ("stages;importance=each:l1,l2", "method importance='each:l1': expected one of clip"),
        ("stages;context=drop;context=freeze", "context is given twice"),
        ("stages;context=each:drop,conv;context=drop", "context is given twice"),
        ("stages:3;context=each:drop,zeros", "zeros cannot be mixed"),
    ],
)
def test_malformed_text_is_refused(text, message):
    with pytest.raises(SpaceError, match=message) as caught:
        SpaceSpec.parse(text)
    assert str(caught.value).startswith(f"space {text!r}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["stage", "", ";context=drop", "Stages", "stages :3"])
def test_a_space_that_does_not_exist(text):
    with pytest.raises(UnknownNameError, match="unknown space"):
        SpaceSpec.parse(text)


def test_what_a_model_does_not_offer_is_left_out_and_refused_if_it_is_asked_for():
    offers = {"importance": ("clip",), "alignment": ("on",), "reduction": ("prune",), "context": ("drop", "freeze")}
    assert SpaceSpec.parse("stages", "vim", offers).choices == offers
    for option, offered in (
        ("alignment=on,off", "off: vim offers on"),
        ("context=each:conv,drop", "conv: vim offers"),
    ):
        with pytest.raises(SpaceError, match=offered):
            SpaceSpec.parse(f"stages;{option}", "vim", offers)

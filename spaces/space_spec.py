"""The text of a search space, such as `stages:3;context=drop,conv`: its grammar, and what it says as data.

    SPACE   = KIND [";" NAME "=" CHOICES]…
    KIND    = "stages" [":" STEPS] | "per-block"
    NAME    = "importance" | "alignment" | "reduction" | "context"
    CHOICES = ["each:"] CHOICE ["," CHOICE]…        `each:` only before contexts

Space characters around the parts are ignored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spaces.errors import ScheduleError, SpaceError, UnknownNameError
from spaces.schedule import METHOD_CHOICES, PruningMethod

STAGES, PER_BLOCK = "stages", "per-block"
KINDS = (STAGES, PER_BLOCK)
DEFAULT_STEPS = 3
# What a search varies of the method by default. What later blocks see of a pruned token matters most, and which
# context is best differs from model to model.
DEFAULT_CHOICES: dict[str, tuple[str, ...]] = {
    "importance": ("clip",),
    "alignment": ("on",),
    "reduction": ("prune",),
    "context": ("drop", "conv", "freeze"),
}
_EACH = "each:"  # before contexts that every step chooses for itself
_MAX_DIGITS = 4  # of the number of steps


@dataclass(frozen=True)
class SpaceSpec:
    """What the text of a search space says.

    >>> spec = SpaceSpec.parse("stages; context = each: drop, conv")
    >>> spec.steps, spec.choices["context"], spec.context_per_step
    (3, ('drop', 'conv'), True)
    >>> spec.text
    'stages:3;context=each:drop,conv'

    Attributes:
        kind: where tokens may be dropped, one of `KINDS`.
        steps: the number of steps of `stages`; None for `per-block`.
        choices: the allowed choices of the method by name, at least one each.
        context_per_step: whether each step chooses its own context; only where there are several.
    """

    kind: str
    steps: int | None
    choices: Mapping[str, tuple[str, ...]]
    context_per_step: bool = False

    @classmethod
    def parse(
        cls, text: str, model: str = "the model", offers: Mapping[str, Sequence[str]] = METHOD_CHOICES
    ) -> "SpaceSpec":
        """Read a space's text; choices that it does not state are the default ones that the model offers.

        Args:
            text: see the head of this module.
            model: its name, for messages.
            offers: the choices of the method that the model supports, by name.

        Raises:
            SpaceError: the text is malformed, or asks for a choice that the model does not offer.
            UnknownNameError: there is no space of that kind.
        """
        head, *options = (part.strip() for part in text.split(";"))
        kind, _, count = head.partition(":")
        if kind not in KINDS:
            raise UnknownNameError("space", kind, KINDS)
        choices = {name: tuple(c for c in usual if c in offers[name]) for name, usual in DEFAULT_CHOICES.items()}
        stated: dict[str, tuple[str, ...]] = {}
        context_per_step = False
        for option in options:
            try:
                name, found, each = _parse_option(option)
                if name in stated:
                    raise SpaceError(f"{name} is given twice")
                stated[name] = _validated(name, found, each)
            except (SpaceError, ScheduleError) as error:
                raise SpaceError(f"space {text!r}: {error}") from None
            if missing := [choice for choice in found if choice not in offers[name]]:
                raise SpaceError(f"space {text!r}: {name}={missing[0]}: {model} offers {', '.join(offers[name])}")
            context_per_step = context_per_step or (each and len(found) > 1)
        return cls(kind, _parse_steps(text, kind, count), choices | stated, context_per_step)

    @property
    def text(self) -> str:
        """The canonical text. It reads back as this spec even if the default choices change."""
        usual = PruningMethod().as_dict()
        stated = (k for k, v in self.choices.items() if v != (usual[k],) or len(DEFAULT_CHOICES[k]) > 1)
        each = {"context": _EACH} if self.context_per_step else {}
        kind = self.kind if self.steps is None else f"{self.kind}:{self.steps}"
        return ";".join([kind, *(f"{name}={each.get(name, '')}{','.join(self.choices[name])}" for name in stated)])


def _parse_steps(text: str, kind: str, count: str) -> int | None:
    if not count:
        return DEFAULT_STEPS if kind == STAGES else None
    if kind != STAGES or not count.isdecimal() or len(count) > _MAX_DIGITS:
        raise SpaceError(f"space {text!r}: expected stages:K with a whole number K, such as stages:3")
    return int(count)


def _parse_option(option: str) -> tuple[str, tuple[str, ...], bool]:
    """Return an option's name, its choices without duplicates, and whether each step chooses among them."""
    name, separator, listed = (piece.strip() for piece in option.partition("="))
    if not separator or name not in METHOD_CHOICES:
        raise SpaceError(f"{option!r} is not one of {', '.join(METHOD_CHOICES)}=CHOICE,…")
    each = name == "context" and listed.startswith(_EACH)
    names = (listed.removeprefix(_EACH) if each else listed).split(",")
    return name, tuple(dict.fromkeys(piece.strip() for piece in names)), each


def _validated(name: str, choices: tuple[str, ...], each: bool) -> tuple[str, ...]:
    if each and "zeros" in choices and len(choices) > 1:
        raise SpaceError("the context zeros cannot be mixed with others from step to step")
    for choice in choices:
        PruningMethod(**{name: choice})  # raises if there is no such choice
    return choices

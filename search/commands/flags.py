"""The options of a command, made from settings."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from search.settings import Setting, flag_of, named, setting_named, settings_of


def takes_settings(*classes: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command: it gets the flags of all settings of `classes`, and passes those on as its first argument.

    The decorated function is called with a mapping from name or alias to value, where None was not given, and then
    with its own parameters. Values are not checked here, for a configuration file may complete them.
    """
    settings = _in_help_order([one for kind in classes for one in settings_of(kind)])
    parameters = [
        inspect.Parameter(
            spelling,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[_option_type(one), _option(one, spelling, hidden=spelling != one.name)],
        )
        for one in settings
        for spelling in one.spellings
    ]

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        @wraps(body)
        def command(**arguments: Any) -> None:
            given = {one.name: arguments.pop(one.name) for one in parameters}
            flags = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
            body(flags, **arguments)

        own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
        own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
        vars(command)["__signature__"] = inspect.Signature([*parameters, *own])
        return command

    return decorate


def shared_option(settings_class: type, name: str) -> Any:
    """Return the option of one setting for a command that has few of them; its value is checked as it is read."""
    one = setting_named(settings_class, name)

    def check(value: Any) -> Any:
        with named(flag_of(name)):
            one.check(value)
        return value

    return _option(one, name, callback=check)


def _option(
    one: Setting, spelling: str, *, hidden: bool = False, callback: Callable[[Any], Any] | None = None
) -> Any:
    return typer.Option(
        flag_of(spelling),
        metavar=one.metavar,
        help=one.help_text,
        show_default=False,
        hidden=hidden,
        callback=callback,
    )


def _option_type(one: Setting) -> Any:
    return list[str] | None if one.kind is tuple else one.kind | None


def _in_help_order(settings: list[Setting]) -> list[Setting]:
    found = [one for one in settings if one.after is None]
    for one in settings:
        if one.after is not None:
            found.insert([other.name for other in found].index(one.after) + 1, one)
    return found

"""The state dicts in a checkpoint: where they are, which one a model takes, and the names that wrappers give.

A checkpoint is a tree of dictionaries, and so is a state dict, whose keys are paths joined by dots. Both are read as
one tree of tensors. A set of weights is a path below which a model finds at least half of its own keys:

    {"epoch": 3, "state_dict": {"module.head.weight": …}, "state_dict_ema": {"module.head.weight": …}}

has the sets `state_dict.module` and `state_dict_ema.module`. So any wrapper's prefix is found, known or not.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from spaces.errors import CheckpointError

# Of several sets of weights, these names are taken before others, in this order; averages are named on purpose.
FIRST = (
    "model", "state_dict", "model_state_dict", "module", "net", "network", "weights", "params", "backbone", "student",
    "online_model",
)  # fmt: skip
_INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # wherever a wrapped module stands
_ALIKE = 0.9  # of the keys that the best set of weights covers, for another one to count as a set
_DEEPEST = 8  # dictionaries within one another; guards against files that contain themselves


def plain_key(key: str) -> str:
    """Return the name that a weight has without the wrappers of `torch.compile`, FSDP and activation checkpoints.

    >>> plain_key("module._orig_mod.layers.0._checkpoint_wrapped_module.norm.weight")
    'module.layers.0.norm.weight'
    """
    return ".".join(part for part in key.split(".") if part not in _INNER)


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a wrapped model under the names that it has without wrappers.

    >>> import torch
    >>> list(plain_names({"module._orig_mod.head.bias": torch.zeros(1)}))
    ['head.bias']
    """
    named = {plain_key(key): value for key, value in state.items()}
    while named and all(key.startswith("module.") for key in named):
        named = {key.removeprefix("module."): value for key, value in named.items()}
    return named


class Weights:
    """The sets of weights in a checkpoint.

    Args:
        content: of a file, or a state dict.
        file: its name, for messages; None of a state dict.
        own: the keys of the model that they are for; without them, each dictionary of tensors is a set.
        adapt: returns a state dict with the model's keys.

    Attributes:
        tensors: all tensors by their paths; those of optimizers are left out.
        paths: of the sets that the model can take.

    Raises:
        CheckpointError: there are no weights, or two have the same path.
    """

    def __init__(
        self,
        content: object,
        file: str | None = None,
        own: Collection[str] = (),
        adapt: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] = dict,
    ) -> None:
        self._where = "state dict" if file is None else f"checkpoint {file}"
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{self._where}: holds {type(content).__name__}, expected a state dict")
        self._file, self._own = file, set(own)
        self.tensors: dict[str, Tensor] = {}
        holders = self._collect(content, "", _DEEPEST)
        if not any(value.is_floating_point() for value in self.tensors.values()):
            raise CheckpointError(f"{self._where}: holds no tensors{' of weights' if self.tensors else ''}")
        self.paths = self._fitting(adapt) if own else holders

    def _collect(self, content: Mapping[object, object], start: str, depth: int) -> list[str]:
        """Collect the tensors of a dictionary and those in it; return the paths of those that hold some."""
        holders: list[str] = []
        for key, value in content.items():
            if not isinstance(key, str):  # an optimizer numbers its parameters
                continue
            if isinstance(value, Mapping) and depth and "optim" not in key:
                holders += self._collect(value, f"{start}{key}.", depth - 1)
            elif isinstance(value, Tensor):
                name = plain_key(start + key)
                if name in self.tensors:
                    raise CheckpointError(
                        f"{self._where}: two weights are called {name}, with and without a wrapper's name"
                    )
                self.tensors[name] = value
                holders += [start[:-1]] if start[:-1] not in holders else []
        return holders

    def _fitting(self, adapt: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> list[str]:
        """Return the paths below which the model finds its keys."""
        least = len(self._own) / 2
        first = {key.split(".")[0] for key in self._own}
        begins: Counter[str] = Counter()
        for key in self.tensors:
            parts = key.split(".")
            begins.update(".".join(parts[:i]) for i, part in enumerate(parts) if part in first)
        covered = {
            path: len(self._own & adapt(self._below(path)).keys()) for path, count in begins.items() if count >= least
        }
        covered = {path: count for path, count in covered.items() if count >= least}
        most = _ALIKE * max(covered.values(), default=0)
        first_rank = min((_rank(path) for path, count in covered.items() if count >= most), default=None)
        # A set that comes first counts even if it lacks keys: loading it then says which ones are missing.
        return [
            path
            for path, count in covered.items()
            if count >= most or (first_rank is not None and _rank(path) < first_rank)
        ]

    def _below(self, path: str) -> dict[str, Tensor]:
        start = f"{path}." if path else ""
        return {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)}

    def taken(self, chosen: str | None = None) -> dict[str, Tensor] | None:
        """Return the set of weights that is named, or the one that comes first; None if none is for the model.

        A warning says which one is taken of several.

        Raises:
            CheckpointError: there is none of that name, or none comes first.
        """
        paths = [path for path in self.paths if chosen is None or f"{path}.".startswith(f"{chosen}.")]
        if chosen is not None and not paths:
            if len(self.paths) > 1:
                raise CheckpointError(f"{self._where}: has no {chosen!r}; there is {', '.join(self.paths)}")
            raise CheckpointError(f"{self._where}: holds one set of weights; leave #{chosen} out")
        paths.sort(key=_rank)
        if len(paths) > 1:
            self._tell(paths)
        return self._only(paths[0]) if paths else None

    def _tell(self, paths: list[str]) -> None:
        """Say which of several sets is taken, the first one of these; refuse if nothing puts it before the next."""
        shown = ", ".join(path or "the top level" for path in paths)
        if _rank(paths[0]) == _rank(paths[1]):
            one = paths[0] if self._file is None else f"{self._file}#{paths[0]}"
            raise CheckpointError(f"{self._where}: holds several sets of weights, {shown}: name one, such as {one}")
        others = " or ".join(path if self._file is None else f"{self._file}#{path}" for path in paths[1:])
        taken = paths[0] or "the top level"
        warnings.warn(f"{self._where}: {taken} is taken of {shown}; name {others} for another", stacklevel=2)

    def _only(self, path: str) -> dict[str, Tensor]:
        """Return one set, without those in it, and without the averages that some trainings leave beside weights."""
        start = f"{path}." if path else ""
        inner = tuple(f"{one.removeprefix(start)}." for one in self.paths if one != path and one.startswith(start))
        state = {key: value for key, value in self._below(path).items() if not key.startswith(inner)}
        if not self._own:
            state = plain_names(state)
        return {key: value for key, value in state.items() if key in self._own or not key.startswith("ema_")}


def _rank(path: str) -> list[int]:
    """Return a sort key by which the names in `FIRST` come first, and the weights outside of any name before them."""
    return [FIRST.index(part) if part in FIRST else len(FIRST) for part in path.split(".")] if path else []

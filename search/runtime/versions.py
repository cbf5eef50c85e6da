"""Which versions did the work: kept beside every study and every training."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("prunefront", "torch", "torchvision", "timm", "numpy", "pillow", "numba", "ray", "optuna", "sqlalchemy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that bear on a result, by name."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found

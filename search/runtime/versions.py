"""The versions of Python and of packages, recorded with every study and every training."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("prunefront", "torch", "torchvision", "timm", "numpy", "pillow", "numba", "ray", "optuna", "sqlalchemy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a result, by name."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found

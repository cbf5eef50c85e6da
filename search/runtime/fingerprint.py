"""Whether a worker has the driver's software, weights and images, and so measures the same.

A node that differs is refused before its first evaluation, and the search ends with the difference. No candidate is
recorded as failed, so the same command continues once the node is repaired or gone.
"""

import socket
from collections.abc import Mapping
from typing import Any

from spaces.errors import SearchError

NODE_PATIENCE = 120.0  # seconds in which a node must report its software


class RefusedError(SearchError):
    """A worker differs from the driver, and must not evaluate anything."""


def software() -> dict[str, str]:
    """Return the versions that must be the same on every node, by name.

    Builds of one version of torch, such as for the CPU and for CUDA, count as the same.
    """
    # `check_nodes` sends this function by value, so it must be self-contained.
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in ("prunefront", "torch"):
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def compare(expected: Mapping[str, str], found: Mapping[str, str], node: str) -> None:
    """Raise a RefusedError that names the node and each difference."""
    differences = [
        f"{name} is {_shown(found.get(name, 'missing'))} there and {_shown(wanted)} at the driver"
        for name, wanted in expected.items()
        if found.get(name) != wanted
    ]
    if differences:
        raise RefusedError(f"node {node}: {'; '.join(differences)}; make them the same and run the command again")


def node_name() -> str:
    """Return the name by which this machine is known to its user."""
    return socket.gethostname()


def check_nodes(expected: Mapping[str, str]) -> None:
    """Ask every node of the connected cluster for its software before anything runs there.

    The most frequent difference is a node without prunefront, where a worker could not even start. Nodes that join
    later are checked by their workers only.

    Raises:
        RefusedError: a node differs.
        SearchError: a node does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Ray pickles a module's function by name, which the node would have to import.
    probe = ray.remote(num_cpus=0, max_retries=0)(_by_value(software))
    every: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node for node in every if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    asked = {
        probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(): node
        for node in nodes
    }
    for reference, node in asked.items():
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            found = ray.get(reference, timeout=NODE_PATIENCE)
        except ray.exceptions.NodeDiedError:
            continue
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise SearchError(f"node {name}: does not say what is installed there: {lines[0]}") from None
        compare(expected, found, name)


def _by_value(function: Any) -> Any:
    """Return a copy that belongs to no module, so that it is pickled by value."""
    from types import FunctionType

    copy = FunctionType(function.__code__, {"__builtins__": __builtins__}, "probe")
    copy.__module__ = "__main__"
    return copy


def _shown(value: str) -> str:
    return f"{value[:12]}…" if len(value) == 64 else value  # a digest

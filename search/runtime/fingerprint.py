"""Whether a worker would measure what the driver would: the same software, weights and images.

A node that differs is refused before its first evaluation, and the search ends with the difference. No
candidate is recorded as failed for it, so the same command goes on once the node is mended or gone.
"""

import socket
from collections.abc import Mapping
from typing import Any

from spaces.errors import SearchError

NODE_PATIENCE = 120.0  # seconds that a node may take to say what is installed there


class RefusedError(SearchError):
    """A worker that must not evaluate anything for a search."""


def software() -> dict[str, str]:
    """Return the versions that must be the same on every node, by name.

    Builds of one version of torch, such as for the CPU and for CUDA, count as the same.
    """
    # It is sent to nodes as source (see `check_nodes`), so it holds all that it needs.
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

    What differs most often is that prunefront is missing on a node, where no worker could even say so. Nodes
    that join later are checked by their workers alone.

    Raises:
        RefusedError: a node differs.
        SearchError: a node does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A function of a module would be sent by its name, and looked for on the node; this one goes by value.
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
            continue  # it can do no harm any more
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise SearchError(f"node {name}: does not say what is installed there: {lines[0]}") from None
        compare(expected, found, name)


def _by_value(function: Any) -> Any:
    """Return a copy that belongs to no module, so that it is pickled with its code."""
    from types import FunctionType

    copy = FunctionType(function.__code__, {"__builtins__": __builtins__}, "probe")
    copy.__module__ = "__main__"
    return copy


def _shown(value: str) -> str:
    return f"{value[:12]}…" if len(value) == 64 else value  # a digest

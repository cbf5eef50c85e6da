"""The files under docs/cluster hold together, as far as that can be told without a cluster."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parent.parent / "docs" / "cluster"


def named(objects: list[dict[str, Any]], kind: str) -> set[str]:
    return {one["metadata"]["name"] for one in objects if one["kind"] == kind}


def values(tree: Any, key: str) -> Iterator[Any]:
    """Yield what stands under a key, at any depth."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from values(value, key)


def test_the_compose_file_names_only_what_it_has() -> None:
    found = yaml.safe_load((CLUSTER / "compose.yaml").read_text())
    services = found["services"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        assert set(service["secrets"]) <= set(found["secrets"])
        assert "ports" not in service, "nothing is open beyond the network of the project"
        for after, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[after]
    assert services["head"]["volumes"] == services["worker"]["volumes"]


def test_the_kubernetes_objects_name_only_each_other() -> None:
    objects = list(yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text()))
    assert all({"apiVersion", "kind", "metadata"} <= set(one) for one in objects)
    claims = named(objects, "PersistentVolumeClaim")
    assert {claim["claimName"] for claim in values(objects, "persistentVolumeClaim")} <= claims
    assert {reference["name"] for reference in values(objects, "secretKeyRef")} == {"prunefront"}
    (database,) = [one for one in objects if one["kind"] == "StatefulSet"]
    assert database["spec"]["serviceName"] in named(objects, "Service")
    labels = database["spec"]["template"]["metadata"]["labels"]
    assert labels == database["spec"]["selector"]["matchLabels"]
    for template in values(objects, "template"):
        own = template["spec"].get("volumes", []) + next(iter(values(database, "volumeClaimTemplates")))
        names = {volume.get("name") or volume["metadata"]["name"] for volume in own}
        for container in template["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= names


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_the_script_is_bash() -> None:
    done = subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sh")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

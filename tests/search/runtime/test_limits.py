"""Limits of control groups, versions 1 and 2, as files in a folder."""

import os
from pathlib import Path

import pytest

from search.runtime import limits
from search.runtime.limits import available_cpus, memory_limit


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "membership")
    return tmp_path


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")


def test_the_machine_is_the_limit_without_groups(root: Path) -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_limit() == everything
    write(root, membership="0::/\n", memory_dot_max="max\n", cpu_dot_max="max 100000\n")
    assert memory_limit() == everything


def test_the_smallest_limit_of_the_group_and_those_above_it_counts(root: Path) -> None:
    write(root, membership="0::/job/step\n", job__memory_dot_max="1000\n", job__step__memory_dot_max="max\n")
    assert memory_limit() == 1000
    write(root, memory_dot_max="900\n", job__step__cpu_dot_max="150000 100000\n")
    assert memory_limit() == 900
    assert available_cpus() == 1


def test_a_container_sees_its_own_group_as_the_root(root: Path) -> None:
    write(root, membership="0::/../host/path\n", memory_dot_max="700\n")
    assert memory_limit() == 700


def test_version_1(root: Path) -> None:
    write(root, membership="4:memory:/docker/a\n2:cpu,cpuacct:/docker/a\n1:name=systemd:/\n0::/\n")
    write(
        root, memory__memory_dot_limit_in_bytes="800\n", memory__docker__a__memory_dot_limit_in_bytes=f"{2**63 - 1}\n"
    )
    assert memory_limit() == 800
    folder = root / "cpu,cpuacct"
    folder.mkdir()
    (folder / "cpu.cfs_quota_us").write_text("50000", encoding="ascii")
    (folder / "cpu.cfs_period_us").write_text("100000", encoding="ascii")
    assert available_cpus() == 1

"""Files are written atomically."""

import json
import math
import os
from pathlib import Path

import pytest

from results.files import write_json, write_whole
from spaces.errors import PrunefrontError


def test_an_invalid_value_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(target, {"a": math.nan})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.json"
    write_json(target, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PrunefrontError, match=r"out\.json: cannot be written: No space left on device"):
        write_json(target, {"a": 2})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PrunefrontError, match="cannot be written: No such file or directory"):
        write_json(tmp_path / "nowhere" / "out.json", {})
    with pytest.raises(PrunefrontError, match="is a folder; name a file"):
        write_json(tmp_path, {})
    with pytest.raises(PrunefrontError, match="cannot be written"):
        write_json("/proc/nothing.json", {})
    assert [path.name for path in tmp_path.iterdir()] == []


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    write_whole(target, b"one")
    umask = os.umask(0o022)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask
    target.chmod(0o600)
    link.symlink_to(target)
    write_whole(link, b"two")
    assert link.is_symlink()
    assert target.read_bytes() == b"two"
    assert target.stat().st_mode & 0o777 == 0o600

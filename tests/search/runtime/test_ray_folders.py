"""Ray's folders and token where TMPDIR is long, HOME cannot be written, or shared memory is small."""

import os
import tempfile
from pathlib import Path

import pytest

from search.runtime import ray_folders
from search.runtime.ray_folders import LONGEST_RAY_FOLDER, object_store_folder, own_token, ray_folder
from search.runtime.scratch import SCRATCH_NAME_BYTES, scratch_folder
from spaces.errors import SearchError

SESSION = "session_2026-11-29_01-59-44_545968_4194304/sockets/plasma_store"


def test_a_socket_in_the_longest_folder_fits() -> None:
    assert len("x" * LONGEST_RAY_FOLDER + "/" + SESSION) <= 103  # macOS; Linux takes 107


def test_a_short_folder_is_used_itself() -> None:
    with ray_folder(Path("/scratch")) as folder:
        assert folder == Path("/scratch")


@pytest.mark.parametrize("name", ["x" * 80, "ä" * 20])  # the bytes count
def test_a_long_folder_is_replaced_by_a_short_one_for_the_time(tmp_path: Path, name: str) -> None:
    with ray_folder(Path("/tmp") / name) as folder:
        assert folder.is_dir()
        assert len(os.fsencode(folder)) <= LONGEST_RAY_FOLDER
    assert not folder.exists()


def test_without_a_place_for_sockets_the_error_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_folders, "SHORT_PLACES", (tmp_path / "none",))
    with pytest.raises(SearchError, match="set TMPDIR to a folder whose path has at most 19 bytes"):
        ray_folder(tmp_path / ("x" * 80))


def test_the_name_of_a_scratch_folder_has_the_length_that_the_error_counts_on() -> None:
    with scratch_folder() as folder:
        assert len(f"/{folder.name}") == SCRATCH_NAME_BYTES


def test_without_any_temporary_folder_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(SearchError, match="set TMPDIR"), scratch_folder():
        pass


def test_shared_memory_that_does_not_do_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_folders, "SHARED_MEMORY", tmp_path)
    assert object_store_folder(Path("/other")) == tmp_path
    monkeypatch.setattr(ray_folders, "OBJECT_STORE_BYTES", 2**60)
    assert object_store_folder(Path("/other")) == Path("/other")
    monkeypatch.setattr(ray_folders, "SHARED_MEMORY", tmp_path / "none")
    assert object_store_folder(Path("/other")) == Path("/other")


def token_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}


def test_the_token_is_the_searchs_own_and_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    before = token_settings()
    with own_token(tmp_path):
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert token.parent == tmp_path
        assert token.stat().st_mode & 0o777 == 0o600
        assert len(token.read_text(encoding="ascii")) == 64
    assert not token.exists()
    assert token_settings() == before


def test_a_path_without_a_token_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/run/secrets/none")
    before = token_settings()
    with own_token(tmp_path):
        assert Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent == tmp_path
    assert token_settings() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "a" * 64), ("RAY_AUTH_TOKEN_PATH", __file__)],
)
def test_a_token_of_the_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for other in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    before = token_settings()
    with own_token(tmp_path):
        assert token_settings() == before
    assert list(tmp_path.iterdir()) == []

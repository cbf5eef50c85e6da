"""Weights from the hub: huggingface_hub itself against a server that answers as the hub does."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import ssm_models
from spaces.errors import CheckpointError, UsageError
from ssm_models.checkpoints import save_checkpoint

COMMIT = "0" * 40
# Reads each name of the list on stdin; prints the digest of the weights, or the error.
CLIENT = """
import json, sys
import ssm_models
from spaces.errors import PrunefrontError

def digest(name):
    try:
        return ssm_models.weights_digest(ssm_models.build("vim_nano", name))
    except PrunefrontError as error:
        return str(error)

print(json.dumps([digest(name) for name in json.load(sys.stdin)]))
"""


class Hub(BaseHTTPRequestHandler):
    """Answers for the files below `repositories`, by OWNER/REPO."""

    repositories: Path

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            _, _, owner, name, _, revision = path.split("/")
            folder = self.repositories / owner / name
            files = [file for file in folder.rglob("*") if file.is_file()]
            listed = [
                {"type": "file", "path": f.relative_to(folder).as_posix(), "size": 1, "oid": "1"} for f in files
            ]
            if error := self._refusal(folder, revision):
                return self._send(*error)
            return self._send(200, {}, json.dumps(listed).encode())
        if "/resolve/" not in path:  # what else the client asks a hub for
            return self._send(404, {})
        owner, name, _, revision, file = path.split("/", 4)
        folder = self.repositories / owner / name
        if error := self._refusal(folder, revision):
            return self._send(*error)
        if not (folder / file).is_file():
            return self._send(404, {"X-Error-Code": "EntryNotFound"})
        content = (folder / file).read_bytes()
        return self._send(200, {"ETag": f'"{len(content)}{file}"', "X-Repo-Commit": COMMIT}, content)

    def _refusal(self, folder: Path, revision: str) -> tuple[int, dict[str, str]] | None:
        if folder.name == "gated":
            return 403, {"X-Error-Code": "GatedRepo"}
        if not folder.is_dir():
            return 404, {"X-Error-Code": "RepoNotFound"}
        return None if revision in ("main", "v1") else (404, {"X-Error-Code": "RevisionNotFound"})

    def _send(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Serve some repositories; yield the server's address and the digest of the weights in them."""
    folder = tmp_path_factory.mktemp("hub")
    model = ssm_models.build("vim_nano", "random", seed=3)
    for file in ("one/weights/best.safetensors", "usual/model.safetensors", "several/a.safetensors"):
        save_checkpoint(model, folder / "ada" / file, {})
    (folder / "ada/usual/pytorch_model.bin").write_bytes(b"not read")
    (folder / "ada/several/b.pth").write_bytes(b"not read")
    (folder / "ada/none").mkdir()
    (folder / "ada/none/README.md").write_text("no weights")
    (folder / "ada/shards").mkdir()
    save_checkpoint(model, folder / "ada/shards/part-1.safetensors", {})
    weight_map = dict.fromkeys(model.state_dict(), "part-1.safetensors")
    (folder / "ada/shards/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"repositories": folder}))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", ssm_models.weights_digest(model)
    server.shutdown()
    server.server_close()


def ask(names: list[str], **environment: str) -> list[str]:
    """Return what CLIENT prints of these names in another process; huggingface_hub reads its variables on import."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    answers: list[str] = json.loads(done.stdout)
    return answers


def test_weights_are_found_on_the_hub_and_again_in_its_cache(hub: tuple[str, str], tmp_path: Path) -> None:
    address, digest = hub
    whole = [
        "hf:ada/one",
        "hf:ada/one/weights/best.safetensors@v1",
        "hf:ada/usual",
        "hf:ada/several/a.safetensors",
        "hf:ada/shards",
    ]
    refused = {
        "hf:ada/several": "2 files of weights: a.safetensors, b.pth; name one, as hf:OWNER/REPO/FILE",
        "hf:ada/none": "the repository has no file of weights",
        "hf:ada/absent": "there is no repository ada/absent on the hub",
        "hf:ada/gated": "ada/gated is gated: accept its terms",
        "hf:ada/one/other.pth": "ada/one has no such file",
        "hf:ada/one@v2": "ada/one has no such revision",
        "hf:ada/usual/pytorch_model.bin": "pytorch_model.bin: refused",
        "hf:ada/usual#model_ema": "model_ema",
        "hf:ada": "expected hf:OWNER/REPO[/FILE][@REVISION]",
    }
    answers = ask([*whole, *refused], HF_ENDPOINT=address, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0")
    assert answers[: len(whole)] == [digest] * len(whole)
    for name, answer in zip(refused, answers[len(whole) :], strict=True):
        assert answer.startswith("checkpoint "), answer
        assert refused[name] in answer, answer

    # Without the hub, what was downloaded is read from the cache.
    cached = ask([*whole, "hf:ada/several/b.pth"], HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert cached[:-1] == [digest] * len(whole)
    assert "it is not in the local cache" in cached[-1]


def test_the_authors_weights_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def downloaded(name: str) -> Path:
        asked.append(name)
        raise CheckpointError("as far as it goes")

    monkeypatch.setattr("ssm_models.checkpoints.downloaded", downloaded)
    for name in ("vim_small", "plain_mamba_l1", "vssd_tiny", "group_mamba_base"):
        with pytest.raises(CheckpointError, match="as far as it goes"):
            ssm_models.build(name, "authors")
    assert asked == [
        "hf:hustvl/Vim-small-midclstok/vim_s_midclstok_80p5acc.pth",
        "hf:ChenhongyiYang/PlainMamba/l1.pth",
        "hf:YuhengSSS/VSSD/vssd_tiny_best_ema.pth",
        "hf:Abdelrahman-shaker/GroupMamba-Base",
    ]
    with pytest.raises(UsageError, match="'vim_nano': its authors have no weights on the hub"):
        ssm_models.build("vim_nano", "authors")

"""Weights on the Hugging Face hub, named as `hf:OWNER/REPO[/FILE][@REVISION]`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from spaces.errors import CheckpointError
from ssm_models.weight_files import INDEX, shards

PREFIX = "hf:"
USUAL = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")

_NAME = re.compile(
    rf"{PREFIX}(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@\0]+?))?(?:@(?P<revision>[\w./-]+))?\Z", re.ASCII
)


def on_hub(checkpoint: object) -> bool:
    """Return whether a checkpoint is named by its place on the hub.

    >>> on_hub("hf:hustvl/Vim-small-midclstok"), on_hub("vim_small.pth")
    (True, False)
    """
    return isinstance(checkpoint, str) and checkpoint.startswith(PREFIX)


def downloaded(checkpoint: str) -> Path:
    """Return the local file of weights on the hub, from huggingface_hub's cache or else downloaded into it.

    huggingface_hub reads HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and its other variables as always. Without a file in the
    name it is the first of `USUAL` that the repository has, or its only file of weights.

    Args:
        checkpoint: `hf:OWNER/REPO`, then perhaps `/FILE` and `@REVISION`, a branch, tag or commit.

    Raises:
        CheckpointError: the name is malformed; there is no such repository, revision or file; it is gated or cannot
            be reached; or no file is named and the repository has several.
    """
    from huggingface_hub import hf_hub_download

    found = _NAME.match(checkpoint)
    if not found:
        raise CheckpointError(f"checkpoint {checkpoint}: expected hf:OWNER/REPO[/FILE][@REVISION]")
    repo, revision = found["repo"], found["revision"]
    with _explained(checkpoint, repo):
        name = found["file"] or _only_weights(checkpoint, _files(repo, revision))
        path = Path(hf_hub_download(repo, name, revision=revision))
        if name.endswith(INDEX):
            for shard in shards(path):
                hf_hub_download(repo, str(PurePosixPath(name).with_name(shard)), revision=revision)
    return path


def _files(repo: str, revision: str | None) -> list[str]:
    """Return the files of a repository; of its copy in the cache in huggingface_hub's offline mode."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if not constants.is_offline_mode():
        return HfApi().list_repo_files(repo, revision=revision)
    folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


@contextmanager
def _explained(checkpoint: str, repo: str) -> Iterator[None]:
    """Turn huggingface_hub's errors in the block into a CheckpointError."""
    from huggingface_hub import errors

    try:
        yield
        return
    except CheckpointError:
        raise
    except errors.GatedRepoError:
        reason = f"{repo} is gated: accept its terms on the hub, then log in with `hf auth login` or set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        reason = f"there is no repository {repo} on the hub, or it is private and HF_TOKEN is not set"
    except errors.RevisionNotFoundError:
        reason = f"{repo} has no such revision"
    except errors.LocalEntryNotFoundError:
        reason = "it is not in the local cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set)"
    except errors.EntryNotFoundError:
        reason = f"{repo} has no such file"
    except Exception as error:  # of its HTTP library, which differs between versions
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"cannot be had from the hub: {lines[0]}"
    raise CheckpointError(f"checkpoint {checkpoint}: {reason}") from None


def _only_weights(checkpoint: str, files: list[str]) -> str:
    for name in USUAL:
        if name in files:
            return name
    weights = [name for name in files if name.endswith(SUFFIXES)]
    if len(weights) == 1:
        return weights[0]
    if not weights:
        raise CheckpointError(f"checkpoint {checkpoint}: the repository has no file of weights")
    shown = ", ".join(weights[:6]) + (", …" if len(weights) > 6 else "")
    raise CheckpointError(
        f"checkpoint {checkpoint}: {len(weights)} files of weights: {shown}; name one, as hf:OWNER/REPO/FILE"
    )

"""`prunefront doctor`: checks the installation."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import typer

from search.commands.options import Database, FormatOption, database
from search.commands.output import Column, Format, print_object, print_rows
from spaces.errors import BackendError, PrunefrontError

OPTIONAL = {
    "psycopg": "PostgreSQL studies: pip install 'psycopg[binary]'",
    "mlflow": "search --track mlflow: pip install mlflow-skinny",
    "wandb": "search --track wandb: pip install wandb",
    "datasets": "--data hf:NAME: pip install datasets",
}
COLUMNS = {
    "name": Column("what"),
    "ok": Column("ok", lambda ok: "yes" if ok else "NO"),
    "value": Column("found"),
}


@dataclass(frozen=True)
class Check:
    """One line of the output: what was checked, what was found, and whether that is fine (None: it is optional)."""

    name: str
    value: str
    ok: bool | None = None


def doctor(db: Database = None, format: FormatOption = Format.table) -> None:
    """Check what is installed and whether it works.

    The exit code is 1 if a required part is missing.
    """
    checks = list(_checks(database(db)))
    healthy = all(check.ok is not False for check in checks)
    rows = [asdict(check) for check in checks]
    if format is Format.json:
        print_object({"ok": healthy, "checks": rows}, {}, format)
    else:
        print_rows(rows, COLUMNS, format)
    if not healthy:
        raise typer.Exit(1)


def _checks(url: str) -> Iterator[Check]:
    from search.runtime.versions import versions

    yield Check("platform", f"{platform.system()} {platform.machine()}")
    for name, found in versions().items():
        yield Check(name, found, found != "not installed")
    yield from _devices()
    yield from _surroundings()
    yield _models()
    yield _ray()
    yield _database(url)
    for name, purpose in OPTIONAL.items():
        yield Check(name, "installed" if find_spec(name) else f"not installed ({purpose})")


def _devices() -> Iterator[Check]:
    import torch

    import ssm_models
    from search.runtime.limits import available_cpus
    from ssm_models.scan.backends import available

    def scan_backend(device: str) -> tuple[str, bool]:
        try:
            return f"scan backend {ssm_models.scan_backend(device)}", True
        except BackendError as error:  # the environment variable names one that cannot run here
            return str(error), False

    backend, ok = scan_backend("cpu")
    yield Check("cpu", f"{available_cpus()} cores, {backend}", ok)
    if not torch.cuda.is_available():
        yield Check("cuda", "none")
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        backend, ok = scan_backend("cuda")
        name = torch.cuda.get_device_name(device)
        yield Check(str(device), f"{name}, {memory:.0f} GiB, {backend}", ok)
    for name, reason in available().items():
        yield Check(f"scan {name}", reason or "can run here")


def _surroundings() -> Iterator[Check]:
    """What a container or a batch system sets or forbids."""
    from search.commands.streams import takes_unicode
    from search.runtime.ray_folders import SHARED_MEMORY, shared_memory_missing
    from ssm_models.scan.backends import available

    yield _memory()
    yield _temporary_files()
    missing = shared_memory_missing()
    store = f"{missing}; Ray keeps its objects in the folder for temporary files" if missing else "large enough"
    yield Check("shared memory", f"{SHARED_MEMORY}: {store}")
    yield _home()
    if available()["cpu"] is None:
        yield _scan_cache()
    if address := os.environ.get("RAY_ADDRESS"):
        yield Check("RAY_ADDRESS", f"{address}: only used with --ray-address auto")
    if not takes_unicode(sys.stdout):
        yield Check("output", f"{sys.stdout.encoding}: other signs are escaped; PYTHONIOENCODING=utf-8 shows them")


def _memory() -> Check:
    from search.driver.memory import ONE_WORKER
    from search.runtime.limits import memory_limit, usable_memory

    limit, usable = memory_limit(), usable_memory()
    if limit is None or usable is None:
        return Check("memory", "unknown")
    text = f"{limit / 2**30:.1f} GiB" + (f", {usable / 2**30:.1f} GiB of it free" if usable < limit else "")
    if usable < ONE_WORKER:
        return Check(
            "memory", f"{text}: too little, a search with one worker needs about {ONE_WORKER / 2**30:.1f} GiB"
        )
    return Check("memory", text)


def _temporary_files() -> Check:
    from search.runtime.ray_folders import ray_folder
    from search.runtime.scratch import scratch_folder, temporary_place

    try:
        place = temporary_place()
        with scratch_folder(place) as scratch, ray_folder(scratch) as folder:
            free = f"{shutil.disk_usage(place).free / 2**30:.1f} GiB free"
            elsewhere = f"; Ray's sockets need a shorter path and go to {folder.parent}" if folder != scratch else ""
        return Check("temporary files", f"{place}: {free}{elsewhere}", True)
    except PrunefrontError as error:
        return Check("temporary files", str(error), False)


def _home() -> Check:
    home = Path.home()
    if os.access(home, os.W_OK | os.X_OK):
        return Check("home", str(home))
    return Check("home", f"{home}: cannot be written; only downloads need it, set HF_HOME and TORCH_HOME for them")


def _scan_cache() -> Check:
    from ssm_models.scan.cpu_kernels import cache_folder

    folder = cache_folder()
    if folder is not None:
        return Check("scan cache", folder)
    return Check(
        "scan cache", "no folder can be written: each process compiles for seconds; set NUMBA_CACHE_DIR to one"
    )


def _models() -> Check:
    import ssm_models

    names = ssm_models.list_models()
    shipped = [name for name in names if ssm_models.model_info(name).weights is not None]
    return Check("models", f"{len(names)}, with weights: {', '.join(shipped) or 'none'}", bool(names))


def _ray() -> Check:
    from search.runtime.ray_session import ray_session
    from search.runtime.scratch import scratch_folder

    try:
        with scratch_folder() as scratch, ray_session(scratch, cpus=1):
            return Check("ray session", "starts", True)
    except PrunefrontError as error:
        return Check("ray session", str(error), False)


def _database(url: str) -> Check:
    from results.store.database import parse_address, shown_address
    from results.store.store import Store

    try:
        address = parse_address(url)
        shown = shown_address(address)
        if address.get_backend_name() == "sqlite" and not os.path.lexists(address.database or ""):
            return Check("database", f"{shown}: does not exist yet; `prunefront search` creates it")
        with Store.open(url) as store:
            return Check("database", f"{shown}: {len(store.studies())} studies", True)
    except PrunefrontError as error:
        return Check("database", str(error), False)

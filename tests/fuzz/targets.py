"""The readers under test: what each reads, valid specimens of it, and how they are mutated.

A target's `read` either returns, or raises a `PrunefrontError`. Where there is a writer, it also asserts that what is
written back reads as the same.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

import ssm_models
from results import Confirmation, Evaluation, Study, StudySpec
from results.store.database import open_database, parse_address, shown_address
from results.store.store import Store
from search.commands.schedule_files import check_belongs, order_of_images
from search.config import SearchConfig, SearchOutputs, given_size, parse_bytes, parse_duration, parse_img_size
from search.data.class_order import is_ambiguous, sorted_names
from search.data.image_files import decode, opened, orientation, upright_size
from search.data.preprocessing import Preprocessing
from search.data.sources import FolderSource
from search.data.tiles import TileSource
from search.driver.spool import Spool
from search.settings import build, given_keys
from search.training.checkpoint import TrainingState
from search.training.recipe import Recipe
from search.training.successive_halving import HalvingPlan
from spaces import FlopsBudget, PruningSchedule, Stage, TokenLayout
from spaces.errors import PrunefrontError
from spaces.schedule import read_schedule_file
from spaces.space_spec import SpaceSpec
from ssm_models.bundle import building, check_replaceable, load_bundle, write_parts
from ssm_models.checkpoints import build as build_model
from ssm_models.checkpoints import load_checkpoint, read_checkpoint, read_metadata, save_checkpoint, trained_classes
from tests.fuzz import mutate

SECRET = "hunter2secret"  # the password in the specimens of addresses, which no message may show


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: for `--target`.
        share: of all inputs, relative to the other targets; less for slow readers.
        specimens: returns valid inputs.
        mutation: returns another input.
        read: reads an input; files may be written into the current folder.
    """

    name: str
    share: int
    specimens: Callable[[], Sequence[bytes]]
    mutation: mutate.Mutation
    read: Callable[[bytes], None]


TARGETS: dict[str, Target] = {}


def target(name: str, share: int, specimens: Callable[[], Sequence[bytes]], mutation: mutate.Mutation) -> Any:
    """Register the decorated function as the reader of a target."""

    def register(read: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[name] = Target(name, share, cache(specimens), mutation, read)
        return read

    return register


def texts(*given: str) -> Callable[[], Sequence[bytes]]:
    """Return specimens that are texts."""
    return lambda: [one.encode() for one in given]


def as_text(content: bytes) -> str:
    """Return an input as a command line or a file gives it."""
    return content.decode("utf-8", "surrogateescape")


# --- texts ----------------------------------------------------------------------------------------------

WORDS = ("importance=", "context=", "alignment=bias", "reduction=merge", "each:", "zeros", "conv", "stages", ":0.5")


@target(
    "schedule-text",
    140,
    texts("", "5:0.8,10:0.8,15:0.8", "5:0.8:conv,10:0.5:freeze;importance=l2;alignment=off", "3:0.5;reduction=merge"),
    partial(mutate.text, words=WORDS),
)
def schedule_text(content: bytes) -> None:
    schedule = PruningSchedule.parse(as_text(content))
    assert PruningSchedule.parse(schedule.text) == schedule
    assert PruningSchedule.from_dict(json.loads(json.dumps(schedule.as_dict()))).hash == schedule.hash


@target(
    "space-text",
    100,
    texts("stages", "stages:4;context=each:drop,conv", "per-block;importance=clip,l2;alignment=on,off"),
    partial(mutate.text, words=WORDS),
)
def space_text(content: bytes) -> None:
    spec = SpaceSpec.parse(as_text(content))
    assert SpaceSpec.parse(spec.text) == spec


@target("budget", 120, texts("0.6", "0.5:0.7", "3.6G", "900M:3.6G", "1e-3"), partial(mutate.text, words=("G", "e+")))
def budget(content: bytes) -> None:
    found = FlopsBudget.parse(as_text(content))
    assert FlopsBudget.parse(str(found)) == found
    assert found.limit(10**9) <= 10**9
    found.least(10**9)


@target("quantities", 110, texts("224", "32x72", "1h30m", "90s", "1.5G", "0"), partial(mutate.text, words=("x", "h")))
def quantities(content: bytes) -> None:
    for parse in (parse_img_size, parse_duration, parse_bytes, given_size):
        refusable(parse, as_text(content))


@target(
    "address",
    80,
    texts(
        "sqlite:///studies.db",
        f"postgresql://user:{SECRET}@host:5432/name?sslmode=require",
        f"postgresql+psycopg://u@h/n?password={SECRET}&host=/tmp",
    ),
    partial(mutate.text, words=("sqlite://", "postgresql://", "?", "%2F", "[::1]", ":memory:", "mysql://")),
)
def address(content: bytes) -> None:
    text = as_text(content)
    if SECRET not in text:
        url = parse_address(text)
        if url.get_backend_name() == "sqlite":
            refusable(open_database, text, create=False)
        return
    try:
        shown = shown_address(parse_address(text))
    except PrunefrontError as error:
        shown = str(error)
    # A password that the address no longer marks as one may be shown; between :// and @ it is always marked.
    assert f":{SECRET}@" not in shown, shown


@cache
def _studies() -> Store:
    return Store.open("sqlite:///names.db", create=True)


@target("study-name", 20, texts("digits", "ImageNet, 0.6", "müller"), mutate.text)
def study_name(content: bytes) -> None:
    name = as_text(content)
    SearchConfig(model="vim_nano", data="embedded", flops_budget="0.6", trials=1, study=name)
    Spool(Study(1, None, spec(name=name)), "sqlite:///names.db")  # type: ignore[arg-type]
    store = _studies()
    refusable(store.create_study, spec(name=name))
    assert store.study(name).name == name


# --- JSON and TOML --------------------------------------------------------------------------------------


def _schedule_files() -> list[bytes]:
    forms = [PruningSchedule.parse(text).as_dict() for text in ("5:0.8,10:0.8;importance=l2", "3:0.5:conv,7:0.25")]
    more = {"model": "vim_nano", "img_size": [28, 28], "num_classes": 10, "metrics": {"top1": 0.9}}
    more["provenance"] = {"study": "s", "order": "shuffled"}
    return [json.dumps(form | added).encode() for form in forms for added in ({}, more)]


@target("schedule-file", 80, _schedule_files, mutate.tree)
def schedule_file(content: bytes) -> None:
    path = written("schedule.json", content)
    schedule, found = PruningSchedule.from_file(path), read_schedule_file(path)
    assert PruningSchedule.from_dict(schedule.as_dict()) == schedule
    refusable(check_belongs, found, str(path), model="vim_nano", img_size=(28, 28))
    refusable(order_of_images, found, str(path))


@target(
    "config",
    80,
    texts(
        'model = "vim_nano"\ndata = "embedded"\nflops-budget = "0.6"\ntrials = 40\nstudy = "s"\n',
        'model = "vim_nano"\ndata = "folder:x"\nflops-budget = 0.6\ntrials = 4\nstudy = "s"\ndb = "sqlite:///x.db"\n'
        'objective = ["top1", "flops"]\nimages = 100\nprefix-cache = "1G"\ntime-budget = "30m"\nrace-error = 0.1\n'
        'img-size = "32x72"\nseed = 3\nconfirm-split = "rest"\ntrack = ["mlflow"]\nspace = "stages:3"\n',
    ),
    partial(
        mutate.text,
        words=("true", "nan", "inf", "[1]", "{a=1}", '"""', "1979-05-27", "0x7f", "[table]", "a.b=1", "checkpoint="),
    ),
)
def config(content: bytes) -> None:
    path = written("search.toml", content)
    given = given_keys(path, SearchConfig, SearchOutputs)
    outputs = build(SearchOutputs, given)
    found = build(SearchConfig, given)
    assert SearchConfig(**(found.as_dict() | {"objective": found.objective})) == found
    SpaceSpec.parse(found.space)
    if outputs.db is not None:
        parse_address(outputs.db)


@target(
    "class-order",
    40,
    texts("cat\ndog\n10\n2\n", "\ufeffcat\r\ndog\r\n2\r\n10"),
    partial(mutate.text, words=("\ncat", "\n10\n")),
)
def class_order(content: bytes) -> None:
    names = ["10", "2", "cat", "dog"]
    found = sorted_names(names, str(written("order.txt", content)))
    assert sorted(found) == names


@target("class-names", 40, texts('["cat", "dog", "10", "2"]', '["1", "a01", "a1"]'), mutate.tree)
def class_names(content: bytes) -> None:
    found = trained_classes({"classes": content.decode("utf-8", "replace")})
    if found:
        is_ambiguous(sorted(found))


CLASSES = {
    "classes": [{"name": "land", "color": "#8429F6"}, {"name": "road", "color": "rgb(10,20,30)"}],
    "ignore": ["#9B9B9B"],
    "window": 4,
    "overlap": 0.5,
}
IDS = {"classes": [{"name": "land", "id": 0}, {"name": "road", "id": 85, "color": "hsl(20,50%,50%)"}], "window": 4}


def _classes() -> list[bytes]:
    return [json.dumps(CLASSES).encode(), json.dumps(IDS).encode()]


@target("classes-json", 60, _classes, mutate.tree)
def classes_json(content: bytes) -> None:
    folder = Path("segmentation")
    for kind, value in (("images", (1, 2, 3)), ("masks", (10, 20, 30))):
        path = folder / "val" / kind / "a.png"
        if not path.exists():
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 6), value).save(path)
    written(folder / "classes.json", content)
    source = TileSource(folder)
    split = source.split("val")
    split.update(hashlib.sha256())
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(source.colours)] = source.colours
    for index in range(min(4, len(split.labels))):
        refusable(split.mask, index)


@target("folder-names", 8, texts("cat/1.png", "10/a.jpg", "n01440764/x/y.PNG"), mutate.text)
def folder_names(content: bytes) -> None:
    root = Path("classes")
    name = as_text(content).replace("\0", "").strip("/")
    path = root / "val" / name
    if ".." in path.parts or not path.name:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P5 1 1 255 a")
    except (OSError, RecursionError):  # no file can have this name, or pathlib cannot make so many folders
        return
    try:
        source = FolderSource(root)
        split = source.split("val")
        split.update(hashlib.sha256())
        refusable(split.image, 0)
    finally:
        remove(root)


# --- weights --------------------------------------------------------------------------------------------


@cache
def _weights() -> dict[str, torch.Tensor]:
    return {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.zeros(2), "norm.weight": torch.ones(3)}


def _saved(content: object, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _torch_files() -> list[bytes]:
    import argparse

    trained = {"model": _weights(), "model_ema": _weights(), "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    others = {"a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.zeros(3).to_sparse(), "c": torch.tensor(True)}
    return [_saved(_weights()), _saved(trained), _saved(trained, legacy=True), _saved(others)]


@target("torch-file", 30, _torch_files, mutate.archive)
def torch_file(content: bytes) -> None:
    weights, _ = read_checkpoint(written("weights.pth", content))
    assert all(isinstance(one, torch.Tensor) for one in weights.values())


def _safetensors() -> list[bytes]:
    from safetensors.torch import save

    metadata = {"model": "vim_nano", "img_size": "[28, 28]", "classes": '["0", "1"]'}
    return [save(_weights(), metadata), save({"x": torch.zeros(2, dtype=torch.int64)})]


@target("safetensors", 80, _safetensors, mutate.tensors)
def safetensors(content: bytes) -> None:
    path = written("weights.safetensors", content)
    read_checkpoint(path)
    trained_classes(read_metadata(path))


@target(
    "shard-index",
    70,
    lambda: [
        json.dumps(
            {"metadata": {"total_size": 44}, "weight_map": dict.fromkeys(_weights(), "a.safetensors")}
        ).encode(),
        json.dumps({"weight_map": {**dict.fromkeys(_weights(), "a.safetensors"), "x": "b.pth"}}).encode(),
    ],
    mutate.tree,
)
def shard_index(content: bytes) -> None:
    for name, shard in (("a.safetensors", _safetensors()[0]), ("b.pth", _torch_files()[0])):
        if not Path(name).exists():
            written(name, shard)
    read_checkpoint(written("model.safetensors.index.json", content))


@cache
def _model() -> ssm_models.PrunableModel:
    return build_model("vim_nano", "random")


@target(
    "weights-metadata",
    3,
    lambda: [json.dumps({"model": "vim_nano", "img_size": "[28, 28]", "classes": '["0"]', "format": "pt"}).encode()],
    mutate.tree,
)
def weights_metadata(content: bytes) -> None:
    """The metadata of whole weights, as `build` reads them."""
    metadata = decoded(content)
    if not isinstance(metadata, dict):
        return
    strings = {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    try:
        save_checkpoint(_model(), "whole.safetensors", strings)
    except (UnicodeEncodeError, RecursionError):  # no such file can be written
        return
    build_model("vim_nano", "whole.safetensors")


ODD_TENSORS: Sequence[Callable[[torch.Tensor], Any]] = (
    *(partial(torch.Tensor.to, dtype=dtype) for dtype in (torch.float16, torch.int8, torch.bool, torch.complex64)),
    torch.Tensor.to_sparse,
    lambda tensor: tensor.to("meta"),
    lambda tensor: tensor[None],
    lambda tensor: tensor.flatten()[:0],
    lambda tensor: torch.full_like(tensor, float("nan")),
    lambda tensor: tensor.expand(2, *tensor.shape),
    lambda tensor: {"a": tensor},
    lambda _: None,
    lambda _: torch.tensor(1.0),
)


@target("state-dict", 3, lambda: [b"0"], mutate.raw)
def state_dict(content: bytes) -> None:
    """A dictionary with the model's keys, and tensors of other shapes, types and layouts."""
    random = Random(content)
    state: dict[Any, Any] = dict(_model().state_dict())
    for key in random.sample(list(state), random.choice((1, 1, 2, 5))):
        tensor = state.pop(key)
        state[key + random.choice(("", "", "", ".x", "\ud800"))] = random.choice(ODD_TENSORS)(tensor)
    prefix = random.choice(("", "", "module.", "model.module.", "\n."))
    load_checkpoint(
        _model(), {f"{prefix}{key}": value for key, value in state.items()}, new_head=random.random() < 0.5
    )


def _bundles() -> list[bytes]:
    with building("bundle.specimen") as folder:
        model = build_model("vim_nano", "random")
        model.set_schedule(PruningSchedule.parse("4:0.7"))
        write_parts(folder, model, model.schedule.as_dict())
    files = {path.name: path.read_text() for path in Path("bundle.specimen").glob("*.json")}
    return [json.dumps({name: json.loads(text) for name, text in files.items()}).encode()]


@target("bundle", 6, _bundles, mutate.tree)
def bundle(content: bytes) -> None:
    """A bundle whose JSON files are the values of one object; their digests are made right half of the time."""
    files = decoded(content)
    if not isinstance(files, dict):
        return
    _ = TARGETS["bundle"].specimens()
    folder = Path("bundle")
    remove(folder)
    folder.mkdir()
    (folder / "model.safetensors").hardlink_to("bundle.specimen/model.safetensors")
    for name, value in files.items():
        if name.endswith(".json") and "/" not in name and "\0" not in name and len(name) < 100:
            text = json.dumps(value) if not isinstance(value, str) else value
            (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    manifest = files.get("bundle.json")
    if len(content) % 2 and isinstance(manifest, dict) and isinstance(manifest.get("files"), dict):
        for path in folder.iterdir():
            if path.name in manifest["files"]:
                manifest["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "bundle.json").write_text(json.dumps(manifest))
    refusable(check_replaceable, folder)
    model = load_bundle(folder)
    Preprocessing(model.pretrained_cfg, model.img_size)


def _training_checkpoints() -> list[bytes]:
    state = TrainingState(build_model("vim_nano", "random"), Recipe(epochs=2), torch.device("cpu"))
    state.curve, state.start = [{"epoch": 1, "top1": 0.5}], {"dense": (0.5, 1.0)}
    state.save(Path("last.specimen.pt"), {"a": 1})
    content = torch.load("last.specimen.pt", weights_only=True)
    small = {**content, "model": {"x": torch.zeros(1)}}
    return [_saved(small), _saved({**small, "start": '{"dense": [1]}'}), _saved({**small, "curve": '{"a": 1}'})]


@cache
def _training() -> TrainingState:
    return TrainingState(build_model("vim_nano", "random"), Recipe(epochs=2), torch.device("cpu"))


@target("training-checkpoint", 8, _training_checkpoints, mutate.archive)
def training_checkpoint(content: bytes) -> None:
    _training().restore(written("last.pt", content), {"a": 1})


PLAN = HalvingPlan(study="digits", top=4, eta=2, max_flops=None, epochs=8)


@target(
    "halving-plan",
    30,
    lambda: [json.dumps({"settings": PLAN.settings, "schedules": ["c7066b81b9512e2d"]}).encode()],
    mutate.tree,
)
def halving_plan(content: bytes) -> None:
    folder = Path("halving")
    folder.mkdir(exist_ok=True)
    written(folder / "plan.json", content)
    assert PLAN.schedules(folder, lambda: [])


# --- records --------------------------------------------------------------------------------------------


def spec(**changes: Any) -> StudySpec:
    """Return what a study measures."""
    layout = TokenLayout("vim_nano", (28, 28), (Stage(12, 7, 7),), protected=1)
    values: dict[str, Any] = {
        **{"name": "fuzzed", "model": "vim_nano", "img_size": (28, 28), "num_classes": 10, "layout": asdict(layout)},
        **{"data": "embedded", "data_digest": "d" * 64, "images": 1000, "order": "shuffled", "confirm_split": "val"},
        **{"confirm_images": 50, "confirm_digest": "e" * 64, "weights_digest": "b" * 64, "checkpoint": None},
        **{"budget": "0.8", "limit": 800_000, "least": 400_000, "dense_flops": 1_000_000, "dense_top1": 0.98},
        **{"dense_loss": 0.07, "dense_latency_ms": None, "space": "stages:3", "sampler": "gp", "seed": 7},
        **{"objectives": ("top1", "flops"), "versions": {"prunefront": "0.1"}, "config": {"trials": 40}},
    }
    return StudySpec(**(values | changes))


@cache
def _study() -> tuple[Store, Study]:
    store = Store.open("sqlite:///spooled.db", create=True)
    return store, store.create_study(spec())


def _spools() -> list[bytes]:
    spool = Spool(_study()[1], "sqlite:///spooled.db")
    schedule = PruningSchedule.parse("3:0.5")
    spool.add(Evaluation(schedule, 700_000, 0.7, top1=0.9, loss=0.3, agreement=0.9, images=8, outcomes=b"\x0f"))
    spool.add(Confirmation(schedule.hash, 0.9, 0.3, 0.9, 50, 1.0, 1.0, 0.8))
    spool.close()
    assert spool.path is not None
    content = spool.path.read_bytes()
    spool.path.unlink()
    return [content]


def lines(random: Random, content: bytes) -> bytes:
    """Change one line of a file of JSON lines."""
    found = content.split(b"\n")
    index = random.randrange(len(found))
    found[index] = mutate.tree(random, found[index])
    return b"\n".join(found)


@target("spool", 14, _spools, lines)
def spool(content: bytes) -> None:
    store, study = _study()
    found = Spool(study, "sqlite:///spooled.db")
    path = written(f"{found._stem}.fuzz.jsonl", content)
    try:
        found.take_in(store, lambda _: None)
        store.evaluations(study)
    finally:
        path.unlink(missing_ok=True)


def _databases() -> list[bytes]:
    with Store.open("sqlite:///database.specimen.db", create=True) as store:
        study = store.create_study(spec())
        store.record(study, Evaluation(PruningSchedule.parse("3:0.5"), 700_000, 0.7, top1=0.9, loss=0.3, images=8))
    return [Path("database.specimen.db").read_bytes()]


@target("database", 10, _databases, mutate.raw)
def database(content: bytes) -> None:
    for left in Path().glob("database.db*"):
        left.unlink()
    written("database.db", content)
    with Store.open("sqlite:///database.db") as store:
        for study in store.studies():
            store.evaluations(study)
            store.front(study)


# --- images ---------------------------------------------------------------------------------------------


def _images() -> list[bytes]:
    pixels = np.arange(16 * 12 * 3, dtype=np.uint8).reshape(16, 12, 3)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    written_as = [
        ("PNG", image, {"exif": exif}),
        ("PNG", image.convert("P"), {"transparency": 3}),
        ("PNG", image.convert("LA"), {}),
        ("JPEG", image, {"exif": exif, "progressive": True}),
        ("JPEG", image.convert("CMYK"), {}),
        ("TIFF", image, {"exif": exif, "compression": "tiff_lzw"}),
        ("TIFF", image.convert("1"), {}),
        ("WEBP", image, {"exif": exif}),
        ("BMP", image, {}),
        ("PPM", image, {}),
        ("GIF", image, {}),
        ("TGA", image, {}),
        ("JPEG2000", image, {}),
        ("ICO", image, {}),
        ("AVIF", image, {}),
        ("SGI", image, {}),
        ("PCX", image, {}),
    ]
    found = []
    for form, picture, options in written_as:
        buffer = io.BytesIO()
        try:
            picture.save(buffer, form, **options)
        except (OSError, KeyError):  # Pillow was built without it
            continue
        found.append(buffer.getvalue())
    return found


@target("image", 90, _images, mutate.chunks)
def image(content: bytes) -> None:
    path = written("image.png", content)
    with opened(path, str(path)) as header:
        orientation(header)
        upright_size(header)
    found = decode(path, str(path))
    assert found.mode == "RGB"
    decode(io.BytesIO(content), "row 3")


# --- the command line -----------------------------------------------------------------------------------

COMMANDS = (
    ["flops", "--model", "vim_nano", "--schedule", "5:0.8,10:0.8", "--img-size", "28", "--format", "json"],
    ["front", "--study", "digits", "--db", "sqlite:///studies.db", "--max-flops", "0.6", "--min-top1", "0.9"],
    ["export", "--study", "digits", "--db", "sqlite:///studies.db", "--out", "best.json"],
    ["report", "--study", "digits", "--db", "sqlite:///studies.db", "--out", "report.html"],
    ["studies", "--db", "sqlite:///studies.db", "--format", "csv"],
    ["search", "--model", "vim_nan", "--data", "folder:x", "--flops-budget", "0.6", "--trials", "5", "--study", "s"],
    ["search", "--model", "vim_nan", "--data", "embedded", "--img-size", "28x28", "--time-budget", "30m"],
    ["evaluate", "--model", "vim_nano", "--data", "folder:x", "--schedule", "3:0.5", "--checkpoint", "x.pth"],
    ["finetune", "x.json", "--data", "folder:x", "--epochs", "1", "--out", "tuned", "--class-order", "text"],
    ["train", "--model", "vim_nano", "--data", "folder:x", "--epochs", "1", "--out", "out", "--lr", "1e-3"],
    ["mirror", "--study", "digits", "--db", "sqlite:///studies.db", "--to", "sqlite:///optuna.db"],
    ["models", "--format", "table"],
)


def argument(random: Random, content: bytes) -> bytes:
    """Change one argument of a command line, whose arguments are separated by NUL."""
    found = content.split(b"\0")
    index = random.randrange(1, len(found))
    found[index] = mutate.text(random, found[index], WORDS).replace(b"\0", b"")[:100_000]
    return b"\0".join(found)


@target("command-line", 12, lambda: ["\0".join(one).encode() for one in COMMANDS], argument)
def command_line(content: bytes) -> None:
    from search.cli import run

    arguments = [as_text(one) for one in content.split(b"\0")]
    if any(one.startswith(("/", "~")) or ".." in one for one in arguments) or arguments[0] not in KNOWN_COMMANDS:
        return  # these may be asked to write outside
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = run(arguments)
        err.flush()
    said = err.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert code in (0, 1, 2), code
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == (code != 0), said


KNOWN_COMMANDS = frozenset(one[0] for one in COMMANDS)


# --- helpers --------------------------------------------------------------------------------------------


def refusable(read: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call a reader that may refuse."""
    try:
        found = read(*arguments, **options)
    except PrunefrontError as error:
        check_message(error)
    else:
        if isinstance(found, tuple) and hasattr(found[0], "dispose"):
            found[0].dispose()


def check_message(error: PrunefrontError) -> None:
    """Raise an AssertionError unless an error is one line, and its exit code is 1 or 2."""
    assert str(error).strip(), "no message"
    assert error.exit_code in (1, 2)
    assert "Traceback" not in str(error)


def written(name: str | Path, content: bytes) -> Path:
    """Write an input to a file in the current folder."""
    path = Path(name)
    path.write_bytes(content)
    return path


def decoded(content: bytes) -> Any:
    """Return a JSON document, or None if the mutation left none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def remove(folder: Path) -> None:
    """Remove a folder and what is in it."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)

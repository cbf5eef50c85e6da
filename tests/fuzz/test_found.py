"""What fuzzing found, one input for each kind of fault: a traceback, a hang, or a leak of a password."""

import contextlib
import io
import json
import struct
from collections.abc import Callable, Iterator

import pytest
import torch

from spaces.errors import PrunefrontError, StoreError
from tests.fuzz.targets import CLASSES, SECRET, TARGETS

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All in one folder, for the targets keep their specimens in the current one."""
    with contextlib.chdir(tmp_path_factory.mktemp("fuzz")):
        yield


def classes(**changes: object) -> bytes:
    return json.dumps(CLASSES | changes).encode()


def safetensors(**metadata: str) -> bytes:
    header = json.dumps({"__metadata__": metadata, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    return struct.pack("<Q", len(header)) + header.encode() + bytes(4)


def torch_file(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def bundle(name: str, value: object) -> bytes:
    """A whole bundle, apart from one value of its preprocessing."""
    files = json.loads(TARGETS["bundle"].specimens()[0])
    files["preprocessing.json"][name] = value
    content = json.dumps(files).encode()
    return content + b" " * (1 - len(content) % 2)  # of odd length, so that its digests are made right


REFUSED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a NUL in an address": ("address", lambda: b"sqlite:///a\0b"),
    "an address that is not UTF-8": ("address", lambda: b"postgresql://u@h/\xff"),
    "a long address": ("address", lambda: b"a" * 200_000),
    "many digits in a budget": ("budget", lambda: b"1" * 200_000 + b"x"),
    "a long list of classes": ("class-order", lambda: b"".join(b"%d\n" % i for i in range(200_000))),
    "a colour beyond 255": ("classes-json", lambda: classes(ignore=["rgb(300,0,0)"])),
    "a truth value as window": ("classes-json", lambda: classes(window=True)),
    "a deep name": ("classes-json", lambda: json.dumps(CLASSES).replace('"land"', "[" * 900 + "]" * 900).encode()),
    "a plan without schedules": ("halving-plan", lambda: json.dumps({"settings": {}, "schedules": []}).encode()),
    "a deep plan": ("halving-plan", DEEP.encode),
    "a deep line": ("spool", lambda: TARGETS["spool"].specimens()[0].replace(b'"study": "fuzzed"', DEEP.encode())),
    "a deep record": ("spool", lambda: TARGETS["spool"].specimens()[0] + DEEP.encode() + b"\n"),
    **{
        f"a spooled evaluation with {odd}": (
            "spool",
            lambda odd=odd: TARGETS["spool"].specimens()[0].replace(b'"images": 8', b'"images": ' + odd.encode()),
        )
        for odd in ('"8"', "1" * 30, "true", "[8]", '8, "state": "x"')
    },
    "a spooled text that is not UTF-8": (
        "spool",
        lambda: TARGETS["spool"].specimens()[0].replace(b'"origin": ""', b'"origin": "\\ud800"'),
    ),
    "a shard with a long name": ("shard-index", lambda: json.dumps({"weight_map": {"x": "a" * 300}}).encode()),
    "a large schedule file": ("schedule-file", lambda: b'{"steps": "' + b"a" * 11_000_000 + b'"}'),
    "another model's training": (
        "training-checkpoint",
        lambda: torch_file(
            {
                **{"identity": '{"a": 1}', "curve": "[]", "start": "{}", "model": {"x": torch.zeros(1)}},
                **{"ema": None, "optimiser": {}, "scaler": {}},
            }
        ),
    ),
    "an identity that is a list": (
        "training-checkpoint",
        lambda: torch_file(
            dict.fromkeys(("curve", "start"), "[]")
            | dict.fromkeys(("model", "ema", "optimiser", "scaler"))
            | {"identity": "[1]"}
        ),
    ),
    "a bundle without a mean": ("bundle", lambda: bundle("mean", None)),
    "a bundle with a mean of text": ("bundle", lambda: bundle("mean", ["a", "b", "c"])),
    "a bundle with an infinite std": ("bundle", lambda: bundle("std", [1, 1, float("inf")])),
    "a bundle with an interpolation unknown": ("bundle", lambda: bundle("interpolation", "x")),
    "an AVIF image without an image": (
        "image",
        lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + b"\0\0\0\x08mdat",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused(case: str) -> None:
    name, make = REFUSED[case]
    with pytest.raises(PrunefrontError):
        TARGETS[name].read(make())


def test_deep_metadata_of_weights_are_no_class_names() -> None:
    TARGETS["safetensors"].read(safetensors(classes=DEEP))


def test_a_class_name_of_many_digits_has_a_place() -> None:
    TARGETS["class-names"].read(json.dumps(["1" * 5_000, "2", "a"]).encode())


@pytest.mark.parametrize(
    "address", [f"postgresql:/user:{SECRET}@host/n", f"user:{SECRET}@host/n", f"x://h/?u:{SECRET}@h"]
)
def test_a_misspelled_address_hides_its_password(address: str) -> None:
    from results.store.database import parse_address

    with pytest.raises(PrunefrontError) as raised:
        parse_address(address)
    assert SECRET not in str(raised.value)


def test_names_that_no_file_can_have() -> None:
    from search.data.dataset import open_data
    from ssm_models.checkpoints import read_checkpoint

    for name in ("a" * 300, "a\0b"):
        with pytest.raises(PrunefrontError, match="no such file"):
            read_checkpoint(name)
        for kind in ("folder", "segmentation"):
            with pytest.raises(PrunefrontError, match="no such folder"):
                open_data(f"{kind}:{name}")


def test_a_spool_that_is_refused_stays() -> None:
    with pytest.raises(StoreError):
        TARGETS["spool"].read(b"{}\n")

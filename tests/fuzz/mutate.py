"""Mutations of valid inputs: bytes, texts, JSON trees, zip archives and safetensors headers.

Each takes a `Random` and an input as bytes, and returns another one. The same seed gives the same result.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutation = Callable[[Random, bytes], bytes]

NUMBERS: list[Any] = [
    *(0, -1, 1, 2**15, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400),
    *(0.5, 1e-320, 1e308, -0.0, float("nan"), float("inf"), float("-inf")),
]
TEXTS = [
    *("", " ", "\0", "\n", "\r\n", "\t", "\x1b[31m", "\x85", "\u2028", "\u202e", "\ufeff", "\ud800", "\udcff"),
    *("é", "e\u0301", "𝟛", "٣", "²", "½", "İ", "ß", "-", "#", ";", ":", ",", "=", "@", "%", "%s%n", "{}", "$(id)"),
    *("nan", "inf", "-1", "1e999", "0x10", "1_0", "true", "null", ".", "..", "/", "\\", "~", "~nobody/x"),
    *("../../etc/passwd", "/dev/null", "C:\\x", "file:///etc/passwd", "<script>", "' OR 1=1 --", "[", "]", "{", "}"),
    *("9" * 20, "9" * 5_000, "1" * 10_000, "a" * 300, "a" * 50_000, "," * 5_000, "a:" * 1_000, "(" * 2_000),
]
NODES: list[Any] = [None, True, False, [], {}, [[]], {"": None}, *NUMBERS, *TEXTS]


def raw(random: Random, content: bytes) -> bytes:
    """Change bytes: flip, overwrite with extremes, delete, repeat, move, cut."""
    found = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        start = _place(random, len(found))
        end = min(len(found), start + random.choice((1, 2, 4, 8, 64, 1024)))
        match random.randrange(8):
            case 0 if found:
                found[min(start, len(found) - 1)] ^= 1 << random.randrange(8)
            case 1:
                width, order = random.choice("BHIQ"), random.choice("<>")
                most = 2 ** (8 * struct.calcsize(width)) - 1
                value = random.choice((0, 1, most, most // 2, most // 2 + 1, random.randint(0, most)))
                found[start : start + struct.calcsize(width)] = struct.pack(order + width, value)
            case 2:
                del found[start:end]
            case 3:
                found[start:start] = found[start:end] * random.choice((1, 2, 50))
            case 4:
                there = _place(random, len(found))
                found[there:there] = found[start:end]
            case 5:
                found[start:start] = random.randbytes(random.choice((1, 4, 100)))
            case 6:
                del found[start:]
            case _:
                found[start:end] = bytes(end - start)
    return bytes(found[: 2**20])


def text(random: Random, content: bytes, words: Sequence[str] = ()) -> bytes:
    """Change a text by pieces of itself, words of its grammar and hostile ones; rarely by bytes."""
    if random.random() < 0.05:
        return raw(random, content)
    found = content.decode("utf-8", "surrogateescape")
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        start = _place(random, len(found))
        end = min(len(found), start + random.choice((0, 1, 2, 5, 20)))
        piece = random.choice(
            (
                random.choice(TEXTS),
                random.choice(words) if words else "",
                found[start:end] * random.choice((2, 3, 500)),
                chr(random.choice((random.randrange(128), random.randrange(0x3000)))),
            )
        )
        found = found[:start] + piece + found[random.choice((start, end)) :]
    return found[:200_000].encode("utf-8", "surrogatepass")


def tree(random: Random, content: bytes) -> bytes:
    """Change a JSON document: its values, its keys, its depth, or its text."""
    choice = random.random()
    if choice < 0.1:
        return raw(random, content)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return text(random, content)
    if choice < 0.15:
        return _odd_json(random, content.decode("utf-8", "replace"))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        value = _changed(random, value)
    written = json.dumps(value, ensure_ascii=random.random() < 0.7)
    return written[: 2**21].encode(random.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16")), "surrogatepass")


def _odd_json(random: Random, written: str) -> bytes:
    """Return what a JSON library does not write: keys twice, extreme depth, numbers of many digits."""
    depth = random.choice((900, 5_000, 100_000))
    place = written.find(":") + 1
    pieces = (
        written.replace("{", '{"a": 1, "a": 2, ', 1),
        written.replace(",", ", " + written[written.find("{") + 1 : written.find(",")] + ",", 1),
        written[:place] + "[" * depth + "]" * depth + written[written.find(",", place) :],
        written[:place] + '{"a":' * depth + "1" + "}" * depth + written[written.find(",", place) :],
        written[:place] + "1" * 10_000 + written[written.find(",", place) :],
        written[:place] + "1e" + "9" * 10_000 + written[written.find(",", place) :],
        written[:place] + "-Infinity" + written[written.find(",", place) :],
        "[" * depth,
        written + written,
    )
    return random.choice(pieces).encode()


def _changed(random: Random, value: Any) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.8:
        key = random.choice(list(value))
        match random.randrange(8):
            case 0:
                return {one: value[one] for one in value if one != key}
            case 1:
                return {(random.choice(TEXTS) if one == key else one): value[one] for one in value}
            case 2:
                return {**value, random.choice(TEXTS): random.choice(NODES)}
            case _:
                return {**value, key: _changed(random, value[key])}
    if isinstance(value, list) and value and random.random() < 0.8:
        index = random.randrange(len(value))
        match random.randrange(6):
            case 0:
                return value[:index] + value[index + 1 :]
            case 1:
                many = 5_000 if len(json.dumps(value)) < 200 else 2  # of large values, the whole would be too large
                return (value * random.choice((2, 3, many)))[:6_000]
            case _:
                return [*value[:index], _changed(random, value[index]), *value[index + 1 :]]
    if isinstance(value, str) and random.random() < 0.5:
        return text(random, value.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogateescape")
    return random.choice((random.choice(NODES), [value], {"a": value}))


def archive(random: Random, content: bytes) -> bytes:
    """Change a zip archive: a member's bytes, name, or size; also bombs; or the archive's own bytes."""
    if random.random() < 0.3:
        return raw(random, content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = {name: file.read(name) for name in file.namelist()}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError, zlib.error):
        return raw(random, content)
    compression = zipfile.ZIP_STORED
    for _ in range(random.choice((1, 1, 2))):
        if not members:
            break
        name = random.choice(list(members))
        match random.randrange(8):
            case 0:
                del members[name]
            case 1:
                members[random.choice(("../outside", "/etc/x", name + random.choice(TEXTS[:20])))] = members.pop(name)
            case 2:
                members[name] = bytes(2**24)
                compression = zipfile.ZIP_DEFLATED
            case _:
                pickled = next((one for one in members if one.endswith(".pkl")), name)
                members[pickled] = raw(random, members[pickled])
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as file:
        for name, inner in members.items():
            file.writestr(
                zipfile.ZipInfo(name.replace("\0", "0").encode(errors="replace").decode()), inner, compression
            )
    return target.getvalue()


def tensors(random: Random, content: bytes) -> bytes:
    """Change a safetensors file: its header as JSON, with its length made right; or its bytes."""
    if random.random() < 0.25 or len(content) < 8:
        return raw(random, content)
    (size,) = struct.unpack_from("<Q", content)
    header, rest = content[8 : 8 + size], content[8 + size :]
    if random.random() < 0.3:
        huge = b",".join(b"%d" % random.choice((2**31, 2**40, 2**63, 0)) for _ in range(random.choice((1, 2, 30))))
        changed = header.replace(b'"shape":[', b'"shape":[' + huge + b",", 1)
    else:
        changed = tree(random, header)
    length = random.choice((len(changed),) * 8 + (0, 2**63, len(content), len(changed) - 1))
    return struct.pack("<Q", max(0, length)) + changed + rest


def chunks(random: Random, content: bytes) -> bytes:
    """Change a PNG chunk by chunk, with its checksums made right; the bytes of anything else."""
    if not content.startswith(b"\x89PNG") or random.random() < 0.2:
        return raw(random, content)
    parts: list[tuple[bytes, bytes]] = []
    place = 8
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        parts.append((kind, content[place + 8 : place + 8 + length]))
        place += length + 12
    if not parts:
        return raw(random, content)
    for _ in range(random.choice((1, 1, 2))):
        index = random.randrange(len(parts))
        kind, inner = parts[index]
        match random.randrange(4):
            case 0:
                parts.insert(
                    index, (random.choice((kind, b"tRNS", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"PLTE")), inner)
                )
            case 1:
                parts[index] = kind, zlib.compress(bytes(2**22))
            case _:
                parts[index] = kind, raw(random, inner)[: 2**16]
    return content[:8] + b"".join(
        struct.pack(">I4s", len(inner), kind) + inner + struct.pack(">I", zlib.crc32(kind + inner))
        for kind, inner in parts
    )


def _place(random: Random, length: int) -> int:
    """Return a place in a sequence; half of the time near its beginning, where headers are."""
    return random.randrange(min(length, 96) + 1) if random.random() < 0.5 else random.randrange(length + 1)

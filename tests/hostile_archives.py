"""Crafted zip archives: a folder per class inside, and what an attacker or a broken download makes of it."""

import io
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hostile_watch import Case, Wrong, picture

LABELS = ("benign", "malignant")


@dataclass
class Archive:
    """An archive being made. patches: changes to the bytes of members; whole: changes to all of it, made last."""

    root: Path
    rng: np.random.Generator
    case: Case
    stream: io.BytesIO
    zip: zipfile.ZipFile
    patches: list[Callable[[bytes], bytes]] = field(default_factory=list)
    whole: list[Callable[[bytes], bytes]] = field(default_factory=list)
    count: int = 0

    def number(self) -> int:
        self.count += 1
        return self.count

    def add(self, name: str | zipfile.ZipInfo, data: bytes, method: int = zipfile.ZIP_STORED) -> None:
        if isinstance(name, str):
            name = zipfile.ZipInfo(name)
        name.compress_type = method
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a name that repeats is what some faults are about
            self.zip.writestr(name, data)

    def good(self, name: str, method: int = zipfile.ZIP_STORED) -> int:
        number = self.number()
        self.add(name, picture(number), method)
        self.case.good[number] = {"label": name.split("/")[-2]}
        return number

    def bad(self, name: str | zipfile.ZipInfo, token: str) -> None:
        self.add(name, picture(self.number()))
        self.name_as_wrong(token)

    def maybe(self, name: str, token: str, method: int = zipfile.ZIP_STORED) -> None:
        """Add a picture that may come through, or be refused by name."""
        number = self.number()
        self.add(name, picture(number), method)
        self.case.maybe[number] = token

    def name_as_wrong(self, token: str) -> None:
        self.case.wrong.append(Wrong(token, token))

    def fatal(self, patch: Callable[[bytes], bytes]) -> None:
        self.case.fatal = True
        self.whole.append(patch)


Fault = Callable[[Archive], None]


# Names that lead out -----------------------------------------------------------------------------------------------


def upwards(archive: Archive) -> None:
    ways = ("..", "benign/../..", "benign/../malignant/../..", "./..")
    for at, way in enumerate(ways):
        archive.bad(f"{way}/climb-{at}.png", f"climb-{at}")


def upwards_by_backslash(archive: Archive) -> None:
    archive.bad("..\\climb-5.png", "climb-5")
    archive.bad("benign\\..\\..\\climb-6.png", "climb-6")


def absolute(archive: Archive) -> None:
    archive.bad(f"{archive.root}/outside/absolute-1.png", "absolute-1")
    archive.bad("/benign/absolute-2.png", "absolute-2")
    archive.bad("//benign/absolute-3.png", "absolute-3")


def drives(archive: Archive) -> None:
    for name in ("C:\\drive-1.png", "C:/benign/drive-2.png", "\\\\server\\share\\drive-3.png", "c:drive-4.png"):
        archive.bad(name, name.replace("/", "\\").split("\\")[-1].removesuffix(".png").removeprefix("c:"))


def dots_in_the_middle(archive: Archive) -> None:
    archive.bad("benign/./../benign/dotted.png", "dotted")


# Links and special members -----------------------------------------------------------------------------------------


def _special(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (kind | 0o755) << 16
    return info


def linked_file(archive: Archive) -> None:
    archive.add(_special("benign/link-out.png", stat.S_IFLNK), b"../../outside/secret.png")
    archive.add(
        _special("malignant/link-root.png", stat.S_IFLNK), str(archive.root / "outside/secret.png").encode()
    )
    archive.name_as_wrong("link-out")
    archive.name_as_wrong("link-root")


def linked_folder(archive: Archive) -> None:
    """A link to a folder outside, and a member that would be written through it."""
    archive.add(_special("way", stat.S_IFLNK), str(archive.root / "outside").encode())
    archive.name_as_wrong("way")
    archive.maybe("way/through.png", "way/through")  # written into a folder of that name, it leads nowhere


def link_inside(archive: Archive) -> None:
    archive.add(_special("benign/link-near.png", stat.S_IFLNK), b"a.png")
    archive.name_as_wrong("link-near")


def pipe_and_device(archive: Archive) -> None:
    archive.add(_special("benign/fifo.png", stat.S_IFIFO), b"")
    archive.add(_special("benign/device.png", stat.S_IFCHR), b"")
    archive.name_as_wrong("fifo")
    archive.name_as_wrong("device")


def program_bits(archive: Archive) -> None:
    """A picture that says it runs as its owner: only a picture comes of it."""
    number = archive.number()
    archive.add(_special("benign/setuid.png", stat.S_IFREG | stat.S_ISUID), picture(number))
    archive.case.good[number] = {"label": "benign"}


# Bombs -------------------------------------------------------------------------------------------------------------


def bomb(archive: Archive) -> None:
    """400 MB of zeros in 400 KB."""
    with archive.zip.open(_deflated("benign/bomb.png"), "w", force_zip64=True) as stream:
        block = bytes(1 << 20)
        for _ in range(400):
            stream.write(block)
    archive.name_as_wrong("bomb")


def many_small_bombs(archive: Archive) -> None:
    data = picture(1) + bytes(30 << 20)
    for at in range(4):
        archive.add(f"benign/inflated-{at}.png", data, zipfile.ZIP_DEFLATED)
        archive.name_as_wrong(f"inflated-{at}")


def _deflated(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def overlapping(archive: Archive) -> None:
    """Two names for one stored body: the trick that makes a bomb of a small file."""
    archive.bad("benign/lap-1.png", "lap-[12]")
    archive.bad("benign/lap-2.png", "lap-[12]")
    archive.case.maybe_fatal = True
    archive.patches.append(lambda data: _point(data, b"benign/lap-2.png", b"benign/lap-1.png"))


def _point(data: bytes, name: bytes, at: bytes) -> bytes:
    """Let the directory's entry of one name point to the body of another."""
    entries = {data[start + 46 : start + 46 + len(name)]: start for start in _entries(data)}
    where = data[entries[at] + 42 : entries[at] + 46]
    return data[: entries[name] + 42] + where + data[entries[name] + 46 :]


def _entries(data: bytes) -> list[int]:
    found, start = [], data.find(b"PK\x01\x02")
    while start >= 0:
        found.append(start)
        start = data.find(b"PK\x01\x02", start + 46)
    return found


def _entry(data: bytes, name: str) -> int:
    wanted = name.encode()
    return next(at for at in _entries(data) if data[at + 46 : at + 46 + len(wanted)] == wanted)


def _local(data: bytes, name: str) -> int:
    at = _entry(data, name) + 42
    return int.from_bytes(data[at : at + 4], "little")


def _write(data: bytes, at: int, form: str, value: int) -> bytes:
    packed = struct.pack(form, value)
    return data[:at] + packed + data[at + len(packed) :]


def one_inside_another(archive: Archive) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as stream:
        stream.writestr("benign/inner.png", picture(archive.number()))
    archive.add("more.zip", inner.getvalue())
    archive.add("benign/zip-as.png", inner.getvalue())
    archive.name_as_wrong("zip-as")


# Names that clash --------------------------------------------------------------------------------------------------


def same_name_twice(archive: Archive) -> None:
    archive.bad("benign/double.png", "double")
    archive.bad("benign/double.png", "double")


def same_name_by_case(archive: Archive) -> None:
    archive.maybe("benign/Letter.png", "(?i)letter")
    archive.maybe("benign/letter.png", "(?i)letter")


def same_name_by_unicode(archive: Archive) -> None:
    archive.maybe("benign/n\u00e9e.png", "n.{1,2}e")
    archive.maybe("benign/ne\u0301e.png", "n.{1,2}e")


def file_and_folder_of_one_name(archive: Archive) -> None:
    archive.maybe("benign/both.png", "both")
    archive.maybe("benign/both.png/inside.png", "both")


def nul_in_a_name(archive: Archive) -> None:
    archive.maybe("benign/nulXX.png.txt.png", "nul")
    archive.patches.append(lambda data: data.replace(b"benign/nulXX.png.txt", b"benign/nulXX.png\0txt"))


def long_names(archive: Archive) -> None:
    archive.maybe("benign/" + "l" * 300 + ".png", "lll")
    archive.maybe("/".join(["benign", *["d" * 200] * 30, "deep.png"]), "deep|ddd")


def odd_names(archive: Archive) -> None:
    for name in ("tab\t", "bell\x07", "line\n", "return\r", "\u202egnp", '"quoted"', "=1+1", " space ", "-rf"):
        archive.maybe(
            f"benign/{name}.png", name.strip().replace("\x07", ".*").replace("\r", ".*").replace("+", ".")
        )


def old_names(archive: Archive) -> None:
    """A name in the code page of an old system, without the mark of UTF-8."""
    archive.maybe("benign/oldXX.png", "old")
    archive.patches.append(lambda data: data.replace(b"oldXX", b"old\x82\xff"))


# Broken members ----------------------------------------------------------------------------------------------------


def encrypted(archive: Archive) -> None:
    archive.bad("benign/secret-1.png", "secret-1")

    def patch(data: bytes) -> bytes:
        data = _write(data, _entry(data, "benign/secret-1.png") + 8, "<H", 1)
        return _write(data, _local(data, "benign/secret-1.png") + 6, "<H", 1)

    archive.patches.append(patch)


def wrong_checksum(archive: Archive) -> None:
    archive.bad("malignant/crc.png", "crc")

    def patch(data: bytes) -> bytes:
        data = _write(data, _entry(data, "malignant/crc.png") + 16, "<I", 0x12345678)
        return _write(data, _local(data, "malignant/crc.png") + 14, "<I", 0x12345678)

    archive.patches.append(patch)


def flipped_bit(archive: Archive) -> None:
    archive.bad("malignant/flip.png", "flip")

    def patch(data: bytes) -> bytes:
        at = _local(data, "malignant/flip.png") + 30 + len("malignant/flip.png") + 60
        return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]

    archive.patches.append(patch)


def claims_to_be_small(archive: Archive) -> None:
    """A member that says it holds 40 bytes and inflates to 20 MB."""
    archive.add("benign/liar.png", picture(archive.number()) + bytes(20 << 20), zipfile.ZIP_DEFLATED)
    archive.name_as_wrong("liar")
    archive.patches.append(lambda data: _write(data, _entry(data, "benign/liar.png") + 24, "<I", 40))


def claims_to_be_large(archive: Archive) -> None:
    archive.bad("benign/boaster.png", "boaster")
    archive.patches.append(lambda data: _write(data, _entry(data, "benign/boaster.png") + 24, "<I", 0x7FFFFFF0))


def body_beyond_the_end(archive: Archive) -> None:
    archive.bad("benign/beyond.png", "beyond")
    archive.patches.append(lambda data: _write(data, _entry(data, "benign/beyond.png") + 42, "<I", 0x7FFFFFF0))


def two_names_for_a_member(archive: Archive) -> None:
    """The directory says one name, the member's own header another."""
    archive.bad("benign/name-a.png", "name-[ab]")

    def patch(data: bytes) -> bytes:
        at = _local(data, "benign/name-a.png") + 30
        return data[:at] + b"benign/name-b.png" + data[at + 17 :]

    archive.patches.append(patch)


def unknown_method(archive: Archive) -> None:
    archive.bad("benign/packed.png", "packed")

    def patch(data: bytes) -> bytes:
        data = _write(data, _entry(data, "benign/packed.png") + 10, "<H", 97)
        return _write(data, _local(data, "benign/packed.png") + 8, "<H", 97)

    archive.patches.append(patch)


def no_images_by_content(archive: Archive) -> None:
    for name, data in (("empty", b""), ("page", b"<html>"), ("cut", picture(1)[:40])):
        archive.add(f"benign/fake-{name}.png", data)
        archive.name_as_wrong(f"fake-{name}")


# Whole archives ----------------------------------------------------------------------------------------------------


def cut(archive: Archive) -> None:
    archive.fatal(lambda data: data[: len(data) * 2 // 3])


def cut_by_a_byte(archive: Archive) -> None:
    archive.fatal(lambda data: data[:-1])


def no_zip(archive: Archive) -> None:
    archive.fatal(lambda _: picture(1))


def nothing_in_it(archive: Archive) -> None:
    archive.fatal(lambda _: b"PK\x05\x06" + bytes(18))


def empty_file(archive: Archive) -> None:
    archive.fatal(lambda _: b"")


def zeros(archive: Archive) -> None:
    archive.fatal(lambda data: bytes(len(data)))


def broken_directory(archive: Archive) -> None:
    archive.fatal(lambda data: data.replace(b"PK\x01\x02", b"PK\x01\x03", 1))


# What looks odd and is right ---------------------------------------------------------------------------------------


def every_method(archive: Archive) -> None:
    archive.good("benign/deflate.png", zipfile.ZIP_DEFLATED)
    archive.maybe("benign/bzip2.png", "bzip2", zipfile.ZIP_BZIP2)
    archive.maybe("benign/lzma.png", "lzma", zipfile.ZIP_LZMA)


def large_format(archive: Archive) -> None:
    """Sizes in the fields of zip64."""
    number = archive.number()
    with archive.zip.open(zipfile.ZipInfo("benign/zip64.png"), "w", force_zip64=True) as stream:
        stream.write(picture(number))
    archive.case.good[number] = {"label": "benign"}


def comment_with_an_end(archive: Archive) -> None:
    """A comment in which another archive's end stands."""
    archive.zip.comment = b"look: PK\x05\x06" + bytes(18) + b" and more"
    archive.case.maybe_fatal = True


def something_before_it(archive: Archive) -> None:
    archive.whole.append(lambda data: b"#!/bin/sh\nexit 1\n" + data)
    archive.case.maybe_fatal = True


def left_by_systems(archive: Archive) -> None:
    for name in ("__MACOSX/benign/._a.png", "benign/.DS_Store", "benign/._b.png", "Thumbs.db", ".hidden/x.png"):
        archive.add(name, picture(archive.number()))


def ten_thousand_small_files(archive: Archive) -> None:
    for at in range(10_000):
        archive.add(f"notes/{at}.txt", b"")


FAULTS: tuple[Fault, ...] = (
    upwards, upwards_by_backslash, absolute, drives, dots_in_the_middle, linked_file, linked_folder, link_inside,
    pipe_and_device, program_bits, bomb, many_small_bombs, overlapping, one_inside_another, same_name_twice,
    same_name_by_case, same_name_by_unicode, file_and_folder_of_one_name, nul_in_a_name, long_names, odd_names,
    old_names, encrypted, wrong_checksum, flipped_bit, claims_to_be_small, claims_to_be_large, body_beyond_the_end,
    two_names_for_a_member, unknown_method, no_images_by_content, cut, cut_by_a_byte, no_zip, nothing_in_it,
    empty_file, zeros, broken_directory, every_method, large_format, comment_with_an_end, something_before_it,
    left_by_systems, ten_thousand_small_files,
)  # fmt: skip

RUINS = frozenset({cut, cut_by_a_byte, no_zip, nothing_in_it, empty_file, zeros, broken_directory})
"""What ruins an archive as a whole, so that there is no use in anything beside it."""


def make_archive(root: Path, seed: int) -> Case:
    """Write an archive with its faults; the first fault goes round with the seed."""
    rng = np.random.default_rng([seed, 61])
    (root / "outside").mkdir(parents=True)
    (root / "outside" / "secret.png").write_bytes(picture(7777))
    source = root / "source.zip"
    stream = io.BytesIO()
    case = Case(["folder", str(source)], may_stop=True)
    with zipfile.ZipFile(stream, "w") as writer:
        archive = Archive(root, rng, case, stream, writer)
        for label in LABELS:
            for name in ("a", "b", "c"):
                archive.good(f"{label}/{name}.png")
        first = FAULTS[seed % len(FAULTS)]
        others = [FAULTS[at] for at in rng.choice(len(FAULTS), int(rng.integers(0, 5)), replace=False).tolist()]
        chosen = list(dict.fromkeys([first, *(fault for fault in others if fault not in RUINS)]))
        for fault in chosen:
            fault(archive)
    data = stream.getvalue()
    for patch in [*archive.patches, *archive.whole]:
        data = patch(data)
    source.write_bytes(data)
    case.faults = [fault.__name__ for fault in chosen]
    return case

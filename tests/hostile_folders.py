"""Hostile folders: a folder per class, and in it what careless or ill-meaning people put there."""

import os
import socket
import stat
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hostile_watch import Case, Wrong, picture

LABELS = ("benign", "malignant", "n\u00e6vus")


@dataclass
class Place:
    """A source being made: its folder, what lies beside it, and the case that says what should come of it."""

    folder: Path
    outside: Path
    rng: np.random.Generator
    case: Case
    count: int = 0

    def number(self) -> int:
        self.count += 1
        return self.count

    def class_folder(self) -> Path:
        return self.folder / LABELS[int(self.rng.integers(len(LABELS)))]

    def good(self, path: bytes | Path, label: str) -> int:
        """Put a picture that must come through."""
        number = self.number()
        put(path, picture(number))
        where = os.fsdecode(os.path.relpath(os.fsencode(path), os.fsencode(self.folder)))
        self.case.good[number] = {"label": unicodedata.normalize("NFC", label).strip(), "path": where}
        return number

    def bad(self, name: str, *, late: bool = False) -> None:
        self.case.wrong.append(Wrong(name, name, late))


Fault = Callable[[Place], None]


def put(path: bytes | Path, data: bytes) -> None:
    Path(os.fsdecode(path)).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as stream:  # noqa: PTH123  a name may be bytes that are no text
        stream.write(data)


# Links -------------------------------------------------------------------------------------------------------------


def link_to_a_picture_outside(place: Place) -> None:
    place.class_folder().joinpath("out-link.png").symlink_to(place.outside / "secret.png")
    place.bad("out-link")


def link_by_a_relative_way_out(place: Place) -> None:
    place.class_folder().joinpath("up-link.png").symlink_to("../../outside/secret.png")
    place.bad("up-link")


def link_to_a_picture_inside(place: Place) -> None:
    folder = place.class_folder()
    number = place.good(folder / "aim.png", folder.name)
    del place.case.good[number]  # the same pixels under two names: told apart by path below
    folder.joinpath("aim.png").unlink()
    put(place.folder / ".store" / "aim.dat", picture(number))
    folder.joinpath("in-link.png").symlink_to(place.folder / ".store" / "aim.dat")
    place.case.good[number] = {"label": folder.name, "path": f"{folder.name}/in-link.png"}


def link_chain_out(place: Place) -> None:
    folder = place.class_folder()
    (folder / "chain-2").symlink_to(place.outside)
    (folder / "chain-1.png").symlink_to("chain-2/secret.png")
    place.bad("chain-1")
    place.bad("chain-2")


def folder_link_out(place: Place) -> None:
    (place.folder / "linked-class").symlink_to(place.outside, target_is_directory=True)
    place.bad("linked-class")


def folder_link_inside(place: Place) -> None:
    (place.folder / "twin-class").symlink_to(place.folder / "benign", target_is_directory=True)
    place.bad("twin-class")


def loop_to_the_parent(place: Place) -> None:
    folder = place.class_folder()
    (folder / "loop-up").symlink_to("..", target_is_directory=True)
    place.bad("loop-up")


def loop_to_itself(place: Place) -> None:
    (place.class_folder() / "loop-self.png").symlink_to("loop-self.png")
    place.bad("loop-self", late=True)


def loop_of_two(place: Place) -> None:
    folder = place.class_folder()
    (folder / "ring-a.png").symlink_to("ring-b.png")
    (folder / "ring-b.png").symlink_to("ring-a.png")
    place.bad("ring-a", late=True)
    place.bad("ring-b", late=True)


def broken_link(place: Place) -> None:
    (place.class_folder() / "lost-link.png").symlink_to("nothing-there.png")
    place.bad("lost-link", late=True)


def link_to_a_device(place: Place) -> None:
    (place.class_folder() / "zero-link.png").symlink_to("/dev/zero")
    place.bad("zero-link")


def link_to_a_folder_with_an_image_name(place: Place) -> None:
    (place.class_folder() / "folder-link.jpg").symlink_to(place.outside)
    place.bad("folder-link")


# What is no file ---------------------------------------------------------------------------------------------------


def pipe(place: Place) -> None:
    os.mkfifo(place.class_folder() / "pipe.jpg")
    place.bad(r"pipe\.jpg")


def pipe_as_a_class(place: Place) -> None:
    os.mkfifo(place.folder / "pipe-class.png")
    place.bad("pipe-class")


def listening_socket(place: Place) -> None:
    path = place.class_folder() / "socket.jpg"
    here = Path.cwd()
    listener = socket.socket(socket.AF_UNIX)
    os.chdir(path.parent)  # the address may have 108 bytes only
    try:
        listener.bind(path.name)
    finally:
        listener.close()
        os.chdir(here)
    place.bad(r"socket\.jpg")


def device(place: Place) -> None:
    try:
        os.mknod(place.class_folder() / "device.jpg", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except OSError:
        place.case.skipped.append("a device: only an administrator may make one")
        return
    place.bad(r"device\.jpg")


def folder_named_like_an_image(place: Place) -> None:
    folder = place.class_folder() / "folder.jpg"
    put(folder / "deep-one.png", picture(place.number()))
    place.bad("deep-one")


def empty_folder_named_like_an_image(place: Place) -> None:
    (place.class_folder() / "hollow.jpg").mkdir()


# Names -------------------------------------------------------------------------------------------------------------


def names_in_every_unicode_form(place: Place) -> None:
    """One word in NFC, NFD, NFKC and NFKD: four files to the system, so four images."""
    folder = place.class_folder()
    word = "\ufb01l\u00e9 \u212b \u00bd \u1e9b\u0323"
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        place.good(folder / f"{unicodedata.normalize(form, word)}.png", folder.name)


def class_in_two_unicode_forms(place: Place) -> None:
    """Two class folders that look the same are one class."""
    for form in ("NFC", "NFD"):
        place.good(place.folder / unicodedata.normalize(form, "r\u00f6te") / f"{form}.png", "r\u00f6te")


def classes_that_differ_by_case(place: Place) -> None:
    for name in ("Mole", "mole"):
        place.good(place.folder / name / "x.png", "Mole")


def files_that_differ_by_case(place: Place) -> None:
    folder = place.class_folder()
    for name in ("Case.png", "case.png", "CASE.PNG", "case.Png"):
        place.good(folder / name, folder.name)


def right_to_left(place: Place) -> None:
    folder = place.class_folder()
    place.good(folder / "\u202egnp.exe.png", folder.name)
    place.good(folder / "\u05ea\u05de\u05d5\u05e0\u05d4.png", folder.name)


def invisible_characters(place: Place) -> None:
    folder = place.class_folder()
    for name in ("a\u200bb.png", "ab.png", "\ufeffab.png", "a\u00adb.png", "a\u2028b.png", "a\u0085b.png"):
        place.good(folder / name, folder.name)


def control_characters(place: Place) -> None:
    folder = place.class_folder()
    for name in ("bell\x07.png", "escape\x1b[31mred.png", "tab\t.png", "backspace\x08.png", "delete\x7f.png"):
        place.good(folder / name, folder.name)


def line_breaks(place: Place) -> None:
    folder = place.class_folder()
    place.good(folder / "two\nlines.png", folder.name)
    put(folder / "return\rname.png", picture(place.number()))
    place.bad("return")


def no_unicode(place: Place) -> None:
    put(os.fsencode(place.class_folder()) + b"/latin-\xe9-\xff.png", picture(place.number()))
    put(os.fsencode(place.folder) + b"/class-\xfe/inside.png", picture(place.number()))
    place.bad("latin-")
    place.bad("class-")


def very_long_names(place: Place) -> None:
    folder = place.class_folder()
    place.good(folder / ("l" * 251 + ".png"), folder.name)
    label = "c" * 255
    place.good(place.folder / label / "x.png", label)


def names_that_tables_misread(place: Place) -> None:
    folder = place.class_folder()
    for name in ('"quoted", twice"".png', "=1+1.png", "@sum.png", "NA.png", "007.png", "-rf.png", "--help.png",
                 "semi;colon.png", "back\\slash.png", "C:drive.png", " space before.png", "space after .png",
                 "%2e%2e%2fup.png", "1e5.png", "'; drop table x.png", "$(touch x).png"):  # fmt: skip
        place.good(folder / name, folder.name)


def names_that_pages_misread(place: Place) -> None:
    folder = place.class_folder()
    place.good(folder / "<img src=x onerror=alert(1)>.png", folder.name)
    label = "<script>alert(1)<&script>"
    place.good(place.folder / label / "x.png", label)


def classes_with_odd_names(place: Place) -> None:
    for label in ("CON", "=cmd", "a,b;c", '"', "nan", "-1", "  padded ", "{{ 7*7 }}", "\U0001f9ec"):
        place.good(place.folder / label / "x.png", label)


def names_that_differ_by_their_ending(place: Place) -> None:
    folder = place.class_folder()
    for ending in ("png", "PNG", "jpg", "webp", "tif"):
        place.good(folder / f"same.{ending}", folder.name)  # the content decides, and each is a PNG


# What is no image, or cannot be read -------------------------------------------------------------------------------


def unreadable_file(place: Place) -> None:
    path = place.class_folder() / "locked.png"
    put(path, picture(place.number()))
    path.chmod(0)
    if os.access(path, os.R_OK):
        place.case.skipped.append("a file without permissions: an administrator reads it all the same")
        path.unlink()
    else:
        place.bad("locked", late=True)


def unreadable_folder(place: Place) -> None:
    folder = place.folder / "locked-class"
    put(folder / "x.png", picture(place.number()))
    folder.chmod(0)
    if os.access(folder, os.R_OK):
        place.case.skipped.append("a folder without permissions: an administrator reads it all the same")
        folder.chmod(0o755)
        (folder / "x.png").unlink()
        folder.rmdir()
    else:
        place.bad("locked-class")


def no_images_by_content(place: Place) -> None:
    whole = picture(place.number())
    contents = {
        "empty": b"", "text": b"no picture", "page": b"<html></html>", "zip": b"PK\x05\x06" + bytes(18),
        "cut": whole[: len(whole) // 2], "zeros": bytes(5000), "gif": b"GIF89a" + bytes(50), "svg": b"<svg/>",
        "pdf": b"%PDF-1.7\n", "pickle": b"\x80\x04K\x01.",
    }  # fmt: skip
    folder = place.class_folder()
    for name, data in contents.items():
        put(folder / f"fake-{name}.jpg", data)
        place.bad(f"fake-{name}", late=True)


def left_by_systems(place: Place) -> None:
    folder = place.class_folder()
    for name in (".DS_Store", "Thumbs.db", "._a.png", ".hidden.png", "desktop.ini"):
        put(folder / name, picture(place.number()))
    put(place.folder / "__MACOSX" / "benign" / "._x.png", picture(place.number()))


def pictures_in_no_class(place: Place) -> None:
    put(place.folder / "loose.png", picture(place.number()))
    put(place.folder / "benign" / "a" / "b" / "c" / "deep.png", picture(place.number()))
    place.bad("loose")
    place.bad("deep")


def a_very_deep_folder(place: Place) -> None:
    put(place.folder.joinpath("benign", *["d"] * 150, "far-down.png"), picture(place.number()))
    place.bad("far-down")


FAULTS: tuple[Fault, ...] = (
    link_to_a_picture_outside, link_by_a_relative_way_out, link_to_a_picture_inside, link_chain_out, folder_link_out,
    folder_link_inside, loop_to_the_parent, loop_to_itself, loop_of_two, broken_link, link_to_a_device,
    link_to_a_folder_with_an_image_name, pipe, pipe_as_a_class, listening_socket, device, folder_named_like_an_image,
    empty_folder_named_like_an_image, names_in_every_unicode_form, class_in_two_unicode_forms,
    classes_that_differ_by_case, files_that_differ_by_case, right_to_left, invisible_characters, control_characters,
    line_breaks, no_unicode, very_long_names, names_that_tables_misread, names_that_pages_misread,
    classes_with_odd_names, names_that_differ_by_their_ending, unreadable_file, unreadable_folder,
    no_images_by_content, left_by_systems, pictures_in_no_class, a_very_deep_folder,
)  # fmt: skip


def make_folder(root: Path, seed: int) -> Case:
    """Write a folder per class with its faults; the first fault goes round with the seed."""
    rng = np.random.default_rng([seed, 40])
    outside = root / "outside"
    put(outside / "secret.png", picture(7777))
    place = Place(root / "source", outside, rng, Case(["folder", str(root / "source")]))
    for label in LABELS:
        for name in ("a", "b", "c"):
            place.good(place.folder / label / f"{name}.png", label)
    others = rng.choice(len(FAULTS), int(rng.integers(0, 5)), replace=False).tolist()
    chosen = list(dict.fromkeys([seed % len(FAULTS), *others]))
    for at in chosen:
        FAULTS[at](place)
    place.case.faults = [FAULTS[at].__name__ for at in chosen]
    return place.case

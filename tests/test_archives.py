"""Archives that nobody vouches for: what is safe comes out, the rest is listed, and nothing else is ever touched."""

import hashlib
import io
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Cli
from dermkit import files
from dermkit.data.importers import archives, extract
from dermkit.data.importers.run import ImportOutcome, import_dataset
from dermkit.data.importers.source_record import SOURCE_FILE
from dermkit.data.manifest import load_dataset
from dermkit.errors import DataError, OutputError, UsageError

Space = namedtuple("Space", "total used free")
GOOD = ("nv/a.png", "nv/b.png", "mel/c.png")


def picture(name: str) -> bytes:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], good: bool = True) -> Path:
    """Write a zip of three good pictures and these members, by whatever name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in GOOD if good else ():
            packed.writestr(name, picture(name))
        for name_or_info, data in members:
            packed.writestr(name_or_info, data)
    return path


def member(name: str, *, mode: int = 0, nul: str = "") -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x")
    info.filename = name + nul
    info.create_system = 3
    info.external_attr = mode << 16
    return info


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Return a folder, and see at the end that nothing outside `home/made` was written, changed or removed."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "victim.png").write_bytes(picture("victim"))
    yield folder
    assert (folder / "victim.png").read_bytes() == picture("victim")
    outside = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if "made" not in path.parts}
    assert {path for path in outside if not path.endswith(".zip")} == {"home", "home/victim.png"}
    assert not Path("/evil.png").exists()


def bring(archive: Path) -> ImportOutcome:
    return import_dataset("folder", archive, out=archive.parent / "made")


def refusals(outcome: ImportOutcome) -> dict[str, str]:
    return {item.path: item.reason for item in outcome.rejected}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_safe_comes_out(home: Path) -> None:
    archive = pack(
        home / "set.zip", ("readme.txt", b"hello"), ("__MACOSX/nv/._a.png", b"x"), (".hidden/a.png", b"x")
    )
    outcome = bring(archive)
    assert outcome.dataset.manifest["path"].tolist() == sorted(GOOD)
    assert outcome.rejected == []
    unpacked = contents(home / "made" / "images")
    assert unpacked == {name: picture(name) for name in GOOD} | {SOURCE_FILE: unpacked[SOURCE_FILE]}
    codes = {item["code"]: item["text"] for item in outcome.dataset.notes["warnings"]}
    assert codes["other_files"].endswith("not unpacked: .txt 1.")
    assert load_dataset(home / "made").image_root == home / "made" / "images"


# Names that lead out ------------------------------------------------------------------------------------------------

EVIL = (
    "../evil.png", "../../evil.png", "nv/../../evil.png", "nv/../../../evil.png", "/evil.png", "//evil.png",
    "\\evil.png", "..\\evil.png", "nv\\..\\..\\evil.png", "C:\\evil.png", "C:/evil.png", "c:evil.png",
    "\\\\host\\share\\evil.png", "nv/./evil.png", "nv//evil.png", "./evil.png", "nv/.../evil.png", "nv/.. /evil.png",
    "nv/e\nvil.png", "nv/e\x1bvil.png", "nv/e\x85vil.png", "nv/" + "e" * 300 + ".png", "e/" * 600 + "evil.png",
)  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_a_name_that_leads_out_is_refused_and_the_rest_goes_on(home: Path, name: str) -> None:
    outcome = bring(pack(home / "set.zip", (member(name), picture("evil"))))
    assert list(refusals(outcome).values()) == ["bad_name"]
    assert all(path.isprintable() for path in refusals(outcome))
    assert outcome.dataset.manifest["path"].tolist() == sorted(GOOD)


@pytest.mark.parametrize("name", ["nv/con.png", "nv/evil.png:stream.png", "nv./evil.png", "nv/ev?il.png"])
def test_a_name_that_windows_cannot_hold_is_refused_there(
    home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ON_WINDOWS", True)
    outcome = bring(pack(home / "set.zip", (member(name), picture("evil"))))
    assert list(refusals(outcome).values()) == ["bad_name"]
    assert outcome.dataset.manifest["path"].tolist() == sorted(GOOD)


def test_a_name_that_ends_early_is_refused(home: Path) -> None:
    archive = pack(home / "set.zip", ("nv/evil.pngXsecret.txt", picture("evil")))
    archive.write_bytes(archive.read_bytes().replace(b"evil.pngX", b"evil.png\0"))
    assert refusals(bring(archive)) == {"nv/evil.png\\x00secret.txt": "bad_name"}


def test_windows_separators_are_separators(home: Path) -> None:
    outcome = bring(pack(home / "set.zip", (member("nv\\w.png"), picture("w"))))
    assert "nv/w.png" in outcome.dataset.manifest["path"].tolist()


# Members that are no files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        (stat.S_IFLNK, "link_not_followed"), (stat.S_IFCHR, "unreadable"), (stat.S_IFBLK, "unreadable"),
        (stat.S_IFIFO, "unreadable"), (stat.S_IFSOCK, "unreadable"),
    ],
)  # fmt: skip
def test_links_and_devices_are_refused(home: Path, mode: int, reason: str) -> None:
    outcome = bring(pack(home / "set.zip", (member("nv/evil.png", mode=mode | 0o777), b"../../../victim.png")))
    assert refusals(outcome) == {"nv/evil.png": reason}


def test_a_linked_folder_and_a_file_through_it(home: Path) -> None:
    link = member("nv/out", mode=stat.S_IFLNK | 0o777)
    outcome = bring(pack(home / "set.zip", (link, b"../../.."), ("nv/out/evil.png", picture("evil"))))
    assert refusals(outcome) == {"nv/out": "link_not_followed", "nv/out/evil.png": "misplaced"}
    assert not (home / "evil.png").exists()


def test_a_link_that_lies_in_the_way_is_not_followed(home: Path) -> None:
    archive = pack(home / "set.zip")
    bring(archive)
    images = home / "made" / "images"
    for path in [*(images / "nv").iterdir()]:
        path.unlink()
    (images / "nv").rmdir()
    (images / "nv").symlink_to(home)
    (images / "mel" / "c.png").unlink()
    (home / "made" / "same.png").write_bytes(picture("mel/c.png"))
    (images / "mel" / "c.png").symlink_to(home / "made" / "same.png")  # the right bytes, in the wrong place
    outcome = bring(archive)
    assert refusals(outcome) == {
        "nv": "link_not_followed",
        "nv/a.png": "link_not_followed",
        "nv/b.png": "link_not_followed",
    }
    assert (images / "mel" / "c.png").read_bytes() == picture("mel/c.png")
    assert not (images / "mel" / "c.png").is_symlink()


# Duplicates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("nv/x.png", "nv/x.png"), ("nv/x.png", "nv/X.png"), ("nv/x.png", "NV/x.PNG"), ("nv/x.png", "nv\\x.png"),
        ("nv/caf\u00e9.png", "nv/cafe\u0301.png"), ("nv/stra\u00dfe.png", "nv/STRASSE.png"),
        ("nv/x.png", "nv/x.png/y.png"), ("nv/X.png/y.png", "nv/x.png"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_both_refused(home: Path, one: str, other: str) -> None:
    outcome = bring(pack(home / "set.zip", (member(one), picture("1")), (member(other), picture("2"))))
    found = refusals(outcome)
    assert found.pop(one if "/y" not in one else other) == "duplicate_name"
    assert set(found.values()) <= {"duplicate_name", "misplaced"}
    assert not {"nv/x.png", one, other} & set(outcome.dataset.manifest["path"])
    assert len(outcome.dataset.manifest) == 3


# Bombs and lies ------------------------------------------------------------------------------------------------------


def test_a_member_that_inflates_out_of_proportion_is_refused(home: Path) -> None:
    outcome = bring(pack(home / "set.zip", ("nv/bomb.bmp", bytes(archives.UNCHECKED_MEMBER_BYTES + 1))))
    assert refusals(outcome) == {"nv/bomb.bmp": "too_large"}


def test_a_small_flat_bitmap_is_no_bomb(home: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (400, 300), "pink").save(buffer, "BMP")
    outcome = bring(pack(home / "set.zip", ("nv/flat.bmp", buffer.getvalue())))
    assert "nv/flat.bmp" in outcome.dataset.manifest["path"].tolist()


def test_a_bomb_of_many_members_is_refused_as_a_whole(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "UNCHECKED_TOTAL_BYTES", 1_000_000)
    archive = pack(home / "set.zip", *[(f"nv/{i}.bmp", bytes(500_000)) for i in range(4)])
    with pytest.raises(DataError, match="a bomb") as caught:
        bring(archive)
    assert caught.value.exit_code == 3
    assert not (home / "made" / "images").exists()


def test_an_archive_in_an_archive_is_unpacked_and_no_deeper(home: Path) -> None:
    deepest = pack(home / "deepest.zip").read_bytes()
    inner = pack(home / "inner.zip", ("nv/deep.zip", deepest)).read_bytes()
    outcome = bring(pack(home / "set.zip", ("nv/more.zip", inner), ("nv/broken.zip", b"PK")))
    assert len(outcome.dataset.manifest) == 3
    reasons = refusals(outcome)
    assert reasons["nv/more.zip/nv/deep.zip"] == "unreadable"
    assert reasons["nv/broken.zip"] == "broken"
    assert [path for path, reason in reasons.items() if reason == "misplaced"] == [
        f"nv/more/{name}" for name in sorted(GOOD)
    ]
    assert not list((home / "made").rglob("*inner.zip"))


def sizes(data: bytes, name: bytes, *, packed: int | None = None, inflated: int | None = None) -> bytes:
    """Overwrite the sizes that both headers of a member claim."""
    changed, start = bytearray(data), 0
    while (at := data.find(name, start)) >= 0:
        local = data[at - 30 : at - 26] == b"PK\x03\x04"
        base = at - 30 + 18 if local else at - 46 + 20
        if packed is not None:
            changed[base : base + 4] = struct.pack("<I", packed)
        if inflated is not None:
            changed[base + 4 : base + 8] = struct.pack("<I", inflated)
        start = at + 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ({"inflated": 10}, "broken"), ({"inflated": 10_000}, "broken"), ({"packed": 20}, "broken"),
        ({"inflated": 0xFFFFFFFE}, "too_large"), ({"inflated": 300 * 1024**2}, "too_large"),
        ({"inflated": 0}, "broken"),
    ],
)  # fmt: skip
def test_a_member_that_lies_about_its_size_is_refused(home: Path, claim: dict[str, int], reason: str) -> None:
    archive = pack(home / "set.zip", ("nv/liar.bmp", bytes(100_000)))
    archive.write_bytes(sizes(archive.read_bytes(), b"nv/liar.bmp", **claim))
    assert refusals(bring(archive)) == {"nv/liar.bmp": reason}
    assert sorted(contents(home / "made" / "images")) == sorted([*GOOD, SOURCE_FILE])


def test_more_bytes_than_claimed_are_never_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should zipfile ever hand out more than the directory claims, the copy stops at the claim."""

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return b"x" * (size or 1)

    archive = pack(home / "set.zip")
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: Endless())
    with pytest.raises(DataError, match="nothing usable"):
        bring(archive)
    assert not (home / "made" / "images").exists()


def test_a_broken_checksum_is_refused(home: Path) -> None:
    stored = zipfile.ZipInfo("nv/x.png")
    archive = pack(home / "set.zip", (stored, picture("x")))
    data = bytearray(archive.read_bytes())
    data[data.find(picture("x")) + 50] ^= 1
    archive.write_bytes(data)
    assert refusals(bring(archive)) == {"nv/x.png": "broken"}


def test_overlapping_members_are_a_bomb(home: Path) -> None:
    archive = pack(home / "set.zip", ("nv/x.png", picture("x")), ("nv/y.png", picture("y")))
    data = bytearray(archive.read_bytes())
    entries = [at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02"]
    data[entries[-1] + 42 : entries[-1] + 46] = data[entries[-2] + 42 : entries[-2] + 46]
    archive.write_bytes(data)
    with pytest.raises(DataError, match="overlap"):
        bring(archive)


def test_encrypted_members_are_refused(home: Path) -> None:
    archive = pack(home / "set.zip", ("nv/secret.png", picture("x")))
    data = bytearray(archive.read_bytes())
    for at in range(len(data) - 46):
        if data[at : at + 4] == b"PK\x03\x04" and data[at + 30 : at + 43] == b"nv/secret.png":
            data[at + 6] |= 1
        if data[at : at + 4] == b"PK\x01\x02" and data[at + 46 : at + 59] == b"nv/secret.png":
            data[at + 8] |= 1
    archive.write_bytes(data)
    assert refusals(bring(archive)) == {"nv/secret.png": "encrypted"}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound_are_refused(home: Path, method: int) -> None:
    archive = pack(home / "set.zip")
    with zipfile.ZipFile(archive, "a", method) as packed:
        packed.writestr("nv/x.png", picture("x"))
    assert refusals(bring(archive)) == {"nv/x.png": "unreadable"}


# Archives that are none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2], lambda data: data[:-1], lambda data: data[:-30],
        lambda data: data[:0], lambda data: data[:4], lambda data: b"hello" + data[:0],
        lambda data: data[:10] + data[-22:], lambda data: data[:-10] + b"\xff\xff\xff\x7f" + data[-6:],
    ],
)  # fmt: skip
def test_a_cut_or_lying_archive_is_refused_as_a_whole(home: Path, spoil: Callable[[bytes], bytes]) -> None:
    archive = pack(home / "set.zip")
    archive.write_bytes(spoil(archive.read_bytes()))
    with pytest.raises(DataError) as caught:
        bring(archive)
    assert caught.value.exit_code == 3
    assert [path.name for path in (home / "made").iterdir()] == [".lock"]


def test_too_many_members(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    with pytest.raises(DataError, match="holds 3 members"):
        bring(pack(home / "set.zip"))
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", 100)
    with pytest.raises(DataError, match="directory claims"):
        bring(home / "set.zip")


def test_no_space_is_told_before_the_work(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total, used, _ = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Space(total, used, 10))
    with pytest.raises(OutputError, match=r"needed for the images of set\.zip"):
        bring(pack(home / "set.zip"))


def test_a_directory_that_points_nowhere(home: Path) -> None:
    archive = pack(home / "set.zip")
    data = archive.read_bytes()
    archive.write_bytes(data[:-6] + b"\xff\xff\xff\x7f" + data[-2:])
    with pytest.raises(DataError):
        bring(archive)


# Again, and after a stop ----------------------------------------------------------------------------------------------


def test_the_same_archive_again_changes_nothing(home: Path) -> None:
    archive = pack(home / "set.zip")
    first = bring(archive)
    times = {path: path.stat().st_mtime_ns for path in (home / "made" / "images").rglob("*.png")}
    again = bring(archive)
    assert again.dataset.manifest_sha256 == first.dataset.manifest_sha256
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_stopped_import_goes_on_and_heals(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(home / "set.zip")
    inflate = extract.inflate

    def stop(packed: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
        if target.name == "c.png":
            raise KeyboardInterrupt
        inflate(packed, info, target)

    with monkeypatch.context() as patch:
        patch.setattr(archives, "inflate", stop)
        with pytest.raises(KeyboardInterrupt):
            bring(archive)
    images = home / "made" / "images"
    assert sorted(contents(images)) == sorted([SOURCE_FILE, "nv/a.png", "nv/b.png"])
    (images / "nv" / "a.png").write_bytes(b"torn")
    (images / "nv" / "b.png").write_bytes(bytes(len(picture("nv/b.png"))))  # of the right size
    (images / "nv" / ".dermkit-tmp-x").write_bytes(b"half")
    outcome = bring(archive)
    assert (len(outcome.dataset.manifest), outcome.rejected) == (3, [])
    assert sorted(contents(images)) == sorted([SOURCE_FILE, *GOOD])


def test_two_archives_are_not_mixed(home: Path) -> None:
    bring(pack(home / "set.zip"))
    other = pack(home / "other.zip", ("nv/new.png", picture("new")))
    with pytest.raises(UsageError, match=r"holds the images of another file, set\.zip"):
        bring(other)
    assert not (home / "made" / "images" / "nv" / "new.png").exists()


def test_a_folder_that_was_there_is_not_unpacked_into(home: Path) -> None:
    images = home / "made" / "images"
    images.mkdir(parents=True)
    (images / "mine.png").write_bytes(picture("mine"))
    with pytest.raises(UsageError, match="is not empty"):
        bring(pack(home / "set.zip"))
    assert [path.name for path in images.iterdir()] == ["mine.png"]


def test_a_linked_output_is_not_followed(home: Path) -> None:
    (home / "made").mkdir()
    (home / "made" / "elsewhere").mkdir()
    (home / "made" / "images").symlink_to(home / "made" / "elsewhere")
    with pytest.raises(UsageError):
        bring(pack(home / "set.zip"))


def test_an_archive_with_a_wrong_table_leaves_nothing(home: Path) -> None:
    archive = pack(home / "set.zip", ("rows.csv", b"image,label,age\na.png,nv\n"))
    with pytest.raises(DataError, match="row 2"):
        import_dataset("csv", archive, out=home / "made")
    assert [path.name for path in (home / "made").iterdir()] == [".lock"]


def test_an_archive_of_which_nothing_is_safe_names_what_it_refused(home: Path) -> None:
    archive = pack(home / "set.zip", (member("../evil.png"), b"x"), (member("/nv/b.png"), b"x"), good=False)
    with pytest.raises(DataError, match="nothing usable") as caught:
        bring(archive)
    assert all(f"{name}: bad_name" in caught.value.message for name in ("../evil.png", "/nv/b.png"))
    assert [path.name for path in (home / "made").iterdir()] == [".lock"]


def test_hostile_archives_from_the_command_line(home: Path, cli: Cli) -> None:
    archive = pack(home / "set.zip", (member("../evil.png"), picture("x")), ("nv/a b.png", picture("y")))
    done = cli("import", "folder", archive, "--out", home / "made")
    assert done.returncode == 7
    assert "../evil.png,bad_name" in (home / "made" / "refused.csv").read_text()
    archive.write_bytes(archive.read_bytes()[:-9])
    done = cli("import", "folder", archive, "--out", home / "made")
    assert done.returncode in (2, 3)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("seed", range(40))
def test_spoilt_bytes_never_end_in_a_fault(home: Path, seed: int) -> None:
    """Either a right manifest, or one of dermkit's own errors."""
    archive = pack(home / "set.zip", ("rows.csv", b"image,label\na.png,nv\n"))
    data = bytearray(archive.read_bytes())
    rng = np.random.default_rng(seed)
    directory = data.find(b"PK\x01\x02")
    for at in rng.integers(directory if seed % 2 else 0, len(data), int(rng.integers(1, 8))):
        data[at] = int(rng.integers(0, 256))
    archive.write_bytes(data)
    try:
        outcome = bring(archive)
    except DataError:
        return
    for path in outcome.dataset.manifest["path"]:
        name = unicodedata.normalize("NFC", path)
        if name in GOOD:
            assert zlib.crc32((outcome.dataset.image_root / path).read_bytes()) == zlib.crc32(picture(name))

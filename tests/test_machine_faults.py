"""Memory, disks and interrupts stop a command; they never become something that is said of an image."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

import dermkit as dk
from conftest import Invoke
from dermkit.audit.scan.measures import measure
from dermkit.audit.scan.scan import scan_images
from dermkit.data.cache.pixels import pixel_cache
from dermkit.errors import ImageRejected, RejectionReason, ResourceError
from dermkit.files import open_regular
from dermkit.images import decode
from dermkit.images.decode import open_image
from dermkit.images.preprocess import Preprocessing
from dermkit.prediction.run import predict
from made_images import encoded, speckled

GEOMETRY = Preprocessing(
    size=24, resize="squash", interpolation="bilinear", divide_by=255.0, mean=(0.0,) * 3, std=(1.0,) * 3
)
OUT_OF_MEMORY = [
    MemoryError(),
    OSError("out of memory error when reading image file"),  # so Pillow says it of a decoder
    type("_ArrayMemoryError", (MemoryError,), {})(),  # so NumPy derives its own
]


def raiser(error: BaseException, *, times: int = 10**9, at: str = "") -> Callable[..., Any]:
    """Return a function that raises an error the first `times` times that it is asked for this file."""
    n = [times]
    real = open_regular

    def raise_or_open(path: Path) -> Any:
        if str(path).endswith(at) and n[0] > 0:
            n[0] -= 1
            raise error
        return real(path)

    return raise_or_open


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(6):
        path = tmp_path / "images" / ("benign", "malignant")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(speckled(seed=number), "PNG"))
    return tmp_path / "images"


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["python", "pillow", "numpy"])
def test_memory_that_ran_out_is_not_the_images_fault(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    real, n = decode._decode_once, [1]

    def explode(header: Any) -> Any:
        n[0] -= 1
        if n[0] >= 0:
            raise error
        return real(header)

    monkeypatch.setattr(decode, "_decode_once", explode)
    assert open_image(encoded(speckled(), "PNG")).pixels.shape  # the second time, alone, it fits
    n[0] = 2
    with pytest.raises(ResourceError, match=r"x\.png: out of memory") as refusal:
        open_image(encoded(speckled(), "PNG"), name="x.png")
    assert refusal.value.exit_code == 5


def test_memory_that_ran_out_in_a_profile_does_not_change_the_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode, "_srgb_transform", explode)
    with pytest.raises(MemoryError):
        decode._to_srgb(Image.new("RGB", (9, 9)), bytes(200))
    monkeypatch.setattr("dermkit.audit.scan.measures.reduce_pixels", explode)
    data = encoded(speckled(), "JPEG")
    with pytest.raises(MemoryError):
        measure(open_image(data), data)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM])
def test_a_disk_that_fails_is_not_the_images_fault(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke, number: int
) -> None:
    monkeypatch.setattr(decode, "open_regular", raiser(OSError(number, "planted"), at="2.png"))
    code, _, said = invoke("import", "folder", images, "--out", tmp_path / "data")
    assert code == 5
    assert "2.png: cannot be read now: planted" in said
    assert "same command again" in said
    assert not (tmp_path / "data" / "manifest.csv").exists()
    monkeypatch.undo()
    assert len(dk.import_dataset("folder", images, out=tmp_path / "data").dataset.manifest) == 6


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EACCES, RejectionReason.UNREADABLE), (errno.ENOENT, RejectionReason.MISSING)]
)
def test_what_a_path_is_stays_the_files_own(
    images: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: RejectionReason
) -> None:
    monkeypatch.setattr(decode, "open_regular", raiser(OSError(number, "planted")))
    with pytest.raises(ImageRejected) as refusal:
        open_image(images / "benign" / "0.png")
    assert refusal.value.reason is reason


@pytest.mark.parametrize("error", [OSError(errno.EIO, "planted"), MemoryError(), KeyboardInterrupt()])
def test_audit_cache_and_import_stop_and_go_on(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    dataset = dk.import_dataset("folder", images, out=tmp_path / "data").dataset
    ids = dataset.manifest["image_id"].tolist()
    monkeypatch.setattr(decode, "open_regular", raiser(error, at="3.png"))
    with pytest.raises((ResourceError, MemoryError, KeyboardInterrupt)):
        scan_images(dataset)
    with pytest.raises((ResourceError, MemoryError, KeyboardInterrupt)):
        pixel_cache(dataset, ids, GEOMETRY, folder=tmp_path / "cache")
    with pytest.raises((ResourceError, MemoryError, KeyboardInterrupt)):
        dk.import_dataset("folder", images, out=tmp_path / "again")
    assert not (tmp_path / "again" / "manifest.csv").exists()
    monkeypatch.undo()
    assert (scan_images(dataset).table["state"] == "").all()
    assert len(pixel_cache(dataset, ids, GEOMETRY, folder=tmp_path / "cache").pixels) == 6


@pytest.mark.parametrize("error", [OSError(errno.EIO, "planted"), MemoryError()])
def test_a_prediction_stops_says_what_is_saved_and_goes_on(
    trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    paths = [str(path) for path in sorted(images.rglob("*.png"), key=lambda path: path.name)]
    monkeypatch.setattr(decode, "open_regular", raiser(error, at="5.png"))
    with pytest.raises(ResourceError) as refusal:
        predict(trained, paths, out=tmp_path / "out", batch_size=2, workers=1)
    assert "4 of 6 images, scored or refused" in refusal.value.outcome
    monkeypatch.undo()
    assert predict(trained, paths, out=tmp_path / "out", batch_size=2, workers=1).n_scored == 6
    assert len(pd.read_csv(tmp_path / "out" / "refused.csv")) == 0


def test_a_command_that_has_no_memory_left_says_so(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, binary: Path,
                                                   tmp_path: Path) -> None:  # fmt: skip
    def explode(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("dermkit.audit.run.scan_images", explode)
    copy = Path(shutil.copytree(binary, tmp_path / "data"))
    code, _, said = invoke("audit", copy)
    assert code == 5
    assert "out of memory" in said
    assert "fault in dermkit" not in said

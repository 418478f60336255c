"""DICOM photographs: the pixels are those of the file, what is not plain is refused, and no identity gets out."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

import dermkit as dk
from corner_net import save_corner_model
from dermkit.errors import ImageRejected, RejectionReason
from dermkit.images.decode import open_image

EXPLICIT, IMPLICIT, JPEG, DEFLATED = (
    "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.1.99",
)  # fmt: skip
IDENTITY = {
    "PatientName": "Doe^Jane^Planted", "PatientID": "PLANTED-4711", "PatientBirthDate": "19700102",
    "PatientAddress": "Planted Street 9", "InstitutionName": "Planted Hospital", "ReferringPhysicianName": "Planted^Dr",
    "PatientComments": "PLANTED comment", "AccessionNumber": "PLANTED-ACC", "OperatorsName": "Planted^Op",
    "StudyDescription": "PLANTED study", "StudyDate": "20260102", "DeviceSerialNumber": "PLANTED-SN",
    "OtherPatientIDs": "PLANTED-OTHER", "PatientTelephoneNumbers": "PLANTED-555",
}  # fmt: skip
DERMOSCOPIC = "1.2.840.10008.5.1.4.1.1.77.1.7"


def photo(size: tuple[int, int] = (40, 32)) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def jpeg_bytes(pixels: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def dicom(pixels: Any, syntax: str = EXPLICIT, data: bytes | None = None, **changes: Any) -> bytes:
    """Return a DICOM file of these pixels with planted identity; `changes` replace elements, None removes them."""
    dataset = Dataset()
    for name, value in IDENTITY.items():
        setattr(dataset, name, value)
    grey = pixels.ndim == 2
    elements = {
        "SOPClassUID": DERMOSCOPIC, "SOPInstanceUID": "1.2.3.4", "Modality": "XC", "Rows": pixels.shape[0],
        "Columns": pixels.shape[1], "SamplesPerPixel": 1 if grey else 3, "BitsAllocated": 8, "BitsStored": 8,
        "PhotometricInterpretation": "MONOCHROME2" if grey else "YBR_FULL_422" if syntax == JPEG else "RGB",
        "HighBit": 7, "PixelRepresentation": 0, "PlanarConfiguration": None if grey else 0, **changes,
    }  # fmt: skip
    for name, value in elements.items():
        if value is not None:
            setattr(dataset, name, value)
    if syntax == JPEG:
        data = encapsulate([jpeg_bytes(pixels) if data is None else data])
    dataset.PixelData = pixels.tobytes() if data is None else data
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = UID(str(elements["SOPClassUID"]))
    dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of the odd values that tests write
        dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


# What is taken --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("planar", [0, 1])
def test_uncompressed_pixels_are_those_of_the_file(syntax: str, planar: int) -> None:
    pixels = photo()
    data = pixels.transpose(2, 0, 1).tobytes() if planar else None
    image = open_image(dicom(pixels, syntax, data, PlanarConfiguration=planar))
    assert np.array_equal(image.pixels, pixels)
    assert (image.format, image.notes) == ("DICOM", ())


def test_grey_and_ybr_pixels() -> None:
    grey = photo()[:, :, 0]
    assert np.array_equal(open_image(dicom(grey)).pixels, np.repeat(grey[:, :, None], 3, axis=2))
    ycc = np.array(Image.fromarray(photo()).convert("YCbCr"))
    read = open_image(dicom(ycc, PhotometricInterpretation="YBR_FULL")).pixels
    assert np.array_equal(read, np.array(Image.fromarray(ycc, "YCbCr").convert("RGB")))


def test_square_pixels_may_be_named() -> None:
    np.testing.assert_array_equal(open_image(dicom(photo(), PixelAspectRatio=["1", "1"])).pixels, photo())


def test_a_jpeg_inside_is_read_as_that_jpeg() -> None:
    pixels = photo()
    alone, inside = open_image(jpeg_bytes(pixels)), open_image(dicom(pixels, JPEG))
    assert np.array_equal(alone.pixels, inside.pixels) and inside.pixel_sha256 == alone.pixel_sha256
    assert inside.format == "DICOM" and inside.file_sha256 != alone.file_sha256
    named_rgb = open_image(dicom(pixels, JPEG, PhotometricInterpretation="RGB"))
    assert np.array_equal(named_rgb.pixels, alone.pixels), "the JPEG says itself that it is YCbCr"


@pytest.mark.parametrize("syntax", [EXPLICIT, JPEG])
def test_the_colour_profile_of_the_header_is_used(syntax: str) -> None:
    icc = _wide_profile()
    pixels = photo()
    plain, coloured = open_image(dicom(pixels, syntax)), open_image(dicom(pixels, syntax, ICCProfile=icc))
    assert "ICC profile converted to sRGB" in coloured.notes
    assert not np.array_equal(plain.pixels, coloured.pixels)
    same = open_image(jpeg_bytes(pixels, icc_profile=icc)) if syntax == JPEG else None
    assert same is None or np.array_equal(same.pixels, coloured.pixels)


def _wide_profile() -> bytes:
    """Return an sRGB profile whose primaries are exchanged, so that it changes every colour."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        bytes(data[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(int.from_bytes(data[128:132], "big"))
    }
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = data[blue + 4 : blue + 12], data[red + 4 : red + 12]
    return bytes(data)


# What is refused ------------------------------------------------------------------------------------------------


def two_frames() -> bytes:
    """Return a DICOM file that holds two JPEG files and does not say so."""
    one = dicom(photo(), JPEG)
    frames = encapsulate([jpeg_bytes(photo()), jpeg_bytes(photo() // 2)])
    start = one.index(encapsulate([jpeg_bytes(photo())])[:8])
    return one[:start] + frames + one[start + len(encapsulate([jpeg_bytes(photo())])) :]


def no_marker_jpeg() -> bytes:
    data = jpeg_bytes(photo())
    length = int.from_bytes(data[4:6], "big")
    return data[:2] + data[4 + length :]


REFUSED: dict[str, tuple[Callable[[], bytes], RejectionReason, str]] = {
    "CT": (lambda: dicom(photo(), SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), RejectionReason.FORMAT_NOT_ALLOWED, "kind"),
    "frames": (lambda: dicom(photo(), NumberOfFrames=2), RejectionReason.MULTI_PAGE, "several frames"),
    "burned in": (lambda: dicom(photo(), BurnedInAnnotation="YES"), RejectionReason.FORMAT_NOT_ALLOWED, "text"),
    "burned in, in lower case": (
        lambda: dicom(photo(), BurnedInAnnotation="YES").replace(b"YES ", b"yes "),
        RejectionReason.FORMAT_NOT_ALLOWED, "text",
    ),
    "stretched": (
        lambda: dicom(photo(), PixelAspectRatio=["1", "4"]), RejectionReason.UNDEFINED_PIXELS, "not square",
    ),
    "inverse look-up": (
        lambda: dicom(photo()[:, :, 0], PresentationLUTShape="INVERSE"), RejectionReason.UNDEFINED_PIXELS, "table",
    ),
    "two JPEG frames": (
        two_frames, RejectionReason.MULTI_PAGE, "several frames",
    ),
    "palette": (
        lambda: dicom(photo()[:, :, 0], PhotometricInterpretation="PALETTE COLOR"),
        RejectionReason.FORMAT_NOT_ALLOWED, "colours",
    ),
    "inverse": (
        lambda: dicom(photo()[:, :, 0], PhotometricInterpretation="MONOCHROME1"),
        RejectionReason.FORMAT_NOT_ALLOWED, "colours",
    ),
    "two colours": (lambda: dicom(photo(), SamplesPerPixel=1), RejectionReason.BROKEN, "two numbers"),
    "16 bits": (lambda: dicom(photo(), BitsAllocated=16), RejectionReason.FORMAT_NOT_ALLOWED, "depth"),
    "12 bits": (lambda: dicom(photo(), BitsStored=6), RejectionReason.FORMAT_NOT_ALLOWED, "depth"),
    "signed": (lambda: dicom(photo(), PixelRepresentation=1), RejectionReason.FORMAT_NOT_ALLOWED, "depth"),
    "slope": (lambda: dicom(photo(), RescaleSlope="2"), RejectionReason.UNDEFINED_PIXELS, "table"),
    "422": (
        lambda: dicom(photo(), PhotometricInterpretation="YBR_FULL_422"), RejectionReason.FORMAT_NOT_ALLOWED, "fewer",
    ),
    "few pixels": (lambda: dicom(photo(), data=bytes(100)), RejectionReason.TRUNCATED, "fewer pixels"),
    "many pixels": (lambda: dicom(photo(), data=bytes(9000)), RejectionReason.BROKEN, "more pixels"),
    "bomb": (lambda: dicom(photo(), Rows=16384, Columns=16384), RejectionReason.TOO_LARGE, "at most"),
    "no rows": (lambda: dicom(photo(), Rows=None), RejectionReason.BROKEN, "lacks element 00280010"),
    "deflated": (lambda: dicom(photo(), DEFLATED), RejectionReason.FORMAT_NOT_ALLOWED, "compression"),
    "two sizes": (lambda: dicom(photo(), JPEG, Rows=64), RejectionReason.BROKEN, "two sizes"),
    "no JPEG": (lambda: dicom(photo(), JPEG, b"no jpeg at all"), RejectionReason.BROKEN, "JPEG is none"),
    "RGB JPEG": (
        lambda: dicom(photo(), JPEG, no_marker_jpeg(), PhotometricInterpretation="RGB"),
        RejectionReason.UNDEFINED_PIXELS, "does not say its colours",
    ),
    "no header": (lambda: bytes(128) + b"DICM" + bytes(99), RejectionReason.BROKEN, "transfer syntax"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_photograph_is_refused(name: str) -> None:
    make, reason, detail = REFUSED[name]
    with pytest.raises(ImageRejected) as caught:
        open_image(make())
    assert caught.value.reason is reason and detail in caught.value.detail
    assert "planted" not in str(caught.value).lower()


def test_without_pydicom_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dermkit.images.dicom.find_spec", lambda _: None)
    with pytest.raises(ImageRejected, match=r"pip install 'dermkit\[dicom\]'"):
        open_image(dicom(photo()))


@settings(max_examples=150)
@given(position=st.integers(0, 1500), value=st.binary(min_size=1, max_size=4), cut=st.integers(0, 4000))
def test_a_damaged_header_is_refused_or_read_and_says_nothing_of_anybody(
    position: int, value: bytes, cut: int
) -> None:
    data = bytearray(dicom(photo()))
    data[position : position + len(value)] = value
    try:
        open_image(bytes(data[: len(data) - cut // 2 * (cut % 2)]))
    except ImageRejected as refusal:
        assert "planted" not in str(refusal).lower() and "Jane" not in str(refusal)


def test_identity_is_passed_over_when_the_header_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets: list[Dataset] = []
    read = pydicom.dcmread

    def spy(*args: Any, **options: Any) -> Dataset:
        datasets.append(read(*args, **options))
        return datasets[-1]

    monkeypatch.setattr(pydicom, "dcmread", spy)
    open_image(dicom(photo()))
    assert "PixelData" in datasets[0] and [name for name in IDENTITY if name in datasets[0]] == []


# Identity -------------------------------------------------------------------------------------------------------


def test_a_prediction_writes_no_identity(tmp_path: Path) -> None:
    save_corner_model(tmp_path / "model")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(dicom(photo((64, 64))))
    (tmp_path / "in" / "b.dcm").write_bytes(dicom(photo((64, 64)), JPEG))
    (tmp_path / "in" / "c.dcm").write_bytes(dicom(photo(), SOPClassUID="1.2.840.10008.5.1.4.1.1.2"))
    outcome = dk.predict(tmp_path / "model", [str(tmp_path / "in")], out=tmp_path / "out")
    assert (outcome.n_scored, outcome.n_rejected) == (2, 1)
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()).lower()
    for text in IDENTITY.values():
        assert text.lower().encode() not in written

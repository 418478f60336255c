"""JPEG files whose second half is gone although they end rightly are noted at import and found by the audit."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermkit.errors import ImageRejected, RejectionReason
from dermkit.images.decode import open_image
from dermkit.images.jpeg_damage import DAMAGE_PREFIX

SETTINGS: dict[str, dict[str, object]] = {
    "plain": {},
    "good": {"quality": 95},
    "poor": {"quality": 20},
    "fitted tables": {"optimize": True},
    "restarts": {"restart_marker_rows": 1},
    "progressive": {"progressive": True},
    "grey": {"mode": "L"},
}


def photograph(seed: int, side: int = 300) -> Image.Image:
    """Return something like skin: smooth, with a spot and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    spot = 90 * np.exp(-((x - 0.5) ** 2 + (y - 0.4) ** 2) / 0.03)
    pixels = np.array([210, 160, 140]) - 30 * y[..., None] - spot[..., None] + rng.normal(0, 4, (side, side, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def jpeg(seed: int = 0, setting: str = "plain") -> bytes:
    options = dict(SETTINGS[setting])
    buffer = io.BytesIO()
    photograph(seed).convert(str(options.pop("mode", "RGB"))).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def damaged(data: bytes, kind: str, rng: random.Random) -> bytes:
    """Spoil the second half of the pixels and leave the end mark."""
    start = data.index(b"\xff\xda") + 14
    middle = (start + len(data)) // 2
    n = len(data) - 2 - middle
    return data[:middle] + {"random": rng.randbytes(n), "zeros": bytes(n), "cut": b""}[kind] + data[-2:]


def notes(data: bytes) -> list[str]:
    return [note for note in open_image(data).notes if note.startswith(DAMAGE_PREFIX)]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", ["random", "zeros", "cut"])
def test_a_second_half_that_is_gone_is_noted(kind: str, setting: str) -> None:
    for seed in range(4):
        try:
            assert len(notes(damaged(jpeg(seed, setting), kind, random.Random(seed)))) == 1, seed
        except ImageRejected as refusal:  # also said: a decoder gives up where random bytes end its tables
            assert kind == "random"
            assert refusal.reason in (RejectionReason.BROKEN, RejectionReason.TRUNCATED)


@pytest.mark.parametrize("setting", SETTINGS)
def test_whole_files_are_not_noted(setting: str) -> None:
    for seed in range(4):
        assert notes(jpeg(seed, setting)) == []


@pytest.mark.parametrize("colour", [0, 127, 128, 129, 255])
def test_plain_pictures_and_black_borders_are_whole(colour: int) -> None:
    for picture in (Image.new("RGB", (300, 300), (colour,) * 3), photograph(1)):
        picture.paste((colour,) * 3, (0, 0, 300, 30))
        picture.paste((colour,) * 3, (0, 290 if colour == 128 else 200, 300, 289 if colour == 128 else 300))
        for options in ({}, {"optimize": True}, {"progressive": True}, {"quality": 95}):
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", **options)
            assert notes(buffer.getvalue()) == []


def test_what_follows_the_end_is_no_damage() -> None:
    assert notes(jpeg() + b"\x00" * 5000) == []
    assert notes(jpeg() + jpeg(1)) == []


@pytest.mark.parametrize("setting", ["progressive", "restarts", "fitted tables"])
def test_marks_inside_a_profile_are_no_pixels(setting: str) -> None:
    buffer = io.BytesIO()
    photograph(5).save(buffer, "JPEG", icc_profile=bytes(128) + b"\xff\xda\xff\xd9" * 9, **SETTINGS[setting])
    assert notes(buffer.getvalue()) == []


def test_import_counts_them_and_the_audit_names_them(tmp_path: Path) -> None:
    import dermkit as dk

    for number in range(8):
        path = tmp_path / "images" / ("benign", "malignant")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = jpeg(number)
        path.write_bytes(damaged(data, "cut", random.Random(0)) if number == 3 else data)
    result = dk.import_dataset("folder", tmp_path / "images", out=tmp_path / "data")
    assert DAMAGE_PREFIX in (result.dataset.folder / "dataset.json").read_text()
    audit = dk.audit_dataset(result.dataset)
    findings = {reported.card.code: reported.finding for reported in audit.findings}
    assert "1 JPEG" in findings["DA001"].sentence
    assert findings["DA001"].severity.value == "warning"
    assert findings["DA001"].rows.to_numpy().tolist()[0][0] == "malignant/3.jpg"

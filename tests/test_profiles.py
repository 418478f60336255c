"""Colour profiles that ask for too much are ignored in no time, and a stuck image does not keep a command."""

import io
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dermkit.images.decode import open_image
from dermkit.images.icc import MAX_STAGES, check_profile
from dermkit.threads import worker_pool
from made_images import encoded, speckled

MATRIX = (b"XYZ ", b"rXYZ", (0.4361, 0.2225, 0.0139)), (b"XYZ ", b"gXYZ", (0.3851, 0.7169, 0.0971))


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(int(65536 * value) for value in values))


def text(word: str = "x") -> bytes:
    coded = word.encode("utf-16be")
    return b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", len(coded), 28) + coded


def make_profile(*more: tuple[bytes, bytes]) -> bytes:
    """Return an RGB profile of a matrix and a gamma of 2.2, with further tags."""
    gamma = b"curv\0\0\0\0" + struct.pack(">IH", 1, 0x0233)
    colours = {b"rXYZ": (0.61, 0.31, 0.02), b"gXYZ": (0.205, 0.626, 0.061), b"bXYZ": (0.149, 0.063, 0.744)}
    tags = [(b"desc", text()), (b"cprt", text()), (b"wtpt", xyz(0.9642, 1, 0.8249)), *more]
    tags += [(name, xyz(*values)) for name, values in colours.items()]
    tags += [(name, gamma) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, data in tags:
        body += bytes(-(start + len(body)) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(
        ">I4sI4s4s4s12x4s", start + len(body), b"lcms", 0x04200000, b"mntr", b"RGB ", b"XYZ ", b"acsp"
    )
    head += bytes(28) + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def stage(kind: bytes = b"matf", inputs: int = 3, outputs: int = 3) -> bytes:
    values = [float(row == column) for row in range(outputs) for column in range(inputs)] + [0.0] * outputs
    return kind + struct.pack(f">4xHH{len(values)}f", inputs, outputs, *values)


def pipeline(n: int, body: bytes | None = None) -> bytes:
    """Return an `mpet` tag of n stages that share one body."""
    body = stage() if body is None else body
    return b"mpet" + struct.pack(">4xHHI", 3, 3, n) + struct.pack(">II", 16 + 8 * n, len(body)) * n + body


def curves(n_segments: int) -> bytes:
    curve = b"curf" + struct.pack(">4xHH", n_segments, 0) + bytes(4 * n_segments)
    return b"cvst" + struct.pack(">4xHH", 3, 3) + struct.pack(">II", 36, len(curve)) * 3 + curve


def lookup(kind: bytes, inputs: int) -> bytes:
    return kind + struct.pack(">4xBBBx", inputs, 3, 2) + bytes(2**inputs * 3)


HOSTILE = {
    "100,000 stages of one body": (b"D2B0", pipeline(100_000)),
    "every way": (b"D2B1", pipeline(MAX_STAGES + 1)),
    "as A2B0": (b"A2B0", pipeline(5_000)),
    "wide stage": (b"D2B0", pipeline(2, stage(inputs=15))),
    "many segments": (b"D2B0", pipeline(1, curves(60_000))),
    "unknown stage": (b"D2B0", pipeline(1, stage(b"abcd"))),
    "table of 15 channels": (b"A2B0", lookup(b"mft2", 15)),
    "new table of 15 channels": (b"A2B0", lookup(b"mAB ", 15)),
    "cut stage": (b"D2B0", pipeline(1, b"matf")),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_profile_that_asks_for_too_much_is_ignored_at_once(case: str) -> None:
    profile = make_profile(HOSTILE[case])
    plain = open_image(encoded(speckled(300, 200), "JPEG"))
    start = time.monotonic()
    image = open_image(encoded(speckled(300, 200), "JPEG", icc_profile=profile))
    assert time.monotonic() - start < 2
    assert image.notes[0].startswith("ICC profile ignored: broken (ValueError: ")
    assert image.pixel_sha256 == plain.pixel_sha256


@pytest.mark.parametrize("n_stages", [0, 1, MAX_STAGES])
def test_ordinary_profiles_are_followed(n_stages: int) -> None:
    more = [(b"D2B3", pipeline(n_stages))] if n_stages else []
    check_profile(make_profile(*more))
    image = open_image(encoded(speckled(), "PNG", icc_profile=make_profile(*more)))
    assert image.notes == ("ICC profile converted to sRGB",)


def test_more_tags_than_any_profile_has_and_tags_beyond_the_end() -> None:
    with pytest.raises(ValueError, match="109 tags"):
        check_profile(make_profile(*[(b"x%03d" % n, text()) for n in range(100)]))
    with pytest.raises(ValueError, match="beyond its end"):
        check_profile(make_profile()[:-4])
    with pytest.raises(ValueError, match="cut"):
        check_profile(make_profile()[:140])


STUCK = """
import sys, threading
from dermkit.cli import main
from dermkit.data.importers import open_images

def stuck(*_):
    print("stuck", flush=True)
    threading.Event().wait()

open_images._open_one = stuck
sys.argv = ["dermkit", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_ends_a_command_with_a_stuck_image(tmp_path: Path, number: signal.Signals) -> None:
    for name in ("a/1.png", "b/2.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True)
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64)).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue())
    command = [
        sys.executable,
        "-c",
        STUCK,
        "import",
        "folder",
        str(tmp_path / "images"),
        "--out",
        str(tmp_path / "d"),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert not (tmp_path / "d" / "manifest.csv").exists()


def test_an_error_waits_for_what_was_begun_and_drops_the_rest() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.05)
        done.append(number)

    with pytest.raises(ZeroDivisionError), worker_pool(1) as pool:
        futures = [pool.submit(work, number) for number in range(50)]
        raise ZeroDivisionError
    assert len(done) <= 2
    assert futures[-1].cancelled()

"""What a colour profile may ask for, read from its tags before the colour engine gets it.

The engine follows a profile's numbers: a pipeline of 100,000 stages that share one body of 48 bytes kept it busy for
minutes. Profiles of cameras, screens and printers stay far below these bounds.
"""

import struct

MAX_TAGS = 100
MAX_CHANNELS = 4
"""Red, green and blue, or four inks; a table of 15 inputs is looked up at 2^15 corners for each colour."""

MAX_STAGES = 16
MAX_CURVE_SEGMENTS = 64
_LOOKUP_TABLES = (b"mft1", b"mft2", b"mAB ", b"mBA ")
_STAGE_KINDS = (b"matf", b"cvst", b"clut")


def check_profile(profile: bytes) -> None:
    """Raise `ValueError` where a profile is cut, or asks for more stages, channels or curves than any device needs."""
    try:
        (n_tags,) = struct.unpack_from(">I", profile, 128)
        if n_tags > MAX_TAGS:
            raise ValueError(f"{n_tags:,} tags")
        extents = {struct.unpack_from(">II", profile, 136 + 12 * number) for number in range(n_tags)}
        for offset, size in extents:
            if offset + size > len(profile):
                raise ValueError("a tag beyond its end")
            _check_tag(profile[offset : offset + size])
    except struct.error:
        raise ValueError("cut") from None


def _check_tag(data: bytes) -> None:
    if data[:4] in _LOOKUP_TABLES:
        _check_channels(*struct.unpack_from(">BB", data, 8))
    elif data[:4] == b"mpet":
        n_inputs, n_outputs, n_stages = struct.unpack_from(">HHI", data, 8)
        _check_channels(n_inputs, n_outputs)
        if n_stages > MAX_STAGES:
            raise ValueError(f"a pipeline of {n_stages:,} stages; at most {MAX_STAGES} are followed")
        for number in range(n_stages):
            offset, size = struct.unpack_from(">II", data, 16 + 8 * number)
            _check_stage(data[offset : offset + size])


def _check_stage(data: bytes) -> None:
    kind = data[:4]
    if kind not in _STAGE_KINDS:
        raise ValueError(f"a stage of unknown kind {kind!r}")
    n_inputs, n_outputs = struct.unpack_from(">HH", data, 8)
    _check_channels(n_inputs, n_outputs)
    for number in range(n_inputs if kind == b"cvst" else 0):
        (offset,) = struct.unpack_from(">I", data, 12 + 8 * number)
        (n_segments,) = struct.unpack_from(">H", data, offset + 8)
        if n_segments > MAX_CURVE_SEGMENTS:
            raise ValueError(f"a curve of {n_segments:,} segments")


def _check_channels(n_inputs: int, n_outputs: int) -> None:
    if not 1 <= n_inputs <= MAX_CHANNELS or not 1 <= n_outputs <= MAX_CHANNELS:
        raise ValueError(f"a table from {n_inputs} to {n_outputs} channels")

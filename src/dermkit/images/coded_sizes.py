"""The sizes that coded pictures of AV1 and HEVC state themselves, which their decoders allocate memory for.

AV1: AV1 Bitstream and Decoding Process Specification, 5.3 to 5.5. HEVC: ITU-T H.265, 7.3; the settings of a file
(hvcC): ISO/IEC 14496-15.
"""

from collections.abc import Iterator
from dataclasses import dataclass

MAX_UNITS = 10_000
"""Units (OBU, NAL) of one coded picture."""
_HEAD_BYTES = 512
"""Bytes of a unit that are read: its sizes lie in the first hundred."""
_AV1_SEQUENCE, _HEVC_SEQUENCE = 1, 33


@dataclass(frozen=True)
class CodedSize:
    """Width and height of a coded picture, and those of the frames that its decoder allocates, in pixels."""

    width: int
    height: int
    coded_width: int
    coded_height: int


class _Bits:
    """The bits of some bytes, from the first on."""

    def __init__(self, data: bytes) -> None:
        self.value = int.from_bytes(data, "big")
        self.left = 8 * len(data)

    def take(self, n: int) -> int:
        """Return the next n bits as a number."""
        self.left -= n
        if self.left < 0:
            raise ValueError("the coded picture is cut short")
        return (self.value >> self.left) & ((1 << n) - 1)

    def take_exp_golomb(self) -> int:
        """Return a number of variable length: as many zeros as it has further bits (H.265 9.2, AV1's uvlc)."""
        n_zeros = 0
        while not self.take(1):
            n_zeros += 1
            if n_zeros > 32:
                raise ValueError("a coded size that cannot be")
        return (1 << n_zeros) - 1 + self.take(n_zeros)


# AV1 --------------------------------------------------------------------------------------------------------------


def av1_sizes(configuration: bytes, data: bytes) -> Iterator[CodedSize]:
    """Yield the size of every sequence header, in the settings (after their first 4 bytes) and in the data.

    configuration: the content of the box av1C. Raises `ValueError` for what is no coded picture.
    """
    n_sizes = 0
    for block in (configuration[4:], data):
        for unit in _av1_units(block):
            n_sizes += 1
            yield _av1_size(_Bits(unit[:_HEAD_BYTES]))
    if not n_sizes:
        raise ValueError("a coded picture without a size")


def _av1_units(data: bytes) -> Iterator[bytes]:
    """Yield the content of every sequence header."""
    position = 0
    for _ in range(MAX_UNITS):
        if position >= len(data):
            return
        header = data[position]
        position += 2 if header & 4 else 1
        length = len(data) - position
        if header & 2:
            length, position = _leb128(data, position)
        if header & 0x80 or position + length > len(data):
            raise ValueError("a unit of the coded picture that cannot be")
        if header >> 3 & 15 == _AV1_SEQUENCE:
            yield data[position : position + length]
        position += length
    raise ValueError(f"more than {MAX_UNITS:,} units in a coded picture")


def _leb128(data: bytes, position: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, the lowest first, and the position after it."""
    value = 0
    for index in range(8):
        if position + index >= len(data):
            break
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, position + index + 1
    raise ValueError("a length that cannot be")


def _av1_size(bits: _Bits) -> CodedSize:
    """Return the largest size of a sequence header's frames (5.5.1)."""
    bits.take(4)  # profile, still picture
    if bits.take(1):  # the short header of still pictures: only the level
        bits.take(5)
    else:
        _skip_av1_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    width, height = bits.take(width_bits) + 1, bits.take(height_bits) + 1
    return CodedSize(width, height, width, height)


def _skip_av1_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):
            bits.take_exp_golomb()
        if bits.take(1):  # the decoder's model
            delay_bits = bits.take(5) + 1
            bits.take(42)
    has_display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_display_delay and bits.take(1):
            bits.take(4)


# HEVC -------------------------------------------------------------------------------------------------------------


def hevc_sizes(configuration: bytes, data: bytes) -> Iterator[CodedSize]:
    """Yield the size of every sequence parameter set, in the settings and in the data.

    configuration: the content of the box hvcC. Raises `ValueError` for what is no coded picture.
    """
    n_sizes = 0
    for unit in (*_hevc_configured_units(configuration), *_hevc_units(data, (configuration[21] & 3) + 1)):
        if unit[0] >> 1 & 63 == _HEVC_SEQUENCE:
            n_sizes += 1
            # H.265 7.4.2: 0, 0, 3 in the coded bytes stands for 0, 0.
            yield _hevc_size(_Bits(unit[2:_HEAD_BYTES].replace(b"\0\0\3", b"\0\0")))
    if not n_sizes:
        raise ValueError("a coded picture without a size")


def _hevc_configured_units(configuration: bytes) -> Iterator[bytes]:
    position = 23
    for _ in range(configuration[22]):
        n_units = int.from_bytes(configuration[position + 1 : position + 3], "big")
        position += 3
        for _ in range(min(n_units, MAX_UNITS)):
            unit, position = _sized_unit(configuration, position, 2)
            yield unit


def _hevc_units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """Yield every unit of the data, each of which is preceded by its length."""
    position = 0
    for _ in range(MAX_UNITS):
        if position >= len(data):
            return
        unit, position = _sized_unit(data, position, length_bytes)
        yield unit
    raise ValueError(f"more than {MAX_UNITS:,} units in a coded picture")


def _sized_unit(data: bytes, position: int, length_bytes: int) -> tuple[bytes, int]:
    start = position + length_bytes
    end = start + int.from_bytes(data[position:start], "big")
    if not start + 2 <= end <= len(data):
        raise ValueError("a unit of the coded picture that cannot be")
    return data[start : min(end, start + _HEAD_BYTES)], end


def _hevc_size(bits: _Bits) -> CodedSize:
    """Return the size of a sequence parameter set's frames, and that which they are cut to (7.3.2.2)."""
    bits.take(4)
    n_sub_layers = bits.take(3)
    bits.take(1)
    _skip_hevc_profile(bits, n_sub_layers)
    bits.take_exp_golomb()
    chroma = bits.take_exp_golomb()
    if chroma == 3:
        bits.take(1)
    width, height = bits.take_exp_golomb(), bits.take_exp_golomb()
    left, right, top, bottom = (bits.take_exp_golomb() for _ in range(4)) if bits.take(1) else (0, 0, 0, 0)
    unit_x, unit_y = (2 if chroma in (1, 2) else 1), (2 if chroma == 1 else 1)
    return CodedSize(width - unit_x * (left + right), height - unit_y * (top + bottom), width, height)


def _skip_hevc_profile(bits: _Bits, n_sub_layers: int) -> None:
    bits.take(96)
    flags = [(bits.take(1), bits.take(1)) for _ in range(n_sub_layers)]
    if n_sub_layers:
        bits.take(2 * (8 - n_sub_layers))
    for has_profile, has_level in flags:
        bits.take(88 * has_profile + 8 * has_level)

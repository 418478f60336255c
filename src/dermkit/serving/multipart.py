"""The parts of a multipart body as they arrive: images in memory, and short fields; nothing is written to a disk.

The name that a client gives a file is not read, and so is in no answer, log or message.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from dermkit.serving.asgi import ClientGone, Receive
from dermkit.serving.problems import Problem, ProblemCode
from dermkit.serving.settings import ServeLimits

IMAGE_FIELDS = ("images", "image")
MAX_FIELD_BYTES = 64 * 1024
_MAX_FIELDS = 8


@dataclass
class Form:
    """A form that was read. images: the bytes of each, in order. fields: name -> text of every other part."""

    images: list[bytes] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


async def read_form(
    receive: Receive, content_type: str, limits: ServeLimits, field_names: tuple[str, ...]
) -> Form:
    """Read a multipart body; raises `Problem` at the first byte over a limit, and for a part of another name.

    content_type: of the request, with the boundary. field_names: of parts that are no images, each at most once.
    """
    reader = _FormReader(limits, field_names)
    parser = _parser(content_type, reader)
    more_body = True
    while more_body:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        more_body = message.get("more_body", False)
        try:
            parser.write(message.get("body", b""))
        except FormParserError:
            raise Problem(ProblemCode.BAD_REQUEST, "the multipart body is broken", closes=True) from None
    if not reader.is_complete:
        raise Problem(ProblemCode.BAD_REQUEST, "the multipart body ends in the middle", closes=True)
    return reader.form


def _parser(content_type: str, reader: "_FormReader") -> MultipartParser:
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise Problem(ProblemCode.BAD_REQUEST, "the content type names no boundary", closes=True)
    try:
        return MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]
    except FormParserError:
        raise Problem(ProblemCode.BAD_REQUEST, "the boundary is too long", closes=True) from None


class _FormReader:
    """Collects what the parser calls back with, and refuses what is too much."""

    def __init__(self, limits: ServeLimits, field_names: tuple[str, ...]) -> None:
        self.form, self.is_complete = Form(), False
        self._limits, self._field_names = limits, field_names
        self._header_name, self._header_value, self._disposition = b"", b"", b""
        self._part_name, self._part, self._max_part_bytes = "", bytearray(), 0

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin_part, "on_header_field": self._read_header_name,
            "on_header_value": self._read_header_value, "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers, "on_part_data": self._read_part, "on_part_end": self._end_part,
            "on_end": self._end,
        }  # fmt: skip

    def _begin_part(self) -> None:
        self._disposition, self._part = b"", bytearray()

    def _read_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _read_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        if self._header_name.lower() == b"content-transfer-encoding" and self._header_value.strip().lower() not in (
            b"binary", b"8bit", b"7bit",
        ):  # fmt: skip
            raise Problem(ProblemCode.WRONG_TYPE, "a part must not be encoded", closes=True)
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or (name not in IMAGE_FIELDS and name not in self._field_names):
            allowed = ", ".join((IMAGE_FIELDS[0], *self._field_names))
            raise Problem(
                ProblemCode.FIELD_NOT_VALID, f"a part has an unknown name; known: {allowed}", closes=True
            )
        self._part_name = name
        is_image = name in IMAGE_FIELDS
        if is_image and len(self.form.images) >= self._limits.max_images:
            raise Problem(ProblemCode.TOO_MANY_IMAGES, f"at most {self._limits.max_images} images", closes=True)
        if not is_image and (name in self.form.fields or len(self.form.fields) >= _MAX_FIELDS):
            raise Problem(ProblemCode.FIELD_NOT_VALID, f"{name}: given twice", closes=True)
        self._max_part_bytes = self._limits.max_image_bytes if is_image else MAX_FIELD_BYTES

    def _read_part(self, data: bytes, start: int, end: int) -> None:
        if len(self._part) + end - start > self._max_part_bytes:
            raise Problem(ProblemCode.TOO_LARGE, f"a part may have {self._max_part_bytes:,} bytes", closes=True)
        self._part += data[start:end]

    def _end_part(self) -> None:
        if self._part_name in IMAGE_FIELDS:
            self.form.images.append(bytes(self._part))
        else:
            try:
                self.form.fields[self._part_name] = self._part.decode("utf-8")
            except UnicodeDecodeError:
                raise Problem(
                    ProblemCode.FIELD_NOT_VALID, f"{self._part_name}: is not UTF-8", closes=True
                ) from None
        self._part = bytearray()

    def _end(self) -> None:
        self.is_complete = True

"""A hundred texts that somebody sends to have them run, and thirty that say who somebody is, hidden in images."""

import io
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

_TAGS = ["script", "img src=x onerror", "svg onload", "body onload", "iframe src", "object data", "embed src",
         "link href", "base href", "meta content", "form action", "input autofocus onfocus",
         "details open ontoggle", "video onerror",
         "math href", "a href", "marquee onstart", "style onload", "select onfocus", "audio src onerror"]  # fmt: skip
_ESCAPES = [
    '"><script>alert(1)</script>', "'><img src=x onerror=alert(1)>", "</title><script>alert(1)</script>",
    "</pre><script>alert(1)</script>", "</textarea><svg/onload=alert(1)>", "</style><script>alert(1)</script>",
    "</script><script>alert(1)</script>", "--><script>alert(1)</script>", "]]><script>alert(1)</script>",
    '" onmouseover="alert(1)', "' onfocus='alert(1)' autofocus='", "` onerror=`alert(1)", "x onload=alert(1) y",
    "<<script>alert(1)//<</script>", "<scr<script>ipt>alert(1)</scr</script>ipt>", "<SCRIPT>alert(1)</SCRIPT>",
    "<script\x0c>alert(1)</script>", "<img src=x:alert(1) onerror=eval(src)>", "<svg><script>alert(1)</svg>",
    "<img srcset='x' onerror=alert(1)>", "<p style=background:url(javascript:alert(1))>",
    "<x contenteditable onblur=alert(1)>", "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "\\u003cscript\\u003ealert(1)", "%3Cscript%3Ealert(1)%3C/script%3E",
    "+ADw-script+AD4-alert(1)+ADw-/script+AD4-", "\uff1cscript\uff1ealert(1)",
    "<script>alert`1`</script>", "<template><script>alert(1)</script></template>",
]  # fmt: skip
_URLS = ["javascript:alert(1)", "JaVaScRiPt:alert(1)", "java\tscript:alert(1)",
         "data:text/html,<script>alert(1)</script>",
         "vbscript:msgbox(1)",
         "//evil.example/x.js", "\\\\evil.example\\share", "blob:alert(1)"]  # fmt: skip
_TEMPLATES = ["{{7*7}}", "{% include 'x' %}", "${7*7}", "<%= 7*7 %>", "#{7*7}", "{{config.items()}}",
              "{{''.__class__.__mro__}}", "%s%s%n", "{0.__class__}", "$(touch executed)", "`touch executed`",
              "; touch executed", "'; DROP TABLE predictions; --"]  # fmt: skip
FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(1)", "=cmd|' /C calc'!A0", '=HYPERLINK("http://evil.example")', "\t=1+1",
            "\r=1+1", "  =1+1", "x;=1+1", '"=1+1', "'=1+1", "=IMPORTXML(A1)", "-2+3+cmd|' /C calc'!A0"]  # fmt: skip
HEADERS = ["x\r\nSet-Cookie: a=b", "x\nLocation: http://evil.example", "x\r\n\r\n<script>alert(1)</script>",
           "x\rX-Evil: 1", "\x1b[2J\x1b[31mx", "x\x00y", "x\x08\x08y", "\u202egpj.exe", "\u2028alert(1)",
           "\x85X-Evil: 1", "x\x1b]0;evil\x07", "\ufeff<script>alert(1)</script>", "2026-01-01 INFO forged line",
           "x\x0b\x0cy", "Bearer dk_<script>"]  # fmt: skip
PAYLOADS = [*(f"<{tag}=alert(1)>" if tag != "script" else "<script>alert(1)</script>" for tag in _TAGS),
            *_ESCAPES, *_URLS, *_TEMPLATES, *FORMULAS, *HEADERS]  # fmt: skip

# Who somebody is ------------------------------------------------------------------------------------------------

EXIF_TEXTS = {
    0x010E: "PLANTED-DESCRIPTION of Jane Doe", 0x013B: "PLANTED-ARTIST", 0x8298: "PLANTED-COPYRIGHT",
    0x0131: "PLANTED-SOFTWARE", 0x010F: "PLANTED-MAKER", 0x013C: "PLANTED-HOST",
}  # fmt: skip
CAMERA_TEXTS = {0xA430: "PLANTED-OWNER", 0xA431: "PLANTED-BODY-4711", 0xA435: "PLANTED-LENS-4712",
                0x9003: "1970:01:02 03:04:05"}  # fmt: skip
PLACE_TEXTS = {0x001D: "1971:02:03", 0x0012: "PLANTED-DATUM", 0x0006: 4711.25}
COMMENT, XMP = "PLANTED-COMMENT", "PLANTED-XMP-CREATOR"
PNG_TEXTS = {"Author": "PLANTED-PNG-AUTHOR", "Comment": "PLANTED-PNG-COMMENT", "Source": "PLANTED-PNG-SOURCE"}
FILE_NAME = "PLANTED-Jane-Doe-1970"


def identity_texts(dicom_texts: dict[str, str]) -> list[str]:
    """Return all planted texts. dicom_texts: of the elements of a DICOM file."""
    texts = [*EXIF_TEXTS.values(), *CAMERA_TEXTS.values(), PLACE_TEXTS[0x001D], PLACE_TEXTS[0x0012], COMMENT, XMP,
             *PNG_TEXTS.values(), FILE_NAME, *dicom_texts.values()]  # fmt: skip
    return [str(text) for text in texts]


def jpeg_of_somebody(picture: Image.Image) -> bytes:
    """Return a JPEG with names, places and numbers of a camera in EXIF, XMP and a comment."""
    exif = Image.Exif()
    for tag, text in EXIF_TEXTS.items():
        exif[tag] = text
    exif.get_ifd(0x8769).update(CAMERA_TEXTS)
    places: dict[int, Any] = {**PLACE_TEXTS, 1: "N", 2: (47.0, 11.0, 4.71), 3: "E", 4: (8.0, 11.0, 4.71)}
    exif.get_ifd(0x8825).update(places)
    xmp = f"<x:xmpmeta xmlns:x='adobe:ns:meta/'><creator>{XMP}</creator></x:xmpmeta>".encode()
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=95, exif=exif, comment=COMMENT, xmp=xmp)
    return stream.getvalue()


def png_of_somebody(picture: Image.Image) -> bytes:
    """Return a PNG with names in its texts."""
    info = PngInfo()
    for name, text in PNG_TEXTS.items():
        info.add_text(name, text)
    stream = io.BytesIO()
    picture.save(stream, "PNG", pnginfo=info)
    return stream.getvalue()

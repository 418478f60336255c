"""Titles inside sentences."""


def lower_first(title: str) -> str:
    """Return a title for the middle of a sentence; JPEG and AUROC keep their capitals."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]

"""Test-time views of an image: their names, and the sets that a recipe's `test_views` may name. Without torch.

A model's probabilities are the mean over its views of the probabilities of each, as those of an ensemble are the mean
over its nets. Eight symmetries, since a dermoscopic image has no upper side; crops of 0.875 of the side (224 of 256
pixels, as the ten-crop test of Krizhevsky 2012) keep the lesion, which is rarely at the border.
"""

from collections.abc import Mapping, Sequence
from typing import Any

IDENTITY_VIEW: tuple[str, ...] = ("identity",)
DIHEDRAL_VIEWS = (
    *IDENTITY_VIEW, "rotate_90", "rotate_180", "rotate_270",
    "flip", "flip_rotate_90", "flip_rotate_180", "flip_rotate_270",
)  # fmt: skip
"""The symmetries of the square: `flip` mirrors left and right, and is done before the turn (anticlockwise)."""

CROP_VIEWS = ("crop_top_left", "crop_top_right", "crop_bottom_left", "crop_bottom_right", "crop_centre")
CROP_FRACTION = 0.875
"""Side of a crop as a fraction of the image's; the crop is resized to the size of the image."""

VIEW_SETS: Mapping[str, tuple[str, ...]] = {
    "identity": IDENTITY_VIEW,
    "dihedral": DIHEDRAL_VIEWS,
    "dihedral_crops": (*DIHEDRAL_VIEWS, *CROP_VIEWS),
}
"""Set of views -> its views; a larger set begins with the views of the smaller one."""

ALL_VIEWS = VIEW_SETS["dihedral_crops"]


def check_views(views: Any) -> tuple[str, ...]:
    """Return the views of a member of model.json; raises `ValueError` where they are no list of known ones."""
    if not isinstance(views, list) or not 1 <= len(views) <= len(ALL_VIEWS):
        n = len(views) if isinstance(views, list) else "no list of"
        raise ValueError(f"{n} views; a member has 1 to {len(ALL_VIEWS)}")
    unknown = [view for view in views if not isinstance(view, str) or view not in ALL_VIEWS]
    if unknown:
        raise ValueError(f"the view {str(unknown[0])[:40]!r} is not one of {', '.join(ALL_VIEWS)}")
    if len(set(views)) < len(views):
        raise ValueError("a view of a member is there twice")
    return tuple(views)


def views_text(views: Sequence[str]) -> str:
    """Return the name of a set of views, or the names of the views where they are no set."""
    return next((name for name, members in VIEW_SETS.items() if members == tuple(views)), ", ".join(views))

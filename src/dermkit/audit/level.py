"""How sure a check must be before it warns: one rate of false warnings, divided among all statistical tests."""

ALPHA = 0.05
"""The chance of any false warning on a data set without faults, over all statistical checks together."""

TESTS = 13
"""Statistical tests of one class against the rest: file size, dimensions, JPEG tables, border, colour, source, two of
metadata, artefact scores jointly, and the presence of four artefacts one by one."""


def share_of_alpha(classes: int) -> float:
    """Return the chance of a false finding that one test of one of `classes` classes may take (Bonferroni)."""
    return ALPHA / TESTS / max(classes, 1)

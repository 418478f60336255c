"""The kinds of numbers that a recipe's fields hold, and how strictly they are read."""

from typing import Annotated

from pydantic import ConfigDict, Field

STRICT_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

MIN_IMAGE_SIZE = 16
"""Least side of an image, in pixels."""

NonNegativeFloat = Annotated[float, Field(ge=0.0, le=1e30)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
FractionBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegativeInt = Annotated[int, Field(ge=0, le=10**7)]
PositiveInt = Annotated[int, Field(ge=1, le=10**6)]

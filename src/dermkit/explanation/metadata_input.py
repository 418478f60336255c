"""The second input of an explanation: the metadata of its images, what is said of them, and what they weigh.

Without torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.explanation.metadata_weights import (
    InputWeight,
    ScoreWithMetadata,
    summarise_weights,
    summary_sentence,
    weigh_inputs,
)
from dermkit.explanation.target import EvidenceTarget
from dermkit.models.members import MemberFields, metadata_fields
from dermkit.prediction.inputs import ImageRef
from dermkit.prediction.metadata_table import (
    ImageMetadata,
    describe_metadata,
    find_metadata,
    metadata_lines,
    used_metadata,
)


@dataclass(frozen=True)
class MetadataInput:
    """The metadata of the images of an explanation. table: None for a model without a second input.

    positions: of the images in the table.
    """

    members: Sequence[MemberFields]
    table: ImageMetadata | None
    positions: Mapping[ImageRef, int]

    @property
    def is_given(self) -> bool:
        """Whether the model takes metadata and a table was given."""
        return self.table is not None and self.table.source != ""

    def row(self, image: ImageRef) -> pd.DataFrame | None:
        """Return the metadata of an image as the model uses them, one row, "" = unknown; None where none were given."""
        if self.table is None or not self.is_given:
            return None
        return used_metadata(self.table.table.iloc[[self.positions[image]]], self.members)

    def weigh(
        self, score: ScoreWithMetadata, inputs: Sequence[NDArray[np.uint8]], image: ImageRef, target: EvidenceTarget,
        class_names: Sequence[str],
    ) -> tuple[InputWeight, ...]:  # fmt: skip
        """Return what metadata and image weigh in the answer about an image, () where no field of it is known."""
        row = self.row(image)
        return () if row is None else weigh_inputs(score, inputs, row, target, class_names)

    def lines(self) -> list[str]:
        """Return what the terminal says before the first image."""
        if self.table is None:
            return []
        return (
            metadata_lines(self.table, self.members) if self.is_given else [f"warning: {self._unknown_sentence()}"]
        )

    def page_text(self, weights: Sequence[Sequence[InputWeight]]) -> str:
        """Return what the page says, "" for a model without a second input. weights: of each image."""
        if self.table is None:
            return ""
        if not self.is_given:
            return self._unknown_sentence()
        fields, n = ", ".join(metadata_fields(self.members)), len(self.table.table)
        sentence = (
            f"The model takes {fields} beside the image. Maps and probabilities are of images with them: "
            f"{self.table.source} has a row for {self.table.n_with_row} of {n} image{'s' * (n != 1)}, and what it does "
            "not hold is unknown."
        )
        return f"{sentence} {summary_sentence(summarise_weights(weights))}".rstrip()

    def _unknown_sentence(self) -> str:
        return (
            f"The model takes {', '.join(metadata_fields(self.members))} beside the image, and none were given "
            "(--metadata). Maps and probabilities are of images without them, as `dermkit predict` gives them without "
            "--metadata."
        )

    def json_fields(self, weights: Sequence[Sequence[InputWeight]]) -> dict[str, Any]:
        """Return its entries in explain.json. weights: of each image."""
        fields = metadata_fields(self.members)
        description = describe_metadata(self.table, self.members)
        return {
            "unknown_metadata": [] if self.is_given else list(fields),
            "metadata": None if description is None else {**description, "weights": summarise_weights(weights)},
        }


def find_metadata_input(
    metadata: Path | pd.DataFrame | None, images: Sequence[ImageRef], members: Sequence[MemberFields], model: Path
) -> MetadataInput:
    """Return the metadata of the images; raises as `prediction.metadata_table.find_metadata`."""
    table = find_metadata(metadata, images, members, model)
    return MetadataInput(members, table, {image: position for position, image in enumerate(images)})

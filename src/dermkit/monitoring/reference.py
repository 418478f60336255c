"""What monitoring knows of a model: its classes, its figures on test images, and how many distances it was given."""

from collections.abc import Mapping
from dataclasses import dataclass

from dermkit.data.diagnoses import find_diagnosis


@dataclass(frozen=True)
class KnownRate:
    """A rate on test images. value: 0..1. n: images. n_effective: independent images that its interval is worth.

    ci95: its interval, None where the card has none.
    """

    value: float
    n: int
    n_effective: int
    ci95: tuple[float, float] | None = None


@dataclass(frozen=True)
class MonitoredModel:
    """What is known of a model without loading it.

    name: of its recipe. key: what the log names it by. is_malignant: class -> whether it counts as malignant.
    test_rates: operating point -> `sensitivity` and `specificity`. n_validation_groups: lesions whose distances give
    the p values of the log; 0 where the model has none, or several nets. rates_reason: why its card has no test rates
    that can be compared with, "" where none is known.
    """

    name: str
    key: str
    is_malignant: Mapping[str, bool]
    test_rates: Mapping[str, Mapping[str, KnownRate]]
    n_validation_groups: int
    rates_reason: str = ""

    def malignancy_of(self, diagnosis: str) -> bool | None:
        """Return whether an outcome is malignant: as the class of that name, or by the table of diagnoses.

        None for a diagnosis that neither knows.
        """
        for name, is_malignant in self.is_malignant.items():
            if name.casefold() == diagnosis.strip().casefold():
                return is_malignant
        entry = find_diagnosis(diagnosis)
        return None if entry is None else entry.malignancy == "malignant"

"""One run before it starts: what, on which data, and where; nothing left to choose."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from dermkit.data.manifest import Dataset
    from dermkit.data.seal import Meeting, Seal
    from dermkit.data.split import Split
    from dermkit.models.net import Weights
    from dermkit.recipes.schema import Recipe


@dataclass(frozen=True)
class Where:
    """Where a run happens: what may differ between machines without changing the experiment.

    devices: processes on this machine, each with a device of its own; nodes: machines; workers: threads that prepare
    batches ahead, in each process.
    """

    out: Path = Path("runs")
    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    workers: int = 0
    weights: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class Plan:
    """One run, resolved: nothing left to choose."""

    recipe: "Recipe"
    dataset: "Dataset"
    split: "Split"
    sides: "pd.DataFrame"
    weights: "Weights"
    seed: int
    fold: int
    folder: Path
    trial: bool = False
    """A trial of a search: the test split is not scored and no report is written."""
    seal: "Seal | None" = None
    """Of this very test side: it is not scored until somebody opens it."""
    meetings: "tuple[Meeting, ...]" = ()
    """Seals of other splits, some of whose images lie on a side of this one."""

    @property
    def hides_test(self) -> bool:
        """Whether this run leaves its test images unscored."""
        return self.trial or self.seal is not None

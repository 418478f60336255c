"""The demo: every step on synthetic images, offline, with a small net. It says nothing about skin."""

from dataclasses import dataclass
from pathlib import Path

from dermkit.data.synthetic.dataset import make_dataset_folder
from dermkit.files import check_writable
from dermkit.pipeline.plan import RunSettings
from dermkit.prediction.output import PredictOutcome
from dermkit.prediction.run import predict
from dermkit.progress import Progress
from dermkit.recipes.experiments import DEMO
from dermkit.runs.layout import MODEL_FOLDER, REPORT_FILE

LESIONS_PER_CLASS = 55
NEW_LESIONS_PER_CLASS = 4
DEMO_SEED = 7


@dataclass(frozen=True)
class DemoOutcome:
    """The files and folders that the demo wrote."""

    images: Path
    dataset: Path
    overview: Path
    run: Path
    report: Path
    predictions: PredictOutcome


def run_demo(out: Path, *, progress: Progress | None = None) -> DemoOutcome:
    """Draw images, import, split, train, evaluate, report and predict below `out`; a finished run is not repeated."""
    from dermkit.data.importers.run import import_dataset
    from dermkit.pipeline.train import train

    progress = progress or Progress()
    check_writable(out)
    images, new_images = out / "images", out / "new-images"
    progress.say(f"making images in {images}")
    make_dataset_folder(
        images, lesions_per_class=LESIONS_PER_CLASS, photos_per_lesion=(1, 3), seed=DEMO_SEED, layout="ham10000"
    )
    make_dataset_folder(
        new_images,
        lesions_per_class=NEW_LESIONS_PER_CLASS,
        photos_per_lesion=(1, 1),
        seed=DEMO_SEED + 1,
        layout="folder",
    )
    progress.say(f"importing into {out / 'dataset'}")
    outcome = import_dataset("ham10000", images, out=out / "dataset", name="synthetic dermoscopy")
    settings = RunSettings(out=out / "runs", device="cpu", resume=True)
    run = train(DEMO, outcome.dataset, settings=settings, progress=progress)
    progress.say("predicting new images")
    predictions = predict(run / MODEL_FOLDER, [str(new_images)], out=out / "predictions", progress=progress)
    return DemoOutcome(
        images, out / "dataset", out / "dataset" / "overview.html", run, run / REPORT_FILE, predictions
    )

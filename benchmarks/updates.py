"""How often an update decides rightly on made data; rows in benchmarks/updates.csv.

    python benchmarks/updates.py simulated [--seeds 20]
    python benchmarks/updates.py trained [--seeds 3]
    python benchmarks/updates.py table

`simulated`: scores are drawn, and the rule and the registry are the real ones. Two tests of 1,200 images, 30 % of them
malignant, one or two images a lesion, three sites (40, 40 and 20 %); both models see a shared part of each image.
`equal` is as good as the champion, `better` sees more, `worse` less; `unfair` sees more on two sites and less on the
third, so that it is better on average; `few` is `equal` on 120 images. `trained`: the real command, from a data set
folder to the record, with a small net on drawn lesions: `better` has several times the images, `worse` gets new images
of which four in ten have a wrong label, in training and test.
A job that is in the table is not done again.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dermkit.comparison.promotion import PairedTest, PromotionDecision, PromotionRule, decide_promotion
from dermkit.comparison.promotion_sentences import decision_sentences
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats.intervals import clopper_pearson_interval
from dermkit.runs.registry import Registry, read_registry, record_decision, register_first
from scale import add_rows, commit, read_rows

HERE = Path(__file__).parent
ROWS = HERE / "updates.csv"
HEADER = ("commit", "job", "challenger", "seed", "promoted", "serving", "harmed_groups", "whole_tests", "old_auroc",
          "old_low", "old_high", "new_auroc", "new_low", "new_high", "n_old", "n_new", "seconds")  # fmt: skip
CHALLENGERS = {
    "equal": (0.0, 0.0),
    "better": (0.5, 0.5),
    "worse": (-0.5, -0.5),
    "unfair": (1.1, -1.0),
    "few": (0.0, 0.0),
}
"""What a challenger sees more of the truth on two sites, and on the third."""
EXPECTED = {"equal": "promoted", "better": "promoted", "worse": "refused", "unfair": "refused", "few": "refused"}
SIZE, FEW = 1200, 120


def draw_test(name: str, challenger: str, rng: np.random.Generator) -> PairedTest:
    """Draw a test on which a champion and a challenger of this kind answered."""
    n = FEW if challenger == "few" else SIZE
    lesion = np.sort(rng.integers(0, round(n / 1.5), n))
    groups = np.unique(lesion, return_inverse=True)[1].astype(np.int64)
    malignant, site = rng.random(n) < 0.3, rng.choice(3, n, p=(0.4, 0.4, 0.2))
    malignant, site = malignant[groups], site[groups]  # of the lesion, not of the image
    sign, shared = 2.0 * malignant - 1, rng.normal(0, 1, n)[groups] + rng.normal(0, 0.5, n)
    gain = np.where(site == 2, CHALLENGERS[challenger][1], CHALLENGERS[challenger][0])
    champion, other = (strength * sign + shared + rng.normal(0, 0.7, n) for strength in (1.3, 1.3 + gain))
    truth = malignant.astype(np.int64)
    sites = {"site": [f"site {number}" for number in site]}
    return PairedTest(
        name, _scored(truth, champion, groups), _scored(truth, other, groups), champion > -0.7, other > -0.7, sites
    )


def _scored(truth: Any, log_odds: Any, groups: Any) -> ScoredSet:
    p = 1 / (1 + np.exp(-log_odds))
    return ScoredSet(
        ("other", "melanoma"), np.array([False, True]), truth, (p >= 0.5).astype(np.int64),
        np.column_stack([1 - p, p]), groups,
    )  # fmt: skip


def simulate(challenger: str, seed: int, folder: Path) -> tuple[PromotionDecision, Registry]:
    """Decide on a drawn challenger and record it in a registry of its own."""
    rng = np.random.default_rng([seed, list(CHALLENGERS).index(challenger)])
    decision = decide_promotion(
        [draw_test(name, challenger, rng) for name in ("old", "new")], PromotionRule("auroc")
    )
    runs = [_made_run(folder / name, name) for name in ("champion", "challenger")]
    register_first(folder / "registry", runs[0], details={})
    record_decision(
        folder / "registry", runs[1], champion="v1", update="made", is_promoted=decision.is_promoted,
        details={"reasons": decision_sentences(decision)},
    )  # fmt: skip
    return decision, read_registry(folder / "registry")


def _made_run(folder: Path, name: str) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.json").write_text(f'{{"format": 9, "members": ["{name}"]}}', encoding="utf-8")
    (folder / "model" / "net.safetensors").write_bytes(name.encode())
    return folder


def simulated_row(challenger: str, seed: int, folder: Path) -> Sequence[object]:
    started_at = time.perf_counter()
    decision, registry = simulate(challenger, seed, folder)
    checks = [check.as_dict() for check in decision.checks]
    return (
        commit(), "simulated", challenger, seed, int(decision.is_promoted), registry.current, *_facts(checks),
        f"{time.perf_counter() - started_at:.2f}",
    )  # fmt: skip


def _facts(checks: Sequence[dict[str, Any]]) -> list[object]:
    """Return what a row says of the questions: harmed groups, the whole tests, AUROC on both tests, n."""
    harmed = sorted({check["group"] for check in checks if check["outcome"] == "worse" and check["group"]})
    outcomes = {check["outcome"] for check in checks if not check["group"]}
    whole = next(outcome for outcome in ("worse", "undecided", "not worse") if outcome in outcomes)
    aurocs = [check for check in checks if check["metric"] == "auroc" and not check["group"]]
    figures = [value for check in aurocs for value in (check["value"], *check["ci95"])]
    return [" ".join(harmed), whole, *(f"{value:.4f}" for value in figures), *(check["n"] for check in aurocs)]


# Trained ------------------------------------------------------------------------------------------------------------


def make_data(folder: Path, n_lesions: int, seed: int, *, wrong_labels: float = 0.0) -> Path:
    """Draw a data set of benign and malignant lesions and import it. wrong_labels: fraction with the other label."""
    import dermkit as dk
    from dermkit.data.manifest import save_dataset
    from dermkit.data.synthetic.dataset import make_dataset_folder

    make_dataset_folder(
        folder / "images", lesions_per_class={"benign": n_lesions, "malignant": n_lesions}, photos_per_lesion=(1, 1),
        size=32, seed=seed,
    )  # fmt: skip
    dataset = dk.import_dataset("folder", folder / "images", out=folder / "data").dataset
    if wrong_labels:
        is_wrong = np.random.default_rng(seed).random(len(dataset.manifest)) < wrong_labels
        other = dataset.manifest["label"].map({"benign": "malignant", "malignant": "benign"})
        save_dataset(
            replace(
                dataset, manifest=dataset.manifest.assign(label=dataset.manifest["label"].mask(is_wrong, other))
            )
        )
    return dataset.folder


def trained_row(challenger: str, seed: int, folder: Path) -> Sequence[object]:
    """Train a champion and update it by the command's own function."""
    import dermkit as dk
    from dermkit.pipeline.update import UpdateOptions, update
    from dermkit.pipeline.update_data import NewSplitOptions
    from dermkit.runs.layout import UPDATE

    started_at = time.perf_counter()
    old = make_data(folder / "old", 220, 100 * seed + 1)
    wrong = 0.4 if challenger == "worse" else 0.0
    new = make_data(folder / "new", 600, 100 * seed + 2, wrong_labels=wrong)
    demo = dk.find_recipe("demo")
    split = replace(demo.split, scheme="holdout", validation=0.1, test=0.6, folds=0, per_class=0, draw_from="")
    recipe = replace(
        demo, name="small", image=replace(demo.image, size=24), split=split, seed=seed,
        model=replace(demo.model, backbone="dermkit/cnn-s1", hidden=(8,)), phases=(dk.full_phase(6, lr=3e-3),),
    )  # fmt: skip
    settings = dk.RunSettings(out=folder / "runs", device="cpu", heat_maps=False)
    champion = dk.train(recipe, dk.load_dataset(old), settings=settings)
    outcome = update(
        champion, dk.load_dataset(new), registry=folder / "registry", settings=settings,
        options=UpdateOptions(new_split=NewSplitOptions(test=0.4)),
    )  # fmt: skip
    checks = UPDATE.read(outcome.folder)["checks"]
    return (
        commit(), "trained", challenger, seed, int(outcome.is_promoted), read_registry(folder / "registry").current,
        *_facts(checks), f"{time.perf_counter() - started_at:.1f}",
    )  # fmt: skip


# Rows ---------------------------------------------------------------------------------------------------------------


def run_jobs(
    job: str, challengers: Sequence[str], seeds: int, row: Callable[[str, int, Path], Sequence[object]]
) -> None:
    done = {(one["job"], one["challenger"], one["seed"]) for one in read_rows(ROWS)} if ROWS.exists() else set()
    for seed in range(seeds):
        for challenger in challengers:
            if (job, challenger, str(seed)) not in done:
                with tempfile.TemporaryDirectory() as folder:
                    add_rows(ROWS, HEADER, [row(challenger, seed, Path(folder))])


def print_table() -> None:
    """Print the rows of benchmarks/serving.md."""
    rows = read_rows(ROWS)
    for job in ("simulated", "trained"):
        for challenger, expected in EXPECTED.items():
            chosen = [row for row in rows if (row["job"], row["challenger"]) == (job, challenger)]
            if not chosen:
                continue
            n, n_promoted = len(chosen), sum(row["promoted"] == "1" for row in chosen)
            right = n_promoted if expected == "promoted" else n - n_promoted
            low, high = clopper_pearson_interval(right, n)
            mean = [np.mean([float(row[f"{test}_auroc"]) for row in chosen]) for test in ("old", "new")]
            harmed = sum(bool(row["harmed_groups"]) for row in chosen)
            alone = sum(bool(row["harmed_groups"]) and row["whole_tests"] == "not worse" for row in chosen)
            print(
                f"| {job} | {challenger} | {mean[0]:+.3f}, {mean[1]:+.3f} | {expected} | {right} of {n}, "
                f"{right / n:.0%} [{low:.0%}, {high:.0%}] | {harmed} of {n} | {alone} of {n} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("simulated", "trained", "table"))
    parser.add_argument("--seeds", type=int, default=0)
    options = parser.parse_args()
    if options.job == "simulated":
        run_jobs("simulated", list(CHALLENGERS), options.seeds or 20, simulated_row)
    elif options.job == "trained":
        run_jobs("trained", ("better", "worse"), options.seeds or 3, trained_row)
    else:
        print_table()


if __name__ == "__main__":
    main()

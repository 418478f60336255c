"""A plan and its race for people: auto.html, and lines for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dermkit.files import write_text
from dermkit.metrics.stats.estimate import UNRELIABLE_PREFIX, reliability
from dermkit.render.forest import forest_rows
from dermkit.reporting.labels import page_templates
from dermkit.reporting.terminal import figure_lines, wrapped
from dermkit.runs.documents import saved_content
from dermkit.runs.folder import read_table
from dermkit.runs.layout import AUTO, AUTO_PAGE, LEADERBOARD_TABLE, REPORT_FILE

_ENSEMBLE = "ensemble"
"""The row of all recipes together, which is none that was trained."""

_Json = Mapping[str, Any]
_Row = Mapping[Any, str]

RACE_METRICS = ("balanced_accuracy", "accuracy", "auroc_macro", "loss")


def write_auto_page(folder: Path) -> Path:
    """Write auto.html of a race's folder that has its leaderboard; returns its path."""
    with saved_content(folder):
        auto = AUTO.read(folder)
        rows = read_table(folder / LEADERBOARD_TABLE).to_dict("records")
        report = folder / auto["chosen"]["folder"] / REPORT_FILE
        html = page_templates().get_template("auto.html.j2").render(
            title=f"The strongest classifier of {auto['dataset']} in {_duration_text(auto['seconds'])}",
            lead=race_lead(auto, rows),
            answer=_race_answer(auto),
            forest=_forest(auto, rows),
            unfinished=[row for row in rows if not row["balanced_accuracy"]],
            remedies=list(race_remedies(auto, rows)),
            report=f"{auto['chosen']['folder']}/{REPORT_FILE}" if report.is_file() else "",
            chosen=auto["chosen"],
            rows=rows,
            metrics=RACE_METRICS,
            choices=auto["plan"]["choices"],
            facts=list(profile_facts(auto["profile"])),
        )  # fmt: skip
    write_text(folder / AUTO_PAGE, html)
    return folder / AUTO_PAGE


def race_lead(auto: _Json, rows: Sequence[_Row]) -> str:
    """Return what was done, in plain words. rows: of leaderboard.csv."""
    n_finished = sum(bool(row["balanced_accuracy"]) and row["name"] != _ENSEMBLE for row in rows)
    n_recipes = sum(row["name"] != _ENSEMBLE for row in rows)
    n_folds, n_trained = auto["plan"]["n_folds"], auto["plan"]["n_trained_folds"]
    folds = f"{n_folds} folds" if n_trained > 1 else f"one of {n_folds} folds"
    trained = "One recipe was" if n_recipes == 1 else f"{n_finished} of {n_recipes} recipes were"
    return (
        f"{trained} trained on {folds}, and scored on {auto['chosen']['estimate']['n']:,} images that the nets did not "
        "learn from. No test image was scored."
    )


def _race_answer(auto: _Json) -> dict[str, Any]:
    """Return the word, what it is about, its kind and its sentences for the first screen."""
    chosen = auto["chosen"]
    expected = chosen["corrected"] if chosen["n_recipes"] > 1 else chosen["estimate"]
    is_known = expected["value"] is not None and reliability(expected) == ""
    return {
        "word": f"Chosen: {chosen['name']}", "about": "the best recipe by balanced accuracy",
        "kind": "good" if is_known else "care", "sentences": [_choice_sentence(chosen)],
    }  # fmt: skip


def _choice_sentence(chosen: _Json) -> str:
    """Return what choosing among several does to the figure of the chosen recipe."""
    if chosen["n_recipes"] == 1:
        return "It is the only recipe that was finished, so nothing was chosen among others."
    corrected = chosen["corrected"]
    if corrected["value"] is None:
        return f"How much too good its figure is, as the best of {chosen['n_recipes']}, is not known."
    return (
        f"As the best of {chosen['n_recipes']} it looks better than it is ({chosen['value']:.3f}): expect "
        f"{corrected['value']:.3f} on new images of the same kind."
    )


def _forest(auto: _Json, rows: Sequence[_Row]) -> list[dict[str, Any]]:
    """Return the rows of the forest plot: every recipe with a figure, then the chosen one, corrected."""
    chosen = auto["chosen"]
    items = [(row["name"], _estimate_of(row)) for row in rows if row["balanced_accuracy"]]
    if chosen["n_recipes"] > 1:
        items.append((f"{chosen['name']}, corrected for choosing", chosen["corrected"]))
    forest = forest_rows(items, low=0.0, high=1.0)
    return [{**row, "tag": "chosen" if row["name"] == chosen["name"] else ""} for row in forest]


def _estimate_of(row: _Row) -> dict[str, Any]:
    low, high = row["balanced_accuracy_low"], row["balanced_accuracy_high"]
    is_doubtful = "balanced_accuracy" in row["unreliable"].split()
    return {
        "value": float(row["balanced_accuracy"]), "ci95": [float(low), float(high)] if low else None,
        "n": int(row["n"]), "reason": UNRELIABLE_PREFIX if is_doubtful else "",
    }  # fmt: skip


def race_remedies(auto: _Json, rows: Sequence[_Row]) -> Iterator[str]:
    """Yield what to do next after a race, in plain words. rows: of leaderboard.csv."""
    profile = auto["profile"]
    if profile["audit"]["state"] != "done":
        yield "Look for copies and contradictory labels, and run the race again: `dermkit audit DATASET --clean`."
    if not profile["n_with_lesion_or_patient"]:
        yield (
            "Add lesion or patient ids if there are any: without them photographs of one lesion may lie on both sides, "
            "and the figures are too good."
        )
    late = [row["name"] for row in rows if not row["balanced_accuracy"]]
    if late:
        yield f"Give more time (`--time`): {', '.join(late)} {'has' if len(late) == 1 else 'have'} no figure."
    yield (
        "Score the test images once, when nothing is to be chosen any more: "
        "`dermkit evaluate FOLDER --open-test DATASET`. The exact command stands in NEXT_STEPS.txt of the model's "
        "folder."
    )


def _duration_text(seconds: float) -> str:
    """Return a time for people: 45 s, 30 min, 2 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h".replace(".0 h", " h")


def chosen_sentence(auto: Mapping[str, Any]) -> str:
    """Return which recipe a race chose, its value and the corrected one."""
    chosen = auto["chosen"]
    estimate, corrected = chosen["estimate"], chosen["corrected"]
    text = f"Chosen: {chosen['name']}, balanced accuracy out of fold {chosen['value']:.3f}"
    if chosen["n_recipes"] == 1:
        return f"{text}{_interval_text(estimate)}. It is the only recipe that was finished."
    if corrected["value"] is None:
        return f"{text}; not corrected for choosing: {corrected.get('reason', '')}."
    return (
        f"{text}; corrected for choosing among {chosen['n_recipes']}: {corrected['value']:.3f}"
        f"{_interval_text(corrected)}."
    )


def _interval_text(estimate: Mapping[str, Any]) -> str:
    if not estimate["ci95"]:
        return f", n = {estimate['n']}"
    low, high = estimate["ci95"]
    return f" [{low:.3f}, {high:.3f}]{', unreliable' if reliability(estimate) else ''}, n = {estimate['n']}"


def profile_facts(profile: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is known of a data set, name and value."""
    counts = ", ".join(f"{name} {count:,}" for name, count in profile["class_counts"].items())
    yield "images to train on", f"{profile['n_training']:,}"
    yield "published test images", f"{profile['n_test']:,}, left alone" if profile["n_test"] else "none"
    yield "classes", counts
    yield "groups", f"{profile['n_groups']:,} of lesion, patient and copies"
    yield "images with a lesion or patient id", f"{profile['n_with_lesion_or_patient']:,}"
    yield "shorter side", f"{profile['median_side']} px (median)"
    metadata = ", ".join(f"{name} {share:.0%}" for name, share in profile["known_metadata"].items())
    yield "metadata", metadata.replace("%", " %") or "none"
    audit = profile["audit"]
    findings = ", ".join([*audit["errors"], *audit["warnings"]])
    yield "audit", {"never": "never done", "outdated": "outdated"}.get(audit["state"], findings or "nothing found")


def plan_lines(profile: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """Return a plan as lines: the data set, the recipes with their time, each choice with its reason."""
    lines = [*figure_lines(list(profile_facts(profile))), "recipes, in this order:"]
    candidates: Sequence[Mapping[str, Any]] = plan["candidates"]
    lines += [f"  {one['recipe']['name']}: about {_duration_text(one['seconds'])}" for one in candidates]
    lines.append(
        f"  in all about {_duration_text(plan['decoding'] + sum(one['seconds'] for one in candidates))} of "
        f"{_duration_text(plan['seconds'])}"
    )
    for choice in plan["choices"]:
        lines += wrapped(f"{choice['name']}: {choice['value']}. {choice['reason']}.", indent="  ")
        lines += [f"  {line}" for line in wrapped(f"evidence: {choice['evidence']}", indent="  ")]
        lines += [f"  {line}" for line in wrapped(f"would change with: {choice['would_change']}", indent="  ")]
    return lines


def auto_lines(folder: Path) -> list[str]:
    """Return what to read first of a race: the leaderboard, and what was chosen."""
    with saved_content(folder):
        auto = AUTO.read(folder)
        rows = read_table(folder / LEADERBOARD_TABLE).to_dict("records")
        lines = [f"leaderboard, balanced accuracy out of fold: {LEADERBOARD_TABLE}"]
        lines += figure_lines([(row["name"], _value_text(row)) for row in rows])
        return [*lines, *wrapped(chosen_sentence(auto), indent="  ")]


def _value_text(row: Mapping[Any, str]) -> str:
    if not row["balanced_accuracy"]:
        return row["state"]
    value, low, high = (float(row[f"balanced_accuracy{end}"] or "nan") for end in ("", "_low", "_high"))
    mark = ", unreliable" if "balanced_accuracy" in row["unreliable"].split() else ""
    return f"{value:.3f} [{low:.3f}, {high:.3f}]{mark}, n = {row['n']}, {float(row['seconds']):.0f} s"

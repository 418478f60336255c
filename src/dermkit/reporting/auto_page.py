"""A plan and its race for people: auto.html, and lines for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dermkit.files import write_text
from dermkit.metrics.stats.estimate import reliability
from dermkit.reporting.labels import page_templates
from dermkit.reporting.terminal import figure_lines, wrapped
from dermkit.runs.documents import saved_content
from dermkit.runs.folder import read_table
from dermkit.runs.layout import AUTO, AUTO_PAGE, LEADERBOARD_TABLE

RACE_METRICS = ("balanced_accuracy", "accuracy", "auroc_macro", "loss")


def write_auto_page(folder: Path) -> Path:
    """Write auto.html of a race's folder that has its leaderboard; returns its path."""
    with saved_content(folder):
        auto = AUTO.read(folder)
        rows = read_table(folder / LEADERBOARD_TABLE).to_dict("records")
        html = page_templates().get_template("auto.html.j2").render(
            title=f"The strongest classifier of {auto['dataset']} in {_duration_text(auto['seconds'])}",
            sentence=chosen_sentence(auto),
            chosen=auto["chosen"],
            rows=rows,
            metrics=RACE_METRICS,
            choices=auto["plan"]["choices"],
            facts=list(profile_facts(auto["profile"])),
        )  # fmt: skip
    write_text(folder / AUTO_PAGE, html)
    return folder / AUTO_PAGE


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

"""What a report warns of: leaks, small classes, the audit of the data set, and what the run's own files warn of."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dermkit.metrics.stats.power import best_of_chance

if TYPE_CHECKING:
    from dermkit.runs.folder import Run

FEW = 10
"""Below this many images of a class Wilson's interval of a half is wider than 50 points: said as a warning."""

SIDE = 30
"""Below this many images of the malignant or of the other ones, figures of that side are shaky, marked or not."""

UNSTABLE = "Training was not stable"
"""How a run's own warning begins that is a serious one."""

SERIOUS = (UNSTABLE, "Sealed test images")
"""How the lines of a run's own files begin that are serious in any run."""

Level = Literal["serious", "note", "data"]


@dataclass(frozen=True)
class Warn:
    """A warning of the report's head; `data` is what holds for the data set in every run, told last and folded.

    replaces: how a file's line on the same begins.
    """

    level: Level
    text: str
    replaces: str = ""


def warnings(run: "Run") -> list[Warn]:
    """Return every warning once, in the order serious, note, data."""
    own = [
        *_leak_warnings(run),
        *_seal_warnings(run),
        *_audit_warnings(run),
        *_side_warnings(run),
        *_class_warnings(run),
        *_other_warnings(run),
    ]
    said = tuple(warn.replaces for warn in own if warn.replaces) + (
        () if run.leaks.get("total") else ("the split leaks",)
    )
    stored = [*run.metrics.get("warnings", []), *run.facts.get("warnings", [])]
    # A model on another data set: what its files warn of (overlap, images left out) decides what the figures mean.
    level: Level = "serious" if run.is_external else "note"
    notes = [
        Warn("serious" if str(text).startswith(SERIOUS) else level, str(text))
        for text in stored
        if not str(text).startswith(said)
    ]
    unique = {warn.text: warn for warn in [*own, *notes]}.values()
    return sorted(unique, key=lambda warn: ("serious", "note", "data").index(warn.level))


def _leak_warnings(run: "Run") -> Iterator[Warn]:
    leaks = run.leaks
    sides = (
        ("test", leaks, "a training or validation"),
        ("validation", leaks.get("validation", {}), "a training"),
    )
    for side, counts, learned in sides:
        if total := counts.get("total", 0):
            scheme = run.facts.get("split", {}).get("scheme", "of this name")
            yield Warn(
                "serious",
                f"The split leaks (scheme {scheme}): {total} of {counts.get('n', '?')} {side} images share a lesion or "
                f"the exact pixels with {learned} image ({counts.get('identical_pixels', 0)} identical, "
                f"{counts.get('same_group', 0)} of the same group). The {side} figures are not those of unseen lesions:"
                " too good as a rule, too bad where the copies carry another label.",
                replaces="the split leaks",
            )
    if contradictions := leaks.get("contradictions", 0):
        yield Warn(
            "serious",
            f"{contradictions} images carry another label in an exact copy of themselves: no model can be right.",
        )


def _seal_warnings(run: "Run") -> Iterator[Warn]:
    """Yield what the openings of a sealed test side do to its figures; one opening, this run's own, says nothing."""
    kept = run.seal
    if not kept or kept["opening"] is None:
        return
    for note in kept["notes"]:
        yield Warn("note", str(note))
    if "test" not in run.splits:
        yield Warn(
            "serious",
            f"Opening {kept['opening']} of the test side was logged and did not end: it counts all the same.",
        )
    openings = kept["openings"]
    if len(openings) < 2:
        return
    best = f"up to {best_of_chance(len(openings)):.1f} standard errors too good by chance alone"
    repeats = {(item["recipe"], str(item["run"]).split("-s")[0]) for item in openings}
    if len(repeats) == 1 and len({item["run"] for item in openings}) == len(openings):
        yield Warn(
            "note",
            f"The test side was opened {len(openings)} times, by runs of one recipe that differ in their seed alone: "
            f"their mean is that of an untouched test side; the best of them would be {best}.",
        )
        return
    yield Warn(
        "serious",
        f"The test side was opened {len(openings)} times: these are no longer the figures of an untouched test side. "
        f"Of {len(openings)} equally good models, the best one's figures are {best}; and whatever was decided after an "
        "opening was decided with the test side in view.",
    )


def _side_warnings(run: "Run") -> Iterator[Warn]:
    """Yield one line where the headline's malignant or other images are few: few marks stand beside such figures."""
    body, positive = run.metrics["splits"][run.headline], run.metrics.get("positive", [])
    counts = {name: int(row["n"]) for name, row in body["per_class"].items()}
    malignant = sum(n for name, n in counts.items() if name in positive)
    other = sum(counts.values()) - malignant
    groups = int(body.get("n_groups", body["n"]))
    # So few groups cannot be enough on both sides, however many images they hold.
    if not malignant or not other or (min(malignant, other) >= SIDE and groups >= 2 * SIDE):
        return
    together = (
        f", in {groups} groups of images that hang together (lesions, patients)" if groups < body["n"] else ""
    )
    yield Warn(
        "note",
        f"{malignant} malignant and {other} other {run.headline} images{together}: with fewer than {SIDE} independent "
        "ones on a side, its figures may be far from those of new lesions, also where no interval is marked.",
    )


def _class_warnings(run: "Run") -> Iterator[Warn]:
    for split in run.splits:
        counts = {name: body["n"] for name, body in run.metrics["splits"][split]["per_class"].items()}
        absent = [name for name, n in counts.items() if n == 0]
        few = [f"{name} ({n})" for name, n in counts.items() if 0 < n < FEW]
        if absent:
            yield Warn("serious", f"No {split} images of {', '.join(absent)}: what needs them is not defined.")
        if few:
            yield Warn("note", f"Fewer than {FEW} {split} images of {', '.join(few)}: their figures say little.")
    unsure = [str(item["name"]) for item in run.classes if item.get("malignancy") == "indeterminate"]
    if unsure:
        yield Warn(
            "note",
            f"Neither benign nor malignant by the class table: {', '.join(unsure)}. The malignant-against-the-rest "
            "figures count them among the rest; counting them as malignant would change each of these figures.",
            replaces="indeterminate, counted",
        )


def _other_warnings(run: "Run") -> Iterator[Warn]:
    if (overfitting := run.metrics.get("overfitting") or {}).get("overfitting"):
        kept, epoch = run.facts.get("kept") == "best", (run.facts.get("best") or {}).get("epoch")
        end = f" The weights kept are those of {f'epoch {epoch}' if epoch else 'the best epoch'}." if kept else ""
        sentence = str(overfitting["sentence"])
        yield Warn("note" if kept else "serious", sentence + end, replaces=sentence)
    for item in run.notes.get("warnings", []):
        yield Warn("data", f"{item['text']} ({item['n']})" if isinstance(item, Mapping) else str(item))
    cleaned = sum(int(item.get("dropped", 0)) for item in run.notes.get("cleaned", []))
    for defect in run.notes.get("defects", []):
        of_test = re.search(r"\btest\b", str(defect), re.IGNORECASE)
        if run.notes.get("cleaned"):
            yield Warn("data", f"Known defect, before {cleaned} images were dropped by a cleaning: {defect}")
        else:
            yield Warn("serious" if of_test else "data", f"Known defect: {defect}")
    if note := run.facts.get("weights", {}).get("note"):
        yield Warn("note", f"Weights: {note}", replaces="Weights:")


def _audit_warnings(run: "Run") -> Iterator[Warn]:
    """Yield what the audits of the data say: of the set tested on, and of the one an external model was trained on."""
    data, trained = run.facts.get("dataset", {}), run.facts.get("trained_on")
    yield from _audit_of(str(data.get("name") or "this data set"), data.get("audit") or {})
    if trained:
        yield from _audit_of(f"{trained.get('name') or '?'} (what the model was trained on)", trained["audit"])


def _audit_of(name: str, audit: Mapping[str, Any]) -> Iterator[Warn]:
    state, found = audit.get("state", "never"), audit.get("errors", [])
    if state == "never":
        not_done = "near copies, contradictory labels and shortcuts were not (no audit was run)."
        yield Warn("note", f"{name}: only identical pixels were looked for; {not_done}")
        return
    where = ""
    if state == "outdated" and audit.get("reason") == "manifest":
        where = " before its manifest changed"
        text = f"{name}: the audit of {audit['date']} is outdated, the manifest has changed since: audit it again."
        yield Warn("serious" if found else "note", text)
    elif state == "outdated":
        split = {"": "no split", "given_split": "the published split"}.get(
            audit["split"], f"split {audit['split']}"
        )
        where = f" on {split}"
        yield Warn(
            "note",
            f"{name}: the audit of {audit['date']} was of {split}, not of the one used here, on which near copies and "
            "shortcuts across sides were not looked for: `dermkit audit DATASET --split NAME` does.",
        )
    for item in found:
        yield Warn(
            "serious", f"{item['code']} {item['title']}: {item['n']} images of {name}{where}. {item['effect']}"
        )
    for item in audit.get("accepted", []):
        accepted = f"was accepted, not repaired ({item['date']})"
        yield Warn(
            "serious",
            f"{item['code']} {item['title']} ({item['n']} images of {name}) {accepted}. {item['effect']}",
        )
    if warned := audit.get("warnings", []):
        listed = "; ".join(f"{item['code']} {item['title']} ({item['n']})" for item in warned)
        yield Warn("note", f"The audit of {name} warns of what may distort a figure{where}: {listed}.")

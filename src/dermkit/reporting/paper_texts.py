"""Texts for a paper, from a run's files: DATASHEET.md, CHECKLISTS.md, and a methods paragraph in METHODS.md.

Every figure is one of metrics.json; what is undefined is left out with its reason, what no file says is named as open.
"""

import html
import re
from collections.abc import Iterator, Mapping

from dermkit.errors import printable
from dermkit.files import write_text
from dermkit.reporting.checklists import CHECKLISTS, Checklist, checklist_rows
from dermkit.reporting.paper_facts import listed, paper_facts, split_figures
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import CHECKLISTS_FILE, DATASHEET_FILE, METHODS_FILE

_DISCLAIMER = "**Research use only. Not a medical device.**"
_OPEN = "open: no file of this run says it"
_SIGNS = re.compile(r"[\\`*_\[\]|#]")

_DATASHEET = {
    "Motivation: why, by whom and with whose money the data set was made": (),
    "Composition: what the images are of": ("data_source", "classes"),
    "Composition: images of each class": ("class_counts", "test_class_counts"),
    "Composition: what is known beside the image": ("attributes",),
    "Composition: recommended splits": ("partition", "split_sizes"),
    "Composition: errors, noise, repeated images": ("audit",),
    "Composition: what was left out": ("exclusions",),
    "Composition: skin types, and groups that are missing": (),
    "Collection: devices, places, dates, who took the images": (),
    "Collection: consent and ethical review": (),
    "Labels: who decided them, and how (histopathology, follow-up, consensus)": (),
    "Preprocessing": ("preprocessing",),
    "Uses: what it was used for here": ("model_type",),
    "Uses: what it should not be used for": ("research_use",),
    "Distribution: licences": ("licences",),
    "Maintenance: who keeps it, and how errors are reported": (),
}
"""Question of a datasheet (after Gebru and others, Commun. ACM 2021;64(12):86) -> facts that answer it."""


def write_paper_texts(run: RunFolder) -> None:
    """Write DATASHEET.md, CHECKLISTS.md and METHODS.md of an evaluated run; raises `OutputError`."""
    facts = paper_facts(run)
    warning = "".join(f"**{_plain(text)}**\n\n" for text in run.rung_warnings)
    texts = {
        DATASHEET_FILE: _datasheet_text(run, facts),
        CHECKLISTS_FILE: "\n".join(_checklists_lines(run, facts)),
        METHODS_FILE: f"# Methods paragraph of {_plain(run.title)}\n\n{_DISCLAIMER}\n\n{methods_text(run, facts)}\n",
    }
    for name, text in texts.items():
        heading, _, rest = text.partition("\n\n")
        write_text(run.path / name, f"{heading}\n\n{warning}{rest.rstrip()}\n")


def methods_text(run: RunFolder, facts: Mapping[str, str]) -> str:
    """Return a methods paragraph with the run's own figures, then what it lacks. facts: of `paper_facts`."""
    sentences = [*_method_sentences(facts), *_result_sentences(run)]
    missing = [name for key, name in _NEEDED.items() if key not in facts]
    lacks = f"\n\nNot in the files of this run, so not in this text: {', '.join(missing)}." if missing else ""
    return " ".join(sentences) + lacks


_NEEDED = {
    "data_source": "the data set", "split_sizes": "the sizes of the splits", "model_type": "the net",
    "training": "the training", "software": "the versions of the software", "seed": "the random seed",
}  # fmt: skip


def _method_sentences(facts: Mapping[str, str]) -> Iterator[str]:
    """Yield data, net and training; a sentence whose fact is missing is left out."""
    for name, form in _FORMS.items():
        if name in facts:
            yield form.format(_plain(facts[name]))


_FORMS = {
    "data_source": "Images were those of {}.",
    "training_source": "The net was trained on images of {}.",
    "foreign": "{}.",
    "classes": "Classes: {}.",
    "partition": "They were divided by {}.",
    "split_sizes": "There were {}.",
    "exclusions": "Left out: {}.",
    "preprocessing": "Input: {}.",
    "model_type": "The net was {}.",
    "weights": "It started from {}.",
    "second_input": "Second input: {}.",
    "training": "Training: {}.",
    "optimizer": "Loss and optimizer: {}.",
    "augmentation": "Random changes of training images: {}.",
    "growth": "Augmented copies of smaller classes: {}.",
    "smote": "SMOTE: {}.",
    "mixing": "Mixing of training images: {}.",
    "distillation": "Distillation: {}.",
    "model_choice": "The weights kept are {}.",
    "nets": "{}",
    "test_views": "Probabilities are {}.",
    "seed": "Randomness: {}.",
    "thresholds": "Thresholds: {}.",
    "interval_methods": "{}.",
    "software": "Software: {}.",
}
"""Fact -> the sentence of a methods paragraph that holds it, in order."""


def _result_sentences(run: RunFolder) -> Iterator[str]:
    for split in reversed(run.split_names):
        body = run.metrics["splits"][split]
        figures = split_figures(run, split)
        known = [f"{name} {text}" for name, text in figures if not text.startswith("left out")]
        left_out = [f"{name} ({text[10:]})" for name, text in figures if text.startswith("left out: ")]
        if known:
            yield f"On {body['n']} {_plain(split)} images: {_plain(listed(known))}."
        if left_out:
            yield f"Not defined on the {_plain(split)} images: {_plain(listed(left_out))}."


def _datasheet_text(run: RunFolder, facts: Mapping[str, str]) -> str:
    name = run.run_json.get("dataset", {}).get("name") or "the data set of this run"
    lines = [f"# Datasheet: {_plain(name)}", "", _DISCLAIMER, "", f"As run {_plain(run.title)} used it."]
    open_questions = []
    for question, names in _DATASHEET.items():
        answers = [_plain(facts[name]) for name in names if name in facts]
        if answers:
            lines += ["", f"## {question}", "", *(f"- {answer}" for answer in answers)]
        else:
            open_questions.append(question)
    lines += ["", "## Open: no file of this run says it", "", *(f"- {question}" for question in open_questions)]
    return "\n".join(lines)


def _checklists_lines(run: RunFolder, facts: Mapping[str, str]) -> Iterator[str]:
    yield from (f"# Reporting checklists: {_plain(run.title)}", "", _DISCLAIMER, "")
    yield (
        "Filled from this run's files where they say something; a filled item may still lack part of what the "
        "guideline asks. Open items are for the authors. Items are in short words: the published lists are what counts."
    )
    for checklist in CHECKLISTS:
        yield from _checklist_lines(checklist, facts)


def _checklist_lines(checklist: Checklist, facts: Mapping[str, str]) -> Iterator[str]:
    rows = list(checklist_rows(checklist, facts))
    n_filled = sum(bool(text) for _, text in rows)
    yield from (
        "",
        f"## {checklist.name}: {n_filled} of {len(rows)} items filled, {len(rows) - n_filled} open",
        "",
    )
    yield from (checklist.note, "", "| item | about | from this run |", "|---|---|---|")
    for item, text in rows:
        yield f"| {item.number or 'new'} | {item.name} | {_plain(text) or f'**{_OPEN}**'} |"


def _plain(value: object) -> str:
    """Return a text as Markdown that shows it: no HTML, link, table cell or heading of its own."""
    text = " ".join(printable(str(value)).split())
    return _SIGNS.sub(r"\\\g<0>", html.escape(text, quote=False))

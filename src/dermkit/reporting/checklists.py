"""Reporting checklists: what a run's files fill, and which items stay open, by name.

Items are in our own words. TRIPOD+AI (Collins and others, BMJ 2024;385:e078378) and CLEAR Derm (Daneshjou and others,
JAMA Dermatology 2022;158:90) are numbered as published. STARD-AI (Sounderajah and others, Nature Medicine 2025) is
listed by the numbers of STARD 2015 (Bossuyt and others, BMJ 2015;351:h5527), which it extends, and its additions by
name alone: their numbers are not known here. The published lists are what counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ChecklistItem:
    """One item. number: as published, "" where not known here. facts: names of `paper_facts` that fill it, any of them;
    empty where no file of a run can."""

    number: str
    name: str
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checklist:
    """A guideline. note: on its numbers."""

    name: str
    note: str
    items: tuple[ChecklistItem, ...]


def _items(rows: Sequence[tuple[str, str, str]]) -> tuple[ChecklistItem, ...]:
    return tuple(ChecklistItem(number, name, tuple(facts.split())) for number, name, facts in rows)


TRIPOD_AI = Checklist(
    "TRIPOD+AI",
    "Numbered as published (2024).",
    _items((
        ("1", "title: development or evaluation, population, outcome", ""),
        ("2", "structured abstract", ""),
        ("3a", "clinical context and rationale", ""),
        ("3b", "target population, purpose and intended users", ""),
        ("3c", "known health inequalities", ""),
        ("4", "objectives", ""),
        ("5a", "sources of data, for development and evaluation", "data_source external_test"),
        ("5b", "dates of the data", ""),
        ("6a", "setting: centres and places", ""),
        ("6b", "eligibility criteria", ""),
        ("6c", "treatments received", ""),
        ("7", "data preparation and quality checks", "preprocessing audit"),
        ("8a", "outcome: definition and how it was assessed", "classes"),
        ("8b", "who assessed the outcome", ""),
        ("8c", "blinding of the assessment of the outcome", ""),
        ("9a", "choice of initial predictors", "preprocessing second_input"),
        ("9b", "definition and measurement of predictors", ""),
        ("9c", "who assessed predictors that need judgement", ""),
        ("10", "sample size: how it came about, and whether it suffices", ""),
        ("11", "missing data", ""),
        ("12a", "use and partition of the data", "partition split_sizes"),
        ("12b", "handling of predictors: scaling, transformation", "preprocessing augmentation"),
        ("12c", "type of model, building steps, tuning, internal validation", "model_type training optimizer"),
        ("12d", "heterogeneity between clusters", "subgroups"),
        ("12e", "measures of performance", "measures interval_methods"),
        ("12f", "updating of the model after evaluation", ""),
        ("12g", "how predictions were calculated in the evaluation", "thresholds"),
        ("13", "class imbalance", "imbalance"),
        ("14", "fairness: approaches and reasons", ""),
        ("15", "output of the model: probabilities, thresholds", "classes thresholds"),
        ("16", "differences between development and evaluation data", ""),
        ("17", "ethical approval", ""),
        ("18a", "funding", ""),
        ("18b", "conflicts of interest", ""),
        ("18c", "protocol", ""),
        ("18d", "registration", ""),
        ("18e", "availability of the data", ""),
        ("18f", "availability of the code", ""),
        ("19", "involvement of patients and the public", ""),
        ("20a", "flow of participants", "exclusions"),
        ("20b", "characteristics of participants", "attributes"),
        ("20c", "comparison of development and evaluation data", "class_counts test_class_counts"),
        ("21", "participants and outcome events in each analysis", "class_counts test_class_counts"),
        ("22", "the full model, so that others can predict with it", ""),
        ("23a", "performance with intervals, and by subgroup", "figures"),
        ("23b", "heterogeneity of performance between clusters", "subgroups"),
        ("24", "results of updating", ""),
        ("25", "interpretation, fairness included", ""),
        ("26", "limitations", ""),
        ("27a", "handling of poor or missing input when used", ""),
        ("27b", "what users have to do, and the expertise they need", ""),
        ("27c", "next steps of research", ""),
    )),
)  # fmt: skip

CLEAR_DERM = Checklist(
    "CLEAR Derm",
    "Numbered as published (2022).",
    _items((
        ("1", "image types", ""),
        ("2", "image artefacts", "audit"),
        ("3", "technical details of acquisition", ""),
        ("4", "preprocessing", "preprocessing"),
        ("5", "synthetic images, made public if used", ""),
        ("6", "references of public images", "data_source licences"),
        ("7", "metadata of patients", "attributes"),
        ("8", "skin colour, and how it was assessed", ""),
        ("9", "potential biases of the data", ""),
        ("10", "partition of the data", "partition"),
        ("11", "sizes of training, validation and test sets", "split_sizes"),
        ("12", "external test set", "external_test"),
        ("13", "images of several vendors", ""),
        ("14", "distribution and balance of classes", "class_counts test_class_counts"),
        ("15", "images out of distribution", ""),
        ("16", "labelling: method and who did it", ""),
        ("17", "labels that the field accepts", "classes"),
        ("18", "histopathology for malignancies", ""),
        ("19", "development of the algorithm in detail", "model_type training optimizer augmentation"),
        ("20", "how the public can evaluate the algorithm", ""),
        ("21", "measures of performance", "figures interval_methods"),
        ("22", "benchmarks: comparison with others", ""),
        ("23", "assessment of bias", "subgroups"),
        ("24", "use cases and target conditions", ""),
        ("25", "potential effects on care teams and patients", ""),
    )),
)  # fmt: skip

STARD_AI = Checklist(
    "STARD-AI",
    "By the numbers of STARD 2015, which it extends; what it adds has no number here, and the list may lack some. Read "
    "the published list of 2025.",
    _items((
        ("1", "title: a study of diagnostic accuracy, with a measure of it", ""),
        ("2", "structured abstract", ""),
        ("3", "background: intended use and role of the test", ""),
        ("4", "objectives and hypotheses", ""),
        ("5", "prospective or retrospective", ""),
        ("6", "eligibility criteria", ""),
        ("7", "how participants were identified", ""),
        ("8", "where and when they were identified", ""),
        ("9", "consecutive, random or convenience series", ""),
        ("10a", "index test, so that others can repeat it", "model_type preprocessing training"),
        ("10b", "reference standard, so that others can repeat it", ""),
        ("11", "why this reference standard", ""),
        ("12a", "thresholds of the index test, fixed before or explored", "thresholds"),
        ("12b", "categories of the reference standard", "classes"),
        ("13a", "what readers of the index test knew", ""),
        ("13b", "what assessors of the reference standard knew", ""),
        ("14", "methods for measures of accuracy", "measures interval_methods"),
        ("15", "indeterminate results", ""),
        ("16", "missing data", ""),
        ("17", "analyses of variability, planned or exploratory", "subgroups"),
        ("18", "intended sample size", ""),
        ("19", "flow of participants", "exclusions"),
        ("20", "characteristics of participants", "attributes"),
        ("21a", "severity among those with the condition", ""),
        ("21b", "other diagnoses among those without", "test_class_counts"),
        ("22", "time and interventions between the tests", ""),
        ("23", "index test against reference standard, as a table", "confusion"),
        ("24", "accuracy with its precision", "figures"),
        ("25", "adverse events", ""),
        ("26", "limitations", ""),
        ("27", "implications for practice", ""),
        ("28", "registration", ""),
        ("29", "protocol", ""),
        ("30", "funding", ""),
        ("", "data set: sources and collection", "data_source licences"),
        ("", "data set: partition into training, validation and test", "partition split_sizes"),
        ("", "data set: preprocessing", "preprocessing"),
        ("", "version of the AI and its software", "software"),
        ("", "bias and fairness across groups", "subgroups"),
        ("", "ethical approval, and rights in the data", ""),
        ("", "commercial interests", ""),
        ("", "availability of data, code and model", ""),
    )),
)  # fmt: skip

CHECKLISTS = (TRIPOD_AI, CLEAR_DERM, STARD_AI)


def checklist_rows(checklist: Checklist, facts: Mapping[str, str]) -> Iterator[tuple[ChecklistItem, str]]:
    """Yield each item with what the facts say of it, "" where it is open."""
    for item in checklist.items:
        yield item, "; ".join(facts[name] for name in item.facts if name in facts)

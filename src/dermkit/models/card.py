"""model.json and MODEL_CARD.md of a model folder, without torch.

Format 2 added the decision policy fitted on validation images: calibration, operating points, conformal rule, referral
thresholds. Format 3 has its keys in the terms of the field. Format 4 has several members, each with a calibration.
Format 5 has the fields of `model` that recipes of format 5 added, and members with preprocessing, weight and order of
classes of their own. Format 6 has metadata as a second input of a net (`models.metadata`). Format 7 names the file of
each net's training features (`models.training_features`). Format 8 has in `evaluation` what the operating points reach
on the test images. Format 9 has in it the figures of subgroups.
"""

import html
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dermkit.errors import UntrustedError, printable
from dermkit.files import JsonFile, json_text
from dermkit.metrics.decisions.policy_migration import migrate_policy, rename_keys
from dermkit.models.checksums import check_hashes, is_update_pending, update_files
from dermkit.models.views import views_text
from dermkit.recipes.formats import ADDED_MODEL_FIELDS

_MARKDOWN_SIGNS = re.compile(r"[\\`*_\[\]|#]")
MODEL_CARD_FILE = "MODEL_CARD.md"
TRAINING_IMAGES_FILE = "seen.csv"
"""The images of the model's training and validation splits: pixel hash, ISIC id, split."""
RESEARCH_ONLY = "Research use only. Not a medical device."


MAX_NETS = 32
"""Nets in one model: an image costs as many passes. A five-fold training has five."""


def member_file(number: int) -> str:
    """Return the name of a member's weights file."""
    return f"member-{number}.safetensors"


def features_file(number: int) -> str:
    """Return the name of the file of a member's training features."""
    return f"training_features-{number}.safetensors"


WEIGHTS_FILE = member_file(0)
"""The weights of a model of one net."""

EMPTY_POLICY: Mapping[str, Any] = {"calibration": {"kind": "none"}, "operating_points": [], "conformal": None}
"""The policy fields of a model that was not evaluated on validation images yet."""

POLICY_FIELDS = ("calibration", "operating_points", "conformal", "referral", "n_validation_images")
"""The fields of model.json that hold the policy. `referral` is absent in models of older versions."""

EVALUATION_FIELD = "evaluation"
"""The field of model.json that says what the test images showed, null before; absent in older versions.

`split`, `n`, `outcome` and `verdict` as the report has them, `figures`, `operating_points` (name -> `sensitivity` and
`specificity`, each with `value`, `ci95`, `n` and `text`), `subgroups` (attribute -> groups, each with `name`, `n`,
`n_groups`, `n_malignant`, `too_few` and `figures`) and `broken_guarantees`, each with its `sentence`; and
`is_of_single_nets`: whether one of several nets scored each image, not their mean (absent: of several, one did)."""


def _migrate_1_to_2(card: dict[str, Any]) -> dict[str, Any]:
    return {**card, **EMPTY_POLICY, "format": 2}


def _migrate_2_to_3(card: dict[str, Any]) -> dict[str, Any]:
    """Bring the policy to today's keys; of training, `kept` became `keep`, as the recipe says it."""
    return {**migrate_policy(card), "training": rename_keys(card["training"], {"kept": "keep"}), "format": 3}


def _migrate_3_to_4(card: dict[str, Any]) -> dict[str, Any]:
    """Return a card whose members, one net then, have no calibration of their own."""
    members = card.get("members")
    if isinstance(members, list):  # a broken card is told by who reads its members
        members = [{**member, "calibration": None} if isinstance(member, dict) else member for member in members]
    return {**card, "members": members or [], "format": 4}


def _migrate_4_to_5(card: dict[str, Any]) -> dict[str, Any]:
    """Return a card whose members have what recipes of format 5 say of a net, and what all had in common before."""
    members, other_fields = card["members"], {key: value for key, value in card.items() if key != "preprocessing"}
    if isinstance(members, list):
        common = {
            "preprocessing": card["preprocessing"],
            "weight": 1 / max(1, len(members)),
            "class_order": list(range(len(card["classes"]))),
        }
        members = [_with_added_fields(member, common) for member in members]
    return {**other_fields, "members": members, "format": 5}


def _with_added_fields(member: Any, common: Mapping[str, Any]) -> Any:
    """Return a member with the added fields; a broken one is told by who reads it."""
    if not isinstance(member, dict) or not isinstance(member.get("spec"), dict):
        return member
    return {**member, **common, "spec": {**ADDED_MODEL_FIELDS, **member["spec"]}}


def _migrate_5_to_6(card: dict[str, Any]) -> dict[str, Any]:
    """Return a card whose nets have the image as their only input."""
    members = card["members"]
    if isinstance(members, list):
        members = [_with_added_fields(member, {"metadata": None}) for member in members]
    return {**card, "members": members, "format": 6}


def _migrate_6_to_7(card: dict[str, Any]) -> dict[str, Any]:
    """Return a card whose nets have no training features: they cannot tell foreign images."""
    members = card["members"]
    if isinstance(members, list):
        members = [_with_added_fields(member, {"training_features": None}) for member in members]
    return {**card, "members": members, "format": 7}


def _migrate_7_to_8(card: dict[str, Any]) -> dict[str, Any]:
    """Return a card that does not know what its operating points reach on test images."""
    evaluation = card.get(EVALUATION_FIELD)
    if isinstance(evaluation, dict):
        card = {**card, EVALUATION_FIELD: {**evaluation, "operating_points": {}}}
    return {**card, "format": 8}


def _migrate_8_to_9(card: dict[str, Any]) -> dict[str, Any]:
    """Return a card that has no figures of subgroups."""
    evaluation = card.get(EVALUATION_FIELD)
    if isinstance(evaluation, dict):
        card = {**card, EVALUATION_FIELD: {**evaluation, "subgroups": {}}}
    return {**card, "format": 9}


_MIGRATIONS = {
    1: _migrate_1_to_2, 2: _migrate_2_to_3, 3: _migrate_3_to_4, 4: _migrate_4_to_5, 5: _migrate_5_to_6,
    6: _migrate_6_to_7, 7: _migrate_7_to_8, 8: _migrate_8_to_9,
}  # fmt: skip
MODEL_JSON = JsonFile("model.json", 9, _MIGRATIONS, UntrustedError)


def read_card(folder: Path) -> dict[str, Any]:
    """Return model.json in today's format; raises `UntrustedError` where it is missing or broken."""
    return MODEL_JSON.read(folder)


def card_files(card: Mapping[str, Any]) -> dict[str, str]:
    """Return name -> text of model.json and MODEL_CARD.md."""
    return {MODEL_JSON.name: json_text(card, format=MODEL_JSON.format), MODEL_CARD_FILE: card_text(card)}


def write_policy(folder: Path, policy: Mapping[str, Any], *, evaluation: Mapping[str, Any] | None = None) -> None:
    """Write a policy into a model folder, and what the test images showed; one that holds both is not touched.

    evaluation: None = no test image was scored: what an earlier evaluation of the same policy showed stays. A model
    that has none, of an older version or not evaluated yet, gets one only to say that a guarantee is broken; one of
    format 8 or older that has one gets what was added since. Atomic: if interrupted, the folder
    stays valid, with the old or the new policy, and the next call completes the update. Raises `UntrustedError` where a
    file was changed since it was saved, because new checksums would cover it.
    """
    card, policy_fields = read_card(folder), {name: policy[name] for name in POLICY_FIELDS if name in policy}
    is_same_policy = {name: card[name] for name in POLICY_FIELDS if name in card} == policy_fields
    new_evaluation = evaluation or (card.get(EVALUATION_FIELD) if is_same_policy else None)
    is_same_evaluation = card.get(EVALUATION_FIELD) == new_evaluation
    if EVALUATION_FIELD not in card:  # of an older version, or not evaluated yet
        is_same_evaluation = not (new_evaluation or {}).get("broken_guarantees")
    if is_same_policy and is_same_evaluation and not is_update_pending(folder):
        return
    check_hashes(folder, preserved="the model folder as it is, and the evaluation")
    other_fields = {name: value for name, value in card.items() if name not in (*POLICY_FIELDS, EVALUATION_FIELD)}
    update_files(folder, card_files({**other_fields, **policy_fields, EVALUATION_FIELD: new_evaluation}))


def write_views(folder: Path, views: Sequence[str]) -> None:
    """Write other test-time views into the model of one net, whose policy, fitted on the earlier ones, is dropped.

    Atomic, as `write_policy` is; raises `UntrustedError` where a file was changed since it was saved.
    """
    card = read_card(folder)
    check_hashes(folder, preserved="the model folder as it is")
    (member,) = card["members"]
    fields = {name: value for name, value in card.items() if name not in (*POLICY_FIELDS, EVALUATION_FIELD)}
    update_files(folder, card_files({**fields, "members": [{**member, "views": list(views)}], **EMPTY_POLICY}))


def extra_targets(folder: Path) -> tuple[tuple[str, float], ...]:
    """Return the targets saved in this model besides the default ones: (rate, target), as ("sensitivity", 0.97)."""
    points = read_card(folder)["operating_points"]
    return tuple((str(point["rate"]), float(point["target"])) for point in points if point.get("requested"))


def with_extra_targets(policy: Mapping[str, Any], targets: Collection[tuple[str, float]]) -> dict[str, Any]:
    """Return the policy for model.json: its operating points and, of `requested_points`, those in `targets`."""
    extra_points = [point for point in policy["requested_points"] if (point["rate"], point["target"]) in targets]
    points = [*policy["operating_points"], *({**point, "requested": True} for point in extra_points)]
    return {**policy, "operating_points": points}


def card_policy(card: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the policy fields of a model.json; None for a model that was not evaluated yet."""
    if card["conformal"] is None:
        return None
    return {name: card[name] for name in POLICY_FIELDS if name in card}


def markdown(value: object) -> str:
    """Return a name as Markdown that shows it: no HTML, link, table cell or heading of its own."""
    text = " ".join(printable(str(value)).split())
    return _MARKDOWN_SIGNS.sub(r"\\\g<0>", html.escape(text, quote=False))


def is_ensemble(card: Mapping[str, Any]) -> bool:
    """Return whether a model has several nets."""
    return len(card["members"]) > 1


ENSEMBLE_FIELD = "ensemble"
"""The field of model.json of an ensemble of recipes: its `sources` with weights, and a `note` on how they came."""

ENSEMBLE_NOTE = (
    "The mean of several nets, each trained without a fold of a cross-validation. Its policy was fitted on validation "
    "images that single nets had scored, each trained without them; out-of-fold figures are of single nets too. "
)


def is_tested_ensemble(card: Mapping[str, Any]) -> bool:
    """Return whether the mean of a model's nets has scored test images; else its test figures are of single nets."""
    evaluation = card.get(EVALUATION_FIELD)
    return evaluation is not None and not evaluation.get("is_of_single_nets", is_ensemble(card))


def _ensemble_test_text(card: Mapping[str, Any]) -> str:
    evaluation = card.get(EVALUATION_FIELD)
    if is_tested_ensemble(card):
        return "The ensemble itself was tested on images that none of its nets learned from."
    if not evaluation:
        return "The ensemble itself was tested on no image."
    return "The ensemble itself was tested on no image: some of its nets learned from each image of its data set."


def _n_passes(card: Mapping[str, Any]) -> int:
    """Return how many times a net runs for one image: once a view of each member."""
    return sum(len(member["views"]) for member in card["members"])


def _calibration_text(card: Mapping[str, Any]) -> str:
    calibration, n = card["calibration"], len(card["members"])
    if is_ensemble(card):
        recipes = card.get(ENSEMBLE_FIELD)
        note = _recipes_text(recipes) if recipes else ENSEMBLE_NOTE + _ensemble_test_text(card)
        return (
            f"Members: {n} nets, so {_n_passes(card)} passes an image. Probabilities are the "
            f"{'weighted ' if recipes else ''}mean of the members', each made as sure as it is right on its validation "
            f"images (a temperature), then calibrated together. {note}"
        )
    if calibration["kind"] == "none":
        return "Calibration: none. Probabilities are softmax outputs as trained; do not read them as risks."
    shift_text = " and one shift per class" if calibration["kind"] == "bias" else ""
    return (
        f"Calibration, fitted on the validation images alone: log probabilities divided by "
        f"{calibration['temperature']:.3g}"
        f"{shift_text}. `predictions.csv` holds probabilities before it, `decisions.csv` of `dermkit predict` after it."
    )


def _recipes_text(recipes: Mapping[str, Any]) -> str:
    """Return what an ensemble of recipes is made of, and what its weights rest on."""
    rows = "\n".join(
        f"| {markdown(source['recipe'])} | {markdown(source['folder'])} | {source['n_nets']} | {source['weight']:.4g} |"
        for source in recipes["sources"]
    )
    return f"{markdown(recipes['note'])}\n\n| recipe | run | nets | weight |\n|---|---|---|---|\n{rows}"


def _broken_text(card: Mapping[str, Any]) -> str:
    """Return the guarantees that the test images broke, to be read first; "" without."""
    evaluation = card.get(EVALUATION_FIELD) or {}
    lines = [f"**{markdown(broken['sentence'])}**\n\n" for broken in evaluation.get("broken_guarantees", ())]
    return "".join(lines)


def _evaluation_text(card: Mapping[str, Any]) -> str:
    """Return what the test images showed, "" where none was scored."""
    evaluation = card.get(EVALUATION_FIELD)
    if not evaluation:
        return ""
    figures = "\n".join(
        f"- {markdown(name.replace('_', ' '))}: {markdown(text)}" for name, text in evaluation["figures"].items()
    )
    split, n = markdown(evaluation["split"]), evaluation["n"]
    scored_by = ", each scored by the one net that had not learned from it, so not of this model" * (
        is_ensemble(card) and ENSEMBLE_FIELD not in card and not is_tested_ensemble(card)
    )
    text = f"On {n} {split} images{scored_by}. {markdown(evaluation['verdict'])}\n\n{figures}\n\n"
    return text + "".join(_subgroup_table(*entry) for entry in evaluation.get("subgroups", {}).items())


def _subgroup_table(attribute: str, groups: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures of the groups of an attribute as a table."""
    names = list(groups[0]["figures"])
    rows = [
        [group["name"] + " (too few)" * bool(group["too_few"]), group["n"], group["n_malignant"],
         *(group["figures"].get(name, "") for name in names)]
        for group in groups
    ]  # fmt: skip
    heads = [
        f"by {attribute.replace('_', ' ')}",
        "images",
        "malignant",
        *(name.replace("_", " ") for name in names),
    ]
    lines = [heads, ["---"] * len(heads), *([markdown(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines) + "\n"


def _views_text(card: Mapping[str, Any]) -> str:
    """Return which views are averaged; "" for a model that takes every image as it is."""
    names = [views_text(member["views"]) for member in card["members"]]
    if set(names) == {"identity"}:
        return ""
    views = ", ".join(dict.fromkeys(names))
    return f"\nViews whose probabilities are averaged: {views}; {_n_passes(card)} passes an image.\n"


def _input_text(card: Mapping[str, Any]) -> str:
    """Return a sentence for each preprocessing, and which members it is of where there are several."""
    numbers: dict[str, list[int]] = {}
    for number, member in enumerate(card["members"]):
        preprocessing = member["preprocessing"]
        size, interpolation = preprocessing["size"], preprocessing["interpolation"]
        text = (
            f"RGB, {size} x {size} px, {preprocessing['resize']}, {interpolation}; divided by "
            f"{preprocessing['divide_by']:g},\nthen mean {preprocessing['mean']} and standard deviation "
            f"{preprocessing['std']}."
        )
        numbers.setdefault(text, []).append(number)
    if len(numbers) == 1:
        return next(iter(numbers))
    return "\n\n".join(f"Members {', '.join(map(str, group))}: {text}" for text, group in numbers.items())


def second_input_sentence(n_known: Mapping[str, int], n_images: int) -> str:
    """Return which fields are the second input of a net, of how many training images they were known, and what follows.

    n_known: of each field; n_images: training images.
    """
    known = ", ".join(f"{name} (known of {n:,})" for name, n in n_known.items())
    return (
        f"Second input beside the image: {known} of {n_images:,} training images. Probabilities change with them; what "
        "is unknown is given as unknown."
    )


def _metadata_text(card: Mapping[str, Any]) -> str:
    """Return what the nets take beside the image, and how often it was known; "" for the image alone."""
    numbers: dict[str, list[int]] = {}
    for number, member in enumerate(card["members"]):
        if member["metadata"] is not None:
            metadata = member["metadata"]
            sentence = second_input_sentence(metadata["n_known"], metadata["n_images"])
            numbers.setdefault(sentence, []).append(number)
    if len(numbers) == 1 and len(card["members"]) == len(next(iter(numbers.values()))):
        return f"\n{markdown(next(iter(numbers)))}\n"
    return "".join(
        f"\nMembers {', '.join(map(str, group))}: {markdown(text)}\n" for text, group in numbers.items()
    )


def _teacher_text(card: Mapping[str, Any]) -> str:
    """Return what a distilled net learned from besides labels; "" for any other."""
    teacher = card["training"].get("teacher")
    return f"\n- {markdown(teacher['note'])}" if teacher else ""


def _nets_text(card: Mapping[str, Any]) -> str:
    backbones = list(dict.fromkeys(str(member["spec"]["backbone"]) for member in card["members"]))
    return f"Net{'s' * (len(backbones) > 1)}: {', '.join(map(markdown, backbones))}"


def _sentence(text: Any) -> str:
    """Return a note as a sentence with the space after it, "" without."""
    return f"{markdown(text).rstrip('.')}. " if text else ""


def _training_text(card: Mapping[str, Any]) -> str:
    """Return how the nets were trained, as far as model.json says."""
    training = card["training"]
    stopped, best = training.get("stopped") or {}, training.get("best") or {}
    lines = []
    if training.get("seed") is not None:
        lines.append(f"Random seed: {markdown(training['seed'])}.")
    if stopped.get("epochs_trained") is not None:
        lines.append(
            f"Epochs: {markdown(stopped['epochs_trained'])} ({markdown(stopped.get('reason', 'not said'))})."
        )
    if best.get("value") is not None and training.get("keep") == "best":
        lines.append(
            f"Kept: epoch {markdown(best['epoch'])}, {markdown(best['monitor'])} {best['value']:.4g} on validation "
            "images."
        )
    return "\n".join(f"- {line}" for line in lines) or "Not recorded in model.json."


def card_text(card: Mapping[str, Any]) -> str:
    """Return the text of MODEL_CARD.md, for people; model.json holds the same for programs."""
    classes = "\n".join(
        f"| {markdown(lesion_class['name'])} | {markdown(lesion_class['diagnosis'] or 'not known')} | "
        f"{markdown(lesion_class['malignancy'])} |"
        for lesion_class in card["classes"]
    )
    weights, dataset = card["weights"], card["dataset"]
    return f"""# Model card: {markdown(card["recipe"].get("name", "unnamed"))}

{_broken_text(card)}**{RESEARCH_ONLY}**

{_evaluation_text(card)}{markdown(card["recipe"].get("about", ""))}

## Classes, in the order of the probabilities

| class | canonical diagnosis | counted as |
|---|---|---|
{classes}

## Input

{_input_text(card)}
{_metadata_text(card)}{_views_text(card)}
## Origin

- {_nets_text(card)}; starting weights: {markdown(weights.get("origin", "?"))}.
  {_sentence(weights.get("note"))}Licence of the weights: {markdown(weights.get("licence") or "not stated")}.
- Data: {markdown(dataset.get("name", "?"))}, {markdown(dataset.get("n", "?"))} images;
  licences: {markdown(dataset.get("licences") or "not stated")}.
- {_calibration_text(card)}{_teacher_text(card)}

## Training

{_training_text(card)}

## Use

- For: research on the classification of images of single skin lesions into the classes above.
- Not for: the care of patients, images of other kinds, or lesions of other classes: every image gets one of these.
- Not said by this model's files: skin types, ages and places of its training images, who decided their labels and how,
  ethical approval.

Its metrics, with intervals, are in `metrics.json` and `report.html` of the run that trained it; a datasheet of the
data set, reporting checklists and a methods paragraph are beside them (`DATASHEET.md`, `CHECKLISTS.md`, `METHODS.md`).
"""

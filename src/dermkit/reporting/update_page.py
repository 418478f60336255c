"""promotion.html: was the challenger promoted, why, and every figure that was compared."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dermkit.comparison.promotion_sentences import compared_title
from dermkit.files import write_text
from dermkit.render.forest import forest_rows
from dermkit.reporting.labels import page_templates
from dermkit.runs.documents import saved_content
from dermkit.runs.layout import UPDATE, UPDATE_PAGE

_Json = Mapping[str, Any]
_SCALE = 0.2
"""Half of the width of the forest plots, in units of the figures."""


def write_update_page(folder: Path) -> Path:
    """Write promotion.html of an update's folder that has its promotion.json; returns its path."""
    with saved_content(folder):
        content = UPDATE.read(folder)
        groups = [check for check in content["checks"] if check["group"]]
        html = page_templates().get_template("update.html.j2").render(
            title=f"Update of {content['champion']} with {content['new_data']}",
            content=content,
            word="Promoted" if content["is_promoted"] else "Refused",
            about=_about(content),
            remedies=list(_remedies(content)),
            rows=list(_rows(check for check in content["checks"] if not check["group"])),
            group_rows=list(_rows(check for check in groups if check["outcome"] != "too few")),
            small_groups=[check for check in groups if check["outcome"] == "too few"],
            limit=_SCALE,
            figure=compared_title(content["rule"]["metric"]),
            counts=list(_count_rows(content)),
            group_percent=f"{100 * content['group_level']:.2f}",
        )  # fmt: skip
    write_text(folder / UPDATE_PAGE, html)
    return folder / UPDATE_PAGE


def _about(content: _Json) -> str:
    if content["is_promoted"]:
        return "the challenger is not worse on the old and the new test, and no group is shown to be harmed"
    outcomes = {check["outcome"] for check in content["checks"]}
    harmed = any(check["outcome"] == "worse" and check["group"] for check in content["checks"])
    if harmed:
        return f"the challenger harms a group; {content['champion']} serves on"
    if "worse" in outcomes:
        return f"the challenger is worse; {content['champion']} serves on"
    return f"the images do not decide it; {content['champion']} serves on"


def _remedies(content: _Json) -> Iterator[str]:
    if content["is_promoted"]:
        yield "restart `dermkit serve REGISTRY`, which loads the version that serves when it starts"
        yield "`dermkit registry rollback REGISTRY VERSION` lets an earlier version serve again"
        return
    needed = [check["images_needed"] for check in content["checks"] if check["outcome"] == "undecided"]
    known = [count for count in needed if count]
    if known:
        yield f"collect test images: the question that needs most would be decided by about {max(known):,} images"
    if any(check["group"] and check["outcome"] == "worse" for check in content["checks"]):
        yield "look at the images of the harmed group, and add training images of it"
    yield "further data is another update: give `dermkit update` the larger data set"


def _rows(checks: Iterator[_Json]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a forest plot; figures that are not defined are in the list below it."""
    for check in checks:
        group = f", {check['attribute']} {check['group']}" if check["group"] else ""
        name = f"{check['test']} test{group}: {compared_title(check['metric'])}"
        for row in forest_rows([(name, check)], low=-_SCALE, high=_SCALE):
            yield {**row, "tag": check["outcome"], "margin": check["margin"]}


def _count_rows(content: _Json) -> Iterator[dict[str, Any]]:
    for part, counts in content["counts"].items():
        reasons = {name: n for name, n in counts.items() if name not in ("train", "validation", "test")}
        sides = [counts["train"], counts["validation"], counts["test"]]
        yield {"part": part, "sides": sides, "excluded": "; ".join(f"{n:,} {why}" for why, n in reasons.items())}

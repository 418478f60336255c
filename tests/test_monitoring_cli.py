"""`dermkit monitor` on logs written through the log itself: the page, its files, refusals and exit codes."""

import json
import sqlite3
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Invoke
from dermkit.files import lock, sha256_bytes
from dermkit.models.card import MODEL_JSON
from dermkit.models.checksums import write_checksums
from dermkit.monitoring.drift import follow
from dermkit.monitoring.model_reference import read_monitored_model
from dermkit.monitoring.records import ALARM_IMAGES_TABLE, MONITOR, MONITOR_PAGE, PERFORMANCE_TABLE, PERIODS_TABLE
from dermkit.monitoring.reference import MonitoredModel
from dermkit.prediction_log.outcomes import add_outcomes
from dermkit.prediction_log.rows import OUTCOME, OutcomeRow
from dermkit.prediction_log.writer import open_log
from monitoring_tools import START, write_log, write_model
from page_checks import page_problems

UNTIL = ("--reference-until", "2026-03-02")
LATER = START + timedelta(days=60)


def bluer(units: dict[str, Any], _: np.random.Generator) -> None:
    units["mean_blue"] = units["mean_blue"] + 25


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def key(model: Path) -> str:
    return read_monitored_model(model).key


@pytest.fixture
def log(tmp_path: Path, key: str) -> Path:
    write_log(tmp_path / "log.sqlite", key, n=300)
    return tmp_path / "log.sqlite"


def watch(invoke: Invoke, log: Path, model: Path, *options: str) -> tuple[int, str, dict[str, Any]]:
    """Run the command; returns exit code, output and monitor.json ({} where it is not there)."""
    out = log.parent / "out"
    code, text, err = invoke("monitor", str(log), "--model", str(model), "--out", str(out), *options)
    return code, text + err, MONITOR.read(out) if MONITOR.exists(out) else {}


def check_of(content: dict[str, Any], name: str) -> dict[str, Any]:
    (check,) = (one for one in content["checks"] if one["name"] == name)
    return dict(check)


def test_a_colour_shift_is_an_alarm_with_its_images(invoke: Invoke, log: Path, model: Path, key: str) -> None:
    bluish = write_log(log, key, n=150, change=bluer, seed=1, first=LATER, days=30)
    code, text, content = watch(invoke, log, model, *UNTIL, "--prometheus", str(log.parent / "dermkit.prom"))
    assert code == 0 and "Research use only" in text and "Mean blue: higher since about 2026-03" in text
    assert content["alpha_per_check"] * len(content["checks"]) == pytest.approx(0.05)
    alarm = next(one for one in content["alarms"] if one["check"] == "colour")
    assert alarm["statistic"] == "mean blue" and alarm["direction"] == "higher"
    assert alarm["difference"]["ci95"][0] < 25 < alarm["difference"]["ci95"][1] + 5
    assert alarm["n_units_until_raised"] < 60 and alarm["action"].startswith("Look at the images")
    assert {image["row_id"] for image in alarm["images"]} <= {row.row_id for row in bluish}
    assert {image["pixel_sha256"] for image in alarm["images"]} <= {row.pixel_sha256 for row in bluish}
    out = log.parent / "out"
    page = (out / MONITOR_PAGE).read_text()
    assert page.index("Research use only") < page.index("1 alarm" if len(content["alarms"]) == 1 else "alarms")
    assert page_problems(page) == []
    assert "To do:" in page and alarm["images"][0]["row_id"] in page and "<svg" in page and "http-equiv" in page
    prom = (log.parent / "dermkit.prom").read_text()
    assert 'dermkit_monitor_alarm{check="colour"} 1.0' in prom and "dermkit_monitor_log_verifies 1.0" in prom
    assert "mean blue,2026-03" in (out / PERIODS_TABLE).read_text()
    assert alarm["images"][0]["row_id"] in (out / ALARM_IMAGES_TABLE).read_text()
    assert watch(invoke, log, model, *UNTIL, "--fail-on-alarm")[0] == 8


def test_no_drift_is_no_alarm_and_the_same_again(invoke: Invoke, log: Path, model: Path, key: str) -> None:
    write_log(log, key, n=150, seed=2, first=LATER, days=30)
    code, text, content = watch(invoke, log, model, *UNTIL, "--fail-on-alarm", "--period", "week")
    assert code == 0 and "0 alarms in 450 rows" in text and content["alarms"] == []
    assert (
        not check_of(content, "colour")["reason"]
        and check_of(content, "colour")["statistics"][0]["reference"]["n"]
    )
    assert "2026-W10" in check_of(content, "colour")["evidence_by_period"]
    again = watch(invoke, log, model, *UNTIL, "--period", "week")[2]
    assert [one["evidence"] for one in content["checks"]] == [one["evidence"] for one in again["checks"]]


def test_outcomes_that_came_back(invoke: Invoke, log: Path, model: Path, key: str) -> None:
    rows = write_log(log, key, n=200, seed=3, first=LATER, days=30)
    scored_rows = [row for row in rows if row.predicted]
    outcomes = [
        OutcomeRow(kind=OUTCOME, prediction_id=row.row_id, diagnosis=diagnosis, source="histopathology", observed=LATER)
        for row, diagnosis in zip(scored_rows, ["Melanoma", "nv", "blue nevus", "basalt"] * 50, strict=False)
    ]  # fmt: skip
    assert add_outcomes(str(log), outcomes).n_new == len(outcomes)
    content = watch(invoke, log, model, *UNTIL)[2]
    everything = content["performance"][-1]
    assert everything["period"] == "all" and content["n_unknown_outcomes"] == len(scored_rows[3::4])
    called = [bool(row.positive) for row in scored_rows[0::4]]
    assert (
        everything["sensitivity"]["value"] == pytest.approx(np.mean(called)) and everything["sensitivity"]["ci95"]
    )
    assert everything["sensitivity"]["n"] == everything["n_malignant"] == len(called)
    expected = sum(row.malignant_probability or 0 for n, row in enumerate(scored_rows) if n % 4 < 3)
    assert everything["expected_malignant"] == pytest.approx(expected)
    assert everything["observed_over_expected"]["value"] == pytest.approx(len(called) / expected)
    sensitivity = check_of(content, "sensitivity")
    assert sensitivity["statistics"][0]["source"].startswith("test images") and sensitivity["is_alarm"]
    assert sensitivity["statistics"][0]["reference"]["n"] <= 400
    page = (log.parent / "out" / MONITOR_PAGE).read_text()
    assert "Not a random sample" in page and "resampling unit: the request" in page
    assert "all," in (log.parent / "out" / PERFORMANCE_TABLE).read_text()


def changed_card(folder: Path, **evaluation: Any) -> MonitoredModel:
    card = MODEL_JSON.read(folder)
    card["evaluation"] |= evaluation
    MODEL_JSON.write(folder, card)
    write_checksums(folder)
    return read_monitored_model(folder)


def test_figures_of_single_nets_are_no_reference_of_their_mean(invoke: Invoke, log: Path, model: Path) -> None:
    assert changed_card(model).test_rates
    facts = changed_card(model, is_of_single_nets=True)
    assert not facts.test_rates and "of its single nets" in facts.rates_reason
    assert "of its single nets" in check_of(watch(invoke, log, model)[2], "sensitivity")["reason"]
    assert "of its single nets" in (log.parent / "out" / MONITOR_PAGE).read_text()


def test_a_rate_that_is_not_defined_leaves_the_other(model: Path) -> None:
    points = MODEL_JSON.read(model)["evaluation"]["operating_points"]
    (point,) = points.values()
    point["sensitivity"] = {"value": None, "ci95": None, "n": 0, "text": "not known"}
    assert [*next(iter(changed_card(model, operating_points=points).test_rates.values()))] == ["specificity"]


def test_outcomes_of_rows_that_are_no_unit_are_counted(invoke: Invoke, log: Path, model: Path, key: str) -> None:
    row = write_log(log, key, n=1, seed=3, first=LATER, days=1)[0]
    again = replace(row, row_id="cd" * 16, request_id="again")
    with open_log(str(log)) as prediction_log:
        prediction_log.append([again])
    outcome = OutcomeRow(
        kind=OUTCOME, prediction_id=again.row_id, diagnosis="nv", source="histopathology", observed=LATER
    )
    add_outcomes(str(log), [outcome])
    content = watch(invoke, log, model, *UNTIL)[2]
    assert content["n_unused_outcomes"] == 1 and not content["performance"]
    assert "1 outcomes hang on rows that are no unit" in (log.parent / "out" / MONITOR_PAGE).read_text()


def test_where_no_check_is_applicable_cron_hears_of_it(invoke: Invoke, log: Path, model: Path) -> None:
    code, text, _ = watch(invoke, log, model, "--fail-on-alarm")
    assert code == 8 and "0 of 11 checks applicable" in text


def test_the_output_folder_is_locked_and_nobody_elses(invoke: Invoke, log: Path, model: Path) -> None:
    out = log.parent / "out"
    with lock(out):
        code, text, _ = watch(invoke, log, model)
    assert code and "is in use by" in text
    (out / "notes.txt").write_text("mine")
    code, text, _ = watch(invoke, log, model)
    assert (
        code == 2
        and "is not empty" in text
        and [one.name for one in out.glob("*.*") if one.name[0] != "."] == ["notes.txt"]
    )


def test_rows_that_come_while_the_log_is_read_wait_for_the_next_time(
    log: Path, model: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dermkit.monitoring import run

    def follow_later(*args: Any, **options: Any) -> Any:
        write_log(log, key, n=5, seed=1, first=datetime.now(UTC), days=1e-6)
        return follow(*args, **options)

    monkeypatch.setattr(run, "follow", follow_later)
    options = run.MonitorOptions(reference_until=datetime(2026, 1, 15, tzinfo=UTC))
    assert run.monitor(str(log), model, log.parent / "out", options).n_rows == 300


def test_without_a_reference_checks_say_what_they_lack(invoke: Invoke, log: Path, model: Path) -> None:
    code, _, content = watch(invoke, log, model)
    assert code == 0 and "--reference-until" in check_of(content, "colour")["reason"]
    assert "0 outcomes to compare" in check_of(content, "sensitivity")["reason"]
    assert "Nothing could be compared" in (log.parent / "out" / MONITOR_PAGE).read_text()
    content = watch(invoke, log, model, "--reference-until", "2026-01-03")[2]
    assert "30 needed" in check_of(content, "colour")["reason"], "a reference of ten rows"
    content = watch(invoke, log, model, "--reference-until", "2026-03-01")[2]
    assert "10 needed" in check_of(content, "colour")["reason"], "five rows to watch"


def test_an_empty_log_is_a_page_and_another_models_log_is_refused(
    invoke: Invoke, tmp_path: Path, model: Path
) -> None:
    with open_log(str(tmp_path / "empty.sqlite")):
        pass
    code, text, content = watch(invoke, tmp_path / "empty.sqlite", model)
    assert code == 0 and "0 alarms in 0 rows" in text and all(one["reason"] for one in content["checks"])
    write_log(tmp_path / "theirs.sqlite", "cd" * 32, n=5)
    code, text, _ = watch(invoke, tmp_path / "theirs.sqlite", model)
    assert code == 3 and "holds no answer of the model" in text and "cdcdcdcdcdcd (5 rows)" in text
    assert watch(invoke, tmp_path / "none.sqlite", model)[0] == 3


def test_a_log_that_does_not_verify_is_said_first(invoke: Invoke, log: Path, model: Path) -> None:
    connection = sqlite3.connect(log, isolation_level=None)
    connection.execute("UPDATE predictions SET predicted = 'mel' WHERE sequence = 7")
    connection.close()
    code, text, content = watch(invoke, log, model, *UNTIL)
    assert code == 0 and "does not verify" in text and "row 7: changed" in content["chain_problem"]
    page = (log.parent / "out" / MONITOR_PAGE).read_text()
    assert page.index("The log does not verify") < page.index('class="word"')
    assert watch(invoke, log, model, *UNTIL, "--fail-on-alarm")[0] == 8


@pytest.mark.parametrize(
    "options",
    [
        ("--period", "day"), ("--alpha", "0"), ("--since", "yesterday"),
        ("--since", "2026-03-01", "--until", "2026-02-01"),
        ("--since", "2026-03-01", "--reference-until", "2026-03-01"),
    ],
)  # fmt: skip
def test_wrong_options(invoke: Invoke, log: Path, model: Path, options: tuple[str, ...]) -> None:
    code, text, content = watch(invoke, log, model, *options)
    assert code == 2 and "To do" in text and not content


def test_a_changed_model_folder_is_refused(invoke: Invoke, log: Path, model: Path) -> None:
    (model / "model.json").write_text((model / "model.json").read_text().replace("0.9", "0.8"))
    assert watch(invoke, log, model)[0] == 6


def test_a_model_folder_is_read_as_prediction_reads_it(invoke: Invoke, log: Path, model: Path) -> None:
    """What `dermkit predict` refuses in a folder that verifies is refused here too, and a run stands for its model."""
    (log.parent / "run").mkdir()
    model.rename(log.parent / "run" / "model")
    run, model = log.parent / "run", log.parent / "run" / "model"
    assert watch(invoke, log, run)[0] == 0
    card = MODEL_JSON.read(model)
    (member,) = card["members"]
    MODEL_JSON.write(model, {**card, "members": [{**member, "class_order": [0, 0, 1]}]})
    write_checksums(model)
    code, text, _ = watch(invoke, log, run)
    assert code == 6 and "not a model folder: the class_order" in text
    MODEL_JSON.write(model, card)
    (model / "seen.csv").unlink()
    write_checksums(model)
    code, text, _ = watch(invoke, log, run)
    assert code == 6 and "does not list seen.csv" in text


def test_images_of_one_request_and_images_sent_again_count_once(
    invoke: Invoke, tmp_path: Path, model: Path, key: str
) -> None:
    rows = write_log(tmp_path / "log.sqlite", key, n=100)
    n_rows = len(rows)
    with open_log(str(tmp_path / "log.sqlite")) as prediction_log:
        from dermkit.prediction_log.rows import new_row_id

        row = next(row for row in rows if row.pixel_sha256)
        again = [replace(row, row_id=new_row_id(), request_id=f"again-{number}") for number in range(20)]
        several = [
            replace(row, row_id=new_row_id(), request_id="several", position=number,
                    pixel_sha256=sha256_bytes(str(number).encode()))
            for number in range(20)
        ]  # fmt: skip
        prediction_log.append([*again, *several])
    content = watch(invoke, tmp_path / "log.sqlite", model)[2]
    assert content["n_rows"] == n_rows + 40 and content["n_units"] == n_rows + 1 and content["n_repeated"] == 20


def test_hostile_names_are_text_on_the_page_and_no_formula_in_tables(
    invoke: Invoke, log: Path, model: Path, key: str
) -> None:
    def hostile(units: dict[str, Any], _: np.random.Generator) -> None:
        bluer(units, _)
        units["site"] = np.array(["=cmd<script>alert(1)</script>"] * len(units["site"]))

    write_log(log, key, n=100, change=hostile, seed=1, first=LATER, days=30)
    content = watch(invoke, log, model, *UNTIL)[2]
    assert content["alarms"]
    page = (log.parent / "out" / MONITOR_PAGE).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert ",'=cmd" in (log.parent / "out" / ALARM_IMAGES_TABLE).read_text()


def test_monitor_json_holds_numbers_that_any_program_reads(invoke: Invoke, log: Path, model: Path) -> None:
    watch(invoke, log, model, *UNTIL)
    text = (log.parent / "out" / MONITOR.name).read_text()
    assert json.loads(text)["format"] == 1 and "NaN" not in text and "Infinity" not in text


def test_memory_does_not_grow_with_the_log(tmp_path: Path, model: Path, key: str) -> None:
    from dermkit.monitoring.run import MonitorOptions, monitor

    peaks = []
    for n in (300, 900):
        write_log(tmp_path / f"{n}.sqlite", key, n=n)
        options = MonitorOptions(reference_until=datetime(2026, 1, 15, tzinfo=UTC))
        tracemalloc.start()
        monitor(str(tmp_path / f"{n}.sqlite"), model, tmp_path / "out", options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 1e6, peaks

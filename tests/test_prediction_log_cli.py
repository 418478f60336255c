"""The commands of the prediction log: what they print, and their exit codes."""

import sqlite3
from pathlib import Path

import pytest

from conftest import Invoke
from dermkit.prediction_log.writer import open_log
from prediction_log_tools import prediction_row


@pytest.fixture
def log(tmp_path: Path) -> str:
    path = str(tmp_path / "log.sqlite")
    with open_log(path) as prediction_log:
        prediction_log.append([prediction_row(number) for number in range(4)])
    return path


def change(log: str, statement: str) -> None:
    connection = sqlite3.connect(log, isolation_level=None)
    connection.execute(statement)
    connection.close()


def test_verify_log_prints_the_heads_and_names_the_first_wrong_row(
    invoke: Invoke, log: str, tmp_path: Path
) -> None:
    heads = str(tmp_path / "heads.txt")
    code, out, _ = invoke("verify-log", log, "--heads", heads)
    assert code == 0 and "the chains hold: 4 rows\n" in out and "head  predictions 4 " in out
    assert "3 in the log, 0 in what was deleted" in invoke("verify-log", log, "--heads", heads)[1]
    change(log, "UPDATE predictions SET predicted = 'mel' WHERE sequence = 2")
    code, _, err = invoke("verify-log", log)
    assert code == 3 and "predictions: row 2: changed" in err and "To do: keep a copy" in err


def test_verify_log_without_a_log(invoke: Invoke, tmp_path: Path) -> None:
    assert invoke("verify-log", str(tmp_path / "none.sqlite"))[0] == 3
    assert invoke("verify-log", "mysql://h/d")[0] == 2
    code, _, err = invoke("verify-log", "postgresql://nobody:secret@127.0.0.1:1/log")
    assert code == 5 and "cannot be used" in err and "secret" not in err


def test_outcomes_exit_codes(invoke: Invoke, log: str, tmp_path: Path) -> None:
    table = tmp_path / "outcomes.csv"
    head, good = "pixel_sha256,diagnosis,source,time\n", f"{1:064x},mel,histopathology,2026-12-01\n"
    table.write_text(head + good)
    code, out, _ = invoke("log", "outcomes", log, str(table))
    assert code == 0 and "1 new, 0 known before, 0 not taken" in out
    table.write_text(head + good + f"{9:064x},mel,histopathology,2026-12-01\n")
    code, out, err = invoke("log", "outcomes", log, str(table))
    assert code == 7 and "0 new, 1 known before, 1 not taken" in out and f"{9:064x}: the log has no image" in err
    table.write_text(head + "".join(f"{n:064x},mel,histopathology,2026-12-01\n" for n in range(10, 40)))
    code, _, err = invoke("log", "outcomes", log, str(table))
    assert code == 3 and "... and 10 more" in err and "no outcome was taken" in err


def test_export_and_delete(invoke: Invoke, log: str, tmp_path: Path) -> None:
    code, out, _ = invoke("log", "export", log, "--out", str(tmp_path / "log.csv"), "--since", "2020-01-01")
    assert code == 0 and out.startswith("4 rows\n") and "Research use only. Not a medical device." in out
    assert invoke("log", "export", log, "--out", str(tmp_path / "none.csv"), "--until", "2020-01-01")[1][0] == "0"
    code, _, err = invoke("log", "delete", log, "--keep-days", "30", "--reason", "rule")
    assert code == 2 and "EU AI Act" in err
    code, out, _ = invoke("log", "delete", log, "--keep-days", "365", "--reason", "rule")
    assert code == 0 and out == "nothing is that old\n"
    code, out, _ = invoke("log", "delete", log, "--keep-days", "0", "--under-six-months", "--reason", "rule")
    assert code == 0 and out == "predictions: 4 rows deleted, the last was row 4\n"
    assert "4 were deleted by retention" in invoke("verify-log", log)[1]


def test_the_address_may_come_from_the_environment(
    invoke: Invoke, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DERMKIT_LOG", log)
    assert invoke("verify-log")[0] == 0


def test_without_the_packages_the_message_says_what_to_install(
    invoke: Invoke, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dermkit.prediction_log.packages.find_spec", lambda _: None)
    code, _, err = invoke("verify-log", log)
    assert code == 2 and "pip install 'dermkit[serve]'" in err

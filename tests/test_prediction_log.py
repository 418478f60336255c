"""The prediction log: rows read back as they were written, and its chain shows every change."""

import csv
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.schema import CreateTable

from dermkit.errors import DataError, OutputError, UsageError
from dermkit.images.statistics import image_statistics
from dermkit.prediction_log import outcomes, schema, verify
from dermkit.prediction_log.append import append_rows
from dermkit.prediction_log.chain import GENESIS, row_hash
from dermkit.prediction_log.database import open_engine, open_reader, parse_address
from dermkit.prediction_log.export import export_log
from dermkit.prediction_log.outcomes import add_outcome, add_outcomes, import_outcomes
from dermkit.prediction_log.read import CHUNK_ROWS, read_frames, read_log
from dermkit.prediction_log.retention import LEAST_DAYS, delete_old
from dermkit.prediction_log.rows import OutcomeRow, PredictionRow, parse_time, time_text
from dermkit.prediction_log.tables import CHAINS, HEADS, PREDICTIONS
from dermkit.prediction_log.verify import ChainBroken, verify_log
from dermkit.prediction_log.writer import open_log
from prediction_log_tools import MODEL_KEY, prediction_row

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def make_log(folder: Path, n_rows: int = 6, **changes: Any) -> str:
    """Write a log of some rows, in two commits."""
    path = str(folder / "log.sqlite")
    with open_log(path) as log:
        log.append([prediction_row(number, **changes) for number in range(n_rows // 2)])
        log.append([prediction_row(number, **changes) for number in range(n_rows // 2, n_rows)])
    return path


def sql(log: str, *statements: str) -> None:
    """Change a log as somebody would who has its file."""
    connection = sqlite3.connect(log, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def query_log(log: str, query: str) -> list[Any]:
    connection = sqlite3.connect(log)
    rows = connection.execute(query).fetchall()
    connection.close()
    return rows


# Rows -----------------------------------------------------------------------------------------------------------


def test_a_row_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [
        prediction_row(1),
        prediction_row(2, positive=None, outside_training_distribution=None, prediction_set=None, statistics=None),
        prediction_row(
            3, positive=True, prediction_set=(), threshold=1e-300, p_value=0.1 + 0.2, site="Bein, außen"
        ),
        PredictionRow(
            request_id="r", position=3, dermkit_version="0", model_key=MODEL_KEY, refusal_reason="truncated"
        ),
    ]
    with open_log(str(tmp_path / "log.sqlite")) as log:
        ids = log.append(rows)
    read = [prediction.row for prediction in read_log(str(tmp_path / "log.sqlite"))]
    assert [row.row_id for row in read] == ids
    assert [row.columns() for row in read] == [row.columns() for row in rows]
    assert [row.sequence for row in read] == [1, 2, 3, 4]
    assert read[0].statistics == rows[0].statistics and read[2].prediction_set == ()
    assert verify_log(str(tmp_path / "log.sqlite")).n_rows == 4


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=30)
@given(numbers=st.lists(FINITE, min_size=3, max_size=3), text=st.text(max_size=20))
def test_any_number_and_text_that_is_taken_keeps_its_hash(any_log: str, numbers: list[float], text: str) -> None:
    try:
        row = prediction_row(threshold=numbers[0], distance=numbers[1], p_value=numbers[2], device=text)
    except UsageError:
        return
    engine = open_engine(parse_address(any_log), writes=True)
    with engine.begin() as connection:
        append_rows(connection, PREDICTIONS, [row.columns()])
    engine.dispose()
    verify_log(any_log)
    assert [prediction.row.columns() for prediction in read_log(any_log)][-1] == row.columns()


@pytest.fixture(scope="module")
def any_log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_log(tmp_path_factory.mktemp("log"), 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": float("nan")}, {"probabilities": {"nv": float("inf")}}, {"site": "a\nb"}, {"device": "x" * 301},
        {"model_key": "AB" * 32}, {"pixel_sha256": "ab"}, {"row_id": "' or 1=1"}, {"position": -1},
        {"predicted": ""}, {"refusal_reason": "truncated"}, {"site": "\x00"}, {"age_group": "\ud800"},
        {"request_id": "\u202e"},
    ],
)  # fmt: skip
def test_what_a_row_cannot_hold_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="prediction log: "):
        prediction_row(**changes)


def test_times_are_utc_and_sort_as_texts() -> None:
    assert time_text(datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=5)))) == "2026-01-01T22:00:00.000000Z"
    assert parse_time("2026-11-30").tzinfo is UTC
    assert len(time_text(parse_time("0001-01-02"))) == 27
    for wrong in ("yesterday", "", "0001-01-01T00:00:00+14:00"):
        with pytest.raises(UsageError, match="time"):
            parse_time(wrong)
    with pytest.raises(UsageError, match="time zone"):
        time_text(datetime(2026, 1, 2))


def test_statistics_are_of_the_decoded_pixels() -> None:
    pixels = np.zeros((300, 600, 3), np.uint8)
    pixels[:, 300:] = (200, 100, 50)
    statistics = image_statistics(pixels)
    assert (statistics.width, statistics.height, statistics.aspect) == (600, 300, 2.0)
    assert (statistics.mean_red, statistics.sd_green) == (100.0, 50.0)
    assert image_statistics(np.full((300, 600, 3), 90, np.uint8)).sharpness == 0.0
    assert image_statistics(pixels[:4, :4]).sharpness is None


# The chain ------------------------------------------------------------------------------------------------------


def forged(log: str, sequence: int, previous_hash: str, source: int) -> None:
    """Put a copy of row `source` at `sequence`, with a hash that fits `previous_hash`."""
    with open_reader(parse_address(log)) as connection:
        row = connection.execute(PREDICTIONS.select().where(PREDICTIONS.c.sequence == source)).mappings().one()
        columns = {**{str(name): row[name] for name in row}, "row_id": "0" * 32, "sequence": sequence}
    columns |= {"previous_hash": previous_hash, "row_hash": row_hash(previous_hash, columns)}
    engine = open_engine(parse_address(log), writes=True)
    with engine.begin() as connection:
        connection.execute(PREDICTIONS.insert(), columns)
    engine.dispose()


RENUMBER = (
    "UPDATE predictions SET sequence = -sequence - 1 WHERE sequence > 3",
    "UPDATE predictions SET sequence = -sequence WHERE sequence < 0",
)


def insert_forged(log: str) -> None:
    ((previous_hash,),) = query_log(log, "SELECT row_hash FROM predictions WHERE sequence = 3")
    sql(log, *RENUMBER)
    forged(log, 4, previous_hash, source=2)


def insert_stranger(log: str) -> None:
    sql(log, *RENUMBER)
    forged(log, 4, "12" * 32, source=2)


def swap(log: str) -> None:
    sql(
        log,
        "UPDATE predictions SET sequence = -1 WHERE sequence = 3",
        "UPDATE predictions SET sequence = 3 WHERE sequence = 4",
        "UPDATE predictions SET sequence = 4 WHERE sequence = -1",
    )


def close_up(log: str) -> None:
    sql(
        log,
        "DELETE FROM predictions WHERE sequence = 3",
        "UPDATE predictions SET sequence = -sequence + 1 WHERE sequence > 3",
        "UPDATE predictions SET sequence = -sequence WHERE sequence < 0",
    )


@pytest.mark.parametrize(
    ("change", "chain", "sequence", "kind"),
    [
        (["UPDATE predictions SET positive = 'yes' WHERE sequence = 3"], "predictions", 3, "changed"),
        (["UPDATE predictions SET threshold = 0.40000000000000008 WHERE sequence = 6"], "predictions", 6, "changed"),
        (["UPDATE predictions SET site = NULL WHERE sequence = 1"], "predictions", 1, "changed"),
        (["UPDATE predictions SET refusal_reason = '' WHERE sequence = 2"], "predictions", 2, "changed"),
        (["UPDATE predictions SET width = 'wide' WHERE sequence = 2"], "predictions", 2, "changed"),
        (["UPDATE predictions SET site = x'ff00' WHERE sequence = 2"], "predictions", 2, "changed"),
        (["UPDATE predictions SET row_hash = previous_hash WHERE sequence = 5"], "predictions", 5, "changed"),
        (["DELETE FROM predictions WHERE sequence = 3"], "predictions", 3, "removed"),
        (["DELETE FROM predictions WHERE sequence IN (1, 2)"], "predictions", 1, "removed"),
        (["DELETE FROM predictions WHERE sequence > 4"], "predictions", 5, "removed"),
        (["DELETE FROM predictions"], "predictions", 1, "removed"),
        (["UPDATE predictions SET sequence = 0 WHERE sequence = 1"], "predictions", 1, "inserted"),
        (close_up, "predictions", 3, "removed"),
        (insert_forged, "predictions", 4, "inserted"),
        (insert_stranger, "predictions", 4, "inserted"),
        (swap, "predictions", 3, "moved"),
        (["UPDATE chain_heads SET row_hash = '' WHERE chain = 'predictions'"], "predictions", 6, "head changed"),
        (["UPDATE chain_heads SET sequence = 5 WHERE chain = 'predictions'"], "predictions", 6, "head changed"),
        (["DELETE FROM chain_heads"], "deletions", 0, "head removed"),
        (["UPDATE outcomes SET diagnosis = 'nv'"], "outcomes", 1, "changed"),
        (["DELETE FROM outcomes"], "outcomes", 1, "removed"),
    ],
)  # fmt: skip
def test_the_first_wrong_row_is_named(
    tmp_path: Path, change: list[str] | Callable[[str], None], chain: str, sequence: int, kind: str
) -> None:
    log = make_log(tmp_path)
    add_outcome(log, pixel_sha256=f"{1:064x}", diagnosis="mel", source="histopathology")
    assert verify_log(log).n_rows == 7
    sql(log, *change) if isinstance(change, list) else change(log)
    with pytest.raises(ChainBroken) as failure:
        verify_log(log)
    assert (failure.value.chain, failure.value.sequence, failure.value.kind) == (chain, sequence, kind)
    assert failure.value.exit_code == 3


def test_the_walk_crosses_its_own_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "ROWS_PER_QUERY", 4)
    log = make_log(tmp_path, 12)
    assert verify_log(log).n_rows == 12
    sql(log, "UPDATE predictions SET site = 'arm' WHERE sequence = 9")
    with pytest.raises(ChainBroken, match="row 9: changed"):
        verify_log(log)


def test_a_chain_that_was_computed_anew_is_found_by_a_noted_head_alone(tmp_path: Path) -> None:
    log, heads = make_log(tmp_path), tmp_path / "elsewhere" / "heads"
    assert verify_log(log, heads=heads).n_heads == 0
    with open_log(log) as prediction_log:
        prediction_log.append([prediction_row(9)])
    assert verify_log(log, heads=heads).n_heads == 3
    assert len(heads.read_text().splitlines()) == 4
    rewrite(log)
    assert verify_log(log).n_rows == 7, "who may write to the database can do this: docs/prediction-log.md says so"
    with pytest.raises(ChainBroken, match="row 6: changed: an earlier check saw another hash"):
        verify_log(log, heads=heads)


def rewrite(log: str) -> None:
    """Change the first row and compute every later hash anew, as somebody would who knows this code."""
    sql(log, "UPDATE predictions SET site = 'arm' WHERE sequence = 1")
    previous_hash = GENESIS
    connection = sqlite3.connect(log)
    with open_reader(parse_address(log)) as reader:
        rows = [{str(name): row[name] for name in row} for row in reader.execute(PREDICTIONS.select()).mappings()]
    for row in rows:
        new_hash = row_hash(previous_hash, row)
        connection.execute(
            "UPDATE predictions SET previous_hash = ?, row_hash = ? WHERE sequence = ?",
            (previous_hash, new_hash, row["sequence"]),
        )
        previous_hash = new_hash
    connection.execute("UPDATE chain_heads SET row_hash = ? WHERE chain = 'predictions'", (previous_hash,))
    connection.commit()
    connection.close()


def test_a_cut_end_with_its_head_is_found_by_a_noted_head(tmp_path: Path) -> None:
    log, heads = make_log(tmp_path), tmp_path / "heads"
    verify_log(log, heads=heads)
    sql(
        log,
        "DELETE FROM predictions WHERE sequence > 4",
        "UPDATE chain_heads SET sequence = 4, row_hash = (SELECT row_hash FROM predictions WHERE sequence = 4) "
        "WHERE chain = 'predictions'",
    )
    assert verify_log(log).n_rows == 4
    with pytest.raises(ChainBroken, match="row 6: removed: an earlier check saw it"):
        verify_log(log, heads=heads)


@pytest.mark.parametrize(
    "text", ["no head", "predictions x " + "0" * 64, "others 1 " + "0" * 64, "predictions 1 ab"]
)
def test_another_file_is_no_file_of_heads(tmp_path: Path, text: str) -> None:
    (tmp_path / "heads").write_text(text + "\n")
    with pytest.raises(UsageError, match="no file of heads"):
        verify_log(make_log(tmp_path), heads=tmp_path / "heads")
    assert (tmp_path / "heads").read_text() == text + "\n"


# The database ---------------------------------------------------------------------------------------------------


def test_sqlite_syncs_each_commit_and_the_file_is_the_owners(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    engine = open_engine(parse_address(log), writes=True)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    engine.dispose()
    assert Path(log).stat().st_mode & 0o077 == 0


def test_the_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    postgresql = open_engine(parse_address("postgresql://db.example/log"), writes=False).dialect
    for table in (*CHAINS.values(), HEADS):
        columns = {
            name: (kind, required)
            for _, name, kind, required, _, _ in query_log(log, f"PRAGMA table_info({table.name})")
        }
        assert columns == {
            column.name: (
                str(column.type.compile(open_engine(parse_address(log), writes=False).dialect)),
                int(not column.nullable),
            )
            for column in table.columns
        }
        indexes = {
            name for _, name, *_ in query_log(log, f"PRAGMA index_list({table.name})") if "autoindex" not in name
        }
        assert indexes == {index.name for index in table.indexes}
        assert "BIGINT" in str(CreateTable(table).compile(dialect=postgresql))


def test_a_newer_schema_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    sql(log, "UPDATE schema_version SET version_num = '99'")
    uses: list[Callable[[str], object]] = [open_log, verify_log, lambda one: list(read_log(one))]
    for use in uses:
        with pytest.raises(UsageError, match="schema 99, which this dermkit does not know"):
            use(log)
    assert len(query_log(log, "SELECT 1 FROM predictions")) == 6


def test_an_older_schema_is_for_the_server_to_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make_log(tmp_path)
    folder = tmp_path / "migrations"
    folder.mkdir()
    source = schema.MIGRATION_FOLDER / "v1_tables.py"
    (folder / "v1_tables.py").write_text(source.read_text())
    (folder / "v2_more.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision, down_revision = '2', '1'\n"
        "def upgrade():\n    op.add_column('predictions', sa.Column('more', sa.Text()))\n"
    )
    monkeypatch.setattr(schema, "MIGRATION_FOLDER", folder)
    with pytest.raises(UsageError, match=r"schema 1, this dermkit reads 2\n.*\n.*dermkit serve"):
        verify_log(log)
    with open_log(log) as prediction_log:
        prediction_log.append([prediction_row(7)])
    assert query_log(log, "SELECT version_num FROM schema_version") == [("2",)]
    assert verify_log(log).n_rows == 7, "rows of the older schema keep their hashes"


@pytest.mark.parametrize(
    "text", ["mysql://u@h/d", "sqlite://", "", ":memory:", "postgresql://host", "://", "a://b c"]
)
def test_an_address_that_cannot_hold_a_log_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="prediction log: "):
        parse_address(text)


def test_a_password_is_in_no_message() -> None:
    assert "secret" not in parse_address("postgresql://jo:secret@db.example/log").name
    assert parse_address("postgres://jo:secret@db.example/log").url.drivername == "postgresql+psycopg"


def test_what_is_no_log_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no prediction log"):
        verify_log(str(tmp_path / "absent.sqlite"))
    assert not (tmp_path / "absent.sqlite").exists()
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match="holds no prediction log"):
        verify_log(str(tmp_path / "empty"))
    (tmp_path / "text").write_text("a letter about a patient\n" * 1000)
    for use in (verify_log, open_log):
        with pytest.raises(DataError, match="damaged, or is none"):
            use(str(tmp_path / "text"))
    sql(str(tmp_path / "theirs.sqlite"), "CREATE TABLE predictions (a)")
    with pytest.raises(UsageError, match="has other tables of these names: predictions"):
        open_log(str(tmp_path / "theirs.sqlite"))


def test_a_removed_head_is_no_begin_of_a_new_chain(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    sql(log, "DELETE FROM chain_heads WHERE chain = 'predictions'")
    with pytest.raises(DataError, match="head of the chain predictions was removed"):
        open_log(log)
    assert len(query_log(log, "SELECT 1 FROM predictions")) == 6


# Outcomes -------------------------------------------------------------------------------------------------------


def test_an_outcome_is_written_once_and_a_correction_is_a_new_row(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    row_id = next(iter(read_log(log))).row.row_id
    first: dict[str, Any] = {"prediction_id": row_id, "diagnosis": "nv", "source": "follow-up", "time": NOW}
    second = {**first, "diagnosis": "mel", "source": "histopathology", "time": NOW + timedelta(days=30)}
    assert [add_outcome(log, **one) for one in (first, first, second, first)] == [True, False, True, False]
    assert add_outcome(log, **{**first, "kind": "override", "diagnosis": "refer"})
    prediction = next(iter(read_log(log)))
    assert prediction.outcome is not None and prediction.override is not None
    assert (prediction.outcome.diagnosis, prediction.override.diagnosis) == ("mel", "refer")
    assert len(query_log(log, "SELECT 1 FROM outcomes")) == 3
    assert verify_log(log).n_rows == 9


def test_an_outcome_of_the_pixels_holds_for_every_prediction_of_the_image(tmp_path: Path) -> None:
    log = make_log(tmp_path, 4, pixel_sha256="cd" * 32)
    ids = [prediction.row.row_id for prediction in read_log(log)]
    add_outcome(log, pixel_sha256="cd" * 32, diagnosis="nv", source="follow-up", time=NOW)
    add_outcome(log, prediction_id=ids[2], diagnosis="mel", source="histopathology", time=NOW + timedelta(days=1))
    diagnoses = [prediction.outcome and prediction.outcome.diagnosis for prediction in read_log(log)]
    assert diagnoses == ["nv", "nv", "mel", "nv"]


def test_an_unknown_id_is_refused(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    with pytest.raises(DataError, match="no prediction of this id"):
        add_outcome(log, prediction_id="0" * 32, diagnosis="nv", source="x")
    with pytest.raises(DataError, match="no image of these pixels"):
        add_outcome(log, pixel_sha256="9" * 64, diagnosis="nv", source="x")
    row_id = next(iter(read_log(log))).row.row_id
    with pytest.raises(DataError, match="other pixels"):
        add_outcome(log, prediction_id=row_id, pixel_sha256=f"{5:064x}", diagnosis="nv", source="x")
    wrongs: list[dict[str, Any]] = [{"diagnosis": " "}, {"source": ""}, {"kind": "guess"}, {"prediction_id": ""}]
    for wrong in wrongs:
        with pytest.raises(UsageError):
            add_outcome(log, **{"prediction_id": row_id, "diagnosis": "nv", "source": "x", **wrong})
    assert not query_log(log, "SELECT 1 FROM outcomes")


def test_a_table_of_outcomes_is_taken_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_ROWS_PER_COMMIT", 2)
    log, table = make_log(tmp_path), tmp_path / "outcomes.csv"
    lines = [f"{number:064x},nv,histopathology,2026-11-{number + 1:02}" for number in range(6)]
    lines[3:3] = [
        f"{9:064x},nv,histopathology,2026-11-01", f"{1:064x},,histopathology,2026-11-01",
        f"{1:064x},nv,histopathology,soon", "ab,nv,x,2026-11-01", f"{1:064x},nv,x,2026-11-01,more",
    ]  # fmt: skip
    table.write_text("\ufeffpixel_sha256,diagnosis,source,time\n" + "\n".join(lines) + "\n")
    added = import_outcomes(log, table)
    assert (added.n_new, added.n_known) == (6, 0)
    assert [one.name for one in added.rejected] == ["line 6", "line 7", "line 8", "line 9", f"{9:064x}"]
    again = import_outcomes(log, table)
    assert (again.n_new, again.n_known, len(again.rejected)) == (0, 6, 5)
    assert verify_log(log).n_rows == 12


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ("prediction_id,diagnosis,source", "lacks time"),
        ("diagnosis,source,time", "lacks prediction_id or pixel_sha256"),
        ("prediction_id,diagnosis,source,time,patient", "has patient"),
        ("", "lacks"),
    ],
)
def test_a_table_with_other_columns_is_refused(tmp_path: Path, head: str, problem: str) -> None:
    (tmp_path / "outcomes.csv").write_text(head + "\n")
    with pytest.raises(UsageError, match=problem):
        import_outcomes(make_log(tmp_path), tmp_path / "outcomes.csv")


def test_a_broken_table_says_what_stays(tmp_path: Path) -> None:
    log, table = make_log(tmp_path), tmp_path / "outcomes.csv"
    table.write_bytes(b"pixel_sha256,diagnosis,source,time\n" + b"\xff" * 10)
    with pytest.raises(UsageError, match="cannot be read"):
        import_outcomes(log, table)
    with pytest.raises(UsageError, match="cannot be read"):
        import_outcomes(log, tmp_path / "absent.csv")


# Retention ------------------------------------------------------------------------------------------------------


def aged_log(folder: Path) -> str:
    """Write a log of rows that are 300, 250, 200, 260 and 10 days old: the fourth came late, through an outbox."""
    path = str(folder / "log.sqlite")
    with open_log(path) as log:
        log.append([prediction_row(days, time=NOW - timedelta(days=days)) for days in (300, 250, 200, 260, 10)])
    add_outcomes(
        path,
        [OutcomeRow(kind="outcome", pixel_sha256=f"{300:064x}", diagnosis="nv", source="x", observed=NOW,
                    time=NOW - timedelta(days=290))],
    )  # fmt: skip
    return path


def test_old_rows_are_deleted_and_the_chain_still_holds(tmp_path: Path) -> None:
    log, heads = aged_log(tmp_path), tmp_path / "heads"
    verify_log(log, heads=heads)
    stretches = delete_old(log, 240, reason="retention rule 7", now=NOW)
    assert [(one.chain, one.n_rows, one.sequence) for one in stretches] == [
        ("predictions", 2, 2),
        ("outcomes", 1, 1),
    ]
    assert [prediction.row.sequence for prediction in read_log(log)] == [3, 4, 5]
    verified = verify_log(log, heads=heads)
    assert (verified.n_rows, verified.n_deleted) == (5, 3)  # three predictions, two records of deletion
    assert delete_old(log, 240, reason="retention rule 7", now=NOW) == []
    assert [one.n_rows for one in delete_old(log, 190, reason="rule", now=NOW + timedelta(days=1))] == [2]
    with open_log(log) as prediction_log:
        prediction_log.append([prediction_row(77)])
    assert verify_log(log).n_deleted == 5
    assert [prediction.row.sequence for prediction in read_log(log)] == [5, 6]
    assert query_log(log, "SELECT reason FROM deletions LIMIT 1") == [("retention rule 7",)]


def test_everything_may_be_old(tmp_path: Path) -> None:
    log = aged_log(tmp_path)
    delete_old(log, 200, reason="rule", now=NOW + timedelta(days=400))
    assert list(read_log(log)) == [] and verify_log(log).n_deleted == 6
    with open_log(log) as prediction_log:
        prediction_log.append([prediction_row(77)])
    assert verify_log(log).n_rows == 3


def test_nothing_under_six_months_is_deleted_without_the_word(tmp_path: Path) -> None:
    log = aged_log(tmp_path)
    with pytest.raises(UsageError, match=r"under six months \(184 days\)\n.*nothing was deleted"):
        delete_old(log, LEAST_DAYS - 1, reason="rule", now=NOW)
    for wrong in (float("nan"), -1.0, 1e9):
        with pytest.raises(UsageError, match="no number of days"):
            delete_old(log, wrong, reason="rule", now=NOW)
    with pytest.raises(UsageError, match="--reason"):
        delete_old(log, 200, reason=" ", now=NOW)
    assert len(list(read_log(log))) == 5
    assert delete_old(log, 30, reason="rule", under_six_months=True, now=NOW)[0].n_rows == 4


def test_a_log_that_does_not_hold_is_not_deleted_from(tmp_path: Path) -> None:
    log = aged_log(tmp_path)
    sql(log, "UPDATE predictions SET site = 'arm' WHERE sequence = 1")
    with pytest.raises(ChainBroken, match="row 1: changed"):
        delete_old(log, 200, reason="rule", now=NOW)
    assert len(list(read_log(log))) == 5


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM deletions",
        "UPDATE deletions SET last_sequence = 3 WHERE chain = 'predictions'",
        "DELETE FROM predictions WHERE sequence = 3",
        "UPDATE deletions SET reason = 'none' WHERE sequence = 1",
    ],
)
def test_a_deletion_that_was_not_recorded_is_found(tmp_path: Path, change: str) -> None:
    log = aged_log(tmp_path)
    delete_old(log, 240, reason="rule", now=NOW)
    sql(log, change)
    with pytest.raises(ChainBroken):
        verify_log(log)


# Reading and export -----------------------------------------------------------------------------------------------


def test_reading_goes_by_time_and_model_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dermkit.prediction_log.read.CHUNK_ROWS", 2)
    log = str(tmp_path / "log.sqlite")
    with open_log(log) as prediction_log:
        prediction_log.append([prediction_row(n, time=NOW + timedelta(days=n)) for n in range(5)])
        prediction_log.append([prediction_row(5, time=NOW, model_key="12" * 32)])
    read = [
        prediction.row.sequence for prediction in read_log(log, NOW + timedelta(days=1), NOW + timedelta(days=4))
    ]
    assert read == [2, 3, 4]
    assert [prediction.row.sequence for prediction in read_log(log, model_key="12" * 32)] == [6]
    frames = list(read_frames(log))
    assert [len(frame) for frame in frames] == [2, 2, 2]
    assert frames[0]["aspect"].tolist() == [600 / 450] * 2 and CHUNK_ROWS == 500


def test_an_export_holds_no_formula(tmp_path: Path) -> None:
    log = make_log(tmp_path, 4, site="=HYPERLINK(1)", device="@SUM(A1)")
    add_outcome(log, pixel_sha256=f"{2:064x}", diagnosis="+1+cmd", source="-x", time=NOW)
    assert export_log(log, tmp_path / "log.csv") == 4
    with (tmp_path / "log.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[2]["site"] == "'=HYPERLINK(1)" and rows[2]["outcome"] == "'+1+cmd"
    assert rows[0]["outcome"] == "" and float(rows[0]["threshold"]) == 0.4
    assert not [cell for row in rows for cell in row.values() if cell[:1] in ("=", "+", "@")]
    assert "row_hash" not in rows[0]


def test_an_export_of_an_empty_log_has_its_columns(tmp_path: Path) -> None:
    log = make_log(tmp_path, 0)
    assert export_log(log, tmp_path / "log.csv") == 0
    assert (tmp_path / "log.csv").read_text().startswith("sequence,row_id,")
    with pytest.raises(OutputError):
        export_log(log, tmp_path / "log.csv" / "inside")

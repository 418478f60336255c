"""The prediction log on a real PostgreSQL server, which the tests start, stop and crash; skipped where it is absent."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from dermkit.prediction_log import writer
from dermkit.prediction_log.database import open_engine, parse_address
from dermkit.prediction_log.export import export_log
from dermkit.prediction_log.outcomes import add_outcome
from dermkit.prediction_log.read import read_log
from dermkit.prediction_log.retention import delete_old
from dermkit.prediction_log.verify import ChainBroken, verify_log
from dermkit.prediction_log.writer import open_log
from prediction_log_tools import kill_writer, prediction_row, random_seconds, start_writer
from test_prediction_log_writer import check_acknowledged, ids_of, wait_until

pytest.importorskip("psycopg")
BINARIES = [Path(program).parent for program in [shutil.which("pg_ctl")] if program]
BINARIES += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
pytestmark = pytest.mark.skipif(not BINARIES, reason="no PostgreSQL server is installed")


class Server:
    """A PostgreSQL server of our own, on a socket in its folder; not as root, which it refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        self._run("initdb", "-D", str(self.data), "-U", "dermkit", "-A", "trust", "--no-sync")

    @property
    def url(self) -> str:
        return f"postgresql://dermkit@/postgres?host={self.folder}"

    def _run(self, program: str, *args: str) -> None:
        # Output goes to a file: the server would keep a pipe open.
        with (self.folder.parent / "server.txt").open("ab") as stream:
            subprocess.run(
                [BINARIES[-1] / program, *args], check=True, timeout=120, stdout=stream, stderr=stream,
                stdin=subprocess.DEVNULL, user=self._user, cwd="/",
            )  # fmt: skip

    def start(self) -> None:
        options = f"-c listen_addresses= -k {self.folder}"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; "immediate" is as a crash: connections break, and the next start recovers from its log."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())  # a socket's path must be short
    base.chmod(0o755)
    (base / "pg").mkdir()
    one = Server(base / "pg")
    one.start()
    yield one
    one.stop("fast")
    shutil.rmtree(base)


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    """Yield the URL of a server without tables."""
    yield server.url
    engine = create_engine(parse_address(server.url).url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "DATABASE_RETRY_SECONDS", 0.05)


def execute(url: str, statement: str) -> None:
    engine = open_engine(parse_address(url), writes=True)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_rows_come_back_from_postgresql_with_all_their_digits(url: str, tmp_path: Path) -> None:
    rows = [prediction_row(number, threshold=1 / (number + 3), distance=1e-300, site="ü😀") for number in range(3)]
    with open_log(url, tmp_path / "outbox") as log:
        log.append(rows)
        assert log.append(rows[:1]) == [rows[0].row_id]
    assert [prediction.row.columns() for prediction in read_log(url)] == [row.columns() for row in rows]
    assert add_outcome(url, prediction_id=rows[1].row_id, diagnosis="mel", source="histopathology")
    assert verify_log(url).n_rows == 4
    assert export_log(url, tmp_path / "log.csv") == 3
    execute(url, "UPDATE predictions SET threshold = threshold * (1 + 1e-15) WHERE sequence = 2")
    with pytest.raises(ChainBroken, match="predictions: row 2: changed"):
        verify_log(url)


def test_retention_on_postgresql(url: str, tmp_path: Path) -> None:
    with open_log(url, tmp_path / "outbox") as log:
        log.append([prediction_row(number) for number in range(3)])
    assert delete_old(url, 0, reason="rule", under_six_months=True)[0].n_rows == 3
    assert verify_log(url).n_deleted == 3


def test_a_crash_of_the_server_loses_and_doubles_nothing(server: Server, url: str, tmp_path: Path) -> None:
    with open_log(url, tmp_path / "outbox", timeout=2) as log:
        ids = log.append([prediction_row(0)])
        server.stop()
        ids += log.append([prediction_row(1)])
        ids += log.append([prediction_row(2)])
        assert log.status.n_outbox == 2
        server.start()
        wait_until(lambda: log.status.n_outbox == 0)
        ids += log.append([prediction_row(3)])
    assert ids_of(url) == ids
    assert verify_log(url).n_rows == 4


def test_a_server_that_is_away_at_the_start_is_no_error(server: Server, url: str, tmp_path: Path) -> None:
    server.stop()
    with open_log(url, tmp_path / "outbox", timeout=2) as log:
        ids = log.append([prediction_row(1)])
        server.start()
        wait_until(lambda: log.status.n_outbox == 0)
    assert ids_of(url) == ids


def test_a_probe_sees_a_server_go_and_come_back(
    server: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PROBE_SECONDS", 0.05)
    outbox = tmp_path / "outbox"
    with open_log(url, outbox, timeout=2) as log:
        ids = log.append([prediction_row(1)])
        outbox.rmdir()
        outbox.touch()
        server.stop()
        wait_until(lambda: log.status.is_silent)
        server.start()
        wait_until(lambda: not log.status.is_silent)
        ids += log.append([prediction_row(2)])
    assert ids_of(url) == ids and verify_log(url).n_rows == 2


@pytest.mark.slow
def test_twenty_stops_and_starts_with_kills(server: Server, url: str, tmp_path: Path) -> None:
    generator = random.Random(3)
    open_log(url, tmp_path / "outbox").close()
    acknowledged: list[str] = []
    for stop in range(20):
        processes = [start_writer(url, f"{stop}-{n}", tmp_path / "outbox", timeout=2) for n in range(2)]
        time.sleep(generator.uniform(2, 4))
        server.stop(generator.choice(("immediate", "fast")))
        time.sleep(random_seconds(generator))
        acknowledged += kill_writer(processes[0], random_seconds(generator))
        server.start()
        acknowledged += kill_writer(processes[1], random_seconds(generator))
    with open_log(url, tmp_path / "outbox") as log:
        wait_until(lambda: log.status.n_outbox == 0)
    assert check_acknowledged(url, acknowledged) >= len(acknowledged)
    assert len(acknowledged) > 500

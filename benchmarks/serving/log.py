"""How many rows a second the prediction log takes, beside what the disk alone can do.

    python benchmarks/serving/log.py [FOLDER] [--url postgresql://USER@HOST/DATABASE] [--seconds 5]

FOLDER: where the log is made, on the disk in question (default: a temporary folder). Each line is one way of writing:
clients (threads that wait for their rows), rows of a request, rows and commits a second, and the ratio to a loop that
appends the same bytes to a file and flushes it to the disk (fsync) once a request. On a shared machine read the ratios.
"""

import argparse
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dermkit.files import canonical_json
from dermkit.images.statistics import ImageStatistics
from dermkit.prediction_log.rows import PredictionRow
from dermkit.prediction_log.verify import verify_log
from dermkit.prediction_log.writer import open_log

STATISTICS = ImageStatistics(600, 450, 180.5, 140.25, 130.0, 20.0, 21.0, 22.0, 1.1)
PROBABILITIES = dict.fromkeys(("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"), 1 / 7)


def make_row(number: int, position: int) -> PredictionRow:
    """Return a row as a server writes it, of a model with seven classes."""
    return PredictionRow(
        request_id=f"{number:032x}", position=position, dermkit_version="0.1.0", model_key="ab" * 32,
        preprocessing_sha256="cd" * 32, pixel_sha256=f"{number:064x}", probabilities=PROBABILITIES,
        calibrated_probabilities=PROBABILITIES, predicted="nv", operating_point="sensitivity 0.95", threshold=0.2,
        malignant_probability=3 / 7, positive=True, prediction_set=("mel", "nv"), distance=1.0, p_value=0.5,
        outside_training_distribution=False, statistics=STATISTICS, site="trunk", device="A", age_group="40-49",
    )  # fmt: skip


def count_requests(write: Callable[[int], object], n_clients: int, seconds: float) -> float:
    """Return how many requests a second the clients wrote, each waiting for its own."""
    numbers, end = itertools.count(), time.perf_counter() + seconds
    counts = [0] * n_clients

    def run(client: int) -> None:
        while time.perf_counter() < end:
            write(next(numbers))
            counts[client] += 1

    start_time = time.perf_counter()
    threads = [threading.Thread(target=run, args=(client,)) for client in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start_time)


def flushes_per_second(folder: Path, n_bytes: int, seconds: float) -> float:
    """Return how often a second bytes can be appended to a file and flushed to the disk."""
    with (folder / "floor").open("wb", buffering=0) as stream:

        def write(_: int) -> None:
            stream.write(b"x" * n_bytes)
            os.fsync(stream.fileno())

        return count_requests(write, 1, seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--url")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        measure(folder, options.url or str(folder / "log.sqlite"), options.seconds)


def measure(folder: Path, log: str, seconds: float) -> None:
    """Print a line for each way of writing, then how fast the chain is verified."""
    print("clients  rows/request  requests/s  rows/s  rows/commit  ratio to write + fsync")
    n_rows = 0
    for n_clients, rows_per_request in ((1, 1), (1, 16), (8, 1), (32, 1), (32, 4)):
        n_bytes = rows_per_request * len(canonical_json(make_row(0, 0).columns()))
        floor = flushes_per_second(folder, n_bytes, seconds / 2)
        with open_log(log, folder / "outbox") as prediction_log:

            def write(number: int, n: int = rows_per_request) -> None:
                prediction_log.append([make_row(number, position) for position in range(n)])

            rate = count_requests(write, n_clients, seconds)
            status = prediction_log.status
        n_rows += status.n_rows
        per_commit = status.n_rows / status.n_commits
        print(
            f"{n_clients:7}  {rows_per_request:12}  {rate:10.0f}  {rate * rows_per_request:6.0f}  {per_commit:11.1f}  "
            f"{rate / floor:22.2f}"
        )
    start_time = time.perf_counter()
    n_verified = verify_log(log).n_rows
    print(f"verify-log: {n_verified / (time.perf_counter() - start_time):.0f} rows/s ({n_verified} rows)")


if __name__ == "__main__":
    main()

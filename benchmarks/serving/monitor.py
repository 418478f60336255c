"""How often `dermkit monitor` is wrong, and how soon it is right, on simulated deployments.

    python benchmarks/serving/monitor.py [--deployments 200] [--months 200] [--per-month 20] [--seeds 20]

No drift: deployments of so many months, each of which may raise an alarm in any check at any time; the stated rate is
5 % of deployments. Planted drift, from the seventh month on, in deployments of 24 months with 100 units each: how many
of the seeds are found, and the delay in units. The rows are appended to monitor.csv beside this file. The simulator
draws units as the log would hold them (tests/monitoring_tools.py) and calls the code that the command calls.
"""

import argparse
import csv
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from dermkit.metrics.stats.intervals import proportion_interval

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from monitoring_tools import START, run_checks, simulate  # noqa: E402
from test_monitoring import bluer_camera, more_malignant, new_class, other_sites, worse_answers  # noqa: E402

COLUMNS = (
    "date",
    "case",
    "check",
    "n",
    "n_alarms",
    "share",
    "low",
    "high",
    "median_delay",
    "longest_delay",
    "setting",
)
DRIFTS = (
    ("camera colour", bluer_camera, "colour"), ("site mix", other_sites, "case_mix"),
    ("label shift", more_malignant, "probabilities"), ("new class", new_class, "distance"),
    ("worse answers", worse_answers, "sensitivity"),
)  # fmt: skip
DRIFT_MONTH, MONTHS, PER_MONTH = 6, 24, 100
N_REFERENCE = 500
BETS = "bets on fixed shares of ranks"
"""Tells rows of monitor.csv from those of the first version."""


def append_row(*cells: object) -> None:
    """Append a row to the table and print it."""
    path = HERE / "monitor.csv"
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerow((datetime.now(UTC).strftime("%Y-%m-%d"), *cells))
    print(*cells, flush=True)


def measure_false_alarms(n_deployments: int, n_months: int, n_per_month: int) -> None:
    """Append how many deployments without drift raise any alarm, and how many each check does."""
    checks_with_alarm: list[str] = []
    n_alarms = 0
    for seed in range(n_deployments):
        reader, end = simulate(seed, n_reference=N_REFERENCE, n_months=n_months, n_per_month=n_per_month)
        names = [name for name, check in run_checks(reader, end).items() if check.crossing is not None]
        checks_with_alarm += names
        n_alarms += bool(names)
    setting = f"{n_months} months of {n_per_month} units, reference {N_REFERENCE}, alpha 0.05, {BETS}"
    low, high = proportion_interval(n_alarms, n_deployments)[0]
    share = n_alarms / n_deployments
    append_row("no drift", "any", n_deployments, n_alarms, share, round(low, 4), round(high, 4), "", "", setting)
    for name in sorted(set(checks_with_alarm)):
        n_check = checks_with_alarm.count(name)
        append_row("no drift", name, n_deployments, n_check, n_check / n_deployments, "", "", "", "", setting)


def measure_delays(n_seeds: int) -> None:
    """Append for each planted drift how many seeds are found, and the delay in units."""
    begin = START.timestamp() + DRIFT_MONTH * 30 * 86400
    setting = f"{MONTHS} months of {PER_MONTH} units, drift after {DRIFT_MONTH}, reference {N_REFERENCE}, {BETS}"
    for case, change, check in DRIFTS:
        delays = []
        for seed in range(n_seeds):
            reader, end = simulate(
                seed, n_reference=N_REFERENCE, n_months=MONTHS, n_per_month=PER_MONTH, change=change,
                change_month=DRIFT_MONTH,
            )  # fmt: skip
            crossing = run_checks(reader, end)[check].crossing
            if crossing is not None and crossing.time >= begin:
                delays.append((crossing.time - begin) / (30 * 86400) * PER_MONTH)
        low, high = proportion_interval(len(delays), n_seeds)[0]
        middle, longest = (round(float(np.median(delays))), round(max(delays))) if delays else ("", "")
        share = len(delays) / n_seeds
        append_row(
            case, check, n_seeds, len(delays), share, round(low, 4), round(high, 4), middle, longest, setting
        )


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployments", type=int, default=200)
    parser.add_argument("--months", type=int, default=200)
    parser.add_argument("--per-month", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    if options.seeds:
        measure_delays(options.seeds)
    if options.deployments:
        measure_false_alarms(options.deployments, options.months, options.per_month)


if __name__ == "__main__":
    main()

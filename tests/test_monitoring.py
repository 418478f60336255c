"""Evidence, ranks and checks of monitoring on simulated deployments: false alarms, planted drift, delays."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import binom

from dermkit.metrics.stats.arrays import Floats
from dermkit.metrics.stats.intervals import proportion_interval
from dermkit.monitoring.alerts import Alarm, difference_of, direction_of
from dermkit.monitoring.checks import MONITOR_CHECKS, OTHER, Statistic, statistics_of
from dermkit.monitoring.drift import LOG_REFERENCE, CheckState, Crossing, start_checks
from dermkit.monitoring.evidence import (
    LOG_ODDS_SHIFTS,
    ODDS_RATIOS,
    RANK_SHARES,
    SHIFTS,
    SPREADS,
    Evidence,
    EvidencePath,
    cash_after,
    event_bets,
    mean_capital,
    number_bets,
    outcome_bets,
)
from dermkit.monitoring.model_reference import effective_count
from dermkit.monitoring.performance import observed_over_expected
from dermkit.monitoring.periods import names_of_periods
from dermkit.monitoring.ranks import ValueRanks, uniforms_of
from dermkit.monitoring.reference import KnownRate
from dermkit.monitoring.units import RepeatFilter
from dermkit.monitoring.values import TEXT_FIELDS, ValueSums, mean_or_share_text
from dermkit.monitoring.watch import Watch, WatchedRows
from monitoring_tools import POINT, REFERENCE, START, Change, right_probability, run_checks, simulate, text_counts

DAY = 86400.0


# Ranks and bets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [lambda g, n: g.normal(0.5, 0.1, n), lambda g, n: (g.random(n) < 0.05) * 1.0])
def test_ranks_are_random_numbers_however_small_the_reference(draw: Callable[..., Floats]) -> None:
    generator = np.random.default_rng(0)
    scores = []
    for _ in range(400):
        ranks = ValueRanks()
        ranks.add(draw(generator, 30))
        scores.append(ranks.scores(draw(generator, 20), generator.random(20)))
    values = np.concatenate(scores)
    assert abs(values.mean()) < 0.04 and abs(values.std() - 1) < 0.03
    assert abs(np.asarray(np.corrcoef(np.stack(scores).T))[0, 1]) < 0.15


def test_ranks_of_a_chunk_are_those_of_one_value_after_another() -> None:
    generator = np.random.default_rng(1)
    values, uniforms = np.round(generator.random(60), 1), generator.random(60)
    together, single = ValueRanks(), ValueRanks()
    scores = together.scores(values, uniforms)
    one_by_one = [single.scores(values[i : i + 1], uniforms[i : i + 1])[0] for i in range(60)]
    assert scores == pytest.approx(one_by_one) and together.n == single.n == 60


def test_no_bet_makes_money_on_average() -> None:
    grid = np.linspace(-40, 40, 400_001)
    log_density = -(grid**2) / 2 - np.log(2 * np.pi) / 2
    mean_payments = np.exp(number_bets(grid) + log_density[:, None]).sum(axis=0) * (grid[1] - grid[0])
    assert mean_payments == pytest.approx(np.ones(len(SHIFTS) + len(SPREADS)), abs=1e-6)
    scores = -ndtri((np.arange(200_000) + 0.5) / 200_000)
    paid = np.exp(event_bets(scores, ODDS_RATIOS))
    assert paid.mean(axis=0) == pytest.approx(np.ones(len(ODDS_RATIOS) * len(RANK_SHARES)), abs=1e-3)


def test_the_capital_is_a_fair_game() -> None:
    generator = np.random.default_rng(2)
    final = []
    for _ in range(4000):
        path = Evidence(len(SHIFTS) + len(SPREADS)).update(number_bets(generator.normal(size=6)), np.arange(6.0))
        final.append(np.exp(path.log_capital[-1]))
    assert abs(np.mean(final) - 1) < 4 * np.std(final) / np.sqrt(len(final)) + 0.01
    assert cash_after(np.array([0]))[0] == 1 and (np.diff(cash_after(np.arange(1000))) < 0).all()


def test_capital_by_chunks_is_that_of_all_at_once() -> None:
    payments = number_bets(np.random.default_rng(3).normal(0.3, 1, 90))
    whole = Evidence(payments.shape[1]).update(payments, np.arange(90.0))
    parts = Evidence(payments.shape[1])
    paths = [parts.update(payments[i : i + 7], np.arange(90.0)[i : i + 7]) for i in range(0, 90, 7)]
    assert np.concatenate([path.log_capital for path in paths]) == pytest.approx(whole.log_capital)
    assert np.concatenate([path.starts for path in paths]).tolist() == whole.starts.tolist()
    assert np.concatenate([path.bets for path in paths]).tolist() == whole.bets.tolist()


def test_the_begin_of_a_shift_is_estimated() -> None:
    scores = np.random.default_rng(4).normal(size=600)
    scores[400:] += 1
    path = Evidence(len(SHIFTS) + len(SPREADS)).update(number_bets(scores), np.arange(600.0))
    assert abs(path.starts[-1] - 400) < 15 and SHIFTS[path.bets[-1]] == 1.0


def test_a_mean_of_statistics_with_values_in_some_rows() -> None:
    evidence, latest = Evidence(1), np.zeros(2)
    path = evidence.update(np.log([[2.0], [2.0]]), np.arange(2.0))
    idle = Evidence(1).update(np.empty((0, 1)), np.empty(0))
    mask = np.array([False, True, True])
    capital = np.exp(mean_capital([(mask, path), (np.zeros(3, dtype=bool), idle)], latest))
    assert capital == pytest.approx(
        [1, (np.exp(path.log_capital[0]) + 1) / 2, (np.exp(path.log_capital[1]) + 1) / 2]
    )
    assert latest.tolist() == [path.log_capital[1], 0]


def test_numbers_that_break_ties_differ_by_statistic_and_stay() -> None:
    rows = np.random.default_rng(5).integers(0, 2**63, 5000).astype(np.uint64)
    first, second = uniforms_of(rows, 2**64 - 1), uniforms_of(rows, 12345)
    assert first.min() >= 0 and first.max() < 1 and abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert (first == uniforms_of(rows, 2**64 - 1)).all() and abs(first.mean() - 0.5) < 0.02
    salts = [statistic.salt for statistic in statistics_of(text_counts(simulate(0, n_reference=300, n_months=1,
             n_per_month=10)[0]))]  # fmt: skip
    assert len(set(salts)) == len(salts) > 30


# A statistic --------------------------------------------------------------------------------------------------------


def batch(n: int) -> WatchedRows:
    return WatchedRows(
        np.arange(n, dtype=np.float64),
        np.array(["2026-01"] * n),
        np.arange(n, dtype=np.uint64) * np.uint64(10**12),
    )


class RecordedEvidence(Evidence):
    """Keeps the log payments of each bet."""

    payments: Floats

    def update(self, log_payments: Floats, times: Floats, gains: Floats | None = None) -> EvidencePath:
        self.payments = log_payments
        return super().update(log_payments, times, gains)


def payment_variance(share: float, odds_ratio: float, n: int) -> float:
    """Return the variance of what a fair bet on a rank of this share pays in n rows."""
    bet_share = share * odds_ratio / (1 - share + share * odds_ratio)
    return float((bet_share**2 / share + (1 - bet_share) ** 2 / (1 - share)) ** n - 1)


SHORT_TAILED = np.array(
    [payment_variance(share, ratio, 60) < 10 for share in RANK_SHARES for ratio in ODDS_RATIOS]
)
"""Bets whose capital after 60 rows has a mean that 2,500 of them show: standard error at most 0.07."""


def test_no_bet_on_events_makes_money_with_a_small_reference() -> None:
    """The reference is drawn anew each time, so the share of its events differs from the rate."""
    generator = np.random.default_rng(8)
    finals = []
    for _ in range(2500):
        watch = Watch(Statistic("refusals", "refused"), "x")
        watch.add_reference(np.asarray(generator.random(30) < 0.1, dtype=np.float64))
        watch.evidence = recorded = RecordedEvidence(len(ODDS_RATIOS) * len(RANK_SHARES), len(ODDS_RATIOS))
        rows = WatchedRows(
            np.arange(60.0), np.array(["2026-01"] * 60), generator.integers(0, 2**63, 60).astype(np.uint64)
        )
        watch.update(np.asarray(generator.random(60) < 0.1, dtype=np.float64), rows)
        finals.append(np.exp(recorded.payments.sum(axis=0)))
    capitals = np.array(finals)
    standard_errors = capitals.std(axis=0) / np.sqrt(len(capitals))
    assert (capitals.mean(axis=0) - 4 * standard_errors <= 1).all()
    assert (np.abs(capitals.mean(axis=0) - 1)[SHORT_TAILED] < 0.3).all() and SHORT_TAILED.sum() > 10


def test_a_one_sided_reference_says_nothing_of_fewer() -> None:
    statistic = Statistic("distance", "outside", is_one_sided=True)
    fewer, more = Watch(statistic, "x"), Watch(statistic, "x")
    for watch in (fewer, more):
        watch.add_counts(20, 100)
    fewer.update(np.zeros(400), batch(400))
    _, path = more.update((np.arange(400) % 2 == 0) * 1.0, batch(400))
    assert fewer.latest < 0 and path.log_capital.max() > np.log(220)


def outcome_watch(probabilities: Floats, true_log_odds_error: float, seed: int) -> Watch:
    """Return the calibration of 300 images at P 0.05, as `start_checks` has it, and then of these, (N,)."""
    generator = np.random.default_rng(seed)
    checks = start_checks(
        REFERENCE, POINT, {name: Counter() for name in TEXT_FIELDS}, limit=5.4, date="2026-01-01"
    )
    (watch,) = checks["calibration"].watches
    first = np.full(300, 0.05)
    true = 1 / (1 + np.exp(-(np.log(probabilities / (1 - probabilities)) + true_log_odds_error)))
    watch.add_reference((generator.random(300) < first) - first)
    watch.update((generator.random(len(true)) < true) - probabilities, batch(len(true)))
    return watch


def test_other_probabilities_that_are_right_are_no_alarm_of_calibration() -> None:
    assert max(outcome_watch(np.full(400, 0.5), 0.0, seed).latest for seed in range(5)) < np.log(20)


def test_probabilities_that_are_too_low_are_an_alarm_of_calibration() -> None:
    watch = outcome_watch(np.full(300, 0.2), 1.4, 0)
    assert watch.latest > np.log(220) and not watch.reason
    assert mean_or_share_text(watch.reference_estimate, is_event=False) == "0 (by definition)"


def test_no_bet_on_right_probabilities_makes_money() -> None:
    probabilities = np.array([0.0, 1e-9, 0.05, 0.5, 0.999, 1.0])
    malignant, other = np.exp(outcome_bets(1 - probabilities)), np.exp(outcome_bets(-probabilities))
    mean_payments = probabilities[:, None] * malignant + (1 - probabilities[:, None]) * other
    assert mean_payments == pytest.approx(np.ones((6, len(LOG_ODDS_SHIFTS))))


def sensitivity_watch(rate: KnownRate, date: str) -> Watch:
    model = replace(REFERENCE, test_rates={POINT: {"sensitivity": rate}})
    counts: dict[str, Counter[str]] = {name: Counter() for name in TEXT_FIELDS}
    (watch,) = start_checks(model, POINT, counts, limit=5.4, date=date)["sensitivity"].watches
    return watch


def test_a_test_figure_that_is_worth_few_images_gives_way_to_rows_of_the_log() -> None:
    few, enough = KnownRate(0.9, 60, 29), KnownRate(0.9, 60, 30)
    assert sensitivity_watch(few, "2026-01-01").source == LOG_REFERENCE.format(date="2026-01-01")
    assert sensitivity_watch(enough, "2026-01-01").source.startswith("test images")
    assert "29 units, 30 needed" in sensitivity_watch(few, "").reason


def test_the_reference_is_shown_as_the_model_card_has_it() -> None:
    watch = sensitivity_watch(KnownRate(0.87, 100, 33, (0.74, 0.95)), "")
    rate_text = mean_or_share_text(watch.reference_estimate, is_event=True)
    assert rate_text == "87.0 % [74.0, 95.0] (n = 100)" and watch.reference.n == 33


def test_a_limit_by_design_is_shown_as_one() -> None:
    model, counts = replace(REFERENCE, n_validation_groups=200), {name: Counter[str]() for name in TEXT_FIELDS}
    checks = start_checks(model, "", counts, limit=5.4, date="")
    (watch,) = (one for one in checks["distance"].watches if one.statistic.column == "outside")
    rate_text = mean_or_share_text(watch.reference_estimate, is_event=True)
    assert rate_text == "5.0 % (limit by design, on 200 validation lesions)"
    later = ValueSums(40, 10.0, 10.0)
    difference = difference_of(later, watch)
    assert difference.value == pytest.approx(0.2) and difference.ci95 is not None and difference.ci95[0] > 0.05


def test_an_alarm_names_the_statistic_with_the_largest_capital_though_it_has_no_value_here() -> None:
    drifted, other = Watch(Statistic("x", "refused"), "x"), Watch(Statistic("x", "positive"), "x")
    for watch in (drifted, other):
        watch.add_reference((np.arange(200) % 20 == 0) * 1.0)
    check, unknown = CheckState("x", [drifted, other], 1e9), np.full(40, np.nan)
    check.update({0: np.ones(40), 1: unknown}, batch(40))
    check.limit = check.log_capital + 1e-9
    check.update({0: unknown, 1: np.ones(40)}, batch(40))
    assert check.crossing is not None and check.crossing.watch is drifted and check.crossing.n == 40
    assert direction_of(check.crossing) == "higher" and check.crossing.since == 0


def test_images_behind_an_alarm_may_tie() -> None:
    watch = Watch(Statistic("refusals", "refused"), "x")
    alarm = Alarm(Crossing("refusals", watch, 5, 0.0, -np.inf, 10), "higher")
    (chunk,) = simulate(0, n_reference=40, n_months=0, n_per_month=1)[0].simulated
    chunk.times[:] = 0.0
    for number in range(80):  # the last unit of a chunk, then the first one of the next
        chunk.numbers["refused"][:] = np.nan
        chunk.numbers["refused"][-1 if number % 2 == 0 else 0] = 1.0
        alarm.add(chunk, first_time=-np.inf)
    assert len(alarm.images) == 25


def test_a_statistic_without_enough_reference_raises_nothing() -> None:
    watch = Watch(Statistic("refusals", "refused"), "x")
    watch.add_reference(np.zeros(29))
    watch.update(np.ones(500), batch(500))
    assert "29 units, 30 needed" in watch.reason and watch.latest == 0 and watch.periods["2026-01"].mean == 1


def test_a_value_that_the_reference_never_had_is_seen() -> None:
    watch = Watch(Statistic("case_mix", "site", OTHER, known_values=("A",)), "x")
    watch.add_reference(np.zeros(200))
    _, path = watch.update(np.concatenate([np.zeros(100), np.ones(20)]), batch(120))
    assert watch.latest > np.log(220) and path.starts[-1] == 100


def test_sums_give_means_and_shares_with_intervals() -> None:
    sums = ValueSums()
    sums.add(np.array([1.0, 2.0, 3.0]))
    sums.add(np.array([4.0]))
    assert sums.mean == 2.5 and sums.sd == pytest.approx(np.std([1, 2, 3, 4], ddof=1))
    estimate = sums.estimate(is_event=False)
    assert estimate.n == 4 and estimate.ci95 is not None and estimate.ci95[0] < 2.5 < estimate.ci95[1]
    assert ValueSums().estimate(is_event=True).reason == "no units"
    assert ValueSums(40, 10.0, 10.0).estimate(is_event=True).ci95 == proportion_interval(10, 40)[0]


def test_figures_of_dependent_test_images_count_as_fewer() -> None:
    for value, n in ((0.9, 300), (1.0, 80), (0.02, 500)):
        assert 0.95 * n <= effective_count(value, n, proportion_interval(round(value * n), n)[0]) <= n
    wide = effective_count(0.9, 300, (0.8, 0.96))
    assert 50 < wide < 100
    with pytest.raises(ValueError, match="a test figure"):
        effective_count(1.2, 10, (0, 1))


def test_observed_over_expected() -> None:
    estimate = observed_over_expected(20, 10.0, 100)
    assert estimate.value == 2 and estimate.ci95 == pytest.approx(
        (1.222, 3.089), abs=0.001
    )  # exact Poisson limits
    assert observed_over_expected(0, 5.0, 30).ci95 == pytest.approx((0, 0.7378), abs=0.001)
    assert observed_over_expected(0, 0.0, 0).value is None


def test_periods_in_utc() -> None:
    times = np.array([START.timestamp() - 1, START.timestamp()])
    assert names_of_periods(times, "month").tolist() == ["2025-12", "2026-01"]
    assert names_of_periods(times, "week").tolist() == ["2026-W01", "2026-W01"]


def test_repeated_texts_are_few_where_none_is() -> None:
    repeats = RepeatFilter()
    assert sum(repeats.is_repeated(f"image {number}") for number in range(20_000)) < 20
    assert all(repeats.is_repeated(f"image {number}") for number in range(20_000))


# Deployments --------------------------------------------------------------------------------------------------------


def peaks_of(checks: dict[str, CheckState]) -> list[float]:
    return [max(check.evidence_by_period.values(), default=0.0) for check in checks.values()]


def test_no_drift_over_200_months_raises_no_more_than_the_stated_rate() -> None:
    n_alarms, peaks, n_deployments = 0, [], 6
    for seed in range(n_deployments):
        checks = run_checks(*simulate(seed, n_reference=200, n_months=200, n_per_month=6))
        n_alarms += any(check.crossing is not None for check in checks.values())
        peaks += peaks_of(checks)
    assert n_alarms <= binom.ppf(0.99, n_deployments, 0.05)
    for capital in (5, 20):  # each check alone: at most 1 in `capital` ever reaches it
        n_reached = int((np.array(peaks) >= np.log(capital)).sum())
        assert n_reached <= binom.ppf(0.99, len(peaks), 1 / capital), (capital, n_reached)


@pytest.mark.slow
def test_no_drift_in_200_deployments_of_200_months() -> None:
    deployments = (simulate(seed, n_reference=500, n_months=200, n_per_month=20) for seed in range(200))
    alarms = [any(check.crossing for check in run_checks(*one).values()) for one in deployments]
    assert sum(alarms) <= binom.ppf(0.99, len(alarms), 0.05)


def bluer_camera(units: dict[str, Any], _: np.random.Generator) -> None:
    units["mean_blue"] = units["mean_blue"] + 14  # one standard deviation


def other_sites(units: dict[str, Any], generator: np.random.Generator) -> None:
    units["site"] = generator.choice(["clinic A", "clinic B", "clinic C"], len(units["site"]), p=[0.2, 0.3, 0.5])


def more_malignant(units: dict[str, Any], generator: np.random.Generator) -> None:
    n = len(units["site"])
    is_malignant = generator.random(n) < 0.3  # 15 % before
    log_odds = generator.normal(np.where(is_malignant, 1.0, -2.5), 1.3)
    units["is_malignant"], units["malignant_probability"] = is_malignant, right_probability(log_odds)
    units["positive"] = generator.random(n) < np.where(is_malignant, 0.9, 0.3)


def new_class(units: dict[str, Any], generator: np.random.Generator) -> None:
    is_new = generator.random(len(units["site"])) < 0.15
    units["distance"] = units["distance"] + 0.25 * is_new
    units["outside"] = np.where(is_new, generator.random(len(is_new)) < 0.8, units["outside"])


def worse_answers(units: dict[str, Any], generator: np.random.Generator) -> None:
    units["positive"] = generator.random(len(units["site"])) < np.where(units["is_malignant"], 0.5, 0.3)


@pytest.mark.parametrize(
    ("change", "check", "direction", "longest_delay"),
    [
        (bluer_camera, "colour", "higher", 150),
        (other_sites, "case_mix", "", 400),
        (more_malignant, "probabilities", "higher", 700),
        (new_class, "distance", "", 600),
        (worse_answers, "sensitivity", "lower", 1800),
    ],
)
def test_planted_drift_is_found_with_its_delay(
    change: Change, check: str, direction: str, longest_delay: int
) -> None:
    """Delays in units, 100 a month; of sensitivity, 4.5 malignant ones with an outcome a month."""
    checks = run_checks(*simulate(0, n_reference=500, n_months=24, n_per_month=100, change=change, change_month=4))
    crossing = checks[check].crossing
    assert crossing is not None
    begin = START.timestamp() + 4 * 30 * DAY
    delay = (crossing.time - begin) / (30 * DAY) * 100
    assert 0 < delay < longest_delay, delay
    assert crossing.time >= crossing.since > begin - 60 * DAY
    assert direction in ("", direction_of(crossing))


def test_what_did_not_drift_raises_nothing() -> None:
    checks = run_checks(
        *simulate(1, n_reference=500, n_months=12, n_per_month=100, change=other_sites, change_month=4)
    )
    assert [name for name, check in checks.items() if check.crossing] == ["case_mix"]
    assert set(checks) == {check.name for check in MONITOR_CHECKS}

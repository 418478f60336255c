"""Two models on the same images: every test against another way of computing it, and against what it promises."""

import itertools

import numpy as np
import pytest
from scipy import stats

from dermkit.metrics.stats import paired_tests, power
from dermkit.metrics.stats.arrays import Floats, Ints, sum_by_group


def _sign_flip_p(differences: Floats, groups: Ints, *, seed: int) -> float:
    sums = sum_by_group(differences, groups, int(groups.max()) + 1)
    return float(paired_tests.sign_flip_test(sums[:, None], seed=seed)[0])


def test_mid_p_is_the_exact_p_less_half_of_what_was_seen() -> None:
    for first, second in itertools.product(range(25), repeat=2):
        found = paired_tests.mid_p(first, second)
        if first == second:
            assert found == 1.0
            continue
        exact = stats.binomtest(first, first + second, 0.5).pvalue
        seen = stats.binom.pmf(first, first + second, 0.5)
        assert found == pytest.approx(exact - seen, abs=1e-9)
        assert found == paired_tests.mid_p(second, first)


def test_mcnemar_counts_the_images_on_which_one_is_right() -> None:
    first = np.array([1, 1, 1, 0, 0, 1, 0], dtype=bool)
    second = np.array([1, 0, 0, 1, 0, 0, 0], dtype=bool)
    found = paired_tests.mcnemar(first, second)
    assert (found.first_only, found.second_only, found.n_images) == (3, 1, 7)
    assert found.p == pytest.approx(2 * stats.binom.cdf(1, 4, 0.5) - stats.binom.pmf(1, 4, 0.5))


def test_holm_by_hand_and_never_below_the_plain_p() -> None:
    assert paired_tests.holm_adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired_tests.holm_adjust([]) == []
    generator = np.random.default_rng(0)
    for _ in range(100):
        p = generator.random(int(generator.integers(1, 9))).tolist()
        adjusted = paired_tests.holm_adjust(p)
        assert all(plain <= new <= 1 for plain, new in zip(p, adjusted, strict=True))
        by_p = [new for _, new in sorted(zip(p, adjusted, strict=True))]
        assert by_p == sorted(by_p)


def test_exchanged_signs_all_of_them_for_few_units() -> None:
    generator = np.random.default_rng(1)
    for _ in range(5):
        values = generator.normal(0.3, 1, 10)
        signs = np.array(list(itertools.product((-1, 1), repeat=10)))
        far = np.abs(signs @ values)
        exact = (far > abs(values.sum()) + 1e-12).mean() + 0.5 * np.isclose(far, abs(values.sum())).mean()
        assert _sign_flip_p(values, np.arange(10), seed=0) == pytest.approx(exact, abs=0.02)
    assert _sign_flip_p(np.zeros(10), np.arange(10), seed=0) == 1.0
    few = _sign_flip_p(np.array([1.0, 1, 1, 1, 1, 0]), np.arange(6), seed=0)
    assert few == pytest.approx(paired_tests.mid_p(5, 0), abs=0.01), "of ones and noughts it is McNemar's test"
    together = _sign_flip_p(np.repeat(values, 3), np.repeat(np.arange(10), 3), seed=0)
    assert together == pytest.approx(exact, abs=0.02), "three copies of a unit are no three units"


def test_the_corrected_t_is_the_plain_one_with_a_larger_variance() -> None:
    values = [0.02, 0.05, -0.01, 0.04, 0.03]
    found = paired_tests.corrected_resampled_t(values, n_train=800, n_test=200)
    plain = stats.ttest_1samp(values, 0)
    error = np.std(values, ddof=1) * np.sqrt(1 / 5 + 200 / 800)
    assert [found.mean, found.standard_error, found.df] == pytest.approx([0.026, error, 4])
    assert found.p == pytest.approx(2 * stats.t.sf(0.026 / error, 4))
    assert found.p > plain.pvalue
    assert paired_tests.corrected_resampled_t([0.1, 0.1], n_train=8, n_test=2).p == 1.0, "no spread to judge by"
    assert paired_tests.corrected_resampled_t([0.0, 0.0], n_train=8, n_test=2).p == 1.0
    with pytest.raises(ValueError, match="two differences"):
        paired_tests.corrected_resampled_t([0.1], n_train=8, n_test=2)


def test_the_spread_of_seeds_and_of_data_is_told_apart() -> None:
    generator = np.random.default_rng(2)
    found = []
    for _ in range(60):
        seeds, units = generator.normal(0, 0.05, (8, 1)), generator.normal(0, 0.4, (1, 300))
        found.append(paired_tests.two_way_spread(0.7 + seeds + units + generator.normal(0, 0.3, (8, 300))))
    assert np.mean([item.sd_seed for item in found]) == pytest.approx(0.05, rel=0.15)
    assert np.mean([item.sd_images for item in found]) == pytest.approx(np.sqrt((0.16 + 0.09) / 300), rel=0.1)
    same = np.tile(generator.random((1, 50)), (4, 1))
    assert (
        paired_tests.two_way_spread(same).sd_seed
        == paired_tests.two_way_spread(same).sd
        == pytest.approx(0, abs=1e-12)
    )
    with pytest.raises(ValueError, match="two seeds"):
        paired_tests.two_way_spread(same[:1])


# Power ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "difference", "discordant"), [(118, 0.1, 0.3), (300, 0.05, 0.2), (40, 0.3, 0.4)])
def test_the_power_of_the_mid_p_test_is_how_often_it_finds(n: int, difference: float, discordant: float) -> None:
    generator = np.random.default_rng(3)
    first, second = (discordant + difference) / 2, (discordant - difference) / 2
    drawn = generator.multinomial(n, [first, second, 1 - discordant], size=20_000)
    pairs, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    found = sum(
        count for pair, count in zip(pairs, times, strict=True) if paired_tests.mid_p(*pair.tolist()) <= 0.05
    )
    stated = power.mcnemar_power(n, difference, discordant, use_mid_p=True)
    assert stated == pytest.approx(found / 20_000, abs=0.012)
    assert stated >= power.mcnemar_power(n, difference, discordant)


def test_the_images_that_would_be_needed_are_enough_and_few_less_are_not() -> None:
    for difference, discordant in ((0.05, 0.3), (0.1, 0.4), (0.02, 0.1), (0.3, 0.3)):
        needed = power.mcnemar_images_needed(difference, discordant)
        assert needed is not None
        assert power.mcnemar_power(needed, difference, discordant, use_mid_p=True) >= 0.79
        assert power.mcnemar_power(max(1, needed * 9 // 10), difference, discordant, use_mid_p=True) < 0.8
    assert power.mcnemar_images_needed(0.0, 0.3) is None
    assert power.mcnemar_images_needed(1e-5, 0.5) is None


def test_a_need_that_is_scaled_is_right_where_the_error_falls_with_the_root() -> None:
    needed = power.scaled_images_needed(100, 0.5, 0.4)
    assert needed is not None
    generator = np.random.default_rng(4)
    means = generator.normal(0.5, 0.4 * np.sqrt(100 / needed), 20_000)
    found = (np.abs(means / (0.4 * np.sqrt(100 / needed))) > stats.norm.isf(0.025)).mean()
    assert found == pytest.approx(0.8, abs=0.02)
    assert power.scaled_images_needed(100, 0.0, 0.4) is None

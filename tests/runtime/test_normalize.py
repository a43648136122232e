"""Normalisation against the formulas of both conventions, stated as their sources have them.

LeRobot is stated in torch float32 and openpi in numpy float64, the precisions they run in.
"""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pi05_runtime.errors import BundleError, EngineError, ObservationError
from pi05_runtime.interface import Convention, Normalization, NormalizationMode, Statistics
from pi05_runtime.preprocess.normalize import normalize_state, unnormalize_actions

DIMS = 8
RANDOM = np.random.default_rng(0)
EDGES = np.linspace(-1, 1, 257)[:-1]


def numbers(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def statistics(dims: int, seed: int = 0) -> Statistics:
    random = np.random.default_rng(seed)
    low = random.uniform(-2, 0, dims)
    return Statistics(
        mean=numbers(random.uniform(-1, 1, dims)),
        std=numbers(random.uniform(0.01, 2, dims)),
        q01=numbers(low),
        q99=numbers(low + random.uniform(0.05, 3, dims)),
    )


def normalization(
    mode: NormalizationMode, convention: Convention, given: Statistics | None = None
) -> Normalization:
    chosen = statistics(DIMS) if given is None else given
    return Normalization(mode, mode, chosen, chosen, convention)


def openpi_state(x: npt.NDArray[Any], given: Statistics, mode: NormalizationMode) -> npt.NDArray[np.float64]:
    width = x.shape[-1]
    q01, q99, mean, std = (np.array(s)[:width] for s in (given.q01, given.q99, given.mean, given.std))
    if mode == "quantile":
        return (x - q01) / (q99 - q01 + 1e-6) * 2.0 - 1.0
    return (x - mean) / (std + 1e-6)


def lerobot(
    x: npt.NDArray[Any], given: Statistics, mode: NormalizationMode, inverse: bool
) -> npt.NDArray[Any]:
    tensor = torch.tensor(x, dtype=torch.float32)
    q01, q99, mean, std = (torch.tensor(s) for s in (given.q01, given.q99, given.mean, given.std))
    if mode == "zscore":
        return (tensor * std + mean if inverse else (tensor - mean) / (std + 1e-8)).numpy()
    span = q99 - q01
    span = torch.where(span == 0, torch.tensor(1e-8), span)
    return ((tensor + 1.0) * span / 2.0 + q01 if inverse else 2.0 * (tensor - q01) / span - 1.0).numpy()


@pytest.mark.parametrize("mode", ["quantile", "zscore"])
def test_state_openpi(mode: NormalizationMode) -> None:
    x = RANDOM.uniform(-5, 5, DIMS)
    found = normalize_state(x, normalization(mode, "openpi"), DIMS)
    assert found.dtype == np.float32 and found.shape == (DIMS,)
    np.testing.assert_allclose(found, openpi_state(x, statistics(DIMS), mode), rtol=2e-7)


@pytest.mark.parametrize("mode", ["quantile", "zscore"])
def test_state_lerobot_is_torch_float32(mode: NormalizationMode) -> None:
    for x in RANDOM.uniform(-5, 5, (200, DIMS)):
        found = normalize_state(x, normalization(mode, "lerobot"), DIMS)
        np.testing.assert_array_equal(found, lerobot(x, statistics(DIMS), mode, inverse=False))


def test_state_keeps_the_bins_of_float64() -> None:
    given = Statistics(q01=(-1.0,) * 256, q99=(1.0 - 1e-6,) * 256)
    just_below = EDGES - 1e-12
    exact = openpi_state(just_below, given, "quantile")
    bins = np.digitize(exact, EDGES)
    assert (np.digitize(exact.astype(np.float32), EDGES) != bins).any()
    found = normalize_state(just_below, normalization("quantile", "openpi", given), 256)
    np.testing.assert_array_equal(np.digitize(found, EDGES), bins)


def test_state_is_not_clipped() -> None:
    given = Statistics(q01=(0.0,), q99=(1.0,))
    assert normalize_state([3.0], normalization("quantile", "openpi", given), 1)[0] > 4.9


def test_epsilons_where_the_spread_is_zero() -> None:
    flat = Statistics(mean=(0.0,), std=(0.0,), q01=(0.5,), q99=(0.5,))
    x = [0.5 + 2**-20]
    quantile_openpi = normalize_state(x, normalization("quantile", "openpi", flat), 1)
    quantile_lerobot = normalize_state(x, normalization("quantile", "lerobot", flat), 1)
    np.testing.assert_allclose(quantile_openpi, [2**-20 / 1e-6 * 2 - 1], rtol=1e-6)
    np.testing.assert_allclose(quantile_lerobot, [2**-20 / 1e-8 * 2 - 1], rtol=1e-6)
    np.testing.assert_allclose(normalize_state([1.0], normalization("zscore", "openpi", flat), 1), [1e6])
    np.testing.assert_allclose(normalize_state([1.0], normalization("zscore", "lerobot", flat), 1), [1e8])


def test_lerobot_quantile_has_no_epsilon_elsewhere() -> None:
    narrow = Statistics(q01=(0.0,), q99=(1e-6,))
    assert normalize_state([1e-6], normalization("quantile", "lerobot", narrow), 1)[0] == 1
    np.testing.assert_allclose(
        normalize_state([1e-6], normalization("quantile", "openpi", narrow), 1), [0], atol=1e-6
    )


def test_openpi_cuts_longer_statistics_and_lerobot_refuses_them() -> None:
    x = RANDOM.uniform(-1, 1, 5)
    long = statistics(32)
    found = normalize_state(x, normalization("quantile", "openpi", long), 5)
    np.testing.assert_allclose(found, openpi_state(x, long, "quantile"), rtol=2e-7)
    with pytest.raises(BundleError, match="q01 with 32 numbers and q99 with 32, expected exactly 5"):
        normalize_state(x, normalization("quantile", "lerobot", long), 5)
    with pytest.raises(BundleError, match=r"statistics of the actions.*expected exactly 5"):
        unnormalize_actions(np.zeros((2, 32), np.float32), normalization("quantile", "lerobot", long), 5)


def test_state_and_actions_have_their_own_mode_and_statistics() -> None:
    mixed = Normalization("zscore", "quantile", statistics(DIMS, 1), statistics(DIMS, 2), "openpi")
    x = RANDOM.uniform(-1, 1, DIMS)
    expected = openpi_state(x, statistics(DIMS, 1), "zscore")
    np.testing.assert_allclose(normalize_state(x, mixed, DIMS), expected, rtol=2e-7)
    low = np.full((1, DIMS), -1, np.float32)
    np.testing.assert_allclose(unnormalize_actions(low, mixed, DIMS)[0], statistics(DIMS, 2).q01, rtol=1e-6)


@pytest.mark.parametrize("mode", ["quantile", "zscore"])
def test_actions_openpi(mode: NormalizationMode) -> None:
    z = RANDOM.uniform(-1.5, 1.5, (10, 32)).astype(np.float32)
    before = z.copy()
    given = statistics(32)
    q01, q99, mean, std = (np.array(s) for s in (given.q01, given.q99, given.mean, given.std))
    expected = (z + 1.0) / 2.0 * (q99 - q01 + 1e-6) + q01 if mode == "quantile" else z * (std + 1e-6) + mean
    found = unnormalize_actions(z, normalization(mode, "openpi", given), 7)
    assert found.dtype == np.float32 and found.shape == (10, 7)
    np.testing.assert_array_equal(found, expected[:, :7].astype(np.float32))
    np.testing.assert_array_equal(z, before)


@pytest.mark.parametrize("mode", ["quantile", "zscore"])
def test_actions_lerobot_is_torch_float32(mode: NormalizationMode) -> None:
    z = RANDOM.uniform(-1.5, 1.5, (50, 32)).astype(np.float32)
    found = unnormalize_actions(z, normalization(mode, "lerobot"), DIMS)
    np.testing.assert_array_equal(found, lerobot(z[:, :DIMS], statistics(DIMS), mode, inverse=True))


def test_openpi_actions_beyond_the_statistics_pass_through() -> None:
    z = RANDOM.uniform(-1, 1, (4, 32)).astype(np.float32)
    short = normalization("quantile", "openpi", statistics(7))
    found = unnormalize_actions(z, short, 10)
    np.testing.assert_array_equal(found[:, 7:], z[:, 7:10])
    np.testing.assert_array_equal(found[:, :7], unnormalize_actions(z, short, 7))
    with pytest.raises(BundleError, match="expected exactly 10"):
        unnormalize_actions(z, normalization("quantile", "lerobot", statistics(7)), 10)


@pytest.mark.parametrize("convention", ["openpi", "lerobot"])
@pytest.mark.parametrize("mode", ["quantile", "zscore"])
def test_missing_statistics_are_refused(mode: NormalizationMode, convention: Convention) -> None:
    full = statistics(DIMS)
    other = (
        Statistics(mean=full.mean, std=full.std)
        if mode == "quantile"
        else Statistics(q01=full.q01, q99=full.q99)
    )
    without = normalization(mode, convention, other)
    with pytest.raises(BundleError, match=f"statistics of the state: mode '{mode}' found .* with 0 numbers"):
        normalize_state(np.zeros(DIMS), without, DIMS)
    with pytest.raises(
        BundleError, match=f"statistics of the actions: mode '{mode}' found .* with 0 numbers"
    ):
        unnormalize_actions(np.zeros((2, 32), np.float32), without, DIMS)


def test_short_and_unequal_statistics_are_refused() -> None:
    with pytest.raises(BundleError, match="q01 with 6 numbers and q99 with 6, expected at least 8"):
        normalize_state(np.zeros(DIMS), normalization("quantile", "openpi", statistics(6)), DIMS)
    unequal = Statistics(q01=(0.0,) * 8, q99=(1.0,) * 7)
    with pytest.raises(BundleError, match=r"q01 with 8 numbers and q99 with 7, .*; export the bundle again"):
        unnormalize_actions(np.zeros((2, 32), np.float32), normalization("quantile", "openpi", unequal), 7)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (np.zeros(7), "found shape [7], expected [8]"),
        (np.zeros(32), "found shape [32], expected [8]"),
        (np.zeros((1, 8)), "found shape [1, 8], expected [8]"),
        (np.float32(1), "found shape [], expected [8]"),
        ([0, 0, 0, np.nan, 0, 0, np.inf, 0], "found non-finite numbers at [3, 6]"),
        ("left", "found str that is no array of numbers"),
        ([[1.0], [1.0, 2.0]], "found list that is no array of numbers"),
    ],
)
def test_other_states_are_refused(state: npt.ArrayLike, message: str) -> None:
    with pytest.raises(ObservationError, match=re.escape(message)):
        normalize_state(state, normalization("quantile", "openpi"), DIMS)


def test_other_actions_are_refused() -> None:
    usual = normalization("quantile", "openpi")
    with pytest.raises(EngineError, match=re.escape("found shape [2, 7], expected [horizon, at least 8]")):
        unnormalize_actions(np.zeros((2, 7), np.float32), usual, DIMS)
    with pytest.raises(EngineError, match=re.escape("found shape [1, 2, 32]")):
        unnormalize_actions(np.zeros((1, 2, 32), np.float32), usual, DIMS)
    broken = np.zeros((2, 32), np.float32)
    broken[1, 3] = np.nan
    with pytest.raises(EngineError, match="found 1 non-finite numbers of 16"):
        unnormalize_actions(broken, usual, DIMS)
    broken[1, 3], broken[1, 31] = 0, np.nan
    assert np.isfinite(unnormalize_actions(broken, usual, DIMS)).all()

"""State into the policy's units, actions back into the robot's.

The formulas differ in epsilons between openpi and LeRobot, and in precision: openpi computes with
float64 statistics, LeRobot in float32. The precision matters for the state, which the model reads
only as 256 bins in the prompt, so each convention is computed in its own.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pi05_runtime.errors import BundleError, EngineError, ObservationError
from pi05_runtime.interface import Convention, Normalization, NormalizationMode, Statistics

Floats = npt.NDArray[np.floating[Any]]


def normalize_state(
    state: npt.ArrayLike, normalization: Normalization, state_dims: int
) -> npt.NDArray[np.float32]:
    """The state as the prompt bins it, not clipped.

    state: [state_dims] real numbers in the robot's units. Returns float32 [state_dims], rounded
    towards minus infinity: bin edges are exact in float32, so the bins stay those of openpi's float64.
    Raises ObservationError for a state of another shape, not of numbers or not finite, and
    BundleError for statistics that are missing or do not fit.
    Source: openpi `transforms.Normalize`; LeRobot `NormalizerProcessorStep`.
    """
    try:
        values = np.asarray(state, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ObservationError(
            f"state: found {type(state).__name__} that is no array of numbers ({error}), "
            f"expected [{state_dims}]; pass the robot's state as one flat array"
        ) from error
    if values.shape != (state_dims,):
        raise ObservationError(
            f"state: found shape {list(values.shape)}, expected [{state_dims}]; pass the robot's state "
            "as one flat array, in the order of training and without padding"
        )
    if not np.isfinite(values).all():
        raise ObservationError(
            f"state: found non-finite numbers at {np.flatnonzero(~np.isfinite(values)).tolist()}, "
            "expected finite ones only; check the robot's sensors"
        )
    convention, mode = normalization.convention, normalization.state_mode
    first, second = _statistics("state", normalization.state, mode, convention, state_dims, state_dims)
    values = values.astype(first.dtype)
    scaled = (values - first) / _scale(first, second, mode, convention, inverse=False)
    if mode == "quantile":
        scaled = scaled * 2 - 1
    rounded = scaled.astype(np.float32)
    return np.where(rounded > scaled, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def unnormalize_actions(
    actions: npt.NDArray[np.float32], normalization: Normalization, action_dims: int
) -> npt.NDArray[np.float32]:
    """The engine's chunk in the robot's units, cut to the real dimensions.

    actions: float32 [horizon, width] with width >= action_dims. Returns float32 [horizon, action_dims].
    Under the openpi convention dimensions beyond the statistics pass through unchanged.
    Raises EngineError for actions of another shape or not finite, and BundleError for statistics
    that are missing or do not fit.
    Source: openpi `transforms.Unnormalize`; LeRobot `UnnormalizerProcessorStep`.
    """
    if actions.ndim != 2 or actions.shape[1] < action_dims:
        raise EngineError(
            f"actions: found shape {list(actions.shape)}, expected [horizon, at least {action_dims}]; "
            "the engine does not belong to this bundle: build it again"
        )
    result = actions[:, :action_dims].astype(np.float32)
    if not np.isfinite(result).all():
        raise EngineError(
            f"actions: found {np.count_nonzero(~np.isfinite(result))} non-finite numbers of {result.size}, "
            "expected none; do not send them to the robot, and check the engine against its gates"
        )
    convention, mode = normalization.convention, normalization.action_mode
    least = 1 if convention == "openpi" else action_dims
    scale, shift = _inverse(normalization.actions, mode, convention, least, action_dims)
    known = result[:, : len(shift)]
    known[:] = (known + 1 if mode == "quantile" else known) * scale + shift
    return result


@lru_cache
def _inverse(
    statistics: Statistics, mode: NormalizationMode, convention: Convention, least: int, dims: int
) -> tuple[Floats, Floats]:
    """(scale, shift) of actions. Quantiles' scale is halved in place of every number, which is as exact."""
    first, second = _statistics("actions", statistics, mode, convention, least, dims)
    scale = _scale(first, second, mode, convention, inverse=True)
    return (scale / 2 if mode == "quantile" else scale), first


@lru_cache
def _statistics(
    what: str, statistics: Statistics, mode: NormalizationMode, convention: Convention, least: int, dims: int
) -> tuple[Floats, Floats]:
    """The two arrays of `mode`, at most `dims` long, in the precision of `convention`.

    Only openpi cuts statistics longer than the vector; in LeRobot another length is an error.
    """
    names, pair = (
        (("q01", "q99"), (statistics.q01, statistics.q99))
        if mode == "quantile"
        else (("mean", "std"), (statistics.mean, statistics.std))
    )
    lengths = len(pair[0]), len(pair[1])
    too_long = convention == "lerobot" and lengths[0] > dims
    if lengths[0] != lengths[1] or lengths[0] < least or too_long:
        raise BundleError(
            f"statistics of the {what}: mode {mode!r} found {names[0]} with {lengths[0]} numbers and "
            f"{names[1]} with {lengths[1]}, expected {'at least' if convention == 'openpi' else 'exactly'} "
            f"{least} in each; export the bundle again with the statistics of its checkpoint"
        )
    dtype = np.float64 if convention == "openpi" else np.float32
    return np.asarray(pair[0][:dims], dtype=dtype), np.asarray(pair[1][:dims], dtype=dtype)


def _scale(
    first: Floats, second: Floats, mode: NormalizationMode, convention: Convention, inverse: bool
) -> Floats:
    spread = second - first if mode == "quantile" else second
    if convention == "openpi":
        return spread + 1e-6
    if mode == "quantile":
        return np.where(spread == 0, np.float32(1e-8), spread)
    return spread if inverse else spread + 1e-8

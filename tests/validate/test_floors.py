"""Floors against numbers worked out by hand from the published sizes of pi0.5."""

import pytest

from pi05_runtime.geometry import PI05
from validate.benchmark.floors import CHIPS, Chip, Cost, cost, find_chip, parts
from validate.benchmark.profiles import PROFILES

H100, H200, THOR = CHIPS
PREFILL_LAYER = 2048 * 2560 + 2048 * 2048 + 2048 * 32768 + 16384 * 2048
EXPERT_LAYER = 1024 * 2560 + 2048 * 1024 + 1024 * 8192 + 4096 * 1024
VISION_LAYER = 4 * 1152 * 1152 + 2 * 1152 * 4304


def at(name: str, component: str, recipe: str) -> Cost:
    p = PROFILES[name]
    return cost(component, PI05, p.views, p.prefix(PI05), p.horizon, recipe)


def milliseconds(found: Cost, chip: Chip = H100) -> float:
    floor = found.milliseconds(chip)
    assert floor is not None
    return floor[0]


def test_profiles_have_the_prefixes_they_are_named_for() -> None:
    assert {n: p.prefix(PI05) for n, p in PROFILES.items()} == {"A10": 968, "A50": 968, "B": 976, "C": 532}
    assert {n: p.horizon for n, p in PROFILES.items()} == {"A10": 10, "A50": 50, "B": 10, "C": 10}


def test_vision() -> None:
    found = at("C", "vision", "fp8")
    linear = 27 * VISION_LAYER + 1152 * 2048
    assert found.weights == {"fp8": linear, "fp32": 4 * 588 * 1152}
    assert found.operations["fp8"] == 2 * 512 * linear
    assert found.operations["bf16"] == 2 * 27 * 4 * 256 * 256 * 1152 + 2 * 512 * 588 * 1152
    assert found.moved == 2 * 3 * 224 * 224 * 4 + 512 * 2048 * 2
    expected = 1e3 * (found.operations["fp8"] / 1271e12 + found.operations["bf16"] / 723e12)
    assert found.milliseconds(H100) == (pytest.approx(expected), "operations")


def test_prefill() -> None:
    found = at("C", "prefill", "fp8")
    assert found.weights == {"fp8": 17 * PREFILL_LAYER + 2048 * 512}
    assert found.operations == {
        "fp8": 2 * 532 * (17 * PREFILL_LAYER + 2048 * 512),
        "bf16": 17 * 4 * 532 * 532 * 2048,
    }
    assert found.moved == 532 * 2048 * 2 + 18 * 2 * 532 * 256 * 2


def test_a_step_of_denoise_is_bound_by_memory() -> None:
    found = at("C", "denoise", "fp8")
    assert found.weights == {"fp8": 18 * EXPERT_LAYER, "fp32": 2 * 4 * 32 * 1024}
    assert found.moved == 18 * 2 * 532 * 256 * 2 + 4 * (37 * 3072 + 2 * 10 * 32)
    expected = 1e3 * (sum(found.weights.values()) + found.moved) / 2.9e12
    assert found.milliseconds(H100) == (pytest.approx(expected), "memory")
    assert at("C", "denoise", "bf16").weights["bf16"] == 2 * 18 * EXPERT_LAYER


@pytest.mark.parametrize(
    ("recipe", "vision", "prefill", "step", "decision"),
    [("fp8", 0.33, 1.6, 0.104, 3.0), ("bf16", 0.58, 2.76, 0.208, 5.4)],
)
def test_floors_are_near_those_from_weights_and_products_alone(
    recipe: str, vision: float, prefill: float, step: float, decision: float
) -> None:
    """Attention, the cache and the ports are what they have more."""
    floors = [milliseconds(at("C", c, recipe)) for c in ("vision", "prefill", "denoise")]
    assert [vision, prefill, step] <= floors
    assert floors == [pytest.approx(least, rel=0.09) for least in (vision, prefill, step)]
    assert floors[0] + floors[1] + 10 * floors[2] == pytest.approx(decision, rel=0.05)


def test_a_thor_is_bound_by_memory_where_the_model_says_so() -> None:
    floors = {c: at("A10", c, "fp8").milliseconds(THOR) for c in ("vision", "prefill", "denoise")}
    assert {c: f and f[1] for c, f in floors.items()} == {
        "vision": "memory",
        "prefill": "operations",
        "denoise": "memory",
    }
    assert THOR.source.startswith("a model, not measured")


def test_nvfp4_holds_the_mlps_and_fp8_the_rest() -> None:
    weights = at("C", "denoise", "nvfp4").weights
    attention = 18 * (1024 * 2560 + 2048 * 1024)
    assert weights["fp8"] == attention
    assert weights["nvfp4"] == (18 * EXPERT_LAYER - attention) * 9 // 16


def test_a_layer_that_is_kept_is_bf16() -> None:
    found = cost("vision", PI05, 2, 532, 10, "fp8", keep=("layers.*.fc1",))
    assert found.weights["bf16"] == 2 * 27 * 1152 * 4304


def test_a_precision_without_a_rate_has_no_floor() -> None:
    assert at("C", "prefill", "int8").milliseconds(H100) is None


@pytest.mark.parametrize("component", ["vision", "prefill", "denoise"])
def test_a_component_is_its_parts_and_its_ports(component: str) -> None:
    p, whole = PROFILES["C"], at("C", component, "fp8")
    found = parts(component, PI05, p.views, p.prefix(PI05), p.horizon, "fp8").values()
    for precision, size in whole.weights.items():
        assert size == sum(part.weights.get(precision, 0) for part in found)
    for precision, done in whole.operations.items():
        assert done == sum(part.operations.get(precision, 0) for part in found)
    cache = 18 * 2 * 532 * 256 * 2
    assert sum(part.moved for part in found) == (cache if component == "denoise" else 0) < whole.moved


def test_the_floor_of_one_launch() -> None:
    found = parts("denoise", PI05, 2, 532, 10, "fp8")
    assert found["layers.17.gate_up"].milliseconds(H100) == (
        pytest.approx(1e3 * 2 * 4096 * 1024 / 2.9e12),
        "memory",
    )
    assert found["layers.0.attention"].operations == {"bf16": 4 * 10 * 542 * 8 * 256}
    assert found["layers.0.attention"].moved == 2 * 532 * 256 * 2
    prefill = parts("prefill", PI05, 2, 532, 10, "fp8")
    floor, bound = prefill["layers.0.down"].milliseconds(H100) or (0, "")
    assert bound == "operations" and floor == pytest.approx(1e3 * 2 * 532 * 16384 * 2048 / 1271e12)
    assert "layers.17.attention" not in prefill and "last.kv" in prefill


def test_chips_are_found_by_name() -> None:
    assert find_chip("NVIDIA H100 80GB HBM3") is H100 and find_chip("NVIDIA Thor") is THOR
    assert find_chip("NVIDIA H200") is H200 and find_chip("NVIDIA GH200 480GB") is None

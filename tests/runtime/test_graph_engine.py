"""Decisions by captured graphs, on a device of host memory and with numpy functions as networks."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest

from pi05_runtime.bf16 import from_bf16, to_bf16
from pi05_runtime.engines.graph_engine import GraphEngine
from pi05_runtime.errors import EngineError, ObservationError
from pi05_runtime.preprocess import Inputs, Prompt
from tests.runtime.host_device import (
    SIGNATURES,
    SPLIT,
    HostDevice,
    HostProgram,
    denoise,
    example,
    prefill,
    prefix,
    schedule,
    vision,
)


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture
def program(device: HostDevice) -> HostProgram:
    return HostProgram(device, dict(SPLIT), SIGNATURES)


@pytest.fixture
def engine(device: HostDevice, program: HostProgram) -> Iterator[GraphEngine]:
    engine = GraphEngine(device, program, SIGNATURES)
    yield engine
    engine.close()
    assert device.leaks == 0 and device.closed and program.closed


@pytest.fixture
def overlapping(engine: GraphEngine, program: HostProgram) -> GraphEngine:
    """With the first denoise step beside the prompt."""
    program.overlaps = True
    return engine


def expected_actions(seed: int, steps: int, prompt: int = 5) -> np.ndarray:
    """The same functions called by hand, with activations rounded where the ports round them."""
    inputs, x = example(prompt, seed)
    length = {"prefix_length": np.float32(inputs.prompt.prefix_length)}
    prompt_embeddings = inputs.prompt.embeddings
    tokens = from_bf16(to_bf16(vision({"images": inputs.images})["image_tokens"]))
    cache = prefill({"image_tokens": tokens, "prompt_embeddings": prompt_embeddings} | length)
    cache = {name: from_bf16(to_bf16(array)) for name, array in cache.items()}
    chosen = schedule(steps)
    for modulation in chosen.modulation:
        x = denoise(cache | length | {"x": x, "modulation": modulation, "dt": chosen.dt})["x_next"]
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_decision_is_that_of_the_functions(engine: GraphEngine, steps: int) -> None:
    for seed in (0, 1):
        decision = engine.decide(*example(seed=seed), schedule(steps))
        np.testing.assert_array_equal(decision.actions, expected_actions(seed, steps))
        assert decision.actions.dtype == np.float32
        assert list(decision.milliseconds) == ["decision"] and decision.milliseconds["decision"] > 0


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_a_step_beside_the_prompt_is_the_first(
    overlapping: GraphEngine, device: HostDevice, program: HostProgram, steps: int
) -> None:
    launched: list[str] = []
    for seed in (0, 1):
        actions = overlapping.decide(*example(seed=seed), schedule(steps)).actions
        np.testing.assert_array_equal(actions, expected_actions(seed, steps))
    again = overlapping.denoise(example(seed=1)[1], schedule(steps)).actions
    np.testing.assert_array_equal(again, actions)
    # Of the images, of the prompt and the first step, of the others, and of all steps for a controller.
    assert device.calls["instantiate"] == 4
    program.on_launch = launched.append
    overlapping.decide(*example(7), schedule(steps))
    assert launched == [*["prefill", "denoise"] * 2, *["denoise"] * 2 * (steps - 1)]


def test_graphs_of_a_step_beside_the_prompt(overlapping: GraphEngine, device: HostDevice) -> None:
    # One of the images, and two a bucket and step count, whose modulations are in both.
    for prompt, steps, graphs in ((5, 2, 3), (7, 2, 5), (5, 3, 7), (7, 2, 7), (5, 2, 7)):
        actions = overlapping.decide(*example(prompt, 3), schedule(steps)).actions
        np.testing.assert_array_equal(actions, expected_actions(3, steps, prompt))
        assert device.calls["instantiate"] == graphs
    chosen = schedule(2)
    overlapping.decide(*example(), chosen)
    device.calls.clear()
    overlapping.decide(*example(), chosen)
    assert device.calls == {"activate": 1, "upload": 1, "follow": 1, "launch": 3, "synchronize": 1}


def test_a_shorter_prompt_leaves_nothing_of_the_longer_one_before(
    engine: GraphEngine, program: HostProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    functions = program.functions

    def recorded(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(inputs["prompt_embeddings"].copy())
        return prefill(inputs)

    monkeypatch.setitem(functions, "prefill", recorded)
    for tokens in (5, 2, 4):
        inputs, noise = example(seed=tokens, tokens=tokens)
        engine.decide(inputs, noise, schedule(1))
        np.testing.assert_array_equal(seen[-1], inputs.prompt.embeddings)
        assert not seen[-1][tokens:].any()


def test_vision_and_prefill_as_one_network(device: HostDevice) -> None:
    program = HostProgram(device, {"prefix": prefix, "denoise": denoise}, SIGNATURES)
    actions = GraphEngine(device, program, SIGNATURES).decide(*example(), schedule(3)).actions
    assert [network for network, _ in program.bound] == ["prefix", "denoise"]
    # Image tokens are not rounded between the two.
    np.testing.assert_allclose(actions, expected_actions(0, 3), atol=2e-2)


def test_prefix_is_preferred_to_its_parts(device: HostDevice) -> None:
    program = HostProgram(device, SPLIT | {"prefix": prefix}, SIGNATURES)
    GraphEngine(device, program, SIGNATURES).decide(*example(), schedule(1))
    assert [network for network, _ in program.bound] == ["prefix", "denoise"]


def test_replay_allocates_nothing_and_synchronises_once(engine: GraphEngine, device: HostDevice) -> None:
    chosen = schedule(3)
    engine.decide(*example(), chosen)
    device.calls.clear()
    for seed in (1, 2):
        engine.decide(*example(seed=seed), chosen)
    assert device.calls == {"activate": 2, "upload": 2, "follow": 2, "launch": 6, "synchronize": 2}
    device.calls.clear()
    engine.denoise(example()[1], chosen)
    assert device.calls == {"activate": 1, "upload": 1, "launch": 1, "synchronize": 1}


def reading(inputs: Inputs, read: Callable[[], None]) -> Inputs:
    """The inputs anew, with something else done as their prompt is read."""

    def prompt() -> Prompt:
        read()
        return inputs.prompt

    return Inputs(inputs.images, prompt)


def test_the_prompt_is_read_while_the_device_looks_at_the_images(
    engine: GraphEngine, device: HostDevice
) -> None:
    (inputs, noise), chosen = example(), schedule(1)
    engine.decide(inputs, noise, chosen)
    device.calls.clear()
    seen: list[tuple[int, int]] = []
    read = lambda: seen.append((device.calls["launch"], device.calls["synchronize"]))  # noqa: E731
    engine.decide(reading(inputs, read), noise, chosen)
    assert seen == [(1, 0)]


def test_a_prompt_that_cannot_be_read_leaves_nothing_running(engine: GraphEngine, device: HostDevice) -> None:
    inputs, noise = example()
    engine.decide(inputs, noise, schedule(2))

    def refuse() -> None:
        device.calls.clear()
        raise ObservationError("prompt: nothing found")

    with pytest.raises(ObservationError, match="prompt: nothing found"):
        engine.decide(reading(inputs, refuse), noise, schedule(2))
    assert device.calls == {"synchronize": 2}
    with pytest.raises(EngineError, match="call `decide` first"):
        engine.denoise(noise, schedule(2))
    np.testing.assert_array_equal(engine.decide(inputs, noise, schedule(2)).actions, expected_actions(0, 2))


def test_the_error_of_a_decision_is_its_first(
    engine: GraphEngine, device: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = schedule(1)
    engine.decide(*example(), chosen)

    def synchronize(stream: int) -> None:
        raise EngineError("cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS")

    with monkeypatch.context() as broken, pytest.raises(EngineError, match="launch: CUDA error on purpose"):
        broken.setattr(device, "synchronize", synchronize)
        device.fail_on = "launch"
        engine.decide(*example(), chosen)


def test_new_bucket_and_new_step_count_are_captured(
    engine: GraphEngine, device: HostDevice, program: HostProgram
) -> None:
    # One of the images, one a bucket, and one a bucket and step count.
    for prompt, steps, graphs in ((5, 2, 3), (7, 2, 5), (5, 3, 6), (7, 2, 6), (5, 2, 6), (7, 3, 7)):
        actions = engine.decide(*example(prompt, 3), schedule(steps)).actions
        np.testing.assert_array_equal(actions, expected_actions(3, steps, prompt))
        assert device.calls["instantiate"] == graphs
    # Vision has the same shapes in every bucket, so one launch serves them all.
    assert [network for network, _ in program.bound] == ["vision", "prefill", "denoise", "prefill", "denoise"]


def test_another_schedule_of_as_many_steps_replaces_the_first(
    engine: GraphEngine, device: HostDevice
) -> None:
    first, second = schedule(2, seed=0), schedule(2, seed=5)
    actions = [engine.decide(*example(), chosen).actions for chosen in (first, second, first)]
    assert (actions[0] != actions[1]).any()
    np.testing.assert_array_equal(actions[0], actions[2])
    assert device.calls["instantiate"] == 3


def test_denoise_uses_the_resident_keys_and_values(engine: GraphEngine) -> None:
    inputs, noise = example(seed=4)
    whole = engine.decide(inputs, noise, schedule(3)).actions
    again = engine.denoise(noise, schedule(3))
    np.testing.assert_array_equal(again.actions, whole)
    assert list(again.milliseconds) == ["denoise"]
    np.testing.assert_array_equal(engine.denoise(noise, schedule(2)).actions, expected_actions(4, 2))
    other = engine.denoise(example(seed=9)[1], schedule(3)).actions
    assert (other != whole).any()


def test_denoise_follows_the_last_bucket(engine: GraphEngine) -> None:
    for prompt in (5, 7, 5):
        engine.decide(*example(prompt, prompt), schedule(2))
        actions = engine.denoise(example(prompt, prompt)[1], schedule(2)).actions
        np.testing.assert_array_equal(actions, expected_actions(prompt, 2, prompt))


def test_denoise_before_a_decision(engine: GraphEngine) -> None:
    with pytest.raises(EngineError, match=r"no keys and values found.*call `decide` first"):
        engine.denoise(example()[1], schedule(1))


def test_denoise_after_a_failed_decision(engine: GraphEngine, device: HostDevice) -> None:
    chosen = schedule(1)
    engine.decide(*example(), chosen)
    device.fail_on = "launch"
    with pytest.raises(EngineError, match="launch: CUDA error on purpose"):
        engine.decide(*example(), chosen)
    with pytest.raises(EngineError, match="call `decide` first"):
        engine.denoise(example()[1], chosen)


@pytest.mark.parametrize("call", ["alloc", "synchronize"])
def test_launch_that_cannot_be_captured(
    engine: GraphEngine, device: HostDevice, program: HostProgram, call: str
) -> None:
    def misbehave(network: str) -> None:
        if network == "prefill":
            device.free(device.alloc(8)) if call == "alloc" else device.synchronize(0)

    program.on_launch = misbehave
    with pytest.raises(EngineError, match=rf"prompt bucket 5: its CUDA graph.*{call}.*nothing was laun"):
        engine.decide(*example(), schedule(2))
    assert device.recording is None and device.calls["launch"] == 1
    program.on_launch = lambda network: None
    actions = engine.decide(*example(), schedule(2)).actions
    np.testing.assert_array_equal(actions, expected_actions(0, 2))


def test_networks_run_before_they_are_captured(
    engine: GraphEngine, device: HostDevice, program: HostProgram
) -> None:
    launched: list[tuple[str, bool]] = []
    program.on_launch = lambda network: launched.append((network, device.recording is not None))
    engine.decide(*example(), schedule(1))
    for network in SPLIT:
        assert launched.index((network, False)) < launched.index((network, True))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_actions_that_are_not_finite(engine: GraphEngine, program: HostProgram, bad: float) -> None:
    program.functions["denoise"] = lambda given: {"x_next": np.full_like(given["x"], bad)}
    with pytest.raises(EngineError, match=r"decision: actions has 6 non-finite numbers of 6.*do not act"):
        engine.decide(*example(), schedule(1))
    with pytest.raises(EngineError, match="call `decide` first"):
        engine.denoise(example()[1], schedule(1))


@pytest.mark.parametrize("network", ["vision", "prefill"])
def test_nan_at_a_port_stays_one(engine: GraphEngine, program: HostProgram, network: str) -> None:
    function = program.functions[network]
    program.functions[network] = lambda given: {n: a * np.nan for n, a in function(given).items()}
    with pytest.raises(EngineError, match=r"decision: actions has \d+ non-finite"):
        engine.decide(*example(), schedule(1))


def test_a_decision_is_brought_to_the_device_before_its_networks(
    engine: GraphEngine, device: HostDevice, program: HostProgram
) -> None:
    # All but the images in one copy, which is waited for; none comes between the steps.
    copies: list[tuple[str, int]] = []
    program.on_launch = lambda network: copies.append((network, device.calls["upload"]))
    engine.decide(*example(), schedule(3))
    before = copies[0][1]
    expected = [("vision", 0), ("vision", 1), ("prefill", 2), ("prefill", 2), *[("denoise", 2)] * 6]
    assert copies == [(network, before + count) for network, count in expected]
    assert device.calls["follow"] == 1


def test_one_component_alone(engine: GraphEngine, device: HostDevice) -> None:
    inputs, noise = example()
    tokens = engine.run("vision", {"images": inputs.images})
    length = {"prefix_length": np.asarray(inputs.prompt.prefix_length, np.int32)}
    cache = engine.run("prefill", tokens | {"prompt_embeddings": inputs.prompt.embeddings} | length)
    chosen = schedule(1)
    step = {"x": noise, "modulation": chosen.modulation[0], "dt": np.asarray(chosen.dt)}
    x = engine.run("denoise", cache | length | step)
    assert {name: array.shape for name, array in cache.items()} == {"keys": (2, 13, 2), "values": (2, 13, 2)}
    np.testing.assert_array_equal(x["x_next"], expected_actions(0, 1))
    assert device.calls["instantiate"] == 0 and not device.memory


def test_prefix_and_denoise_alone(device: HostDevice) -> None:
    inputs, _ = example()
    given = {
        "images": inputs.images,
        "prompt_embeddings": inputs.prompt.embeddings,
        "prefix_length": np.asarray(inputs.prompt.prefix_length, np.int32),
    }
    program = HostProgram(device, {"prefix": prefix}, SIGNATURES)
    cache = GraphEngine(device, program, SIGNATURES).run("prefix", given)
    assert cache["keys"].shape == (2, 13, 2)
    only = {"denoise": SIGNATURES["denoise"]}
    program = HostProgram(device, {"denoise": denoise}, only)
    chosen = schedule(1)
    step = {"x": example()[1], "modulation": chosen.modulation[0], "dt": np.asarray(chosen.dt)}
    x = GraphEngine(device, program, only).run("denoise", cache | step | given)
    assert x["x_next"].shape == (3, 2)


def test_component_that_is_not_finite(engine: GraphEngine, program: HostProgram) -> None:
    program.functions["vision"] = lambda given: {"image_tokens": np.full((8, 4), np.nan, np.float32)}
    with pytest.raises(EngineError, match=r"vision: image_tokens has 32 non-finite numbers of 32"):
        engine.run("vision", {"images": example()[0].images})


def test_arrays_of_another_shape(engine: GraphEngine) -> None:
    inputs, noise = example()
    with pytest.raises(EngineError, match=r"x: shape \[2, 2\] found, \[3, 2\] expected"):
        engine.decide(inputs, noise[:2], schedule(1))
    with pytest.raises(EngineError, match=r"images: shape \[1, 3, 4, 4\] found, \[2, 3, 4, 4\] expected"):
        engine.run("vision", {"images": inputs.images[:1]})
    with pytest.raises(EngineError, match=r"vision: inputs \['image'\] found, \['images'\] expected too"):
        engine.run("vision", {"image": inputs.images})


@pytest.mark.parametrize(
    "call", ["alloc", "alloc_host", "upload", "synchronize", "instantiate", "end_capture"]
)
def test_failed_call_leaks_nothing_and_can_be_repeated(
    engine: GraphEngine, device: HostDevice, call: str
) -> None:
    device.fail_on = call
    with pytest.raises(EngineError, match=f"{call}: CUDA error on purpose"):
        engine.decide(*example(), schedule(2))
    actions = engine.decide(*example(), schedule(2)).actions
    np.testing.assert_array_equal(actions, expected_actions(0, 2))


def test_closed_engine_refuses(device: HostDevice, program: HostProgram) -> None:
    engine = GraphEngine(device, program, SIGNATURES)
    engine.decide(*example(), schedule(1))
    engine.close()
    engine.close()
    assert device.leaks == 0
    with pytest.raises(EngineError, match="this engine is closed"):
        engine.decide(*example(), schedule(1))


def test_bf16_rounds_to_nearest_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -0.0, np.inf, 3.4e38], np.float32)
    expected = np.array([1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -0.0, np.inf, np.inf], np.float32)
    np.testing.assert_array_equal(from_bf16(to_bf16(values)), expected)
    assert np.signbit(from_bf16(to_bf16(values))[4])


def test_bf16_is_exact_for_every_bf16_and_keeps_nan() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    values = from_bf16(bits)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(to_bf16(values)[number], bits[number])
    every_nan = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], np.uint32).view(np.float32)
    assert (
        np.isnan(from_bf16(to_bf16(every_nan))).all() and np.isnan(from_bf16(to_bf16(values[~number]))).all()
    )

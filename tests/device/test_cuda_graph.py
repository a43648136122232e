"""The CUDA runtime on a real GPU: kernels compiled here stand in for engines.

`python -m pytest tests/device` on a machine with an NVIDIA GPU; elsewhere every test is skipped.
"""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from pi05_runtime.bf16 import to_bf16
from pi05_runtime.engines.driver import CudaDevice, call
from pi05_runtime.engines.graph import capture
from pi05_runtime.engines.graph_engine import GraphEngine
from pi05_runtime.errors import EngineError
from pi05_runtime.preprocess import Inputs, Prompt
from pi05_runtime.tables import Schedule, TokenEmbedding
from tests.device.nvrtc_program import HORIZON, VIEWS, NvrtcProgram, geometry, gpu, tiny

pytestmark = pytest.mark.skipif(gpu() is None, reason="needs an NVIDIA GPU, its driver and cuda-python")

DEPTH = 3
GEOMETRY = geometry(DEPTH)
TOKENS = VIEWS * GEOMETRY.vision.tokens


class CountingDevice(CudaDevice):
    """A CudaDevice that counts what it gives out and takes back."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        super().__init__()

    def _call(self, name: str, *arguments: object) -> object:
        self.calls[name] += 1
        return super()._call(name, *arguments)


@pytest.fixture
def device() -> CountingDevice:
    return CountingDevice()


@pytest.fixture
def program(device: CountingDevice) -> NvrtcProgram:
    return NvrtcProgram(device, DEPTH)


@pytest.fixture
def engine(device: CountingDevice, program: NvrtcProgram) -> Iterator[GraphEngine]:
    yield from opened(device, program)


@pytest.fixture
def overlapping(device: CountingDevice) -> Iterator[GraphEngine]:
    """With the first denoise step beside the prompt."""
    yield from opened(device, NvrtcProgram(device, DEPTH, overlaps=True))


def opened(device: CountingDevice, program: NvrtcProgram) -> Iterator[GraphEngine]:
    engine = GraphEngine(device, program, tiny(DEPTH))
    yield engine
    engine.close()
    calls = device.calls
    assert calls["cuMemAlloc"] == calls["cuMemFree"] and calls["cuMemHostAlloc"] == calls["cuMemFreeHost"]
    assert calls["cuGraphInstantiate"] == calls["cuGraphExecDestroy"]


def example(prompt: int = 9, seed: int = 0) -> tuple[Inputs, npt.NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    size, width = GEOMETRY.vision.image_size, GEOMETRY.prefix.width
    images = generator.uniform(-1, 1, (VIEWS, 3, size, size)).astype(np.float32)
    tokens = prompt - seed % 3
    embedding = TokenEmbedding(to_bf16(generator.standard_normal((prompt, width), np.float32)))
    noise = generator.standard_normal((HORIZON, GEOMETRY.action_width), np.float32)
    found = Prompt(np.arange(tokens), embedding, prompt, TOKENS + tokens)
    return Inputs(images, lambda: found), noise


def schedule(steps: int, seed: int = 0) -> Schedule:
    shape = (steps, GEOMETRY.modulations, 3 * GEOMETRY.expert.width)
    return Schedule(np.float32(-1 / steps), np.random.default_rng(seed).standard_normal(shape, np.float32))


def directly(
    engine: GraphEngine, inputs: Inputs, x: npt.NDArray[np.float32], chosen: Schedule
) -> npt.NDArray[np.float32]:
    """The decision by launches of one component after another, without a graph."""
    length = {"prefix_length": np.asarray(inputs.prompt.prefix_length, np.int32)}
    tokens = engine.run("vision", {"images": inputs.images})
    cache = engine.run("prefill", tokens | length | {"prompt_embeddings": inputs.prompt.embeddings})
    fixed = cache | length | {"dt": np.asarray(chosen.dt)}
    for modulation in chosen.modulation:
        x = engine.run("denoise", fixed | {"x": x, "modulation": modulation})["x_next"]
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_replay_equals_direct_launches_bit_for_bit(engine: GraphEngine, steps: int) -> None:
    chosen = schedule(steps)
    answers = [engine.decide(*example(seed=seed), chosen).actions for seed in range(20)]
    for seed, actions in enumerate(answers):
        np.testing.assert_array_equal(actions, directly(engine, *example(seed=seed), chosen))
    assert all((a != b).any() for a, b in pairwise(answers))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_step_beside_the_prompt_equals_direct_launches_bit_for_bit(
    overlapping: GraphEngine, steps: int
) -> None:
    chosen = schedule(steps)
    answers = [overlapping.decide(*example(seed=seed), chosen).actions for seed in range(20)]
    for seed, actions in enumerate(answers):
        np.testing.assert_array_equal(actions, directly(overlapping, *example(seed=seed), chosen))
    assert all((a != b).any() for a, b in pairwise(answers))
    whole = overlapping.decide(*example(seed=1), chosen).actions
    np.testing.assert_array_equal(overlapping.denoise(example(seed=1)[1], chosen).actions, whole)


def test_replay_allocates_nothing(engine: GraphEngine, device: CountingDevice) -> None:
    chosen = schedule(10)
    first = engine.decide(*example(), chosen).actions
    free, before = device.free_memory(), device.calls.copy()
    for seed in range(300):
        engine.decide(*example(seed=seed), chosen)
        engine.denoise(example(seed=seed)[1], chosen)
    replays = device.calls - before
    # Three graphs a decision, and the prompt's copy; denoise alone is the last, behind a copy of its noise.
    assert replays == {
        "cuCtxSetCurrent": 600,
        "cuEventRecord": 300,
        "cuGraphLaunch": 1200,
        "cuMemcpyHtoDAsync": 600,
        "cuStreamSynchronize": 600,
        "cuStreamWaitEvent": 300,
    }
    assert device.free_memory() == free
    np.testing.assert_array_equal(engine.decide(*example(), chosen).actions, first)


def test_new_bucket_and_new_step_count_are_captured(engine: GraphEngine, device: CountingDevice) -> None:
    for prompt, steps, graphs in ((9, 2, 3), (16, 2, 5), (9, 3, 6), (16, 2, 6), (9, 2, 6)):
        actions = engine.decide(*example(prompt, 1), schedule(steps)).actions
        assert device.calls["cuGraphInstantiate"] == graphs
        np.testing.assert_array_equal(actions, directly(engine, *example(prompt, 1), schedule(steps)))


def test_denoise_alone_over_resident_keys_and_values(engine: GraphEngine) -> None:
    inputs, noise = example(seed=2)
    whole = engine.decide(inputs, noise, schedule(3)).actions
    np.testing.assert_array_equal(engine.denoise(noise, schedule(3)).actions, whole)
    fresh = example(seed=3)[1]
    for steps in (3, 5):
        expected = directly(engine, inputs, fresh, schedule(steps))
        np.testing.assert_array_equal(engine.denoise(fresh, schedule(steps)).actions, expected)


def test_another_schedule_of_as_many_steps(engine: GraphEngine) -> None:
    for seed in (0, 1, 0):
        actions = engine.decide(*example(), schedule(2, seed)).actions
        np.testing.assert_array_equal(actions, directly(engine, *example(), schedule(2, seed)))


@pytest.mark.parametrize("fault", ["synchronize", "alloc", "launch", "fork"])
def test_failed_capture(
    engine: GraphEngine, device: CountingDevice, program: NvrtcProgram, fault: str
) -> None:
    other, address, pinned = device.create_stream(), device.alloc(4), device.alloc_host(4)
    named = {
        "synchronize": "cuStreamSynchronize: CUDA error CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        "alloc": "cuMemAlloc: CUDA error CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        "launch": "cuLaunchKernel: CUDA error CUDA_ERROR_INVALID_VALUE",
        "fork": "cuStreamEndCapture: CUDA error CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
    }[fault]
    seen: Counter[str] = Counter()

    def misbehave(network: str, stream: int) -> None:
        seen[network] += 1
        if network == "prefill" and seen[network] == 2:  # the first is the warm-up
            if fault == "synchronize":
                device.synchronize(stream)
            elif fault == "alloc":
                device.alloc(1 << 20)
            elif fault == "launch":
                program.launch("leave", 0, (0, 0, 0, 0), (0,), stream)
            else:  # draws another stream into the capture and does not join it
                event = call(device._cuda, "cuEventCreate", 0)
                call(device._cuda, "cuEventRecord", event, stream)
                call(device._cuda, "cuStreamWaitEvent", other, event, 0)
                device.upload(address, pinned, other)

    program.on_launch = misbehave
    launches = device.calls["cuGraphLaunch"]
    with pytest.raises(EngineError, match=rf"prompt bucket 9: .*{named}"):
        engine.decide(*example(), schedule(2))
    assert device.calls["cuGraphLaunch"] == launches + 1
    if fault == "alloc":  # counted by the call, but nothing was given
        device.calls["cuMemAlloc"] -= 1
    program.on_launch = lambda network, stream: None
    actions = engine.decide(*example(), schedule(2)).actions
    np.testing.assert_array_equal(actions, directly(engine, *example(), schedule(2)))
    device.destroy_stream(other)
    device.free(address)
    device.free_host(pinned)


def test_an_engine_acts_in_a_thread_that_did_not_load_it(engine: GraphEngine) -> None:
    answers: list[npt.NDArray[np.float32]] = []
    for _ in range(2):
        thread = threading.Thread(
            target=lambda: answers.append(engine.decide(*example(), schedule(2)).actions)
        )
        thread.start()
        thread.join()
    answers.append(engine.decide(*example(), schedule(2)).actions)
    for actions in answers:
        np.testing.assert_array_equal(actions, answers[0])
    assert len(answers) == 3


def test_two_engines_at_once(engine: GraphEngine) -> None:
    other_device = CudaDevice()
    other = GraphEngine(other_device, NvrtcProgram(other_device, DEPTH), tiny(DEPTH))
    expected = engine.decide(*example(), schedule(3)).actions
    np.testing.assert_array_equal(other.decide(*example(), schedule(3)).actions, expected)
    other.close()
    np.testing.assert_array_equal(engine.decide(*example(), schedule(3)).actions, expected)


def test_capture_runs_nothing(device: CountingDevice, program: NvrtcProgram) -> None:
    stream, address = device.create_stream(), device.alloc(4)
    source, target = device.alloc_host(4), device.alloc_host(4)
    target[:] = 0

    def copies(stream: int) -> None:
        device.upload(address, source, stream)
        device.download(target, address, stream)

    graph = capture(device, stream, copies, "two copies")
    device.synchronize(stream)
    assert not target.any()
    for value in (7, 9):
        source[:] = value
        graph.launch(stream)
        device.synchronize(stream)
        assert (target == value).all()
    graph.close()


def test_nan_of_a_kernel_is_refused(engine: GraphEngine) -> None:
    inputs, noise = example()
    noise[0, 0] = np.nan
    with pytest.raises(EngineError, match=r"decision: actions has 1 non-finite numbers of 192"):
        engine.decide(inputs, noise, schedule(2))


def test_driver_error_names_the_call(device: CountingDevice) -> None:
    with pytest.raises(
        EngineError, match=r"cuMemAlloc: CUDA error CUDA_ERROR_OUT_OF_MEMORY \(out of memory\)"
    ):
        device.alloc(1 << 50)


def test_compute_capability_is_two_numbers() -> None:
    major, minor = (gpu() or "").split(".")
    assert int(major) >= 5 and int(minor) >= 0


def test_other_programs_know_its_place_on_the_bus(device: CountingDevice) -> None:
    command = ["nvidia-smi", f"--id={device.bus}", "--query-gpu=name", "--format=csv,noheader"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == device.name


def test_free_memory_counts_allocations(device: CountingDevice) -> None:
    free = device.free_memory()
    address = device.alloc(1 << 28)
    assert free - device.free_memory() >= 1 << 28
    device.free(address)
    assert call(device._cuda, "cuMemGetInfo")[0] == device.free_memory()


def test_fault_of_a_kernel_names_the_call() -> None:
    # In a process of its own, because CUDA gives up the context after it.
    program = """
from tests.device.test_cuda_graph import *
device = CudaDevice()
program = NvrtcProgram(device, DEPTH)
engine = GraphEngine(device, program, tiny(DEPTH))
program.on_launch = lambda network, stream: program.launch("leave", 1, (8, 8, 8, 8), (1,), stream)
try:
    engine.decide(*example(), schedule(1))
except EngineError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("cuStreamSynchronize: CUDA error CUDA_ERROR_ILLEGAL_ADDRESS")

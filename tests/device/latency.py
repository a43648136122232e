"""What a CUDA graph saves, and how much one instantiation differs from the next.

`python -m tests.device.latency` on a machine with an NVIDIA GPU. The kernels are tiny, one a layer, so this
is the time of launching a pi0.5 of 18 layers and 10 steps and not of computing one.
"""

import time
from collections.abc import Callable

import numpy as np

from pi05_runtime.bf16 import to_bf16
from pi05_runtime.engines.driver import CudaDevice, compute_capability
from pi05_runtime.engines.graph import capture
from pi05_runtime.engines.graph_engine import GraphEngine
from pi05_runtime.geometry import fixed_shape
from pi05_runtime.preprocess import Inputs, Prompt
from pi05_runtime.tables import Schedule, TokenEmbedding
from tests.device.nvrtc_program import HORIZON, VIEWS, NvrtcProgram, geometry, tiny

DEPTH, STEPS, PROMPT = 18, 10, 32
WARM_UP, CALLS, CAPTURES = 300, 1000, 10


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Median and 99th percentile of a call, in milliseconds."""
    for _ in range(WARM_UP):
        work()
    spent: list[float] = []
    for _ in range(CALLS):
        start = time.perf_counter()
        work()
        spent.append((time.perf_counter() - start) * 1e3)
    return float(np.median(spent)), float(np.percentile(spent, 99))


def show(name: str, figures: tuple[float, float]) -> None:
    print(f"{name:<44} median {figures[0]:.3f} ms, p99 {figures[1]:.3f} ms")


def main() -> None:
    device = CudaDevice()
    program, every = NvrtcProgram(device, DEPTH), tiny(DEPTH)
    ports = {network: every[network] for network in program.networks}
    size = geometry(DEPTH)
    tokens = VIEWS * size.vision.tokens
    shapes = {
        network: {p.name: fixed_shape(p, PROMPT, tokens) for p in (*s.inputs, *s.outputs)}
        for network, s in ports.items()
    }
    flat = {name: shape for of in shapes.values() for name, shape in of.items()}
    stream = device.create_stream()
    at = {name: device.alloc(4 * int(np.prod(shape, dtype=int))) for name, shape in flat.items()}
    staging = {name: device.alloc_host(4 * int(np.prod(flat[name], dtype=int))) for name in at}
    for memory in staging.values():
        memory[:] = 0
    staging["prefix_length"].view(np.int32)[:] = tokens + PROMPT
    for name, memory in staging.items():
        device.upload(at[name], memory, stream)
    launches = {network: program.bind(network, shapes[network], stream) for network in ports}

    def decision(stream: int) -> None:
        for name in ("images", "prompt_embeddings", "prefix_length", "x"):
            device.upload(at[name], staging[name], stream)
        launches["vision"](at, stream)
        launches["prefill"](at, stream)
        for step in range(STEPS):
            swapped = {"x": at["x_next"], "x_next": at["x"]} if step % 2 else {}
            launches["denoise"](at | swapped, stream)
        device.download(staging["x"], at["x"], stream)

    def direct() -> None:
        decision(stream)
        device.synchronize(stream)

    kernels = 1 + DEPTH + STEPS * (DEPTH + 2)
    print(f"compute capability {compute_capability()}, {kernels} kernels, {STEPS} steps, {CALLS} calls each")
    show("direct launches", measure(direct))
    medians: list[float] = []
    for index in range(CAPTURES):
        start = time.perf_counter()
        graph = capture(device, stream, decision, "latency")
        captured = (time.perf_counter() - start) * 1e3

        def replay(graph=graph) -> None:
            graph.launch(stream)
            device.synchronize(stream)

        figures = measure(replay)
        medians.append(figures[0])
        show(f"replay of capture {index} (captured in {captured:.1f} ms)", figures)
        graph.close()
    print(f"medians of {CAPTURES} captures: {min(medians):.3f} to {max(medians):.3f} ms")

    engine = GraphEngine(device, program, ports)
    generator = np.random.default_rng(0)
    images = generator.uniform(-1, 1, flat["images"]).astype(np.float32)
    embedding = TokenEmbedding(to_bf16(generator.standard_normal(flat["prompt_embeddings"], np.float32)))
    noise = generator.standard_normal((HORIZON, size.action_width), np.float32)
    prompt = Prompt(np.arange(PROMPT), embedding, PROMPT, tokens + PROMPT)
    inputs = Inputs(images, lambda: prompt)
    schedule = Schedule(
        np.float32(-1 / STEPS), generator.standard_normal((STEPS, *flat["modulation"]), np.float32)
    )
    show("GraphEngine.decide, staging included", measure(lambda: engine.decide(inputs, noise, schedule)))
    show("GraphEngine.denoise", measure(lambda: engine.denoise(noise, schedule)))


if __name__ == "__main__":
    main()

"""A Program of real CUDA kernels, compiled on the spot: a pi0.5 in shape only, for tests of the runtime.

One kernel a layer, as in a real engine, each with one thread an output and a fixed order of additions, so
that two runs give the same bits.
"""

import ctypes
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from pi05_runtime.engines.driver import Device, call, compute_capability
from pi05_runtime.engines.overlap import Overlapped
from pi05_runtime.errors import TargetError
from pi05_runtime.geometry import COMPONENTS, Geometry, Signature, Stack, Vision, signatures
from pi05_runtime.plan import Port

VIEWS, HORIZON = 2, 6

SOURCE = r"""
typedef unsigned short bf16;
__device__ float load(bf16 v) { return __uint_as_float((unsigned)v << 16); }
__device__ bf16 store(float v) {
  unsigned bits = __float_as_uint(v);
  return (bf16)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
#define INDEX(n) int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= (n)) return

extern "C" __global__ void vision(const float* images, bf16* tokens, int count, int width, int pixels,
                                  int per_view) {
  INDEX(count * width);
  const float* image = images + (i / width / per_view) * pixels;
  float sum = 0;
  for (int j = 0; j < pixels; j++) sum += image[j] * __cosf(0.37f * (i + 1) * (j % 61));
  tokens[i] = store(sum / pixels);
}

extern "C" __global__ void prefill(const bf16* tokens, const bf16* prompt, const int* length, bf16* keys,
                                   bf16* values, int image_tokens, int prefix, int width, int dim,
                                   int layer) {
  INDEX(prefix * dim);
  int row = i / dim, d = i % dim;
  const bf16* from = row < image_tokens ? tokens + row * width : prompt + (row - image_tokens) * width;
  float k = 0, v = 0;
  for (int c = 0; c < width; c++) {
    float value = row < *length ? load(from[c]) : 0;
    k += value * __cosf(layer + d * c);
    v += value * __sinf(layer + d + c);
  }
  keys[layer * prefix * dim + i] = store(k);
  values[layer * prefix * dim + i] = store(v);
}

extern "C" __global__ void enter(const float* x, const float* modulation, float* hidden, int n, int m) {
  INDEX(n);
  float sum = 0;
  for (int j = 0; j < m; j++) sum += modulation[j];
  hidden[i] = x[i] + sum / m;
}

extern "C" __global__ void layer(const bf16* keys, const bf16* values, const int* length, float* hidden,
                                 int n, int prefix, int dim, int layer) {
  INDEX(n);
  const bf16* k = keys + layer * prefix * dim;
  const bf16* v = values + layer * prefix * dim;
  float sum = 0;
  for (int row = 0; row < *length; row++) sum += load(k[row * dim + i % dim]) * load(v[row * dim]);
  hidden[i] = tanhf(hidden[i] + sum / *length);
}

extern "C" __global__ void leave(const float* x, const float* hidden, const float* dt, float* x_next, int n) {
  INDEX(n);
  x_next[i] = x[i] + *dt * hidden[i];
}
"""

Launch = Callable[[Mapping[str, int], int], None]
Shapes = Mapping[str, tuple[int, ...]]
CACHE = ("keys", "values")


def geometry(depth: int) -> Geometry:
    return Geometry(
        Vision(image_size=8, patch=2, width=8, depth=1, heads=1, mlp=8),
        Stack(width=16, depth=depth, heads=1, head_dim=8, mlp=16),
        Stack(width=4, depth=depth, heads=1, head_dim=8, mlp=16),
        vocabulary=8,
    )


def tiny(depth: int) -> dict[str, Signature]:
    return signatures(geometry(depth), VIEWS, HORIZON)


def gpu() -> str | None:
    """The compute capability of a GPU that these kernels can run on; None without one."""
    with suppress(TargetError):
        return compute_capability()
    return None


class Kernels:
    """A network: each kernel with the ports that it has to do with, and what launches it."""

    def __init__(self, kernels: Sequence[tuple[set[Port], Launch]], on_launch: Callable[[int], None]) -> None:
        self._kernels, self._on_launch = kernels, on_launch

    @property
    def ports(self) -> list[set[Port]]:
        return [ports for ports, _ in self._kernels]

    def __call__(self, addresses: Mapping[str, int], stream: int) -> None:
        self._on_launch(stream)
        self.enqueue(slice(None), addresses, stream, early=False)

    def enqueue(self, part: slice, addresses: Mapping[str, int], stream: int, early: bool) -> None:
        for _, launch in self._kernels[part]:
            launch(addresses, stream)


class NvrtcProgram:
    """vision, prefill and denoise of `geometry(depth)`. overlaps: whether the last two go side by side."""

    def __init__(self, device: Device, depth: int, overlaps: bool = False) -> None:
        self._cuda: Any = import_module("cuda.bindings.driver")
        self._device, self._geometry, self._overlaps = device, geometry(depth), overlaps
        self._module = call(self._cuda, "cuModuleLoadData", compile_kernels())
        self._scratch = device.alloc(HORIZON * self._geometry.action_width * 4)
        self._kernels = {
            name: call(self._cuda, "cuModuleGetFunction", self._module, name.encode())
            for name in ("vision", "prefill", "enter", "layer", "leave")
        }
        self.on_launch: Callable[[str, int], None] = lambda network, stream: None

    @property
    def stager(self) -> None:
        return None

    @property
    def networks(self) -> Collection[str]:
        return COMPONENTS

    def bind(self, network: str, shapes: Shapes, stream: int) -> Kernels:
        kernels = {"vision": self._vision, "prefill": self._prefill, "denoise": self._denoise}[network]
        return Kernels(kernels(shapes), lambda stream: self.on_launch(network, stream))

    def bind_overlapped(
        self, networks: tuple[str, str], shapes: tuple[Shapes, Shapes], stream: int, beside: int
    ) -> Overlapped | None:
        first, second = (self.bind(*one, stream) for one in zip(networks, shapes, strict=True))
        ended = lambda: None  # noqa: E731
        return Overlapped(self._device, first, second, CACHE, beside, ended) if self._overlaps else None

    def close(self) -> None:
        self._device.free(self._scratch)
        call(self._cuda, "cuModuleUnload", self._module)

    def launch(
        self, kernel: str, threads: int, pointers: Sequence[int], sizes: Sequence[int], stream: int
    ) -> None:
        """One kernel whose arguments are `pointers`, then int `sizes`."""
        types = (ctypes.c_void_p,) * len(pointers) + (ctypes.c_int,) * len(sizes)
        arguments = ((*pointers, *sizes), types)
        blocks = -(-threads // 128)
        function = self._kernels[kernel]
        call(self._cuda, "cuLaunchKernel", function, blocks, 1, 1, 128, 1, 1, 0, stream, arguments, 0)

    def _kernel(self, name: str, threads: int, ports: Sequence[str], sizes: Sequence[int]) -> Launch:
        """What launches one over the ports of these names, or scratch memory."""

        def launch(at: Mapping[str, int], stream: int) -> None:
            pointers = [at[port] if port else self._scratch for port in ports]
            self.launch(name, threads, pointers, sizes, stream)

        return launch

    def _vision(self, shapes: Shapes) -> list[tuple[set[Port], Launch]]:
        _, channels, height, width_in = shapes["images"]
        count, width = shapes["image_tokens"]
        sizes = (count, width, channels * height * width_in, count // VIEWS)
        return [(set(), self._kernel("vision", count * width, ("images", "image_tokens"), sizes))]

    def _prefill(self, shapes: Shapes) -> list[tuple[set[Port], Launch]]:
        tokens, width = shapes["image_tokens"]
        depth, prefix, dim = shapes["keys"]
        names = ("image_tokens", "prompt_embeddings", "prefix_length", *CACHE)

        def kernel(layer: int) -> Launch:
            return self._kernel("prefill", prefix * dim, names, (tokens, prefix, width, dim, layer))

        return [(_of_layer(layer), kernel(layer)) for layer in range(depth)]

    def _denoise(self, shapes: Shapes) -> list[tuple[set[Port], Launch]]:
        n = shapes["x"][0] * shapes["x"][1]
        depth, prefix, dim = shapes["keys"]
        modulations = shapes["modulation"][0] * shapes["modulation"][1]
        read = (*CACHE, "prefix_length", "")
        layers = [
            (_of_layer(layer), self._kernel("layer", n, read, (n, prefix, dim, layer)))
            for layer in range(depth)
        ]
        enter = self._kernel("enter", n, ("x", "modulation", ""), (n, modulations))
        leave = self._kernel("leave", n, ("x", "", "dt", "x_next"), (n,))
        return [(set(), enter), *layers, (set(), leave)]


def _of_layer(layer: int) -> set[Port]:
    """Places of the cache; any number that tells layers apart will do."""
    return {Port(name, layer) for name in CACHE}


def compile_kernels() -> bytes:
    """Machine code of SOURCE for the first GPU."""
    nvrtc: Any = import_module("cuda.bindings.nvrtc")
    error, program = nvrtc.nvrtcCreateProgram(SOURCE.encode(), b"pi05.cu", 0, [], [])
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, error
    architecture = f"--gpu-architecture=sm_{(compute_capability() or '').replace('.', '')}".encode()
    (error,) = nvrtc.nvrtcCompileProgram(program, 1, [architecture])
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    code = b" " * size
    nvrtc.nvrtcGetCUBIN(program, code)
    return code

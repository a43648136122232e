"""sm110-trt by another road: vision compiled from PyTorch by torch-tensorrt, with no ONNX in between.

An option for machines that have torch-tensorrt (`build.torch_tensorrt` in params.yaml), and for vision in
bf16 alone. What is quantized has its scales in the ONNX, which this road does not read, and torch-tensorrt's
own NVFP4 has been seen to drop scales; prefill and denoise take prompts of several lengths.

Its engines call their outputs output0 and so on; the runtime accepts another name for a single output.
"""

import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.export import ExportedProgram

from export.component import build_component, component_signatures
from export.params import Params, load_params
from export.stage import progress
from pi05_runtime.errors import EngineError, ParamsError, TargetError
from pi05_runtime.geometry import fixed_shape
from pi05_runtime.staging import write_file

COMPONENT = "vision"
GIB = 1 << 30
OTHERWISE = "remove it from build.torch_tensorrt in params.yaml to build it from its ONNX instead"


def build_torch_tensorrt(component: str, out: Path, workspace_gib: float, optimization_level: int) -> Path:
    """Writes out/<component>.engine, for this machine's GPU and TensorRT, and returns its path.

    Errors: ParamsError for anything but vision in bf16, TargetError on a machine without torch-tensorrt or a
    GPU, EngineError if the compilation fails; then nothing is written.
    """
    params = load_params()
    check_choice(component, params)
    torch_tensorrt, gpu = find_library(component), find_gpu(component)
    with progress(total=3, desc=f"engine torch-tensorrt {component}", unit="step") as bar:
        module = build_component(component, params).to(gpu)
        bar.update()
        (port,) = component_signatures()[component].inputs
        example = torch.zeros(fixed_shape(port, prompt=0, image_tokens=0), device=gpu)
        program = torch.export.export(module, (example,))
        bar.update()
        try:
            engine = _compile(torch_tensorrt, program, example, workspace_gib, optimization_level)
        except Exception as error:
            raise EngineError(
                f"torch-tensorrt {torch_tensorrt.__version__} could not compile {component}: {error!r}, its "
                f"own log may say more; {OTHERWISE}"
            ) from error
        bar.update()
    path = out / f"{component}.engine"
    write_file(path, engine)
    return path


def check_choice(component: str, params: Params) -> None:
    """Errors: ParamsError where this road is no good."""
    if component != COMPONENT:
        raise ParamsError(
            f"build.torch_tensorrt: {component} found, {COMPONENT} expected: the others' recipes are Q/DQ "
            f"in the ONNX and their prompts have several lengths; {OTHERWISE}"
        )
    if (recipe := params.components[component].recipe) != "bf16":
        raise ParamsError(
            f"build.torch_tensorrt: recipe {recipe} of {component} found, bf16 expected: {recipe} is Q/DQ in "
            f"the ONNX, and torch-tensorrt's own quantization is not trusted with scales; {OTHERWISE}"
        )


def find_library(component: str) -> ModuleType:
    """The torch_tensorrt module. Errors: TargetError if it cannot be imported."""
    try:
        return import_module("torch_tensorrt")
    except Exception as error:  # where TensorRT's libraries are missing it raises a bare Exception
        raise TargetError(
            f"torch-tensorrt cannot be imported ({error}), and {component} is to be built with it: it needs "
            "a machine with the target's GPU and TensorRT, and its release that was made for that TensorRT "
            f"and for the PyTorch here; {OTHERWISE}"
        ) from error


def find_gpu(component: str) -> torch.device:
    """Where the program lies while it is compiled. Errors: TargetError if PyTorch sees no GPU."""
    if not torch.cuda.is_available():
        raise TargetError(
            f"PyTorch {torch.__version__} sees no GPU, which torch-tensorrt compiles {component} on: install "
            f"PyTorch's build for this machine's CUDA, or {OTHERWISE}"
        )
    return torch.device("cuda")


def _compile(
    torch_tensorrt: ModuleType,
    program: ExportedProgram,
    example: Tensor,
    workspace_gib: float,
    optimization_level: int,
) -> bytes:
    """The whole program as one engine; what TensorRT cannot take fails, nothing is left to PyTorch.

    use_explicit_typing is TensorRT's strong typing: off by default in torch-tensorrt 2.9, the default
    later, and from 2.13 the only way, the name then ignored. enabled_precisions must stay unset beside it.
    TF32 would round the patch embedding, which is kept in fp32. The timing cache would otherwise be a file
    in /tmp that every build on the machine shares.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return bytes(
            torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                program,
                arg_inputs=[example],
                use_explicit_typing=True,
                disable_tf32=True,
                workspace_size=int(workspace_gib * GIB),
                optimization_level=optimization_level,
                timing_cache_path=str(Path(scratch, "timing.cache")),
            )
        )

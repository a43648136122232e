"""A policy of seeded weights: its components, the ranges of their layers, and what the reference answers.

The pipeline's own pieces without its files, on any of PyTorch's devices: the seeded checkpoint's tensors, the
export form, static FP8 by the largest magnitude as ModelOpt calibrates it, the plan's launches.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from demo.openpi_layout import stored_name
from demo.seeded import tensor
from export.artifacts import CHECKPOINT, write_json
from export.checkpoint.canonical import Description
from export.checkpoint.openpi import UNUSED
from export.engine import plan
from export.engine.plan import Described
from export.engine.plan.source import Source
from export.kernels.compile import Chip
from export.model.fold import build
from export.model.parameters import canonical_shapes
from export.model.reference import Reference
from export.stage import progress
from pi05_runtime.geometry import COMPONENTS, Geometry
from pi05_runtime.interface import Interface, Normalization, Statistics
from pi05_runtime.preprocess import Inputs
from pi05_runtime.staging import staged
from pi05_runtime.targets import Recipe
from validate.benchmark.profiles import Profile

SEED = 0
LARGEST = 448
FEW_VIEWS = 2
"""As many whose vision bears FP8."""
STATE = 8
Weights = Mapping[str, Tensor]


def seeded_weights(geometry: Geometry, device: str) -> dict[str, Tensor]:
    """The canonical tensors of demo/seeded.py, bf16, on `device`; on `meta` their shapes alone."""
    shapes = {n: s for names in canonical_shapes(geometry).values() for n, s in names.items()}
    if device == "meta":
        return {n: torch.empty(s, dtype=torch.bfloat16, device=device) for n, s in shapes.items()}
    generator = torch.Generator().manual_seed(SEED)
    bar = progress(shapes.items(), desc="seeded weights", unit="tensor")
    return {name: tensor(name, shape, generator).to(device) for name, shape in bar}


def write_checkpoint(folder: Path, weights: Weights, geometry: Geometry) -> None:
    """model.safetensors under openpi's names, for a peer."""
    stored = {stored_name(name): t for name, t in weights.items()}
    unused = {"norm": (geometry.prefix.width,), "lm_head": (geometry.vocabulary, geometry.expert.width)}
    stored |= {n: torch.zeros(unused[n.split(".")[-2]], dtype=torch.bfloat16) for n in sorted(UNUSED)}
    with staged(folder) as out:
        save_file(stored, out / "model.safetensors")


def kept(profile: Profile) -> dict[str, tuple[str, ...]]:
    """Layers that stay in bf16 in FP8, as `keep` of params.yaml names them. Of few views these make a fifth
    of the error at one step, for an eighth more bytes a step. Of more the error is larger, and most of it
    vision's, all of which then stays."""
    vision = "projector" if profile.views <= FEW_VIEWS else "*"
    return {"vision": (vision,), "denoise": ("layers.*.o",)}


def interface_of(profile: Profile, geometry: Geometry) -> Interface:
    """All dimensions of the actions count, which seeded weights make alike: the golden sample is one
    observation, and of few numbers chance decides."""
    width = geometry.action_width
    return Interface(
        cameras=tuple(f"camera{i}" for i in range(profile.views)),
        prompt_format="plain",
        state_dims=STATE,
        action_dims=width,
        horizon=profile.horizon,
        max_prompt_tokens=profile.prompt,
        image_convention="openpi",
        normalization=Normalization(
            "quantile",
            "quantile",
            Statistics(q01=(-1.0,) * STATE, q99=(1.0,) * STATE),
            Statistics(q01=(-1.0,) * width, q99=(1.0,) * width),
            "openpi",
        ),
    )


class Component(Source):
    """A component's tensors under the names that its quantized ONNX has, and in its layout [in, out]."""

    def __init__(self, component: str, module: nn.Module, ranges: Mapping[str, float]) -> None:
        """ranges: layer -> the largest magnitude of its inputs, of those to hold in FP8."""
        self._component = component
        self._found: dict[str, Tensor] = {n: t.detach() for n, t in module.state_dict().items()}
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear):
                weight = self._found.pop(f"{name}.weight")
                if name in ranges:
                    largest = weight.abs().max().float() if weight.device.type != "meta" else torch.ones(())
                    scale = (largest / LARGEST).bfloat16()
                    codes = (weight.float() / scale.float()).clamp(-LARGEST, LARGEST)
                    self._found[f"{name}.codes"] = codes.to(torch.float8_e4m3fn).t()
                    self._found[f"{name}.weight_scale"] = scale
                    given = torch.tensor(ranges[name], device="cpu") / LARGEST
                    self._found[f"{name}.input_scale"] = given.bfloat16()
                else:
                    self._found[f"{name}.weight"] = weight.t()

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def tensor(self, name: str) -> Tensor:
        return self._found[name]


def quantizable(module: nn.Module) -> list[str]:
    """As export.quantize has it: the bf16 linears."""
    return [
        n for n, m in module.named_modules() if isinstance(m, nn.Linear) and m.weight.dtype == torch.bfloat16
    ]


@contextmanager
def recorded(module: nn.Module) -> Iterator[dict[str, float]]:
    """Layer -> the largest magnitude of its inputs in all forwards of the body, filled when it ends."""
    peaks: dict[str, Tensor] = {}
    found: dict[str, float] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            peak = inputs[0].detach().abs().max()
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

        return hook

    hooks = [module.get_submodule(n).register_forward_pre_hook(watch(n)) for n in quantizable(module)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    found.update({name: peak.float().item() for name, peak in peaks.items()})


def components(
    weights: Weights, geometry: Geometry, interface: Interface, device: str
) -> dict[str, nn.Module]:
    with torch.device(device):
        return {c: build(c, weights, geometry, interface, torch.bfloat16) for c in COMPONENTS}


@torch.no_grad()
def calibrated(
    modules: Mapping[str, nn.Module],
    observations: list[tuple[Inputs, np.ndarray]],
    modulation: Tensor,
    device: str,
) -> dict[str, dict[str, float]]:
    """Component -> ranges of its layers, over whole decisions of the bf16 components."""
    with (
        torch.device(device),
        recorded(modules["vision"]) as vision,
        recorded(modules["prefill"]) as prefill,
        recorded(modules["denoise"]) as denoise,
    ):
        dt = torch.tensor(-1.0 / len(modulation))
        for inputs, noise in progress(observations, desc="calibrate", unit="observation"):
            length = torch.tensor(inputs.prompt.prefix_length, dtype=torch.int32)
            tokens = modules["vision"](torch.from_numpy(inputs.images).to(device))
            prompt = torch.from_numpy(inputs.prompt.embeddings).to(device, torch.bfloat16)
            keys, values = modules["prefill"](tokens, prompt, length)
            x = torch.from_numpy(noise).to(device)
            for row in modulation:
                x = modules["denoise"](x, row, dt, keys, values, length)
    return {"vision": vision, "prefill": prefill, "denoise": denoise}


@torch.no_grad()
def reference_actions(
    weights: Weights, geometry: Geometry, inputs: Inputs, noise: np.ndarray, steps: Sequence[int], device: str
) -> dict[int, Tensor]:
    """What the plain BF16 model answers, at each step count."""
    with torch.device("meta"):
        model = Reference(geometry)
    model.load_state_dict(weights, strict=True, assign=True)
    model.to_bf16().requires_grad_(False).eval()
    with torch.device(device):
        images = model.embed_images(torch.from_numpy(inputs.images).to(device)).flatten(0, 1)
        prompt = model.embed_prompt(torch.from_numpy(inputs.prompt.token_ids).to(device))
        prefix = torch.cat([images, prompt])[None]
        valid = torch.ones(prefix.shape[:2], dtype=torch.bool)
        cache, start = model.prefill(prefix, valid), torch.from_numpy(noise)[None].to(device)
        return {n: model.sample(start, cache, valid, n, "openpi")[0].cpu() for n in steps}


def _coded(profile: Profile, component: str, ranges: Mapping[str, float]) -> dict[str, float]:
    """Those of the layers that FP8 does not keep."""
    patterns = kept(profile).get(component, ())
    return {n: r for n, r in ranges.items() if not any(fnmatch(n, pattern) for pattern in patterns)}


def describe(
    chip: Chip,
    profile: Profile,
    geometry: Geometry,
    recipe: Recipe,
    modules: Mapping[str, nn.Module],
    ranges: Mapping[str, Mapping[str, float]],
    device: str,
    folder: Path,
) -> dict[str, list[Described]]:
    """Component -> its launches. folder: an empty one, to tell the plan's builder of the policy in."""
    write_json(
        folder / CHECKPOINT / "policy.json",
        Description(geometry, interface_of(profile, geometry), "seeded", {}),
    )
    found: dict[str, list[Described]] = {}
    for component, module in progress(modules.items(), desc=f"{recipe} plans", unit="component"):
        coded = _coded(profile, component, ranges[component]) if recipe == "fp8" else {}
        source = Component(component, module, coded)
        with chdir(folder), torch.device(device):
            found[component] = plan.describe(chip, component, source, [profile.prompt])
    return found

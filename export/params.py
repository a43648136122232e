"""params.yaml, read once into typed structs; whatever is unknown or impossible stops here.

The file itself is the documentation of every field. Fields that a checkpoint may state itself are
optional: where both speak, they must agree (export/checkpoint).
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml

from pi05_runtime.errors import ParamsError
from pi05_runtime.geometry import COMPONENTS, PREFIX, decision_networks
from pi05_runtime.interface import NormalizationMode, PromptFormat
from pi05_runtime.targets import RECIPES, TARGETS, Recipe

Positive = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Commit = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{40}$")]
"""A Hub revision is a commit, never a branch: the same params must name the same bytes."""


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class HubSource(Struct, frozen=True):
    repo: str
    revision: Commit


class InterfaceParams(Struct, frozen=True):
    cameras: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] | None = None
    prompt_format: PromptFormat | None = None
    state_dims: Positive | None = None
    action_dims: Positive | None = None
    horizon: Positive | None = None
    max_prompt_tokens: Positive | None = None
    normalization: NormalizationMode | None = None

    def __post_init__(self) -> None:
        if self.cameras and len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras names one twice: {list(self.cameras)}")


class PinnedFile(Struct, frozen=True):
    """A file with its sha256, which DVC tracks with the params and the stage checks on reading."""

    path: str
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


class CheckpointParams(Struct, frozen=True):
    path: str
    layout: Literal["openpi", "lerobot", "orbax"]
    tokenizer: str
    norm_stats: PinnedFile | None = None
    interface: InterfaceParams = InterfaceParams()


class ObservationParams(Struct, frozen=True):
    path: str
    split: str


class ExportParams(Struct, frozen=True):
    prompt_buckets: tuple[int, ...]
    steps: tuple[int, ...]
    default_steps: int
    rope_frequencies: Literal["float32", "bfloat16"]
    attention: Literal["decomposed", "native"]

    def __post_init__(self) -> None:
        if not self.prompt_buckets or list(self.prompt_buckets) != sorted(set(self.prompt_buckets)):
            raise ValueError(f"prompt_buckets must rise and not be empty, found {self.prompt_buckets}")
        if self.prompt_buckets[0] < 2:
            raise ValueError(f"the smallest prompt bucket must be at least 2, found {self.prompt_buckets[0]}")
        if not self.steps or min(self.steps) < 1 or list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"steps must be positive and rise, found {self.steps}")
        if self.default_steps not in self.steps:
            raise ValueError(f"default_steps {self.default_steps} is not one of steps {self.steps}")


class ComponentParams(Struct, frozen=True):
    recipe: Recipe
    keep: tuple[str, ...] = ()
    fallback: Recipe | None = None

    def __post_init__(self) -> None:
        if self.recipe == "bf16" and self.keep:
            raise ValueError("`keep` names layers to leave in bf16, but the recipe is bf16 already")
        if self.fallback and RECIPES.index(self.fallback) >= RECIPES.index(self.recipe):
            raise ValueError(f"fallback {self.fallback} must be finer than recipe {self.recipe}: {RECIPES}")

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """What the component is quantized to, the wanted recipe first."""
        return (self.recipe,) if self.fallback is None else (self.recipe, self.fallback)


class ComponentsParams(Struct, frozen=True):
    vision: ComponentParams
    prefill: ComponentParams
    denoise: ComponentParams

    def __getitem__(self, component: str) -> ComponentParams:
        return getattr(self, component)


class BuildParams(Struct, frozen=True):
    """How TensorRT builds; other engines have nothing to build."""

    minutes: Annotated[float, msgspec.Meta(gt=0)]
    workspace_gib: Annotated[float, msgspec.Meta(gt=0)]
    whole_prefix: tuple[str, ...]
    torch_tensorrt: tuple[Literal["vision"], ...]


class ClosedLoopParams(Struct, frozen=True):
    targets: tuple[str, ...]
    simulator: str
    map: tuple[str, ...]
    suite: str
    tasks: tuple[str, ...]
    scenes: Positive
    success: Share
    loss: Share
    divergence: Annotated[float, msgspec.Meta(gt=0)]


class GateParams(Struct, frozen=True):
    steps: tuple[int, ...]
    component_cosine: dict[Recipe, float]
    action_cosine: dict[Recipe, float]
    budget_ms: dict[str, Annotated[float, msgspec.Meta(gt=0)]]
    closed_loop: ClosedLoopParams

    def __post_init__(self) -> None:
        for name in ("component_cosine", "action_cosine"):
            table: dict[Recipe, float] = getattr(self, name)
            if missing := [r for r in RECIPES if r not in table]:
                raise ValueError(f"{name} has no threshold for {missing}")
            if wrong := {r: x for r, x in table.items() if not 0 < x < 1}:
                raise ValueError(f"{name} must lie between 0 and 1, found {wrong}")
        if self.closed_loop.targets and not self.closed_loop.tasks:
            raise ValueError("closed_loop.tasks is empty: engines would act nowhere")


class BundleParams(Struct, frozen=True):
    name: str
    version: str
    license: str


class Params(Struct, frozen=True):
    hub: dict[str, HubSource]
    checkpoint: CheckpointParams
    calibration: ObservationParams
    export: ExportParams
    components: ComponentsParams
    targets: tuple[str, ...]
    build: BuildParams
    heldout: ObservationParams
    gates: GateParams
    bundle: BundleParams

    def __post_init__(self) -> None:
        if unknown := [t for t in self.targets if t not in TARGETS]:
            raise ValueError(f"unknown targets {unknown}; known: {sorted(TARGETS)}")
        possible = [t for t in self.targets if TARGETS[t].from_onnx]
        if idle := set(self.build.whole_prefix) - set(possible):
            raise ValueError(
                f"build.whole_prefix: {sorted(idle)} are not among the TensorRT targets {possible}"
            )
        if unknown := [t for t in self.gates.budget_ms if t not in TARGETS]:
            raise ValueError(f"gates.budget_ms: unknown targets {unknown}; known: {sorted(TARGETS)}")
        if idle := [t for t in self.gates.closed_loop.targets if t not in self.targets]:
            raise ValueError(f"gates.closed_loop.targets: {idle} are not among the targets {self.targets}")
        for target in self.targets:
            for component in COMPONENTS:
                self.recipes(target, component)
        self._check_torch_tensorrt()
        acts = self.gates.closed_loop
        for name, values in (
            ("targets", self.targets),
            ("gates.steps", self.gates.steps),
            ("gates.closed_loop.targets", acts.targets),
            ("gates.closed_loop.tasks", acts.tasks),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names something twice: {list(values)}")
        if not self.targets:
            raise ValueError("targets is empty: name at least one")
        if not self.gates.steps:
            raise ValueError("gates.steps is empty: actions would be judged at no step count")
        if extra := set(self.gates.steps) - set(self.export.steps):
            raise ValueError(f"gates.steps {sorted(extra)} are not among export.steps")

    def recipes(self, target: str, component: str) -> tuple[Recipe, ...]:
        """The recipes of a component that the target's chip has, the wanted one first."""
        wanted, has = self.components[component].recipes, TARGETS[target].recipes
        possible: list[Recipe] = [recipe for recipe in wanted if recipe in has]
        if not possible:
            raise ValueError(
                f"components.{component}: {target} has no {' or '.join(wanted)}, only {sorted(has)}; name "
                "one of these as `fallback`, or leave the target out"
            )
        return tuple(possible)

    def _check_torch_tensorrt(self) -> None:
        for component in self.build.torch_tensorrt:
            if not any(TARGETS[t].engine == "tensorrt" for t in self.targets):
                raise ValueError("build.torch_tensorrt: none of the targets is built with TensorRT itself")
            if (recipe := self.components[component].recipe) != "bf16":
                raise ValueError(f"build.torch_tensorrt: {component} is {recipe}, only bf16 is built so")
            if self.build.whole_prefix:
                raise ValueError(f"build.torch_tensorrt: {component} is in build.whole_prefix too: choose")

    def networks(self, target: str) -> tuple[str, ...]:
        """What a decision of the target runs: the three components, or `prefix` and `denoise`."""
        return decision_networks([PREFIX] if target in self.build.whole_prefix else COMPONENTS)


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Reads and checks params.yaml. Errors: ParamsError naming the field."""
    try:
        return msgspec.convert(yaml.safe_load(path.read_bytes()), Params)
    except FileNotFoundError:
        raise ParamsError(f"{path} not found in {Path.cwd()}: run stages from the repository root") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not YAML: {error}") from None
    except msgspec.ValidationError as error:
        raise ParamsError(f"{path}: {error}. Every field is explained in that file") from None

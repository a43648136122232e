"""A seeded bundle so small that its kernels can be interpreted, and a machine that has its chip."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from export.engine.plan.builder import Call
from export.kernels.compile import Chip
from export.params import load_params
from pi05_runtime.geometry import Geometry, Stack, Vision
from pi05_runtime.lock import Lock
from tests.kernels.interpreting_device import InterpretingDevice, stand_ins
from tests.pipeline import ROOT
from validate.benchmark import kernels, launches, loading, maker, measure, networks, seeded
from validate.benchmark.measure import Subject
from validate.benchmark.profiles import Profile

TARGET, CHIP = "sm90-plan", Chip(90)
TINY = Geometry(
    Vision(image_size=28, patch=14, width=32, depth=1, heads=2, mlp=64),
    Stack(width=64, depth=2, heads=2, head_dim=16, mlp=64),
    Stack(width=32, depth=2, heads=2, head_dim=16, mlp=64),
    vocabulary=1024,
)
PROFILE = Profile(views=2, prompt=8, horizon=4)
STEPS = (1,)
BUS = "0000:0F:00.0"
MEMORY = 1 << 40
"""Bytes of the machine's GPU."""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Call]]]:
    """A bundle in fp8, of TINY, and its launches."""
    bundle = tmp_path_factory.mktemp("seeded") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maker, "STEPS", STEPS)
        patch.setattr(maker, "IMAGE_SIZE", TINY.vision.image_size)
        wanted = kernels.wanted(CHIP, TINY, PROFILE, "fp8")
        weights = seeded.seeded_weights(TINY, "cpu")
        lock, params = Lock("triton", "3.9.0", "9.0"), load_params(ROOT / "params.yaml")
        tokenizer = ROOT / "demo" / "tokenizer.model"
        one = maker.Maker(TINY, weights, "cpu", tokenizer, TARGET, stand_ins(wanted), lock, params)
        return bundle, one.write(bundle, "tiny", PROFILE, "fp8")


@pytest.fixture(scope="session")
def seeded_bundle(made: tuple[Path, dict[str, list[Call]]]) -> Path:
    """Read it, do not write to it."""
    return made[0]


@contextmanager
def interpreting() -> Iterator[list[InterpretingDevice]]:
    """The devices that were opened: they interpret, and this machine is said to be the chip's."""
    wanted, opened = kernels.wanted(CHIP, TINY, PROFILE, "fp8"), []

    class Machine(InterpretingDevice):
        bus = BUS

        def free_memory(self) -> int:
            return MEMORY - sum(len(array) for device in opened for array in device.memory.values())

    def open_device() -> InterpretingDevice:
        opened.append(Machine(wanted))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        for module in ("pi05_runtime.engines.driver", "pi05_runtime.engines.plan"):
            patch.setattr(f"{module}.compute_capability", lambda: "9.0")
        patch.setattr("pi05_runtime.engines.driver.CudaDevice", open_device)
        patch.setattr(networks, "CudaDevice", open_device)
        patch.setattr(loading, "CudaDevice", open_device)
        # One pass over each row of the kernel table, once, after nothing else.
        for name, few in (("WARM_UP", 0), ("REPEATS", 1), ("LAUNCHES", 1), ("EVICTED", 0)):
            patch.setattr(launches, name, few)
        # Resizing takes longest of all to interpret; the host does it as well.
        patch.setattr("pi05_runtime.engines.plan.PlanProgram.stager", None)
        yield opened


@pytest.fixture
def interpreted() -> Iterator[list[InterpretingDevice]]:
    with interpreting() as opened:
        yield opened


@pytest.fixture
def subject(seeded_bundle: Path) -> Subject:
    return measure.Subject("tiny fp8", "tiny", seeded_bundle, TARGET, "seeded")

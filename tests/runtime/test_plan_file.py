"""Plans whose file or device is not what it should be, and launches as the driver is to get them."""

import ctypes
import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import save_file

from pi05_runtime.engines import plan as plan_module
from pi05_runtime.engines.plan import PlanProgram
from pi05_runtime.errors import EngineError
from pi05_runtime.plan import (
    METADATA,
    Float,
    Int,
    Kernel,
    Launch,
    Plan,
    Port,
    Scratch,
    Shaped,
    Tiled,
    Variant,
    Weight,
    read_plan,
)
from tests.runtime.host_device import SIGNATURES, HostDevice

PORTS = [p.name for p in (*SIGNATURES["vision"].inputs, *SIGNATURES["vision"].outputs)]
SHAPES = {name: (2, 3) for name in PORTS}
LAUNCH = Launch(
    "layer",
    (Variant(0, (3, 2, 1)),),
    (Port("images", 8), Weight("w"), Scratch(256, 64), Int(7), Float(0.5)),
)
PLAN = Plan("vision", "9.0", (Kernel("code", "entry", 1000, 128),), (Shaped(SHAPES, (LAUNCH,), 320),))
TENSORS = {"w": np.arange(64, dtype=np.float32), "code": np.frombuffer(b"code".ljust(256, b"\0"), np.uint8)}


class LaunchingDevice(HostDevice):
    """Takes note of what it is to launch."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[tuple[Any, ...]] = []

    def load_module(self, image: Any) -> int:
        assert image.tobytes().rstrip(b"\0") == b"code"
        return self._handle([])

    def unload_module(self, module: int) -> None:
        del self.handles[module]

    def find_kernel(self, module: int, entry: str, shared: int) -> int:
        assert (entry, shared) == ("entry", 1000)
        return 99

    def launch_kernel(self, *launch: Any) -> None:
        self.launched.append(launch)

    def describe_tiles(self, address: int, tiled: Tiled) -> Any:
        return address, tiled


@pytest.fixture(autouse=True)
def chip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "compute_capability", lambda: "9.0")


def save(folder: Path, plan: Plan = PLAN, tensors: Any = TENSORS) -> Path:
    path = folder / "vision.plan"
    save_file(tensors, path, {METADATA: msgspec.json.encode(plan).decode()})
    return path


def test_arguments_are_addresses_and_numbers(tmp_path: Path) -> None:
    device = LaunchingDevice()
    program = PlanProgram({"vision": save(tmp_path)}, SIGNATURES, device)
    program.bind("vision", SHAPES, 5)({name: 1 << 20 for name in PORTS}, stream=5)
    [(kernel, grid, threads, shared, (values, types), stream, _)] = device.launched
    assert (kernel, grid, threads, shared, stream) == (99, (3, 2, 1), 128, 1000, 5)
    pointer = ctypes.c_void_p
    assert types == (pointer, pointer, pointer, ctypes.c_int32, ctypes.c_float, pointer, pointer)
    port, weight, scratch, *numbers = values
    assert port == (1 << 20) + 8 and numbers == [7, 0.5, 0, 0]
    held = {address: array.nbytes for address, array in device.memory.items()}
    assert scratch - 256 in held and held[scratch - 256] == 320
    assert np.array_equal(
        np.frombuffer((ctypes.c_char * 256).from_address(int(weight)), np.float32), TENSORS["w"]
    )
    program.close()
    assert device.leaks == 0


def test_a_matrix_by_tiles_comes_before_the_arguments(tmp_path: Path) -> None:
    device, tiled = LaunchingDevice(), Tiled(1, rows=2, columns=16, itemsize=2, height=8)
    launch = replace(LAUNCH, variants=(Variant(0, (3, 2, 1), (tiled,)),))
    plan = replace(PLAN, shaped=(replace(PLAN.shaped[0], launches=(launch,)),))
    program = PlanProgram({"vision": save(tmp_path, plan)}, SIGNATURES, device)
    program.bind("vision", SHAPES, 5)({name: 1 << 20 for name in PORTS}, stream=5)
    [(*_, (values, types), _, _)] = device.launched
    (address, described), *shape = values[:5]
    assert described == tiled and shape == [2, 16, 16, 1] and types[:2] == (None, ctypes.c_int32)
    assert (values[5], values[6]) == ((1 << 20) + 8, address) and len(values) == len(types) == 12
    program.close()


def test_a_port_by_tiles_is_described_where_it_is(tmp_path: Path) -> None:
    device, tiled = LaunchingDevice(), Tiled(0, rows=3, columns=8, itemsize=2, height=8)
    shapes = SHAPES | {"images": (4, 8)}

    def plan(offset: int) -> Plan:
        arguments = (Port("images", offset), *LAUNCH.arguments[1:])
        launch = replace(LAUNCH, variants=(Variant(0, (3, 2, 1), (tiled,)),), arguments=arguments)
        return replace(PLAN, shaped=(Shaped(shapes, (launch,), 320),))

    for offset in (8, 32):
        with pytest.raises(EngineError, match="tiles of argument 0"):
            read_plan(save(tmp_path, plan(offset)))
    program = PlanProgram({"vision": save(tmp_path, plan(16))}, SIGNATURES, device)
    bound = program.bind("vision", shapes, 5)
    for port in (1 << 20, 1 << 21):
        bound({name: port for name in PORTS}, stream=5)
        *_, (values, types), _, _ = device.launched[-1]
        assert values[:6] == ((port + 16, tiled), 3, 8, 8, 1, port + 16) and len(types) == 12
    program.close()


def test_shapes_that_it_was_not_made_for(tmp_path: Path) -> None:
    program = PlanProgram({"vision": save(tmp_path)}, SIGNATURES, LaunchingDevice())
    with pytest.raises(EngineError, match=r"shapes .* found, one of .* expected"):
        program.bind("vision", SHAPES | {"images": (1,)}, 0)
    with pytest.raises(EngineError, match=r"networks \['vision'\] found"):
        program.bind("denoise", SHAPES, 0)


def test_another_chips_plan(tmp_path: Path) -> None:
    device = LaunchingDevice()
    with pytest.raises(EngineError, match=r"compute capability 11\.0 found, 9\.0 expected"):
        PlanProgram(
            {"vision": save(tmp_path, replace(PLAN, compute_capability="11.0"))},
            SIGNATURES,
            device,
        )
    assert device.leaks == 0


def test_another_components_plan(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"a plan of denoise found, vision expected"):
        PlanProgram(
            {"vision": save(tmp_path, replace(PLAN, component="denoise"))},
            SIGNATURES,
            LaunchingDevice(),
        )


def test_a_device_that_refuses_keeps_nothing(tmp_path: Path) -> None:
    for call in ("alloc", "upload"):
        device = LaunchingDevice()
        device.fail_on = call
        with pytest.raises(EngineError, match="on purpose"):
            PlanProgram({"vision": save(tmp_path)}, SIGNATURES, device)
        assert device.leaks == 0


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    path = save(tmp_path)
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    for damaged, message in (
        (b"", "error"),
        (whole[:100], "Error"),
        (whole[:-1], r"bytes, \d+ expected"),
        (whole + b"\0", r"bytes, \d+ expected"),
        (b"\xff" * 8 + whole[8:], "a header of"),
        (whole[:8] + b"[" + whole[9:], "Error"),
        (_with_header({**header, "__metadata__": {}}), "KeyError: 'plan'"),
        (_with_header({**header, "__metadata__": {"plan": "{}"}}), "missing required field"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(EngineError, match=rf"(?s)vision\.plan: .*{message}.*a kernel plan expected"):
            read_plan(path)
    with pytest.raises(EngineError, match="a kernel plan expected"):
        read_plan(tmp_path / "none.plan")


def _with_header(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(512)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arguments": (Weight("none"),)}, "weight 'none' missing"),
        ({"arguments": (Port("none"),)}, "port 'none' missing"),
        ({"arguments": (Scratch(256, 65),)}, "65 bytes at 256 outside the arena"),
        ({"arguments": (Scratch(-8, 8),)}, "outside the arena"),
        ({"variants": (Variant(1, (1, 1, 1)),)}, "no kernel of the plan"),
        ({"variants": ()}, "no kernel of the plan"),
        ({"variants": (Variant(0, (1, 1, 1), (Tiled(5, 1, 16, 1, 8),)),)}, "tiles of argument 5"),
        ({"variants": (Variant(0, (1, 1, 1), (Tiled(0, 1, 16, 1, 8),)),)}, "tiles of argument 0"),
        ({"variants": (Variant(0, (1, 1, 1), (Tiled(1, 3, 64, 2, 8),)),)}, "tiles of argument 1"),
        ({"variants": (Variant(0, (1, 1, 1), (Tiled(2, 5, 16, 1, 8),)),)}, "tiles of argument 2"),
        ({"variants": (Variant(0, (1, 1, 1), (Tiled(1, 2, 16, 4, 8),)),)}, "tiles of argument 1"),
        ({"variants": (Variant(0, (1, 1, 1), (Tiled(1, 2, 17, 1, 8),)),)}, "tiles of argument 1"),
        ({"variants": (Variant(0, (1, 1, 1), (Tiled(1, 2, 16, 1, 257),)),)}, "tiles of argument 1"),
    ],
)
def test_contradictions(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    shaped = replace(PLAN.shaped[0], launches=(replace(LAUNCH, **change),))
    with pytest.raises(EngineError, match=message):
        read_plan(save(tmp_path, replace(PLAN, shaped=(shaped,))))


def test_machine_code_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no machine code 'code'"):
        read_plan(save(tmp_path, tensors={"w": TENSORS["w"]}))


def test_a_weight_that_is_misplaced(tmp_path: Path) -> None:
    tensors = {"w": TENSORS["w"], "a": np.zeros(1, np.float32), "code": TENSORS["code"]}
    with pytest.raises(EngineError, match="weight 'w' missing or misplaced"):
        read_plan(save(tmp_path, tensors=tensors))


def two_networks(folder: Path, device: LaunchingDevice, *launches: Launch) -> PlanProgram:
    files: dict[str, Path] = {}
    for name in ("vision", "other"):
        (folder / name).mkdir()
        shaped = (Shaped(SHAPES, launches, 320),)
        files[name] = save(folder / name, replace(PLAN, component=name, shaped=shaped))
    return PlanProgram(files, dict.fromkeys(files, SIGNATURES["vision"]), device)


def test_a_network_beside_another_waits_for_what_it_reads(tmp_path: Path) -> None:
    device = LaunchingDevice()
    main, beside = device.create_stream(), device.create_stream()
    layers = [replace(LAUNCH, arguments=(Port("image_tokens", offset),)) for offset in (0, 8)]
    program = two_networks(tmp_path, device, *layers)
    addresses = {port: 1 << 20 for port in PORTS}
    before = program.bind("other", SHAPES, main)
    program.bind_overlapped(("vision", "other"), (SHAPES, SHAPES), main, beside)(addresses, main)
    before(addresses, main)
    assert [(values[0] - (1 << 20), stream, early) for *_, (values, _), stream, early in device.launched] == [
        (0, main, False),
        (0, beside, False),
        (8, main, True),
        (8, beside, False),
        # Not behind itself, though it was launched last.
        (0, main, False),
        (8, main, True),
    ]
    assert device.calls["follow"] == 3
    program.close()


def test_only_launches_of_one_network_overlap(tmp_path: Path) -> None:
    # What another network wrote may be read ahead (kernels/order.py).
    device = LaunchingDevice()
    program = two_networks(tmp_path, device, LAUNCH, LAUNCH)
    bound = {name: program.bind(name, SHAPES, 5) for name in ("vision", "other")}
    for name in ("vision", "vision", "other", "vision"):
        bound[name]({port: 1 << 20 for port in PORTS}, stream=5)
    assert [early for *_, early in device.launched] == [False, True, True, True, False, True, False, True]
    program.close()

"""Kernel plans as networks that can be launched: code and weights on the device, and a list to go through.

A network's launches overlap with each other, and so do its passes. With those of another network they do not,
so that what that one wrote may be read ahead, unless the two are bound as one (overlap.py).
"""

import ctypes
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pi05_runtime.engines.driver import Device, compute_capability
from pi05_runtime.engines.frames import View
from pi05_runtime.engines.overlap import Overlapped
from pi05_runtime.engines.program import Shapes
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import Signature
from pi05_runtime.interface import Convention
from pi05_runtime.plan import (
    Argument,
    Float,
    Int,
    Launch,
    Plan,
    PlanFile,
    Port,
    Scratch,
    Shaped,
    Staging,
    Tiled,
    Weight,
    read_plan,
)

Choices = Mapping[str, Mapping[str, int]]
"""Network -> group of launches -> variant."""
_SCRATCH = 2
"""Pointers behind a Triton kernel's own arguments, for scratch memory that ours do not need."""


class PlanProgram:
    """A Program of one plan a network."""

    def __init__(
        self,
        files: Mapping[str, Path],
        signatures: Mapping[str, Signature],
        device: Device,
        choices: Choices = MappingProxyType({}),
    ) -> None:
        """Brings weights and machine code to the device. choices: of variants, where not the first is wanted.

        Errors: EngineError for a file that is not that network's plan, or another chip's.
        """
        self._device, self._signatures, self._choices = device, signatures, choices
        self._turn = _Turn()
        self._held = ExitStack()
        self._plans: dict[str, _Loaded] = {}
        with ExitStack() as held:
            for network, path in files.items():
                file = read_plan(path)
                _check(file, network, signatures[network])
                self._plans[network] = _Loaded(file, device, held)
            self._held = held.pop_all()

    @property
    def networks(self) -> Collection[str]:
        return self._plans.keys()

    @property
    def stager(self) -> "PlanStager | None":
        """Of the network that has one, vision."""
        staging = ((loaded, loaded.plan.staging) for loaded in self._plans.values())
        return next(
            (PlanStager(self._device, one, found, self._turn) for one, found in staging if found), None
        )

    def bind(self, network: str, shapes: Shapes, stream: int) -> "PlanLaunch":
        """Errors: EngineError for shapes that the plan was not made for, or a choice that it lacks."""
        if network not in self._plans:
            raise EngineError(f"{network}: networks {sorted(self._plans)} found; load the whole bundle")
        loaded = self._plans[network]
        for shaped in loaded.plan.shaped:
            if shaped.shapes == dict(shapes):
                return self.bind_variants(network, shaped, self._choices.get(network, {}))
        raise EngineError(
            f"{network}: shapes {dict(shapes)} found, one of {[s.shapes for s in loaded.plan.shaped]} "
            "expected; use a prompt bucket of the bundle's manifest"
        )

    def bind_overlapped(
        self, networks: tuple[str, str], shapes: tuple[Shapes, Shapes], stream: int, beside: int
    ) -> Overlapped:
        """Errors: as `bind`."""
        first, second = (self.bind(*one, stream) for one in zip(networks, shapes, strict=True))
        written = {port.name for port in self._signatures[networks[0]].outputs}
        return Overlapped(self._device, first, second, written, beside, self._turn.end)

    def bind_variants(self, network: str, shaped: Shaped, chosen: Mapping[str, int]) -> "PlanLaunch":
        """The network with these variants of groups of launches, and the first of all others."""
        loaded = self._plans[network]
        return self._bind(loaded, [(la, chosen.get(la.group, 0)) for la in shaped.launches])

    def shaped(self, network: str) -> tuple[Shaped, ...]:
        """The network's launches, at each set of shapes."""
        return self._plans[network].plan.shaped

    def bind_launches(self, network: str, launches: Sequence[Launch], variant: int) -> "PlanLaunch":
        """Some launches of a network alone, all in one variant: for a measurement."""
        return self._bind(self._plans[network], [(la, variant) for la in launches])

    def _bind(self, loaded: "_Loaded", chosen: Sequence[tuple[Launch, int]]) -> "PlanLaunch":
        steps = [_Step(self._device, loaded, la, choice) for la, choice in chosen]
        return PlanLaunch(self._device, steps, loaded.plan.component, self._turn)

    def close(self) -> None:
        self._plans.clear()
        self._held.close()


class _Turn:
    """Which network was enqueued last."""

    def __init__(self) -> None:
        self._last = ""

    def take(self, network: str) -> bool:
        """Whether the network comes after itself."""
        again, self._last = network == self._last, network
        return again

    def end(self) -> None:
        """The next network comes after another, whichever it is."""
        self._last = ""


class PlanLaunch:
    """Launches at fixed shapes. Their arguments are made once, but for the addresses of ports."""

    def __init__(self, device: Device, steps: Sequence["_Step"], network: str, turn: _Turn) -> None:
        self._device, self._steps, self._network, self._turn = device, steps, network, turn

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def ports(self) -> list[set[Port]]:
        """Of each launch, those it reads or writes."""
        return [{port for _, port in step.ports} for step in self._steps]

    def __call__(self, addresses: Mapping[str, int], stream: int) -> None:
        self.enqueue(slice(None), addresses, stream, self._turn.take(self._network))

    def enqueue(self, part: slice, addresses: Mapping[str, int], stream: int, early: bool) -> None:
        """Some of the launches. early: whether the first of them may come as the driver has it."""
        for step in self._steps[part]:
            for index, port in step.ports:
                step.values[index] = addresses[port.name] + port.offset
            for index, port, tiled in step.tiled_ports:
                address = addresses[port.name] + port.offset
                step.values[index] = self._device.describe_tiles(address, tiled)
            arguments = (tuple(step.values), step.types)
            self._device.launch_kernel(
                step.kernel, step.grid, step.threads, step.shared, arguments, stream, early
            )
            early = True


class PlanStager:
    """One kernel, whose numbers come from the frames."""

    def __init__(self, device: Device, loaded: "_Loaded", staging: Staging, turn: _Turn) -> None:
        self._network, self._turn = loaded.plan.component, turn
        self.size = staging.size
        self.convention: Convention = staging.convention
        self._device, self._function = device, loaded.kernels[staging.kernel]
        self._kernel = loaded.plan.kernels[staging.kernel]

    def __call__(self, view: View, out: int, stream: int) -> None:
        rows, columns = view.resampling.rows, view.resampling.columns
        pointers = (view.frame, *view.tables, out)
        numbers = (
            view.height,
            view.width,
            view.resampling.top,
            view.resampling.left,
            rows.outputs,
            columns.outputs,
            columns.taps,
            rows.taps,
        )
        types = [ctypes.c_void_p] * len(pointers) + [ctypes.c_int32] * len(numbers)
        arguments = ((*pointers, *numbers, *[0] * _SCRATCH), (*types, *[ctypes.c_void_p] * _SCRATCH))
        grid, kernel = (self.size, 3, 1), self._kernel
        early = self._turn.take(self._network)
        self._device.launch_kernel(
            self._function, grid, kernel.threads, kernel.shared, arguments, stream, early
        )


class _Step:
    """One launch, as the driver takes it."""

    def __init__(self, device: Device, loaded: "_Loaded", launch: Launch, choice: int) -> None:
        """Errors: EngineError for a choice that the launch does not have."""
        if not 0 <= choice < len(launch.variants):
            raise EngineError(
                f"{launch.name}: variant {choice} found, one of {len(launch.variants)} expected; run "
                "`pi05 tune` again"
            )
        variant = launch.variants[choice]
        kernel = loaded.plan.kernels[variant.kernel]
        self.kernel, self.grid = loaded.kernels[variant.kernel], variant.grid
        self.threads, self.shared = kernel.threads, kernel.shared
        self.values: list[Any] = []
        self.ports: list[tuple[int, Port]] = []
        self.tiled_ports: list[tuple[int, Port, Tiled]] = []
        types: list[Any] = []
        fixed = [loaded.locate(argument) for argument in launch.arguments]
        for tiled in variant.tiled:
            match launch.arguments[tiled.argument]:
                case Port() as port:
                    self.tiled_ports.append((len(types), port, tiled))
                    described = None
                case _:
                    described = device.describe_tiles(fixed[tiled.argument], tiled)
            # Behind each, Triton passes the matrix's shape and strides.
            self.values += [described, tiled.rows, tiled.columns, tiled.columns, 1]
            types += [None, ctypes.c_int32, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64]
        for argument, address in zip(launch.arguments, fixed, strict=True):
            match argument:
                case Port():
                    self.ports.append((len(types), argument))
                    value, kind = address, ctypes.c_void_p
                case Weight() | Scratch():
                    value, kind = address, ctypes.c_void_p
                case Int(number):
                    value, kind = number, ctypes.c_int32
                case Float(number):
                    value, kind = number, ctypes.c_float
            self.values.append(value)
            types.append(kind)
        self.values += [0] * _SCRATCH
        self.types = (*types, *[ctypes.c_void_p] * _SCRATCH)


class _Loaded:
    """A plan whose weights and kernels are on the device."""

    def __init__(self, file: PlanFile, device: Device, held: ExitStack) -> None:
        self.plan, self.places = file.plan, file.places
        data = np.memmap(file.path, np.uint8, "r", file.start, (file.size,))
        self.address = device.alloc(file.size)
        held.callback(device.free, self.address)
        # An allocation of nothing is refused.
        self._arena = device.alloc(max((s.arena for s in file.plan.shaped), default=0) or 1)
        held.callback(device.free, self._arena)
        stream = device.create_stream()
        held.callback(device.destroy_stream, stream)
        device.upload(self.address, data, stream)
        modules: dict[str, int] = {}
        self.kernels: list[int] = []
        for kernel in file.plan.kernels:
            if kernel.image not in modules:
                offset, size = file.places[kernel.image]
                modules[kernel.image] = device.load_module(data[offset : offset + size])
                held.callback(device.unload_module, modules[kernel.image])
            self.kernels.append(device.find_kernel(modules[kernel.image], kernel.entry, kernel.shared))
        device.synchronize(stream)

    def locate(self, argument: Argument) -> int:
        """The address of what is always at the same place, 0 for all else."""
        match argument:
            case Weight(name):
                return self.address + self.places[name][0]
            case Scratch(offset):
                return self._arena + offset
            case _:
                return 0


def _check(file: PlanFile, network: str, signature: Signature) -> None:
    """Errors: EngineError for another network's plan, or one of another chip or of other ports."""
    plan: Plan = file.plan
    chip = compute_capability()
    ports = {port.name for port in (*signature.inputs, *signature.outputs)}
    for what, found, expected in (
        ("a plan of", plan.component, network),
        ("a plan for compute capability", plan.compute_capability, chip),
        *(("ports", sorted(shaped.shapes), sorted(ports)) for shaped in plan.shaped),
    ):
        if found != expected:
            raise EngineError(
                f"{file.path}: {what} {found} found, {expected} expected; choose the target of this device"
            )

"""What a decision needs of a GPU's memory: its images, which no prompt changes; a prompt bucket, all that
depends on a prompt's length; a table, the modulations of a step count."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from pi05_runtime.engines.buffers import ALIGNMENT, Block, byte_size, encode
from pi05_runtime.engines.driver import Bytes, Device
from pi05_runtime.geometry import Signature, fixed_shape
from pi05_runtime.preprocess import Prompt
from pi05_runtime.tables import Schedule

GIVEN = ("prompt_embeddings", "prefix_length", "x")
"""Of a decision's inputs, those beside its images."""
SEEN = ("images", "image_tokens")
MADE = ("keys", "values", "x_next")


@dataclass(frozen=True)
class Images:
    """addresses: of SEEN. pinned: of images that the host has staged."""

    addresses: dict[str, int]
    pinned: Bytes


@dataclass
class Bucket:
    """given: what comes from the host. actions: pinned memory. addresses: of GIVEN and MADE. turns: as large
    as `x`, for what denoise steps beyond the first make. filled: tokens of the prompt there, beyond which it
    is zero."""

    prompt: int
    given: Block
    actions: Bytes
    addresses: dict[str, int]
    turns: tuple[int, int]
    filled: int

    def x_after(self, steps: int) -> int:
        """The address of `x` after so many denoise steps. Graphs begin from what was given or from what the
        first step made, which no later step writes: a graph can be launched twice."""
        first = (self.addresses["x"], self.addresses["x_next"])
        return first[steps] if steps < len(first) else self.turns[steps % 2]

    def stage_prompt(self, prompt: Prompt) -> None:
        rows, tokens = self.given.pinned["prompt_embeddings"].view(np.uint16), len(prompt.token_ids)
        rows = rows.reshape(self.prompt, -1)
        prompt.embedding.write(prompt.token_ids, rows[:tokens])
        rows[tokens : self.filled] = 0
        self.filled = tokens


@dataclass
class Table:
    """A schedule on the device: one padded row of modulations a step, `stride` bytes apart."""

    schedule: Schedule
    modulation: int
    stride: int
    dt: int


class Memory:
    """Allocates. What it gives stays until `held` is closed; where it raises, EngineError, nothing does."""

    def __init__(
        self, device: Device, signatures: Mapping[str, Signature], stream: int, held: ExitStack
    ) -> None:
        """signatures: of every network that is run."""
        self._device, self._signatures, self._stream, self._held = device, signatures, stream, held
        self.ports = {port.name: port for s in signatures.values() for port in (*s.inputs, *s.outputs)}
        tokens = self.ports.get("image_tokens")
        self._image_tokens = int(tokens.shape[0]) if tokens else 0

    def shape(self, name: str, prompt: int) -> tuple[int, ...]:
        """Of a port."""
        return fixed_shape(self.ports[name], prompt, self._image_tokens)

    def shapes(self, network: str, prompt: int) -> dict[str, tuple[int, ...]]:
        signature = self._signatures[network]
        return {p.name: self.shape(p.name, prompt) for p in (*signature.inputs, *signature.outputs)}

    @cached_property
    def images(self) -> Images:
        with ExitStack() as held:
            found = Images(
                {name: self.alloc(held, self._size(name, 0)) for name in SEEN},
                self._alloc_host(held, self._size("images", 0)),
            )
            self._held.callback(held.pop_all().close)
        return found

    def prompt_size(self, signature: Signature, inputs: Mapping[str, npt.NDArray[np.generic]]) -> int:
        """The prompt bucket of these arrays; 0 for a component that knows none."""
        for port in signature.inputs:
            for size, found in zip(port.shape, inputs[port.name].shape, strict=False):
                if size == "prompt":
                    return found
                if size == "prefix":
                    return found - self._image_tokens
        return 0

    def bucket(self, prompt: int) -> Bucket:
        with ExitStack() as held:
            sizes = {name: self._size(name, prompt) for name in GIVEN}
            given = Block(self._device, sizes, partial(self.alloc, held), held)
            made = {name: self.alloc(held, self._size(name, prompt)) for name in MADE}
            turns = (self.alloc(held, self._size("x", prompt)), self.alloc(held, self._size("x", prompt)))
            actions = self._alloc_host(held, self._size("x", prompt))
            self._held.callback(held.pop_all().close)
        return Bucket(prompt, given, actions, given.addresses | made, turns, prompt)

    def table(self, schedule: Schedule) -> Table:
        stride = -(-self._size("modulation", 0) // ALIGNMENT) * ALIGNMENT
        with ExitStack() as held:
            modulation = self.alloc(held, stride * schedule.steps)
            table = Table(schedule, modulation, stride, self.alloc(held, self._size("dt", 0)))
            self.fill(table, schedule)
            self._held.callback(held.pop_all().close)
        return table

    def fill(self, table: Table, schedule: Schedule) -> None:
        """With another schedule of as many steps."""
        modulation, shape = self.ports["modulation"], self.shape("modulation", 0)
        rows = np.zeros((schedule.steps, table.stride), np.uint8)
        for row, values in zip(rows, schedule.modulation, strict=True):
            encoded = encode(modulation, shape, values)
            row[: len(encoded)] = encoded
        dt = encode(self.ports["dt"], (), np.asarray(schedule.dt))
        self._device.upload(table.modulation, rows.reshape(-1), self._stream)
        self._device.upload(table.dt, dt, self._stream)
        self._device.synchronize(self._stream)
        table.schedule = schedule

    def alloc(self, held: ExitStack, size: int) -> int:
        address = self._device.alloc(size)
        held.callback(self._device.free, address)
        return address

    def _alloc_host(self, held: ExitStack, size: int) -> Bytes:
        memory = self._device.alloc_host(size)
        held.callback(self._device.free_host, memory)
        return memory

    def _size(self, name: str, prompt: int) -> int:
        return byte_size(self.ports[name], self.shape(name, prompt))

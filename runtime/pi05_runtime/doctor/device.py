"""What a device is, as far as a bundle depends on it: a value that can be kept, sent and judged elsewhere."""

import msgspec


class Gpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first visible GPU. cuda: the newest CUDA that its driver serves. driver: the driver's own version,
    None where the management library does not tell. memory and memory_free in bytes. shared: whether its
    memory is the host's, as on a Jetson."""

    name: str
    compute_capability: str
    cuda: str
    driver: str | None
    memory: int
    memory_free: int
    shared: bool


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """source: where the facts are from. machine: for example aarch64. l4t, jetpack and power_mode: None where
    they are not told, as on anything but a Jetson. versions: library -> version, as it states it itself.
    problems: of those that did not answer, and of `gpu`, why. memory, memory_free and disk_free in bytes, the
    last in the folder `root`."""

    source: str
    machine: str
    python: str
    l4t: str | None
    jetpack: str | None
    power_mode: str | None
    gpu: Gpu | None
    versions: dict[str, str]
    problems: dict[str, str]
    memory: int
    memory_free: int
    root: str
    disk_free: int

"""A device and its verdicts as text."""

from collections.abc import Iterable, Iterator

from pi05_runtime.doctor.device import Facts
from pi05_runtime.doctor.verdict import Accepted, Verdict


def device_lines(facts: Facts) -> Iterator[str]:
    """One fact a line. GB are 10^9 bytes."""
    jetson = "".join(
        f", {name} {value}"
        for name, value in (("Jetson Linux", facts.l4t), ("JetPack", facts.jetpack))
        if value is not None
    )
    yield f"device   {facts.machine}, Python {facts.python}{jetson}"
    if facts.power_mode is not None:
        yield f"power    {facts.power_mode}"
    yield f"memory   {_gb(facts.memory_free)} free of {_gb(facts.memory)}"
    yield f"disk     {_gb(facts.disk_free)} free in {facts.root}"
    if gpu := facts.gpu:
        where = "the device's own" if gpu.shared else f"{_gb(gpu.memory_free)} free of {_gb(gpu.memory)}"
        yield (
            f"gpu      {gpu.name}, compute capability {gpu.compute_capability}, driver "
            f"{gpu.driver or 'unknown'} for CUDA {gpu.cuda}, memory {where}"
        )
    for name, version in facts.versions.items():
        yield f"library  {name} {version}"
    for name, problem in facts.problems.items():
        yield f"absent   {name}: {problem}"


def verdict_lines(verdicts: Iterable[Verdict]) -> Iterator[str]:
    """A target a line, its reasons or notes below it."""
    for verdict in verdicts:
        if isinstance(verdict, Accepted):
            yield f"{verdict.target:<12} accepted"
            yield from (f"    note: {note}" for note in verdict.notes)
        else:
            yield f"{verdict.target:<12} refused" + (", can be rebuilt here" if verdict.rebuild else "")
            yield from (f"    {reason}" for reason in verdict.reasons)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"

"""What a TensorRT builder says while it works: its log, and its progress as one bar."""

import threading
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from pi05_runtime.build.layers import is_layer

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"


@dataclass
class BuildLog:
    """Keeps what is needed later: errors in order, and the lines that describe engine layers."""

    errors: list[str] = field(default_factory=list[str])
    layers: list[str] = field(default_factory=list[str])

    def note(self, severity: str, message: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(message)
        self.layers += filter(is_layer, message.splitlines())


class Progress:
    """Nested phases as one bar: a phase's share of its parent's current step, up to the outermost."""

    def __init__(self, title: str) -> None:
        self._bar = tqdm(total=100.0, desc=title, disable=None, bar_format=_FORMAT)
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[phase] = _Phase(parent, max(steps, 1))

    def step(self, phase: str, step: int) -> None:
        with self._lock:
            if phase not in self._phases:
                return
            self._phases[phase].done = step + 1
            share, name = 0.0, phase
            while name in self._phases:
                current = self._phases[name]
                share = min((current.done + share) / current.steps, 1.0)
                name = current.parent or ""
            self._bar.update(max(100 * share - self._bar.n, 0))

    def finish(self, phase: str) -> None:
        with self._lock:
            self._phases.pop(phase, None)

    def close(self) -> None:
        self._bar.close()


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


def library_log(trt: Any, log: BuildLog) -> Any:
    """The library's own logger object, which passes everything to `log`."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.note(severity.name, message)

    return Log()


def library_progress(trt: Any, progress: Progress) -> Any:
    """The library's own progress monitor, which passes everything to `progress`."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            progress.start(phase, parent, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            progress.step(phase, step)
            return True

        def phase_finish(self, phase: str) -> None:
            progress.finish(phase)

    return Monitor()

"""The process that holds the TensorRT library: a request on standard input, an answer on standard output.

`python -m pi05_runtime.build.worker`, started by attempt.py and by nothing else.
"""

import ctypes
import errno
import os
import re
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import msgspec

from pi05_runtime.build.config import configure, open_timing_cache, save_timing_cache
from pi05_runtime.build.contract import Done, Refused, Request
from pi05_runtime.build.evidence import Evidence, Source, judge
from pi05_runtime.build.layers import read_layers
from pi05_runtime.build.network import check_ports, create_network, parse_parts
from pi05_runtime.build.watch import BuildLog, Progress, library_log, library_progress
from pi05_runtime.engines.library import load_library
from pi05_runtime.errors import Pi05Error, TargetError

_PR_SET_PDEATHSIG = 1


def main() -> None:
    # The library prints where it likes; standard output belongs to the answer.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    _end_with(request.parent)
    # TensorRT crashes when its objects go in the wrong order, after an error above all: none goes.
    alive: list[Any] = []
    answer.write(msgspec.json.encode(_answer(request, alive)))
    answer.flush()
    os._exit(0)


def build(request: Request, alive: list[Any]) -> Done | Refused:
    """Builds, judges and writes one engine. alive: takes the library's objects, so that they outlive this.

    Errors: Pi05Error for what no other rung can change, OSError.
    """
    started = time.monotonic()
    trt = load_library(request.library)
    log = BuildLog()
    bridge = library_log(trt, log)
    builder = trt.Builder(bridge)
    network = create_network(trt, builder)
    alive += [bridge, builder, network]
    parse_parts(trt, network, bridge, request.parts, alive)
    check_ports(network, request.signature)
    config = configure(trt, builder, request)
    progress = Progress(f"{request.library} {request.name}")
    monitor = library_progress(trt, progress)
    config.progress_monitor = monitor
    alive += [config, monitor, open_timing_cache(config, request)]
    log.errors.clear()
    plan = builder.build_serialized_network(network, config)
    progress.close()
    if plan is None:
        return Refused(f"refused: {plain('; '.join(dict.fromkeys(log.errors)) or 'no reason given')}")
    evidence = _judge(trt, bridge, plan, log, request, alive)
    if evidence.faults:
        first, *others = evidence.faults
        more = f", and {len(others)} more layers" if others else ""
        detail = "\n".join("\n  ".join((str(fault), *fault.lines)) for fault in evidence.faults)
        return Refused(f"layer evidence: {plain(str(first))}{more}", detail=detail)
    out = Path(request.out)
    (out / f"{request.name}.engine").write_bytes(plan)
    (out / "layers.json").write_bytes(msgspec.json.format(msgspec.json.encode(evidence)) + b"\n")
    (out / "layers.md").write_text(evidence.markdown())
    save_timing_cache(config, request)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return Done(evidence, round(time.monotonic() - started, 1), round(peak, 2))


def plain(text: str) -> str:
    """A library's message as one line without addresses and folders, the same on every machine."""
    text = re.sub(r"0x[0-9a-fA-F]+", "0x...", " ".join(text.split()))
    return re.sub(r"(?<![\w.:])/(?:[^\s/]+/)+", "", text)


def _answer(request: Request, alive: list[Any]) -> Done | Refused:
    try:
        return build(request, alive)
    except Pi05Error as error:
        return Refused(str(error), "TargetError" if isinstance(error, TargetError) else "EngineError")
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return Refused(f"the disk is full: {error}; free space, then build again", "EngineError")
        traceback.print_exc()
        return Refused(plain(f"{type(error).__name__}: {error}"))


def _judge(trt: Any, bridge: Any, plan: Any, log: BuildLog, request: Request, alive: list[Any]) -> Evidence:
    """By the inspector where this machine can load the engine, else by what the builder logged of it."""
    lines, source = log.layers, "builder log"
    runtime = trt.Runtime(bridge)
    engine = runtime.deserialize_cuda_engine(plan)
    alive += [plan, runtime, engine]
    if engine is not None:
        inspector = engine.create_engine_inspector()
        alive.append(inspector)
        text = inspector.get_engine_information(trt.LayerInformationFormat.ONELINE)
        lines, source = text.splitlines(), "inspector"
    found: Source = source
    tables = [part.table for part in request.parts]
    return judge(tables, read_layers(lines), max(len(request.profiles), 1), found)


def _end_with(parent: int) -> None:
    """Has the kernel kill this process when the one that waits for its answer dies, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()

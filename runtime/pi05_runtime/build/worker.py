"""The process that holds the TensorRT library: a request on standard input, an answer on standard output.

`python -m pi05_runtime.build.worker`, started by ladder.py and by nothing else.
"""

import resource
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pi05_runtime.build.config import configure, open_timing_cache, save_timing_cache
from pi05_runtime.build.contract import Done, Refused, Request, RungError
from pi05_runtime.build.evidence import Evidence, Source, judge
from pi05_runtime.build.inspection import list_layers
from pi05_runtime.build.layers import read_layers
from pi05_runtime.build.network import check_ports, create_network, parse_parts
from pi05_runtime.build.plain import plain
from pi05_runtime.build.watch import BuildLog, Progress, library_log, library_progress
from pi05_runtime.child import serve
from pi05_runtime.engines.driver import CudaDevice
from pi05_runtime.engines.library import load_library
from pi05_runtime.errors import Pi05Error, TargetError


def answer(request: Request, alive: list[Any]) -> Done | Refused:
    """Builds one engine, or says why not. alive: takes the library's objects, so that they outlive this."""
    try:
        return _build(request, alive)
    except RungError as error:
        return Refused(_outcome(str(error), request), error.detail, skips_recipe=error.skips_recipe)
    except (Pi05Error, OSError) as error:
        text = str(error)
        if not isinstance(error, Pi05Error):
            text = f"{type(error).__name__}: {text}; see that there is space and that files may be written"
        kind = "TargetError" if isinstance(error, TargetError) else "EngineError"
        return Refused(_outcome(text, request), text, ends_build=kind)
    except Exception as error:
        traceback.print_exc()
        return Refused(_outcome(f"{type(error).__name__}: {error}", request))


def _build(request: Request, alive: list[Any]) -> Done:
    """Builds, judges and writes one engine.

    Errors: RungError; Pi05Error and OSError for what no other rung can change.
    """
    started = time.monotonic()
    trt = load_library(request.library)
    # Needed for the evidence. Without a GPU this fails now, not after the build.
    device = CudaDevice() if request.library == "tensorrt" else None
    log = BuildLog()
    bridge = library_log(trt, log)
    builder = trt.Builder(bridge)
    network = create_network(trt, builder)
    alive += [device, bridge, builder, network]
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
    alive.append(plan)
    if plan is None:
        errors = "; ".join(dict.fromkeys(log.errors)) or "no reason given"
        raise RungError(f"refused: {errors}", "\n".join(log.errors))
    # What RTX logs is the same on every machine, and needs none with the engine's GPU.
    listings = list_layers(trt, bridge, plan, request, device, alive) if device else [log.layers]
    evidence = _judge(request, listings, "inspector" if device else "builder log")
    out = Path(request.out)
    (out / f"{request.name}.engine").write_bytes(plan)
    (out / "layers.json").write_bytes(msgspec.json.format(msgspec.json.encode(evidence)) + b"\n")
    (out / "layers.md").write_text(evidence.markdown())
    save_timing_cache(config, request)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return Done(evidence, round(time.monotonic() - started, 1), round(peak, 2))


def _judge(request: Request, listings: Sequence[Sequence[str]], source: Source) -> Evidence:
    """Errors: RungError for a layer that does not run as planned."""
    tables = [part.table for part in request.parts]
    profiles = max(len(request.profiles), 1)
    evidence = judge(tables, [read_layers(lines) for lines in listings], profiles, source)
    if evidence.faults:
        first, *others = evidence.faults
        more = f", and {len(others)} more layers" if others else ""
        detail = "\n".join("\n  ".join((str(fault), *fault.lines)) for fault in evidence.faults)
        raise RungError(f"layer evidence: {first}{more}", detail)
    return evidence


def _outcome(text: str, request: Request) -> str:
    """`text` as it may be recorded. Folders of the request go by name: they may have spaces."""
    for folder in (request.out, *(str(part.folder) for part in request.parts)):
        text = text.replace(f"{folder}/", "")
    return plain(text)


if __name__ == "__main__":
    # TensorRT crashes when its objects go in the wrong order, after an error above all: none goes.
    alive: list[Any] = []
    serve(Request, lambda request: answer(request, alive))

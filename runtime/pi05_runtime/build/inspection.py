"""What an engine says of its own layers, on the GPU that it was built for.

Each optimization profile is asked for by itself. TensorRT 10 and later do not list a layer again for every
profile (so says NVIDIA's Polygraphy), and tell sizes and types of what depends on an input's shape only with
an execution context in which all shapes are set (so says the documentation of `setExecutionContext`).

Unproven, because no GPU that TensorRT runs on was at hand: that the layers are those of the context's
profile, not of the first one. Listings that do not differ are no evidence (evidence.judge); an inspector
that gave the first profile's kernels with another profile's sizes would not be noticed.
"""

from typing import Any

from pi05_runtime.build.contract import Request, RungError
from pi05_runtime.build.layers import is_layer
from pi05_runtime.engines.driver import Device


def list_layers(
    trt: Any, log: Any, plan: Any, request: Request, device: Device, alive: list[Any]
) -> list[list[str]]:
    """The lines that describe the engine's layers, one list a profile.

    plan: the engine's bytes. log: the library's own logger. alive: takes the library's objects.
    Errors: RungError for an engine that does not load, takes no shapes or describes nothing; EngineError.
    """
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    alive += [runtime, engine]
    if engine is None:
        raise RungError("the engine does not load on the GPU it was built for")
    inspector = engine.create_engine_inspector()
    alive.append(inspector)
    stream = device.create_stream()
    listings: list[list[str]] = []
    for profile, shapes in enumerate(request.profiles or ({},)):
        # Nothing is launched, so no memory is needed.
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        alive.append(context)
        if context is None or not context.set_optimization_profile_async(profile, stream):
            raise RungError(f"the engine gives no context for profile {profile}")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise RungError(f"profile {profile} of the engine refuses {name} of shape {list(shape)}")
        inspector.execution_context = context
        text = inspector.get_engine_information(trt.LayerInformationFormat.ONELINE) or ""
        listings.append([line for line in text.splitlines() if is_layer(line)])
        if not listings[-1]:
            raise RungError(f"layer evidence: the inspector describes no layer of profile {profile}")
    return listings

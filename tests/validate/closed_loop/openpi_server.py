"""A server as openpi's own is, with packing of its own: metadata that say nothing, and no noise.

None of the code is shared with `pi05_runtime.serve`: what the two agree on is the protocol.
"""

import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.runtime.serve.serving import held_in_a_thread

Infer = Callable[[dict[str, Any]], dict[str, Any]]


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        array = {b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {b"__ndarray__": True, **array}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(type(value))


def _unpacked(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return np.ndarray(value[b"shape"], np.dtype(value[b"dtype"]), value[b"data"])
    return value


@contextmanager
def openpi_server(infer: Infer, metadata: Mapping[str, Any] | None = None) -> Generator[str]:
    """The address. infer: in the server's own loop, which answers no ping meanwhile; what it raises is sent
    as a traceback, and the connection closed."""

    async def robot(connection: ServerConnection) -> None:
        await connection.send(msgpack.packb(dict(metadata or {}), default=_packed))
        try:
            while True:
                observation = msgpack.unpackb(await connection.recv(), object_hook=_unpacked)
                answer = infer(observation) | {"server_timing": {"infer_ms": 0.1}}
                await connection.send(msgpack.packb(answer, default=_packed))
        except ConnectionClosed:
            pass
        except Exception:
            await connection.send(traceback.format_exc())
            await connection.close(1011, "Internal server error. Traceback included in previous frame.")

    with held_in_a_thread(lambda: serve(robot, "127.0.0.1", 0, compression=None, max_size=None)) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"

"""The server: metadata when a robot connects, then a decision for every observation it sends.

Decisions are made in a thread of their own, so that the server answers `/healthz`, refuses a second robot
and notices that a deadline has passed while one is under way. A decision cannot be interrupted: when it is
late its robot gets an error at once, and the next robot is let in when it has ended.
"""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.protocol import State

from pi05_runtime.errors import DeviceError, Pi05Error
from pi05_runtime.policy import Policy
from pi05_runtime.serve.keys import Keys
from pi05_runtime.serve.wire import MAX_TEXT, pack, unpack
from pi05_runtime.signals import ENDING

CAMERA_BYTES = 3 * 2048 * 2048
"""Of one frame: 4 megapixels of RGB."""
PING_S, PONG_S = 5, 10
"""A robot that lost power or its network says nothing; after the sum of both its place is free."""
LEAVING_S = 1
"""What a robot waits for the place of one that hangs up, most often itself a moment ago."""
MAX_MESSAGE = 2000
REFUSED = "refused; the text frame before this says why"
BUSY = "another robot is connected, or its last decision has not ended: one robot at a time; try again later"

log = logging.getLogger("pi05.serve")


class PolicyServer:
    """One policy for one robot at a time."""

    def __init__(self, policy: Policy, keys: Keys, deadline_ms: float) -> None:
        """deadline_ms: from the whole frame to the answer."""
        self._policy, self._keys, self._deadline_ms = policy, keys, deadline_ms
        self._thread = ThreadPoolExecutor(1, "policy")
        self._client: ServerConnection | None = None
        self._free = asyncio.Event()
        self._late = False
        self._metadata = pack(self._describe())

    @property
    def frame_limit(self) -> int:
        """Bytes of the largest observation: a frame of every camera, noise in doubles, state and prompt."""
        interface, width = self._policy.manifest.interface, self._policy.manifest.geometry.action_width
        return len(interface.cameras) * CAMERA_BYTES + 8 * interface.horizon * width + 2 * MAX_TEXT

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncGenerator[int]:
        """Answers robots inside; gives the port, a free one for 0. Errors: DeviceError if it is not free."""
        try:
            server = await serve(
                self._robot,
                host,
                port,
                process_request=self._admit,
                origins=[None],  # robots name none; a web page in a browser does
                compression=None,
                max_size=self.frame_limit,
                max_queue=1,
                ping_interval=PING_S,
                ping_timeout=PONG_S,
            )
        except (OSError, OverflowError) as error:
            raise DeviceError(
                f"{host} port {port}: cannot listen there ({error}); end what does, or choose another --host "
                "and --port"
            ) from error
        try:
            async with server:
                yield next(iter(server.sockets)).getsockname()[1]
        finally:
            self._thread.shutdown()

    def _describe(self) -> dict[str, Any]:
        manifest, interface = self._policy.manifest, self._policy.manifest.interface
        return {
            "name": manifest.name,
            "version": manifest.version,
            **self._policy.identity,
            "recipes": sorted(self._policy.recipes),
            "steps": self._policy.steps,
            "cameras": list(interface.cameras),
            "prompt_format": interface.prompt_format,
            "state_dims": interface.state_dims,
            "actions": [interface.horizon, interface.action_dims],
            "noise": [interface.horizon, manifest.geometry.action_width],
            "keys": self._keys.accepted(),
            "deadline_ms": self._deadline_ms,
        }

    async def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            if self._late:
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "a decision is past its deadline\n")
            return connection.respond(HTTPStatus.OK, "OK\n")
        if self._client is not None and self._client.state is not State.OPEN:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._free.wait(), LEAVING_S)
        if self._client is not None:
            log.info("%s refused: %s", _address(connection), BUSY)
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, BUSY + "\n")
        return None

    async def _robot(self, connection: ServerConnection) -> None:
        if self._client is not None:  # both were let in before either was here
            await connection.close(CloseCode.TRY_AGAIN_LATER, BUSY)
            return
        self._client, answers, start = connection, 0, time.monotonic()
        self._free.clear()
        try:
            await connection.send(self._metadata)
            previous_ms = None
            while True:
                before = time.perf_counter()
                if not await self._answer(connection, await connection.recv(), previous_ms):
                    break
                answers += 1
                previous_ms = (time.perf_counter() - before) * 1e3
        except ConnectionClosed:
            pass
        finally:
            self._client = None
            self._free.set()
            log.info(
                "%s had %d answers in %.1f s, then %s %s",
                _address(connection),
                answers,
                time.monotonic() - start,
                connection.close_code,
                connection.close_reason or "",
            )

    async def _answer(
        self, connection: ServerConnection, frame: bytes | str, previous_ms: float | None
    ) -> bool:
        """Whether the robot may send another."""
        decision = asyncio.get_running_loop().run_in_executor(self._thread, self._decide, frame, previous_ms)
        await asyncio.wait({decision}, timeout=self._deadline_ms / 1e3)
        if not decision.done():
            await self._too_late(connection, decision)
            return False
        try:
            answer = decision.result()
        except Pi05Error as error:
            await self._refuse(connection, str(error))
        except Exception:
            log.exception("%s: this is a fault of the server", _address(connection))
            await self._refuse(connection, "the server failed on this observation; its log says how")
        else:
            await connection.send(answer)
            return True
        return False

    def _decide(self, frame: bytes | str, previous_ms: float | None) -> bytes:
        """In the policy's thread. previous_ms: of the request before, as openpi counts it, with the time
        that the robot took to ask."""
        observation = self._keys.observation(unpack(frame))
        start = time.perf_counter()
        result = self._policy.infer(observation)
        timing = {"infer_ms": (time.perf_counter() - start) * 1e3}
        if previous_ms is not None:
            timing["prev_total_ms"] = previous_ms
        return pack({**result, "server_timing": timing})

    async def _too_late(self, connection: ServerConnection, decision: "asyncio.Future[bytes]") -> None:
        self._late, start = True, time.monotonic()
        try:
            await self._refuse(
                connection,
                f"deadline: no decision after {self._deadline_ms:g} ms, and later it would be stale; let the "
                "robot stop, then serve with fewer --steps or a longer --deadline-ms",
            )
        finally:
            await asyncio.wait({decision})
            self._late = False
            decision.exception()  # asyncio complains of one that nobody looked at
            log.info("%s: that decision ended %.1f s later", _address(connection), time.monotonic() - start)

    async def _refuse(self, connection: ServerConnection, message: str) -> None:
        """As openpi does: the message as text, then the connection is closed."""
        text = " ".join(message.split())
        text = text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]} ..."
        log.info("%s refused: %s", _address(connection), text)
        await connection.send(text)
        await connection.close(CloseCode.INTERNAL_ERROR, REFUSED)


def serve_until_told(server: PolicyServer, host: str, port: int, ready: Callable[[int], None]) -> int:
    """The number of the signal that ended it: the robot's connection is closed, a decision under way is
    waited for. ready: called with the port. Errors as `PolicyServer.listening`."""
    return asyncio.run(_until_told(server, host, port, ready))


async def _until_told(server: PolicyServer, host: str, port: int, ready: Callable[[int], None]) -> int:
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()

    def end(number: int) -> None:
        if not told.done():
            told.set_result(number)

    for number in (signal.SIGINT, *ENDING):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's stay
            loop.add_signal_handler(number, end, number)
    async with server.listening(host, port) as found:
        ready(found)
        return await told


def _address(connection: ServerConnection) -> str:
    host, port, *_ = connection.remote_address or ("a robot that is gone", 0)
    return f"{host} port {port}"

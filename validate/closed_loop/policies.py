"""What acts in an episode: a policy behind openpi's protocol, one in this process, an expert, a mutant."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import ClientConnection, connect

from pi05_runtime.errors import NetworkError, ObservationError, Pi05Error
from pi05_runtime.geometry import Geometry
from pi05_runtime.interface import Interface
from pi05_runtime.serve.keys import Keys
from pi05_runtime.serve.wire import pack, unpack
from validate.closed_loop.simulators import Observation

DECISION_S = 600
"""A server has its own deadline; this is for one that says nothing at all. openpi's answers no ping while it
decides, and its first decision compiles."""


class Refused(Exception):
    """A policy has no actions for an observation."""


class Acts(Protocol):
    """noise_shape: of the flow's starting point, which it takes as the observation's `noise`; None if it
    draws its own, or has none."""

    @property
    def noise_shape(self) -> tuple[int, ...] | None: ...

    def infer(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        """The actions [horizon, action dims] in the robot's units. Errors: Refused, which fails an episode,
        and Pi05Error, which ends the run."""
        ...


class Client:
    """A policy behind openpi's websocket protocol, on this machine or on a robot."""

    def __init__(self, address: str) -> None:
        """Errors: NetworkError."""
        self._address, self._closing = address, ExitStack()
        self._connection: ClientConnection | None = None
        self.metadata = self._connect()
        shape = self.metadata.get("noise")
        self.noise_shape = tuple(shape) if shape else None

    def infer(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        if self._connection is None and self._connect() != self.metadata:  # a server that refuses hangs up
            raise NetworkError(f"{self._address}: another policy answers than before; run again to go on")
        self._check_keys(observation)
        assert self._connection is not None
        try:
            self._connection.send(pack(dict(observation)))
            answer = self._connection.recv(DECISION_S)
        except (ConnectionClosed, TimeoutError, OSError) as error:
            raise NetworkError(
                f"{self._address}: lost during a decision ({error}); run again to go on"
            ) from None
        if isinstance(answer, str):
            self.close()
            raise Refused(answer)
        found = unpack(answer)
        return _checked(found.get("actions") if isinstance(found, dict) else found)

    def _check_keys(self, observation: Mapping[str, Any]) -> None:
        """One key that is wrong would be refused in every episode. Errors: ObservationError."""
        parts: Mapping[str, list[str]] = self.metadata.get("keys", {})  # openpi's own server tells none
        ways = {part: [way.split(",") for way in named] for part, named in parts.items()}
        missing = [
            p
            for p, named in ways.items()
            if p != "noise" and not any(observation.keys() >= set(w) for w in named)
        ]
        unknown = observation.keys() - {key for named in ways.values() for way in named for key in way}
        if ways and (missing or unknown):
            raise ObservationError(
                f"{self._address}: it misses {missing} and does not take {sorted(unknown)}, which this "
                "simulator shows; serve it with --map"
            )

    def close(self) -> None:
        self._connection = None
        self._closing.close()

    def _connect(self) -> dict[str, Any]:
        try:
            opening = connect(self._address, compression=None, max_size=None, ping_timeout=DECISION_S)
            self._connection = self._closing.enter_context(opening)
            metadata = unpack(self._connection.recv(DECISION_S))
        except (OSError, InvalidHandshake, InvalidURI, ConnectionClosed, ObservationError) as error:
            raise NetworkError(
                f"{self._address}: no policy answers ({error}); start its server, and let no other robot "
                "use it"
            ) from None
        if not isinstance(metadata, dict):
            raise NetworkError(
                f"{self._address}: {type(metadata).__name__} found, openpi's metadata expected"
            )
        return metadata


class Described(Protocol):
    """What is asked of a bundle's manifest."""

    @property
    def geometry(self) -> Geometry: ...
    @property
    def interface(self) -> Interface: ...


class Infers(Protocol):
    """`pi05_runtime.policy.Policy` is one."""

    @property
    def manifest(self) -> Described: ...
    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]: ...


class InProcess:
    """A policy that needs no server, under the keys of a robot."""

    def __init__(self, policy: Infers, keys: Keys) -> None:
        self._policy, self._keys = policy, keys
        self.noise_shape = policy.manifest.interface.horizon, policy.manifest.geometry.action_width

    def infer(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        taken = self._keys.observation(observation)
        try:
            return _checked(self._policy.infer(taken)["actions"])
        except Pi05Error as error:
            raise Refused(str(error)) from error


class Spoiled:
    """A mutant: the policy gets something else than what the simulator shows. kind: of MUTANTS."""

    def __init__(self, acts: Acts, kind: str, prompts: Mapping[str, str]) -> None:
        """prompts: task -> prompt, of the suite."""
        self._acts, self.kind, self._prompts = acts, kind, prompts
        self.noise_shape = acts.noise_shape

    def infer(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        return self._acts.infer(MUTANTS[self.kind](dict(observation), self._prompts))


def black_images(observation: Observation, prompts: Mapping[str, str]) -> Observation:
    return observation | {key: np.zeros_like(observation[key]) for key in cameras(observation)}


def wrong_prompt(observation: Observation, prompts: Mapping[str, str]) -> Observation:
    """Another task's: of the suite's prompts in a circle, the next one."""
    order = list(dict.fromkeys(prompts.values()))
    return observation | {"prompt": order[(order.index(str(observation["prompt"])) + 1) % len(order)]}


def swapped_cameras(observation: Observation, prompts: Mapping[str, str]) -> Observation:
    keys = cameras(observation)
    pairs = zip(keys, keys[1:] + keys[:1], strict=True)
    return observation | {key: observation[other] for key, other in pairs}


MUTANTS: dict[str, Callable[[Observation, Mapping[str, str]], Observation]] = {
    "black-images": black_images,
    "wrong-prompt": wrong_prompt,
    "swapped-cameras": swapped_cameras,
}


def cameras(observation: Mapping[str, Any]) -> list[str]:
    """The keys of its images."""
    return [key for key, value in observation.items() if isinstance(value, np.ndarray) and value.ndim == 3]


def _checked(actions: Any) -> NDArray[np.float32]:
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or not np.isfinite(actions).all():
        raise Refused(f"actions: {str(actions)[:80]} found, finite numbers [horizon, dims] expected")
    return actions.astype(np.float32)

"""Under which keys a robot sends its cameras and its state, and what the policy takes of them.

openpi's robots name things as their training data did (`observation/image`, `images/cam_high`), and openpi's
server has code for every robot. Here a table is enough, because a bundle says which cameras it has and how
wide its state is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from pi05_runtime.errors import ObservationError
from pi05_runtime.interface import Interface

STATE = "state"
AS_THEY_ARE = ("prompt", "noise")


class Keys:
    """Each camera, and the state, under this project's own key or under the robot's.

    A camera is `images/CAMERA` or `observation/CAMERA`, the state is `state` or `observation/state`; a nested
    map `images` counts as keys with a slash. `--map` replaces the second of the two.
    """

    def __init__(self, interface: Interface, maps: Sequence[str] = ()) -> None:
        """maps: `CAMERA=KEY`, or `state=KEY,KEY...`, whose arrays are joined. Errors: ObservationError."""
        self._needs_state = interface.prompt_format != "plain"
        self._sources: dict[str, tuple[str, ...]] = {
            part: (f"observation/{part}",) for part in (*interface.cameras, STATE)
        }
        given: set[str] = set()
        for entry in maps:
            part, separator, text = entry.partition("=")
            keys = tuple(text.split(","))
            if not separator or part not in self._sources or part in given or not all(keys):
                raise ObservationError(
                    f"--map {entry!r}: expected {' or '.join(self._sources)}, each once, then = and the "
                    "robot's key, for example state=observation/state"
                )
            if len(keys) > 1 and part != STATE:
                raise ObservationError(f"--map {entry!r}: {len(keys)} keys found, one expected for a camera")
            self._sources[part] = keys
            given.add(part)
        used = [*AS_THEY_ARE] + [key for part, keys in self._sources.items() for key in {_own(part), *keys}]
        if twice := sorted({key for key in used if used.count(key) > 1}):
            raise ObservationError(f"--map: {twice} found for two parts, keys of its own for each expected")

    def accepted(self) -> dict[str, list[str]]:
        """Part of an observation -> the ways to name it; one with a comma is several keys."""
        named = {part: [_own(part), ",".join(keys)] for part, keys in self._sources.items()}
        return named | {name: [name] for name in AS_THEY_ARE}

    def observation(self, received: Any) -> dict[str, Any]:
        """What `Policy.infer` takes. Errors: ObservationError for keys that are missing or not expected."""
        left = _flat(received)
        found = sorted(left)
        taken: dict[str, Any] = {name: left.pop(name) for name in AS_THEY_ARE if name in left}
        images: dict[str, Any] = {}
        missing = [] if "prompt" in taken else ["prompt"]
        for part, keys in self._sources.items():
            if _own(part) in left:
                value = left.pop(_own(part))
            elif all(key in left for key in keys):
                value = _joined([left.pop(key) for key in keys])
            else:
                if part != STATE or self._needs_state:
                    missing.append(part)
                continue
            if part == STATE:
                taken[STATE] = value
            else:
                images[part] = _channels_last(value)
        if missing or left:
            expected = "; ".join(f"{part}: {' or '.join(ways)}" for part, ways in self.accepted().items())
            raise ObservationError(
                f"observation: missing {missing}, not expected {sorted(left)}; found {found}, "
                f"expected {expected}; rename the keys, or name the robot's with --map"
            )
        return {"images": images, **taken}


def _own(part: str) -> str:
    return part if part == STATE else f"images/{part}"


def _flat(received: Any) -> dict[str, Any]:
    """Nested maps as keys with a slash, one level deep."""
    if not isinstance(received, Mapping):
        raise ObservationError(
            f"observation: {type(received).__name__} found, a map of names to arrays and text expected"
        )
    pairs: list[tuple[Any, Any]] = []
    for key, value in cast(Mapping[Any, Any], received).items():
        if isinstance(value, Mapping):
            inner = cast(Mapping[Any, Any], value)
            pairs += [(f"{key}/{name}" if isinstance(name, str) else name, v) for name, v in inner.items()]
        else:
            pairs.append((key, value))
    if others := [key for key, _ in pairs if not isinstance(key, str)]:
        raise ObservationError(f"observation: key {others[0]!r} found, text expected")
    if len(flat := dict(pairs)) < len(pairs):
        raise ObservationError(f"observation: {sorted(flat)} found, one of them twice; send each key once")
    return flat


def _joined(values: list[Any]) -> Any:
    if len(values) == 1:
        return values[0]
    try:
        return np.concatenate([np.atleast_1d(value) for value in values])
    except ValueError as error:
        raise ObservationError(
            f"state: {len(values)} arrays found that do not join ({error}), flat ones expected"
        ) from error


def _channels_last(image: Any) -> Any:
    """openpi's ALOHA robots send [3, height, width]. What is no frame is left for the policy to refuse."""
    if isinstance(image, np.ndarray):
        frame = cast("np.ndarray[Any, np.dtype[Any]]", image)
        if frame.ndim == 3 and frame.shape[0] == 3 and frame.shape[2] != 3:
            return np.ascontiguousarray(frame.transpose(1, 2, 0))
    return cast(Any, image)

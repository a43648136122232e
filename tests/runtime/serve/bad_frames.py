"""Frames that are no observation of this policy, and what each is answered with, as docs/serve.md has it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack
import numpy as np
from websockets.sync.client import ClientConnection

from pi05_runtime.serve.wire import ARRAY, DATA, DTYPE, SCALAR, SHAPE, pack

Observation = dict[str, Any]
REFUSED = 1011
CAMERA = "gripperPOV"


class BadFrame(NamedTuple):
    """send: given a connection and a good observation. code: that the connection is closed with. message: the
    answer's text, or the close's reason where nothing is answered; "..." stands for whatever differs."""

    name: str
    message: str
    send: Callable[[ClientConnection, Observation], object]
    code: int = REFUSED

    @property
    def row(self) -> str:
        return f"| {self.name} | {self.code} | `{self.message}` |"

    def check(self, found: str) -> None:
        at = 0
        for part in self.message.split("..."):
            at = found.find(part, at)
            assert at >= 0, f"{part!r} is not in {found!r}"


def sent(name: str, message: str, frame: bytes | str, code: int = REFUSED) -> BadFrame:
    return BadFrame(name, message, lambda robot, _: robot.send(frame), code)


def value(name: str, message: str, found: Any) -> BadFrame:
    """Any value in the place of an observation."""
    return sent(name, message, msgpack.packb(found))


def changed(name: str, message: str, **changes: Any) -> BadFrame:
    """An observation with other values; None takes a key away."""

    def send(robot: ClientConnection, good: Observation) -> None:
        found = good | changes
        robot.send(pack({key: item for key, item in found.items() if item is not None}))

    return BadFrame(name, message, send)


def image(name: str, message: str, frame: Any) -> BadFrame:
    def send(robot: ClientConnection, good: Observation) -> None:
        robot.send(pack(good | {"images": good["images"] | {CAMERA: frame}}))

    return BadFrame(name, message, send)


def array(name: str, message: str, **entries: Any) -> BadFrame:
    """A state that states what it is not."""
    stated = {ARRAY: True, DATA: bytes(16), DTYPE: "<f4", SHAPE: [4]}
    stated |= {key.encode(): item for key, item in entries.items()}
    return changed(name, message, state=stated)


def raw(name: str, message: str, data: bytes, code: int) -> BadFrame:
    """Bytes past the client's own idea of a frame."""
    return BadFrame(name, message, lambda robot, _: robot.socket.sendall(data), code)


def huge(robot: ClientConnection, _: Observation) -> None:
    """The header of a frame of 1 GB, and nothing of it."""
    robot.socket.sendall(b"\x82\xff" + (1 << 30).to_bytes(8, "big") + b"mask")


def in_parts(robot: ClientConnection, _: Observation) -> None:
    robot.send([bytes(1 << 20)] * 26)


def without_a_camera(robot: ClientConnection, good: Observation) -> None:
    robot.send(pack(good | {"images": {CAMERA: good["images"][CAMERA]}}))


def with_another_camera(robot: ClientConnection, good: Observation) -> None:
    robot.send(pack(good | {"observation/rear": good["images"][CAMERA]}))


def twice(robot: ClientConnection, good: Observation) -> None:
    robot.send(pack(good | {f"observation/{CAMERA}": good["images"][CAMERA]}))


NO_MSGPACK = "bytes that are no msgpack of an observation found"
RGB = "expected uint8 [height, width, 3] RGB; "
BAD_FRAMES = (
    sent("text", "frame: text found, msgpack in a binary frame expected", "open the drawer"),
    sent("nothing", f"frame: 0 {NO_MSGPACK} (Unpack failed: incomplete input)", b""),
    sent("half of a frame", f"{NO_MSGPACK} (Unpack failed: incomplete input)", pack({"state": [0.5]})[:-4]),
    sent("two frames in one", f"{NO_MSGPACK} (unpack(b) received extra data.)", pack({}) * 2),
    sent("a byte that msgpack does not have", f"frame: 1 {NO_MSGPACK} (FormatError)", b"\xc1"),
    sent("text that is not UTF-8", f"{NO_MSGPACK} ('utf-8' codec can't decode", b"\x81\xa1\xff\x00"),
    sent("JSON", f"{NO_MSGPACK} (unpack(b) received extra data.)", b'{"prompt": "open the drawer"}'),
    sent("lists a hundred thousand deep", f"{NO_MSGPACK} (StackError)", b"\x91" * 100_000 + b"\x90"),
    value("a thousand thousand lists", "frame: more than 1024 lists and maps found", [[[]] * 1000] * 1000),
    sent("a list of a billion items", f"{NO_MSGPACK} (... exceeds max_array_len", b"\xdd\x3b\x9a\xca\x00"),
    value("a type of one's own", f"{NO_MSGPACK} (... exceeds max_ext_len", {"x": msgpack.ExtType(42, b"..")}),
    value("keys that are numbers", f"{NO_MSGPACK} (int is not allowed for map key", {1: 2}),
    value("keys that are bytes", "observation: key b'prompt' found, text expected", {b"prompt": "open"}),
    value("a list", "observation: list found, a map of names to arrays and text expected", [1, 2]),
    value("a number", "observation: float found, a map of names to arrays and text expected", 0.5),
    value("an array", "observation: ndarray found, a map", {ARRAY: 1, DATA: b"", DTYPE: "|u1", SHAPE: [0]}),
    array("an array of Python objects", "array: dtype '...O' found, one of ... expected", dtype="|O"),
    array("an array of records", "array: dtype '<f4,<f4' found, one of ... expected", dtype="<f4,<f4"),
    array("an array of no dtype", "array: dtype None found, one of ... expected", dtype=None),
    array("an array of no bytes", "array: NoneType of shape [4] found, bytes and a list", data=None),
    array("an array of fewer bytes than it states", "array: 16 bytes found, 32 expected", shape=[8]),
    array("a shape that is a number", "array: bytes of shape 4 found, bytes and a list of sizes", shape=4),
    array("a size below 0", "array: bytes of shape [-4] found, bytes and a list", shape=[-4]),
    array("a size of 2**60", "found, which no array has (", data=b"", shape=[0, 1 << 60, 1 << 60]),
    changed(
        "a scalar that is text", "array: 'x' found, a number of", state={SCALAR: 1, DATA: "x", DTYPE: "<f4"}
    ),
    value("nothing in a map", "observation: missing ['prompt', 'corner2', 'gripperPOV', 'state']", {}),
    changed("no prompt", "observation: missing ['prompt'], not expected []", prompt=None),
    changed("no state", "observation: missing ['state'], not expected []", state=None),
    BadFrame("a camera fewer", "observation: missing ['corner2'], not expected []", without_a_camera),
    BadFrame("a camera more", "missing [], not expected ['observation/rear']", with_another_camera),
    BadFrame("a camera under two keys", "missing [], not expected ['observation/gripperPOV']", twice),
    image("an image of floats", f"found float32 [8, 8, 3], {RGB}convert", np.zeros((8, 8, 3), np.float32)),
    image("a grey image", f"found uint8 [8, 8], {RGB}pass one frame of rank 3", np.zeros((8, 8), np.uint8)),
    image("an image with alpha", f"found uint8 [8, 8, 4], {RGB}put", np.zeros((8, 8, 4), np.uint8)),
    image("a batch of images", f"found uint8 [1, 8, 8, 3], {RGB}pass", np.zeros((1, 8, 8, 3), np.uint8)),
    image("an image of no pixels", f"found uint8 [0, 8, 3], {RGB}the", np.zeros((0, 8, 3), np.uint8)),
    image("an image of one line", "found an image of 1 x 4000 pixels", np.zeros((1, 4000, 3), np.uint8)),
    image("a file's name for an image", "camera 'gripperPOV': found <U5 [], expected uint8", "a.png"),
    changed("a state of another width", "state: found shape [7], expected [4]", state=np.zeros(7)),
    changed("a state with NaN", "state: found non-finite numbers at [1]", state=np.array([0, np.nan, 0, 0])),
    changed("a state of text", "state: found str that is no array of numbers", state="left"),
    changed("a prompt that is a number", "prompt: found int, expected str", prompt=3),
    changed("an empty prompt", "prompt: found ' ', expected an instruction", prompt=" "),
    changed("a prompt of 99 words", "prompt: found ... tokens, expected at most 64", prompt="wave " * 99),
    changed("a prompt of 1 MB", f"{NO_MSGPACK} (... exceeds max_str_len", prompt="x" * (1 << 20)),
    changed("noise of another shape", "noise: shape [9, 32] with 0 non-finite", noise=np.zeros((9, 32))),
    changed("noise with infinity", "noise: shape [10, 32] with 320 non-", noise=np.full((10, 32), np.inf)),
    BadFrame("a frame of 1 GB, its header alone", "frame with 1073741824 bytes exceeds limit of", huge, 1009),
    BadFrame("26 MB in parts", "exceeds limit of ... bytes", in_parts, 1009),
    raw("a text frame that is not UTF-8", "invalid start byte", b"\x81\x81\0\0\0\0\xff", 1007),
    raw("a frame without a mask", "incorrect masking", b"\x82\x01x", 1002),
    raw("a compressed frame", "reserved bits must be 0", b"\xc2\x80mask", 1002),
    raw("a kind of frame that there is not", "invalid opcode", b"\x83\x80mask", 1002),
    raw("HTTP on an open connection", "invalid opcode", b"GET / HTTP/1.1\r\n\r\n", 1002),
)

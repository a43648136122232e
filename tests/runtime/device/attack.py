"""An attack on a bundle: what is done, and what it is answered with."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pi05_runtime.errors import BundleError, Pi05Error
from tests.runtime.bundle_edits import onnx_file

ANOTHER_MANIFEST = "sha256 ... found, ... is signed: the signature is of another bundle or version"
UNKNOWN = "signed by key ..., one of [...] expected"


class Attack(NamedTuple):
    """message: part of the answer; "..." stands for whatever differs from one time to the next."""

    name: str
    message: str
    do: Callable[..., object]
    error: type[Pi05Error] = BundleError

    @property
    def row(self) -> str:
        """Of the table in docs/distribution.md."""
        return f"| {self.name} | `{self.message}` |"

    def check(self, error: BaseException) -> None:
        """Whether this error is the answer."""
        at = 0
        for part in self.message.split("..."):
            at = str(error).find(part, at)
            assert at >= 0, f"{part!r} is not in {error}"
        assert type(error) is self.error


def weights(bundle: Path) -> str:
    return onnx_file(bundle, "vision", "weights.bin")


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]

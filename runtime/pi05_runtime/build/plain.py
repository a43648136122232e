"""What a library says, as one line that is the same on every machine and in every build."""

import re

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_DURATION = re.compile(r"\b\d+(?:\.\d+)?(?= ?(?:[mun]?s|sec|seconds|minutes)\b)")
_FOLDERS = re.compile(r"(\w+://\S+)|(?<![\w./])/(?=[\w.])(?:[^\s/]+/)*")


def plain(text: str) -> str:
    """`text` without line breaks, addresses, durations, and the folders of absolute paths."""
    text = _ADDRESS.sub("0x...", " ".join(text.split()))
    text = _DURATION.sub("...", text)
    return _FOLDERS.sub(lambda match: match[1] or "", text)

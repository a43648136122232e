"""argparse's type for what commands are added to, which it does not name in public."""

import argparse
from typing import Protocol


class Commands(Protocol):
    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser: ...

"""Where kernels run: interpreted on the CPU, or, where tests/conftest.py does not ask for that, on the GPU.

python -m pytest --confcutdir tests/kernels --ignore tests/kernels/test_plan.py tests/kernels
"""

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    torch.set_default_device("cpu" if os.environ.get("TRITON_INTERPRET") else "cuda")
    yield
    torch.set_default_device(None)

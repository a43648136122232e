"""How a kernel follows the one before it: its blocks may come while that one still runs, and read what it
wrote when it has ended.

Programmatic dependent launch takes most of the time that a launch costs out of the way, and that of reading
weights where a kernel reads them first.
That pays by turns: what a launch fetches ahead stands in the way of what those before it still want, and
of the word that they have ended. So kernels have a constant that says when the next may come, ADMIT, which
tuning chooses like a tile.

Before it waits, a kernel may read what no kernel writes, or what another network wrote, which is there before
it comes (pi05_runtime/engines/plan.py and overlap.py); and it may write nothing. Every kernel waits, so all
before the previous one have ended too; the compiler refuses one that does not, and one that writes before
(compile.py).
"""

import triton
import triton.language as tl

AT_ONCE: tl.constexpr = tl.constexpr(0)
FETCHED: tl.constexpr = tl.constexpr(1)
ENDED: tl.constexpr = tl.constexpr(2)
"""When the next launch's blocks may come: at once, when this launch has what it fetches ahead, or when the
previous one has ended."""
LINE: tl.constexpr = tl.constexpr(128)
"""Of the L2 cache, in bytes."""
ASKED: tl.constexpr = tl.constexpr(65536)
"""What a program's threads ask for at a time, in bytes."""


@triton.jit
def ask_ahead(lines):
    """Asks the L2 cache for the lines at these addresses and waits for nothing, so that it may ask for what
    an earlier kernel writes too."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def ask_for(weights, BYTES: tl.constexpr, mine, programs):
    """Asks so for the first BYTES, whole pieces of ASKED, of weights of a launch to come: for the share that
    program `mine` of `programs` has."""
    size: tl.constexpr = weights.dtype.element_ty.primitive_bitwidth // 8
    lines = tl.arange(0, ASKED // LINE) * (LINE // size)
    for piece in tl.range(mine, BYTES // ASKED, programs):
        ask_ahead(weights + piece * (ASKED // size) + lines)


@triton.jit
def admit_next():
    """Lets the next launch's blocks come as soon as all of this one's have."""
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def after_previous(ADMIT: tl.constexpr = AT_ONCE):
    """Waits for the previous launch's end. ADMIT: when the next launch's blocks may come, once all of this
    one's have; for FETCHED the kernel says so itself, before."""
    if ADMIT == AT_ONCE:
        tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()
    if ADMIT == ENDED:
        tl.extra.cuda.gdc_launch_dependents()

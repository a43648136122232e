"""How a kernel follows the one before it: its blocks may come while that one still runs, and read what it
wrote when it has ended.

Programmatic dependent launch takes most of the time that a launch costs out of the way, and that of reading
weights where a kernel reads them first.
Before it waits, a kernel may read what no kernel writes, and may write nothing. Every kernel waits, so all
before the previous one have ended too; the compiler refuses one that does not (compile.py).
"""

import triton
import triton.language as tl


@triton.jit
def ask_ahead(lines):
    """Asks the L2 cache for the lines at these addresses and waits for nothing, so that it may ask for what
    an earlier kernel writes too."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def after_previous():
    """Lets the next launch's blocks come as soon as all of this one's have, then waits for the previous one's
    end."""
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()

"""The kernels of a kernel plan, in Triton: few, general, one idea a file.

Every size that a tile depends on is a compile-time constant, every address and scale an argument, so that one
binary serves all layers of a shape. Weights lie as [out, in]: both operands of a product are then contiguous
along what is summed over, which FP8 tensor cores ask for. Columns of fused matrices are interleaved where
two of them meet in an epilogue (the halves of a rotation, gate and up), so that they meet in one thread.
"""

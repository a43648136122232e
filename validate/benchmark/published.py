"""What others published for pi0.5, to read beside a run and never to divide by: every row has its own device,
shape and precision."""

SEED = {1: 83.5, 3: 102.8, 10: 171.4}
"""Euler steps -> milliseconds of the table that this project started from."""
SEED_PARTS = {"vision": 17.3, "prefill": 52.1, "denoise, a step": 10.1}
SEED_SHAPE = "Jetson Thor, 3 slots, 968 tokens, horizon 50"
SEED_PRECISION = "ViT FP16, MLP FP8, expert BF16"

ROWS = (
    (
        "TensorRT, 1 / 3 / 10 steps (the table above)",
        "Thor",
        SEED_PRECISION,
        "3 slots, 968, 50",
        "83.5 / 102.8 / 171.4",
    ),
    (
        "openpi_on_thor, JetPack 7.2",
        "Thor",
        "BF16 / FP8 / FP8 and NVFP4",
        "3 slots, 976, 10",
        "132 / 54 / 49",
    ),
    ("FlashRT", "Thor", "FP8 / NVFP4", "2 views, about 530, 10", "40.6 / 20.0"),
    ("realtime-vla", "RTX 4090", "BF16", "2 views", "29.2"),
    ("FlashRT", "RTX 5090", "FP8", "2 views", "17.6"),
)
"""System, device, precision, shape (views, prefix tokens, horizon), milliseconds of a decision; 10 steps
where not said otherwise."""

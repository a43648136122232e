"""The shipped LIBERO policy: imported by the pipeline, and asked as the simulator asks it."""

import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np

from demo.libero_demonstrations import CAMERAS
from export.params import load_params
from pi05_runtime.serve.keys import Keys
from tests.pipeline import ROOT, change_params, run_stage
from validate.closed_loop.reference import ReferencePolicy
from validate.closed_loop.simulators.libero_observation import observation

PROMPT = "pick up the black bowl from table center and place it on the plate"


def test_it_takes_what_libero_shows_and_moves_the_hand(fresh_workspace: Path):
    shutil.copytree(ROOT / "demo" / "libero", fresh_workspace / "demo" / "libero")
    change_params(
        fresh_workspace, checkpoint__path="demo/libero", checkpoint__interface__cameras=list(CAMERAS)
    )
    for module in ("export.checkpoint.__main__", "export.tables"):
        run_stage(fresh_workspace, module)
    with chdir(fresh_workspace):
        policy = ReferencePolicy(load_params())
    rng = np.random.default_rng(0)
    seen = {
        "robot0_eef_pos": np.full(3, 9.0),  # far out of what it knows: the longest prompt there is
        "robot0_eef_quat": np.array([0.6, 0.0, 0.0, -0.8]),
        "robot0_gripper_qpos": np.full(2, 9.0),
        "agentview_image": rng.integers(0, 256, (256, 256, 3), dtype=np.uint8),
        "robot0_eye_in_hand_image": rng.integers(0, 256, (256, 256, 3), dtype=np.uint8),
    }
    asked = Keys(policy.manifest.interface).observation(observation(seen, PROMPT))
    actions = policy.infer({**asked, "noise": np.zeros((10, 32), np.float32)})["actions"]
    assert actions.shape == (10, 7)
    assert 0.01 < np.abs(actions[:, :3]).max() < 1.5
    np.testing.assert_allclose(actions[:, 3:6], 0, atol=1e-5)
    assert np.abs(actions[:, 6]).min() > 0.5 and np.abs(actions[:, 6]).max() < 1.5

"""LIBERO's scenes beside those that policies are judged in: scene k is what a reset after seed k draws.

A reset always puts the arm into the same pose. LIBERO's initial states have it elsewhere, each joint by a
normal error of 0.02 rad and the hand by 1 to 2 cm. So the joints are moved here as well, and as there behind
the controller's back: it turns the hand to where it was.

Runs in LIBERO's own environment, as a simulator of the closed loop.
"""

import numpy as np

from demo.decisions import HORIZON
from validate.closed_loop.simulators import Observation, libero
from validate.closed_loop.simulators.libero import PACKAGES, until_placed

__all__ = ["PACKAGES", "Simulator"]

JOINT_ERROR = 0.02


class Simulator(libero.Simulator):
    ahead = HORIZON

    def reset(self, scene: int) -> Observation:
        domain = self._domain
        del domain.object_property_initializers[self._initializers :]
        np.random.seed(scene)
        until_placed(domain.reset)
        state, joints = domain.sim.get_state(), domain.robots[0]._ref_joint_pos_indexes
        state.qpos[joints] += JOINT_ERROR * np.random.standard_normal(len(joints))
        self._env.set_init_state(state.flatten())
        return self._settle()

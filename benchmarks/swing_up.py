"""The cart-pole swing-up of the paper on weight-agnostic networks, as environments of Gymnasium.

    env = gymnasium.make("tf_rigl/CartPoleSwingUp-v0")
    envs = gymnasium.make_vec("tf_rigl/CartPoleSwingUp-v0", num_envs=100)

after `import benchmarks.swing_up`. `python -m benchmarks.swing_up` searches for a network.

A pole hangs from a cart, and a force on the cart is to swing it up and keep it there, without
leaving the track. An episode has 1,000 steps, each of which gives at most 1.
"""

import argparse
from typing import ClassVar

import gymnasium
import numpy as np

from tf_rigl import wann

GRAVITY, CART, POLE, LENGTH, FORCE, FRICTION = 9.82, 0.5, 0.5, 0.6, 10.0, 0.1
STEP, STEPS, EDGE = 0.01, 1_000, 2.4
NAME = "tf_rigl/CartPoleSwingUp-v0"


def moved(state, action):
    """Returns the state a step later.

    Args:
        state: float array of shape (4, ...): position, velocity, angle from upright, its velocity.
        action: float array of shape (...), in [-1, 1].
    """
    x, speed, angle, turning = state
    force = FORCE * np.clip(action, -1, 1)
    total, lever = CART + POLE, POLE * LENGTH
    sin, cos = np.sin(angle), np.cos(angle)
    faster = (
        -2 * lever * turning**2 * sin
        + 3 * POLE * GRAVITY * sin * cos
        + 4 * force
        - 4 * FRICTION * speed
    ) / (4 * total - 3 * POLE * cos**2)
    turns = (
        -3 * lever * turning**2 * sin * cos
        + 6 * total * GRAVITY * sin
        + 6 * (force - FRICTION * speed) * cos
    ) / (4 * LENGTH * total - 3 * lever * cos**2)
    return np.stack(
        [x + STEP * speed, speed + STEP * faster, angle + STEP * turning, turning + STEP * turns]
    )


def reward_of(state):
    """Returns what a step gives: 1 if the pole is upright in the middle of the track."""
    x, _, angle, _ = state
    return (np.cos(angle) + 1) / 2 * np.cos(x / EDGE * np.pi / 2)


def observed(state):
    """Returns the observation: position, velocity, cosine, sine and velocity of the angle."""
    x, speed, angle, turning = state
    return np.stack([x, speed, np.cos(angle), np.sin(angle), turning], axis=-1).astype(np.float32)


def begin(rng, size=()):
    """Returns a state with the pole hanging, nearly at rest."""
    state = rng.normal(0, 0.2, (4, *size))
    state[2] += np.pi
    return state


SPACES = (
    gymnasium.spaces.Box(-np.inf, np.inf, (5,), np.float32),
    gymnasium.spaces.Box(-1, 1, (1,), np.float32),
)


class SwingUp(gymnasium.Env):
    """A single environment."""

    metadata: ClassVar = {"render_modes": []}
    observation_space, action_space = SPACES

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._state, self._steps = begin(self.np_random), 0
        return observed(self._state), {}

    def step(self, action):
        self._state, self._steps = moved(self._state, float(action[0])), self._steps + 1
        ended, cut = abs(self._state[0]) > EDGE, self._steps >= STEPS
        return observed(self._state), float(reward_of(self._state)), bool(ended), cut, {}


class SwingUps(gymnasium.vector.VectorEnv):
    """Many environments as arrays. They do not reset by themselves."""

    metadata: ClassVar = {
        "render_modes": [],
        "autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED,
    }

    def __init__(self, num_envs=1, **kwargs):
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = SPACES
        batch = gymnasium.vector.utils.batch_space
        self.observation_space, self.action_space = (batch(space, num_envs) for space in SPACES)

    def reset(self, *, seed=None, options=None):
        """Resets all, or those of `options["reset_mask"]`, which then stand still and count not."""
        if options is None or "reset_mask" not in options:
            seeds = seed if isinstance(seed, (list, tuple)) else [seed] * self.num_envs
            known = {each: begin(np.random.default_rng(each)) for each in set(seeds) - {None}}
            fresh = np.random.default_rng()
            states = [begin(fresh) if each is None else known[each] for each in seeds]
            self._state, self._steps = np.stack(states, axis=-1), 0
        else:
            self._state[:, np.asarray(options["reset_mask"])] = 0.0
        return observed(self._state), {}

    def step(self, actions):
        self._state, self._steps = moved(self._state, np.asarray(actions)[:, 0]), self._steps + 1
        ended = np.abs(self._state[0]) > EDGE
        cut = np.full(self.num_envs, self._steps >= STEPS)
        return observed(self._state), reward_of(self._state), ended, cut, {}


def vector(num_envs, **kwargs):
    """Makes many environments, for `gymnasium.make_vec`."""
    return SwingUps(num_envs)


if NAME not in gymnasium.registry:
    gymnasium.register(
        NAME,
        entry_point=SwingUp,
        vector_entry_point=vector,
        max_episode_steps=STEPS,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--population", type=int, default=192)
    parser.add_argument("--generations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="runs/swing_up")
    options = parser.parse_args()
    task = wann.Control(SwingUps)
    result = wann.search(
        task,
        population=options.population,
        generations=options.generations,
        seed=options.seed,
        folder=f"{options.folder}/{options.seed}",
    )
    fresh = wann.Control(SwingUps, rollouts=20, seed=1_000)
    weights = np.linspace(-2, 2, 21)
    scores = result.best.scores(fresh, weights)
    print(
        f"{result.best}: mean over weights {scores.mean():.0f}, best weight {scores.max():.0f} "
        f"({weights[scores.argmax()]:.2f}) of 1,000"
    )


if __name__ == "__main__":
    main()

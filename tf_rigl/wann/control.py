"""Control by networks: rollouts in environments of Gymnasium, of all networks at once."""

import inspect
import zlib

import numpy as np

from tf_rigl._base.arguments import check_integer
from tf_rigl.wann.population import Stack

_LONGEST = 100_000  # Steps of a rollout, if an environment never ends.


class Control:
    """Rollouts in an environment; the score is the mean return.

    A network sees the flat observation. Of discrete actions, it takes that of the highest output;
    continuous ones are its outputs, cut off at the bounds of the action space. All networks, shared
    weights and rollouts are stepped side by side, so a vectorised environment is much faster.

    Args:
        make_env: function without arguments that returns a `gymnasium.Env`; or function of a
            number that returns a `gymnasium.vector.VectorEnv` of so many copies.
        rollouts: int, for each network and weight. They begin alike for all, so that scores can be
            compared, if a vectorised environment takes a list of seeds (those of
            `gymnasium.make_vec(..., vectorization_mode="sync")` do).
        seed: int, of the environments.

    Raises:
        ImportError: if Gymnasium is not installed (`pip install gymnasium`).
        ValueError: if an argument is out of range, or the spaces are neither flat nor discrete.

    Example:

        task = Control(lambda: gymnasium.make("CartPole-v1"))
        task = Control(lambda n: gymnasium.make_vec("CartPole-v1", num_envs=n))

    Reference:

    - [Weight Agnostic Neural Networks](https://arxiv.org/abs/1906.04358), section 4.
    """

    def __init__(self, make_env, rollouts=3, seed=0):
        self.rollouts = check_integer("rollouts", rollouts, 1)
        self.seed = check_integer("seed", seed, 0)
        self._make = make_env
        env = self._several(2)
        observations, actions = env.single_observation_space, env.single_action_space
        from gymnasium.spaces import Box, Discrete

        self._discrete = isinstance(actions, Discrete)
        flat = isinstance(observations, Box) and len(observations.shape) == 1
        if not flat or not (
            self._discrete or (isinstance(actions, Box) and len(actions.shape) == 1)
        ):
            raise ValueError(
                "Argument `make_env` must make an environment of flat observations, and of "
                "discrete or flat actions. Received: an environment of "
                f"{observations} and {actions}"
            )
        self.inputs = observations.shape[0]
        self.outputs = int(actions.n) if self._discrete else actions.shape[0]
        self._bounds = None if self._discrete else (actions.low, actions.high)
        self._first = int(getattr(actions, "start", 0))
        env.close()

    @property
    def fingerprint(self) -> int:
        """A number that differs for other environments, rollouts or seeds."""
        env = self._several(1)
        name = type(getattr(env, "envs", [env])[0].unwrapped).__qualname__
        env.close()
        return zlib.crc32(f"{name} {self.rollouts} {self.seed}".encode())

    def _several(self, count):
        """Returns a vector environment of so many copies, which does not reset by itself."""
        try:
            import gymnasium
        except ImportError as error:
            raise ImportError("`Control` needs Gymnasium: pip install gymnasium") from error
        vector = gymnasium.vector.VectorEnv
        if not self._takes_count():
            made = self._make()
            made.close()
            if not isinstance(made, vector):
                mode = gymnasium.vector.AutoresetMode.DISABLED
                several = gymnasium.vector.SyncVectorEnv([self._make] * count, autoreset_mode=mode)
                if len({id(env.unwrapped) for env in several.envs}) < count:
                    raise ValueError(
                        "Argument `make_env` must return a new environment at each call. Received: "
                        "a function that returned the same one again"
                    )
                return several
        made = self._make(count)
        if not isinstance(made, vector):
            raise ValueError(
                "Argument `make_env` must return a `gymnasium.vector.VectorEnv` if it takes an "
                f"argument. Received: {made!r}"
            )
        return made

    def _takes_count(self):
        """Returns whether the function has to be given a number."""
        parameters = inspect.signature(self._make).parameters.values()
        optional = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        return any(x.default is x.empty and x.kind not in optional for x in parameters)

    def scores(self, networks, weights) -> np.ndarray:
        """Returns the mean return of each network and shared weight.

        Args:
            networks: list of `Network`.
            weights: float array.

        Returns:
            A float array of shape (networks, weights).
        """
        shape = len(networks), len(weights), self.rollouts
        stack, env = Stack(networks), self._several(int(np.prod(shape)))
        weight = np.repeat(np.asarray(weights, np.float32), self.rollouts)
        observed = self._begun(env, shape[0] * shape[1])
        total, running = np.zeros(env.num_envs), np.ones(env.num_envs, bool)
        for _ in range(_LONGEST):
            x = np.asarray(observed, np.float32).reshape(len(networks), -1, self.inputs)
            outputs = stack.outputs_of(np.nan_to_num(x), weight).reshape(env.num_envs, -1)
            observed, reward, ended, cut, _ = env.step(self._actions(outputs, env))
            total += np.where(running, reward, 0.0)
            running &= ~(np.asarray(ended) | np.asarray(cut))
            if not running.any():
                break
            self._reset_ended(env, ~running)
        env.close()
        return total.reshape(shape).mean(axis=2)

    def _begun(self, env, times):
        """Resets all copies, and returns their observations."""
        from gymnasium.error import Error

        seeds = [self.seed + number for number in range(self.rollouts)] * times
        try:
            return env.reset(seed=seeds)[0]
        except Error:  # Gymnasium's own vectorised environments take one seed for all.
            return env.reset(seed=self.seed)[0]

    def _actions(self, outputs, env):
        if self._discrete:
            return self._first + outputs.argmax(axis=-1)
        return np.clip(np.nan_to_num(outputs), *self._bounds).astype(env.single_action_space.dtype)

    def _reset_ended(self, env, ended):
        """Resets copies that have ended: some environments refuse to go on."""
        mode = env.metadata.get("autoreset_mode")
        if ended.any() and getattr(mode, "name", "") == "DISABLED":
            env.reset(options={"reset_mask": ended})

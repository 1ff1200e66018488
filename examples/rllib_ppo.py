"""Ray RLlib's PPO on a batch of dreams, through the vector entry point: one model for all worlds of an env runner.

pip install "worldscape[rllib]", then python examples/rllib_ppo.py --iterations 50
RLlib wants NEXT_STEP, the default. Ray's own extra asks for an older Gymnasium (1.2.2 with Ray 2.60); ours does not.
--num-env-runners N makes N processes with a model each, which pays with a device for each, not on one CPU.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module.observation_preprocessor import SingleAgentObservationPreprocessor
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.utils.typing import ConvFilterSpec

import ws_gym  # noqa: F401  (registers the ids)

CONVOLUTIONS: ConvFilterSpec = [(16, 8, 4), (32, 4, 2), (32, 3, 1)]  # channels, kernel, stride


class ScalePixels(SingleAgentObservationPreprocessor):
    """uint8 pictures -> float32 in [-1, 1]: RLlib's encoder takes bytes as they are."""

    def recompute_output_observation_space(self, input_observation_space: Any, input_action_space: Any) -> gym.Space:
        return gym.spaces.Box(-1.0, 1.0, input_observation_space.shape, np.float32)

    def preprocess(self, observation: np.ndarray, episode: Any) -> np.ndarray:
        return observation.astype(np.float32) / 127.5 - 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano", help="name or path of the weights; 'debug' for random ones")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--num-env-runners", type=int, default=0, help="0: the worlds live in this process")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--rollout", type=int, default=128, help="steps of each world between updates")
    parser.add_argument("--limit", type=int, default=100, help="steps of an episode")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    ray.init(include_dashboard=False, log_to_driver=False)
    batch = args.num_envs * args.rollout * max(args.num_env_runners, 1)
    config = (
        PPOConfig()
        .environment("WorldScape-Nav-v0", env_config={"weights": args.preset, "max_episode_steps": args.limit})
        .env_runners(
            num_env_runners=args.num_env_runners,
            num_envs_per_env_runner=args.num_envs,
            gym_env_vectorize_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT,
            rollout_fragment_length=args.rollout,
            # RLlib calls it with three arguments and declares one.
            env_to_module_connector=lambda env, spaces, device: ScalePixels(),  # pyright: ignore[reportArgumentType]
        )
        .rl_module(model_config=DefaultModelConfig(conv_filters=CONVOLUTIONS, head_fcnet_hiddens=[256]))
        .training(
            train_batch_size_per_learner=batch,
            minibatch_size=min(256, batch),
            num_epochs=3,
            lr=3e-4,
            entropy_coeff=0.01,
        )
        .debugging(seed=args.seed)
    )
    algorithm = config.build_algo()
    for iteration in range(1, args.iterations + 1):
        sampled = algorithm.train()["env_runners"]
        mean = sampled.get("episode_return_mean", float("nan"))
        print(f"iteration {iteration}: {sampled['num_env_steps_sampled']} steps, mean return {mean:.2f}", flush=True)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()

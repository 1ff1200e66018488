"""An agent learns to find the red box inside the dream, or, with --env, in the simulator itself.

python examples/ppo_nav.py --out runs/ppo_dream
python examples/ppo_nav.py --out runs/ppo_rooms --env WorldScape-Rooms-v0
worldscape eval transfer --dream-run runs/ppo_dream --simulator-run runs/ppo_rooms

Needs pip install "worldscape[sim,train]". The algorithm is ws_gym/ppo.py, in one file to read and to copy from; its
settings for this task are here. The run's folder gets TensorBoard curves (tb), one of them as a picture (curve.png),
films of held-out episodes (videos; final.mp4 in simulator and dream side by side) and the policies of all checkpoints
(policies). Stop it when you like: the same command goes on from the last checkpoint and ends with the same weights.
"""

from ws_gym.ppo_run import Lesson, teach

LESSON = Lesson(
    tasks=("goal_object",),  # one of nine keys a step; reward comes once, at the box
    recipe={"num_steps": 128, "gamma": 0.99, "entropy": 0.01},
    widths={"frames": 4, "channels": (32, 64), "hidden": 256},
    options={"steps": 300_000, "num_envs": 16, "limit": 100},
)


def main(arguments: list[str] | None = None) -> None:
    teach(LESSON, __doc__, arguments)


if __name__ == "__main__":
    main()

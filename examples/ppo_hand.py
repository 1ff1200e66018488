"""A hand learns to reach, push, or pick and place inside the dream, or, with --env, in the simulator itself.

python examples/ppo_hand.py --out runs/reach_dream --task reach
python examples/ppo_hand.py --out runs/reach_tabletop --task reach --env WorldScape-Tabletop-v0
worldscape eval transfer --task reach --dream-run runs/reach_dream \\
    --simulator-run runs/reach_tabletop

Needs pip install "worldscape[sim,train]"; weights of your own (--preset) must know hands, and have --starts of theirs.
As examples/ppo_nav.py in all but four things: an action is thirteen numbers in [-1, 1], drawn from Gaussians whose
means depend on what is seen and whose widths do not (worldscape.policy.Gaussian); the reward is dense, so the agent
learns from what is missing to the best reward (reward_mode="missing"); beside the picture it is told where its hand is,
as a robot is (what obs="pixels+hands" shows), since the hand can leave the picture; and while it learns it is told
where target and object are, so that it learns to see them (worldscape.policy.PixelPolicy).
"""

from pathlib import Path

from ws_gym.ppo_run import Lesson, teach

LESSON = Lesson(
    tasks=("reach", "push", "pick_place"),
    # A reach takes some twenty steps: no need to look far ahead. The Gaussians have a least width, which keeps the hand
    # exploring without a reward for it. What is missing adds up to some thirty. Small minibatches, since seeing takes
    # many steps to learn.
    recipe={
        "epochs": 4,
        "minibatches": 32,
        "gamma": 0.97,
        "entropy": 0.0,
        "reward_scale": 0.1,
        "looks": 9000,
        "look_epochs": 96,
    },
    # Tasks of objects take many more steps, and were learned by widely exploring hands of four numbers alone.
    kinds={"grasp": {"std": 0.6, "epochs": 10, "minibatches": 4, "lr_end": 0.3}},
    # One picture shows where things are, and costs the eye half of what four do. Fine strides: a target is three pixels
    # wide.
    widths={"frames": 1, "channels": (16, 32, 64, 64), "hidden": 256, "stride": 2},
    options={"steps": 300_000, "num_envs": 16, "limit": 100, "out": Path("runs/ppo_hand")},
)


def main(arguments: list[str] | None = None) -> None:
    teach(LESSON, __doc__, arguments)


if __name__ == "__main__":
    main()

"""Stage `decoder`: what it keeps of its dreams, which pixels have a truth, and who judges what."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.train.walks import FRAMES, SIZE, walk_store
from worldscape.checkpoint import load_world
from worldscape.train.codec import as_pictures
from worldscape.train.config import override
from worldscape.train.critic import Critic
from worldscape.train.decoder import DEFAULTS, DecoderStage, DecoderTrainConfig, what_decoder_sees
from worldscape.train.rollouts import RolloutPlan, take_rollouts

LENGTH = 8
PLAN = RolloutPlan(episodes=1, dreamed=2, recorded=0, length=LENGTH, seed=0)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Over a walk between walls that stand 2 m ahead wherever one looks."""
    store = replace(walk_store(), depth=np.full((FRAMES, SIZE, SIZE), 2.0, np.float16))
    data = tmp_path_factory.mktemp("recorded") / "walk"
    rollouts = take_rollouts(load_world("debug"), store, data, PLAN, what_decoder_sees)
    config = override(DEFAULTS["debug"], {"device": "cpu"})
    assert isinstance(config, DecoderTrainConfig)
    return DecoderStage(store=store, rollouts=rollouts, config=config, num_anchors=4, critic=Critic(8))


def judge(stage, batch, is_turn):
    """The stage's losses, with gradients on the decoder."""
    model = load_world("debug").requires_grad_(True)
    parts = stage.loss(model, batch | {"is_turn": torch.tensor(is_turn)}, torch.Generator().manual_seed(0))
    parts["loss"].backward()
    return parts, model.codec.decoder


def test_the_first_frame_is_all_true_and_less_and_less_of_the_view_while_one_turns(stage):
    share = stage.rollouts["real"].float().mean((2, 3, 4))
    assert (share[:, 0] == 1).all()
    assert (share[:, 3] < 0.7).all() and (share[:, 3] > 0).all() and (share[:, -1] == 0).all()
    left, right = stage.rollouts["real"][:, 3, 0].float().mean(1).chunk(2, 1)
    assert abs(float(left.mean() - right.mean())) > 0.3, "one side came into view"


def test_what_was_shown_is_what_the_decoder_makes_of_what_it_sees(stage):
    model, notes = load_world("debug"), {name: note[:, -1].float() for name, note in stage.rollouts.items()}
    batch = as_pictures(stage.batch(0, 0, 1))
    for name in ("latent", "anchor", "mask"):
        batch[f"dream_{name}"] = notes[name]
    with torch.no_grad():
        rebuilt = stage._rebuild(model.eval(), batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rebuilt[-2:].clamp(-1, 1), notes["shown"], atol=0.02, rtol=0)


def test_the_decoder_learns_on_its_turn_only_and_the_critic_always(stage):
    batch = stage.batch(0, 0, 1)
    for is_turn in (False, True):
        stage.critic.zero_grad()
        _, decoder = judge(stage, batch, is_turn)
        learns = any(p.grad is not None and p.grad.abs().max() > 0 for p in decoder.parameters())
        assert learns == is_turn
        assert all(p.grad is not None for p in stage.critic.parameters())
    turns = [bool(stage.batch(step, 0, 1)["is_turn"]) for step in range(4)]
    assert turns == [False, True, False, True]


@pytest.mark.parametrize("is_known", [False, True])
def test_the_critic_judges_a_dream_only_where_the_truth_is_known(stage, is_known):
    batch = stage.batch(0, 0, 1)
    batch["dream_real"] = torch.full_like(batch["dream_real"], float(is_known))
    other = batch | {"dream_latent": -batch["dream_latent"]}
    one, two = (judge(stage, each, False)[0] for each in (batch, other))
    assert (float(one["critic"]) != float(two["critic"])) == is_known
    assert one["pixels"] != two["pixels"]


def test_dreamed_pixels_are_drawn_to_memory_where_it_shows_the_same_surface(stage):
    """By `keep`; where memory shows another surface, or none, they are to stay, and where the truth is known, true."""
    batch = stage.batch(0, 0, 1)
    shown = torch.zeros_like(batch["dream_shown"])
    anchor = torch.full_like(shown, 0.5)
    anchor[:, 3] = 0.0
    anchor[:, 3, :8] = 0.5
    mask = torch.ones_like(shown[:, :1])
    mask[..., :8] = 0
    other = batch | {"dream_shown": shown, "dream_anchor": anchor, "dream_mask": mask}
    wanted = replace(stage, config=override(stage.config, {"keep": 0.4}))._dreamt(other)
    same = torch.ones_like(shown[:, :1], dtype=torch.bool)
    same[..., :8], same[..., :8, :] = False, False
    torch.testing.assert_close(wanted[:, :3], torch.where(same, 0.2, 0.0).expand(-1, 3, -1, -1))
    left = replace(stage, config=override(stage.config, {"keep": 0.0}))
    torch.testing.assert_close(left._dreamt(other), shown)


def test_keep_teaches_the_decoder_other_pixels(stage):
    batch = stage.batch(0, 0, 1)
    batch["dream_real"] = torch.zeros_like(batch["dream_real"])
    stages = [replace(stage, config=override(stage.config, {"keep": keep})) for keep in (0.0, 1.0)]
    left, kept = (judge(each, batch, True)[0]["pixels"] for each in stages)
    assert left != kept


@pytest.mark.parametrize("setting", ["dreams=0", "maker_every=0", "blind_share=1.5", "keep=-0.1"])
def test_bad_settings_are_named(setting):
    name, value = setting.split("=")
    with pytest.raises(ValueError, match=f"{name} is {value}; it"):
        override(DEFAULTS["debug"], {name: float(value) if "." in value else int(value)})

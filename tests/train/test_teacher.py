"""The bidirectional teacher: what of a clip is clean, what memory may show, and sampling a clip at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.train.test_retrieved import CONFIG, TIMES, build, dataset, fresh  # noqa: F401  (a fixture)
from tests.train.test_scoring import CLIPS, clip
from tests.train.test_scoring import build as build_transformer
from tests.train.walks import FRAMES, walk_store
from worldscape.codec import normalise_tokens, token_coverage
from worldscape.conditioning.reproject_fast import reproject_fast
from worldscape.engine import WorldEngine
from worldscape.flow import sampling_levels
from worldscape.memory.pages import PageShape
from worldscape.memory.values import Frame
from worldscape.memory.world_memory import WorldMemory
from worldscape.scoring import Clip, clean_inputs, estimate_end, sample_clip
from worldscape.sight import present
from worldscape.train import prepare as preparing
from worldscape.train.cli import choose_model
from worldscape.train.prepare import PreparedFrames, prepare
from worldscape.train.teacher import adapt_model, as_known_before, draw_clip_levels
from worldscape.world import WorldModel, debug_world

AHEAD = CONFIG.memory.num_refined - 1


def test_a_clip_opens_clean_and_goes_on_at_one_level():
    opening = torch.arange(4000) % 3 + 2
    level = draw_clip_levels(opening, TIMES, torch.Generator().manual_seed(0))
    is_clean = level == 0.0
    assert (is_clean == (torch.arange(TIMES) < opening[:, None])).all()
    rest = torch.where(is_clean, torch.nan, level)
    spread = rest.nan_to_num(-1.0).amax(1) - rest.nan_to_num(2.0).amin(1)
    assert float(spread.abs().max()) == 0.0
    assert 0.17 < float((level[:, -1] == 1.0).float().mean()) < 0.23


def test_prepared_frames_hold_what_memory_knew_before_them(tmp_path, monkeypatch):
    """Memory of undisturbed frames, filled by hand."""
    monkeypatch.setattr(preparing, "LARGEST_DISTURBANCE", 0.0)
    monkeypatch.setattr(preparing, "has_fast_bf16", lambda device: False)
    model, store = debug_world(), walk_store()
    found = prepare(model, CONFIG.memory, store, tmp_path / "rooms", FRAMES, seed=0, num_ahead=2)
    shape = PageShape(layers=0, tokens=0, heads=0, head_width=0, size=model.config.codec.size)
    memory = WorldMemory.empty(CONFIG.memory, 1, shape, torch.zeros(()))
    intrinsics, active = torch.from_numpy(store.intrinsics[:1]), torch.ones(1, dtype=torch.bool)
    assert found.ahead_guess is not None and found.ahead_coverage is not None
    assert not found.ahead_guess[0, 0].any() and not found.ahead_coverage[0, 0].any()
    for step in range(10):
        views = [
            memory.recall(torch.from_numpy(store.pose[[place]]), intrinsics, rebuild=reproject_fast)
            for place in range(step, step + 3)
        ]
        with torch.inference_mode():
            guesses = [model.codec.encode_anchor(view.anchor) for view in views]
        for lag in (1, 2) if step > 0 else ():
            coverage = token_coverage(views[lag].anchor.mask, model.config.codec.grid)
            torch.testing.assert_close(found.ahead_coverage[:, step, lag - 1].float(), coverage, atol=2e-3, rtol=0)
            kept = found.ahead_guess[:, step, lag - 1].float()
            torch.testing.assert_close(kept, guesses[lag].latent, atol=0.05, rtol=0.05)
        rgbd = store.rgbd(np.array([step]))
        if step > 0:
            with torch.inference_mode():
                latent = normalise_tokens(model.codec.encode(rgbd))
                rgbd = model.codec.decode(latent, views[0].anchor, guesses[0].skips).clamp(-1.0, 1.0)
        memory.append(Frame([], rgbd, torch.from_numpy(store.pose[[step]]), intrinsics), views[0], active)
    # What is looked at later is known better by then.
    later = found.coverage[0, 2:11].float() - found.ahead_coverage[0, 1:10, 0].float()
    assert float(later.mean()) > 0.005 and float(later.min()) > -0.3


def test_a_stage_that_asks_for_less_finds_it_prepared(tmp_path, monkeypatch):
    model, store, recorded = debug_world(), walk_store(), tmp_path / "rooms"
    alone = prepare(model, CONFIG.memory, store, tmp_path / "alone" / "rooms", FRAMES, seed=0)
    more = prepare(model, CONFIG.memory, store, recorded, FRAMES, seed=0, num_ahead=2)
    monkeypatch.setattr(preparing, "_replay_all", lambda *_: pytest.fail("replayed again"))
    found = prepare(model, CONFIG.memory, store, recorded, FRAMES, seed=0)
    assert more.ahead_guess is not None and found.ahead_guess is None
    for name in ("latent", "guess", "coverage", "frames", "retrieved"):
        assert torch.equal(getattr(found, name), getattr(alone, name)), name


def numbered() -> PreparedFrames:
    """Two dreams of 12 frames; what is shown `lag` after frame f of dream e is 100 e + f + lag / 10."""
    frame = 100.0 * torch.arange(2)[:, None] + torch.arange(12)[None]
    ahead = frame[..., None] + torch.arange(1, AHEAD + 1) / 10
    return PreparedFrames(
        latent=frame[..., None, None],
        guess=frame[..., None, None],
        coverage=frame[..., None],
        frames=frame.long(),
        retrieved=torch.full((2, 12, 2), -1),
        ahead_guess=ahead[..., None, None],
        ahead_coverage=ahead[..., None],
    )


def test_memory_stands_still_where_a_clip_begins_to_be_refined():
    prepared, dreams, opening = numbered(), np.array([0, 1]), np.array([4, 3])
    places = np.array([[0, 1, 2, 5, 6, 7, 8], [0, 2, 3, 4, 5, 6, 7]])
    clips = (torch.from_numpy(dreams)[:, None], torch.from_numpy(places))
    batch = {"guess": prepared.guess[clips], "coverage": prepared.coverage[clips]}
    batch["sees"] = torch.ones(2, 7, 7, dtype=torch.bool)
    batch["sees"][0, :, 1] = False
    found = as_known_before(batch, prepared, dreams, places, opening)
    assert AHEAD == 1, "so of the first row places 4 and 5 are refined, of the second 3 and 4"
    assert found["guess"][0, :6, 0, 0].tolist() == pytest.approx([0, 1, 2, 5, 6, 6.1])
    assert found["coverage"][1, :5, 0].tolist() == pytest.approx([100, 102, 103, 104, 104.1])
    is_there = torch.tensor([[1, 0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0]]).bool()
    assert torch.equal(present(found["sees"]), is_there)
    assert torch.equal(found["sees"][:, 3], is_there)


def test_a_teacher_does_not_look_at_what_follows_the_frames_it_refines(dataset):  # noqa: F811
    stage, _ = build("teacher", dataset, batch_size=16)
    model, batch = fresh(adapt_model(CONFIG)), stage.batch(0, 0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.nn.init.normal_(model.transformer.to_latent.weight, std=0.1)
    is_there = present(batch["sees"])
    assert ((is_there[:, 3:].sum(1) - (batch["opening"] - 3)) <= AHEAD + 1).all() and not is_there[:, 3:].all()
    other = {name: batch[name].clone() for name in ("latent", "guess", "coverage", "rays")}
    for part in other.values():
        part[~is_there] += 1.0
    one, two = (stage.loss(model, b, torch.Generator().manual_seed(0)) for b in (batch, batch | other))
    assert torch.equal(one["loss"], two["loss"])
    changed = batch["guess"].clone()
    last = torch.arange(16), (batch["opening"] + AHEAD).clamp_max(TIMES - 1)
    changed[last] += 1.0
    assert stage.loss(model, batch | {"guess": changed}, torch.Generator().manual_seed(0))["loss"] != one["loss"]


def test_a_clip_sampled_in_one_call_is_the_answer_to_noise():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WorldModel(adapt_model(choose_model("debug", [])))
    assert not model.transformer.config.is_causal
    model.transformer = build_transformer(is_causal=False)
    noise = torch.randn(CLIPS, 3, *clip()["latent"].shape[2:], generator=torch.Generator().manual_seed(1))
    frames = clean_inputs(clip(), model.config.context_level)
    made = sample_clip(model.transformer, Clip(frames, None), noise, sampling_levels(1)).latent
    torch.testing.assert_close(made, estimate_end(model.transformer, frames, noise, torch.ones(CLIPS)))


def test_a_teacher_cannot_be_stepped():
    with torch.random.fork_rng(devices=[]):
        model = WorldModel(adapt_model(choose_model("debug", [])))
    with pytest.raises(ValueError, match="sees a whole clip at once: step a causal student"):
        WorldEngine(model, 1)

"""Objects that hands move: which stretches teach it, and that it is learned and then said in closed loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.train.walks import walk_store
from worldscape.conditioning.camera import pose_from_state
from worldscape.conditioning.hand_model import HandState
from worldscape.conditioning.hands import state_to_vector
from worldscape.conditioning.layers import Thing
from worldscape.config import HeadsConfig
from worldscape.data.clips import FrameStore
from worldscape.data.hand_tracks import HandTracks
from worldscape.hand_heads import ObjectHead
from worldscape.heads import Heads
from worldscape.train.object_heads import (
    NEAR,
    STRETCH,
    object_labels,
    object_losses,
    object_stretches,
)

EPISODES, LENGTH = 12, 40
HELD = 0.12  # metres: an object this near to the wrist goes where it goes


def carried_store() -> FrameStore:
    """Episodes in which a hand walks at random over a table and takes an object along as long as it is near."""
    rng = np.random.default_rng(0)
    wrists, places = [], []
    for _ in range(EPISODES):
        steps = 0.02 * rng.standard_normal((LENGTH, 3)) * [1.0, 0.1, 1.0]
        wrist = np.array([0.0, -0.1, 0.0]) + np.cumsum(steps, 0)
        place = np.array([rng.uniform(-0.2, 0.2), -0.03, rng.uniform(0.0, 0.3)])
        for index in range(LENGTH):
            is_held = index > 0 and np.linalg.norm(wrist[index - 1] - place) < HELD
            place = place + (wrist[index] - wrist[index - 1] if is_held else 0.0)
            wrists.append(wrist[index])
            places.append(place)
    total = EPISODES * LENGTH
    position = torch.from_numpy(np.array(wrists, np.float32))
    right = state_to_vector(HandState(position, torch.eye(3).expand(total, 3, 3), torch.full((total, 7), 0.3))).numpy()
    state, present = np.zeros((total, 2, 16), np.float32), np.tile([False, True], (total, 1))
    state[:, 1] = right
    tracks = HandTracks(
        state=state,
        command=state,
        present=present,
        action=np.zeros((total, 2, 13), np.float32),
        is_told=present,
        task=np.zeros(total, np.int64),
        places=np.stack([np.array(places), np.zeros((total, 3))], 1).astype(np.float32),
        touch=np.zeros((total, 3), np.float32),
    )
    starts = np.arange(0, total + 1, LENGTH)
    return replace(walk_store(), pose=pose_from_state(torch.zeros(total, 6)).numpy(), starts=starts, hands=tracks)


@pytest.fixture(scope="module")
def store():
    return carried_store()


def tracks_of(store: FrameStore) -> HandTracks:
    assert store.hands is not None
    return store.hands


def test_stretches_lie_in_one_training_episode_and_have_a_hand_near_the_object(store):
    first = object_stretches(store, EPISODES - 1)
    last, tracks = first + STRETCH + 1, tracks_of(store)
    assert len(first) and (first // LENGTH == last // LENGTH).all() and last.max() < (EPISODES - 1) * LENGTH
    away = np.linalg.norm(tracks.state[:, 1, :3] - tracks.places[:, 0], axis=-1)
    assert all(away[begin : end + 1].min() < NEAR for begin, end in zip(first, last, strict=True))


@pytest.mark.parametrize("what", ["fallen", "unknown", "nobody"])
def test_stretches_leave_out_what_cannot_be_learned_from(store, what):
    tracks = tracks_of(store)
    places, present = tracks.places.copy(), tracks.present.copy()
    hurt = slice(0, LENGTH)
    if what == "fallen":
        places[hurt, 0, 1] = 0.3
    elif what == "unknown":
        places[hurt] = np.nan
    else:
        present[hurt] = False
    without = replace(store, hands=replace(tracks, places=places, present=present))
    assert object_stretches(without, EPISODES).min() >= LENGTH > object_stretches(store, EPISODES).min()
    assert not len(object_stretches(replace(store, hands=None), EPISODES))


def test_stretches_are_turned_about_the_vertical(store):
    stretches = object_stretches(store, EPISODES)
    batch = object_labels(store, stretches, 16, np.random.default_rng(0))
    points, places = batch["object_points"][:, :, 1], batch["object_places"]
    assert points.shape == (16, STRETCH + 1, 21, 3) and places.shape == (16, STRETCH + 1, 3)
    tracks = tracks_of(store)
    true = np.linalg.norm(tracks.state[:, 1, :3] - tracks.places[:, 0], axis=-1)
    distance = (points[:, :, 0] - places).norm(dim=-1)
    for row in distance.numpy():  # each is some stretch of the recording, seen from another side
        assert min(np.abs(row - true[f + 1 : f + STRETCH + 2]).max() for f in stretches) < 1e-4
    assert float(places[:, 0, [0, 2]].abs().max()) < 0.2  # where the object was a step before is the middle
    heading = torch.atan2(*(points[:, 0, 9] - points[:, 0, 0])[:, [0, 2]].unbind(-1))
    assert float(heading.std()) > 1.0
    assert float((batch["object_guess"] - places[:, 0]).norm(dim=-1).max()) < 0.05
    assert object_labels(store, stretches, 0, np.random.default_rng(0)) == {}


def test_an_object_that_a_hand_takes_along_is_learned(store):
    torch.manual_seed(0)
    heads = Heads(HeadsConfig(width=32, object=True), 8, 8, hands=True)
    assert heads.object is not None
    optimizer, stretches = torch.optim.AdamW(heads.object.parameters(), 3e-3), object_stretches(store, EPISODES - 2)
    first = object_losses(heads, object_labels(store, stretches, 64, np.random.default_rng(1)))
    for step in range(150):
        losses = object_losses(heads, object_labels(store, stretches, 64, np.random.default_rng([2, step])))
        optimizer.zero_grad()
        losses["object"].backward()
        optimizer.step()
    held_out = np.setdiff1d(object_stretches(store, EPISODES), stretches)
    with torch.no_grad():
        found = object_losses(heads, object_labels(store, held_out, 64, np.random.default_rng(3)))
    assert float(found["object"]) < 0.5 * float(first["object"].detach())
    assert float(found["object_recall"]) > 0.7 and float(found["object_precision"]) > 0.7


def test_a_left_hand_moves_an_object_as_its_mirror_image_does():
    torch.manual_seed(0)
    head, mirror = ObjectHead(16), torch.tensor([-1.0, 1.0, 1.0])
    before, shift = 0.1 * torch.randn(3, 21, 3), 0.01 * torch.randn(3, 3)
    after, centre = before + 0.01 * torch.randn(3, 21, 3), 0.1 * torch.randn(3, 3)
    far = torch.full((3, 21, 3), 5.0)

    def said(points, sign, present):
        thing = Thing(centre * sign, centre * sign, torch.zeros(3), torch.ones(3, dtype=torch.bool))
        pairs = [torch.stack(hands, 1) for hands in points]
        return head(*pairs, present, thing, shift * sign)

    one, both = torch.tensor([[True, False]] * 3), torch.ones(3, 2, dtype=torch.bool)
    right = said(((far, before), (far, after)), torch.ones(3), both)
    left = said(((before * mirror, far), (after * mirror, far)), mirror, both)
    alone = said(((before * mirror, after), (after * mirror, before)), mirror, one)
    for other in (left, alone):
        torch.testing.assert_close(other.shift * mirror, right.shift)
        torch.testing.assert_close(other.touch, right.touch)
    certain = right._replace(moves=torch.tensor([-1.0, 50.0, 0.5]))
    assert torch.equal(certain.likely(), right.shift * torch.tensor([[0.0], [1.0], [0.0]]))

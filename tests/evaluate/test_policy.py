"""What a policy sees, and its file."""

import numpy as np
import pytest
import torch

from worldscape.policy import PixelPolicy, PolicyConfig, load_policy, open_stack, push_frames, save_policy, save_tensors

CONFIG = PolicyConfig(num_actions=3, size=8, frames=3, channels=(4, 4), hidden=8)


def grey(*shades: int) -> torch.Tensor:
    """One frame of each shade, uint8 [B, 8, 8, 3]."""
    return torch.tensor(shades, dtype=torch.uint8)[:, None, None, None].expand(-1, 8, 8, 3)


def test_frames_are_stacked_oldest_first_and_a_new_episode_forgets():
    stacks = open_stack(grey(1, 10), 3)
    later = push_frames(
        push_frames(stacks, grey(2, 20), torch.tensor([False, False])), grey(3, 30), torch.tensor([0, 1]) > 0
    )
    np.testing.assert_array_equal(later[..., 0, 0, 0], [[1, 2, 3], [30, 30, 30]])
    np.testing.assert_array_equal(stacks[..., 0, 0, 0], [[1, 1, 1], [10, 10, 10]])


def test_rows_do_not_depend_on_each_other_and_frames_matter():
    policy = PixelPolicy(CONFIG)
    stacks = torch.randint(0, 256, (4, 3, 8, 8, 3), dtype=torch.uint8)
    logits, values = policy(stacks)
    assert logits.shape == (4, 3) and values.shape == (4,)
    torch.testing.assert_close(policy(stacks[2:3]).value, values[2:3])
    assert not torch.allclose(policy(stacks.flip(1)).value, values)


def test_a_file_gives_the_same_policy_back(tmp_path):
    policy = PixelPolicy(CONFIG)
    save_policy(policy, tmp_path / "policy.safetensors", {"steps": 5})
    state = torch.get_rng_state()
    loaded, facts = load_policy(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert facts == {"steps": 5} and loaded.config == CONFIG and not loaded.training
    stacks = open_stack(grey(7), 3)
    torch.testing.assert_close(loaded(stacks).logits, policy(stacks).logits, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.safetensors"]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "policy.safetensors"
    with pytest.raises(ValueError, match="there is no file"):
        load_policy(tmp_path)
    path.write_bytes(b"torn")
    with pytest.raises(ValueError, match="is damaged or another kind of file"):
        load_policy(path)
    save_tensors(path, {"a": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="holds no policy"):
        load_policy(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames 0: it must be at least 1"),
        ({"size": 10}, "halve pictures of 10 pixels"),
        ({"channels": ()}, "halve"),
    ],
)
def test_impossible_policies_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PolicyConfig(**{"num_actions": 3, "size": 8, "channels": (4, 4), **changes})

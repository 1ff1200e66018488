"""Batches that are fetched from a device: every value in its place again."""

import torch

from ws_gym.batch import Batch, fetch


def test_what_is_fetched_in_packs_is_what_it_was():
    rng = torch.Generator().manual_seed(0)
    tensors = [
        torch.rand(3, 4, generator=rng),
        torch.randint(0, 9, (3,), generator=rng),
        torch.rand(5, 6, generator=rng).T,  # not contiguous
        torch.zeros(0, 7),
        torch.rand(3, generator=rng) < 0.5,
        torch.tensor(2.5),
        torch.randint(0, 256, (3, 2, 2, 3), generator=rng, dtype=torch.uint8),
    ]
    found = fetch(tensors)
    assert all(
        one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        for one, other in zip(found, tensors, strict=True)
    )
    assert found[0].data_ptr() != tensors[0].data_ptr()


def test_a_batch_on_the_cpu_is_given_as_it_is():
    none = torch.zeros(2, dtype=torch.bool)
    batch = Batch(observation=torch.zeros(2, 1), reward=torch.zeros(2), terminated=none, truncated=none, info={})
    assert batch.on_cpu() is batch

"""The page store: allocation, reference counts, and what its integrity check notices."""

import random

import pytest
import torch

from worldscape.memory.pages import BLANK, FIRST, SCRAP, Page, PageShape, PageStore

SHAPE = PageShape(layers=1, tokens=1, heads=1, head_width=1, size=1)
NUM_PAGES = 24


def fresh() -> PageStore:
    return PageStore(NUM_PAGES, SHAPE, torch.zeros(()))


def page(values: torch.Tensor) -> Page:
    """Pages marked by `values` [N]."""
    mark = values.float()
    return Page(
        keys_values=mark.reshape(1, -1, 1, 1, 1).expand(2, -1, 1, 1, 1),
        rgbd=mark.reshape(-1, 1, 1, 1).expand(-1, 4, 1, 1),
        pose=torch.eye(4).repeat(len(mark), 1, 1),
        probes=mark.reshape(1, -1, 1).expand(3, -1, 1),
        real=mark[:, None],
        owner=values.reshape(-1, 1, 1).to(torch.uint8),
        parts=torch.eye(4).repeat(len(mark), 33, 1, 1),
        frame=values,
    )


def test_the_lowest_free_pages_are_given_to_active_rows():
    store = fresh()
    pages = store.allocate(torch.tensor([True, False, True]))
    assert pages.tolist() == [FIRST, SCRAP, FIRST + 1]
    store.retain(pages[[0, 2]])
    store.retain(store.allocate(torch.tensor([True])))
    store.release(torch.tensor([[FIRST, BLANK]]))
    assert store.allocate(torch.tensor([False, True, True])).tolist() == [SCRAP, FIRST, FIRST + 3]
    assert store.num_used() == 2


def test_what_is_written_is_read_and_the_blank_page_stays_blank():
    store = fresh()
    pages = store.allocate(torch.tensor([True, False, True]))
    store.write(pages, page(torch.tensor([7, 8, 9])))
    table = torch.tensor([[pages[2], BLANK], [BLANK, pages[0]]])
    assert store.read("keys_values", table)[0, ..., 0, 0, 0].tolist() == [[9, 0], [0, 7]]
    assert store.fields.frame[table].tolist() == [[9, -1], [-1, 7]]
    assert store.gather(pages[:1]).rgbd.flatten().tolist() == [7.0] * 4
    assert store.fields.owner[table].flatten().tolist() == [9, 0, 0, 7]
    assert torch.equal(store.fields.parts[BLANK], torch.eye(4).expand(33, 4, 4))


def test_a_hundred_thousand_random_operations_leak_no_page():
    """Tables of three rows against a plain dictionary; rows share, overwrite and drop pages at random."""
    store, rng = fresh(), random.Random(0)
    table = [[BLANK] * 4 for _ in range(3)]
    holds: dict[int, int] = {}
    for step in range(40_000):
        row, place = rng.randrange(3), rng.randrange(4)
        old, other = table[row][place], table[rng.randrange(3)][rng.randrange(4)]
        new = other
        if rng.random() < 0.6:
            new = int(store.allocate(torch.tensor([True])))
            assert new not in holds
        both = torch.tensor([new, old])
        store.retain(both[:1])
        store.release(both[1:])
        table[row][place] = new
        holds = {number: step for entries in table for number in entries if number != BLANK}
        if step % 2000 == 0:
            store.check([torch.tensor(table)])
            assert store.num_used() == len(holds) and max(holds, default=0) < FIRST + 13
    store.release(torch.tensor(table))
    assert store.num_used() == 0
    store.check([torch.zeros(3, 4, dtype=torch.long)])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([FIRST, FIRST + 1, FIRST + 2], rf"pages \[{FIRST + 2}\] are free but in use"),
        ([FIRST, BLANK], rf"pages \[{FIRST + 1}\] leak: counted but in no table"),
        ([FIRST, FIRST + 1, FIRST + 1], rf"pages \[{FIRST + 1}\] are counted wrongly"),
        ([FIRST, FIRST + 1, SCRAP], rf"name pages \[{SCRAP}\], which hold no frame"),
        ([FIRST, FIRST + 1, 999], r"name pages \[999\], which hold no frame"),
    ],
)
def test_the_check_says_what_is_wrong(table, message):
    store = fresh()
    store.retain(store.allocate(torch.tensor([True, True])))
    store.check([torch.tensor([FIRST]), torch.tensor([[FIRST + 1, BLANK]])])
    with pytest.raises(RuntimeError, match=message):
        store.check([torch.tensor(table)])

"""Tables that are made once, and what is kept for as long as it is asked for the same."""

from threading import Thread

import torch

from worldscape.conditioning.made_once import kept_while_equal, made_once


def test_a_table_is_made_once_and_gradients_flow_past_it():
    made = []

    @made_once
    def table(size: int, device: torch.device) -> torch.Tensor:
        made.append(size)
        return torch.ones(size, device=device)

    with torch.inference_mode():
        first = table(3, torch.device("cpu"))
    assert table(3, torch.device("cpu")) is first and made == [3] and not first.is_inference()
    x = torch.ones(3, requires_grad=True)
    (x * first).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, first)
    assert len(table(4, torch.device("cpu"))) == 4 and made == [3, 4]


def counted():
    """A function that is kept, and the list of what it was asked for."""
    asked = []

    @kept_while_equal
    def twice(x: torch.Tensor, plus: int) -> torch.Tensor:
        asked.append(x.clone())
        return 2 * x + plus

    return twice, asked


def test_the_last_result_is_kept_until_an_argument_changes():
    twice, asked = counted()
    with torch.inference_mode():
        x = torch.tensor([1.0, 2.0])
        first = twice(x, 1)
        assert twice(x.clone(), 1) is first and len(asked) == 1
        x[0] = 5.0  # written into where it lies
        assert twice(x, 1).tolist() == [11.0, 5.0] and len(asked) == 2
        assert twice(x, 2).tolist() == [12.0, 6.0] and twice(x, 1).tolist() == [11.0, 5.0] and len(asked) == 3
        assert twice(x.double(), 2).dtype == torch.float64
        assert twice(x[:1], 2).tolist() == [12.0] and len(asked) == 5


def test_nothing_is_kept_where_gradients_may_be_wanted():
    twice, asked = counted()
    x = torch.ones(2, requires_grad=True)
    assert twice(x, 0) is not twice(x, 0) and len(asked) == 2
    twice(x, 0).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2.0, 2.0]


def test_threads_that_ask_for_different_things_each_get_their_own():
    twice, _ = counted()
    wrong = []

    def ask(value: float) -> None:
        with torch.inference_mode():
            x = torch.full((4,), value)
            wrong.extend(value for _ in range(300) if not torch.equal(twice(x, 0), 2 * x))

    threads = [Thread(target=ask, args=(float(value),)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

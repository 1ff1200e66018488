"""Time divided among the parts of a step, by hand and on the debug weights."""

import time

import numpy as np
import pytest
import torch

from benchmarks import time_split
from benchmarks.clock import Clock
from benchmarks.env_steps import choose_draw, time_steps
from tests.evaluate.test_documented import undocumented
from tests.gym.helpers import assert_same, core_of, engine_of, make_env, make_vec
from worldscape.memory.world_memory import WorldMemory


@pytest.fixture
def ticking(monkeypatch):
    """The clock's time, moved by hand."""
    now = [0.0]
    monkeypatch.setattr("benchmarks.clock.time.perf_counter", lambda: now[0])

    def pass_seconds(seconds: float) -> None:
        now[0] += seconds

    return pass_seconds


def test_a_part_within_another_interrupts_it(ticking):
    clock = Clock()
    assert not clock.is_running
    clock.begin("host")
    ticking(1)
    clock.begin("denoise")
    ticking(2)
    clock.begin("memory")
    ticking(4)
    clock.end()
    ticking(8)
    clock.end()
    assert clock.is_running
    ticking(16)
    clock.end()
    ticking(1000)  # between steps
    clock.begin("host")
    ticking(32)
    clock.end()
    assert clock.read() == {"host": 1 + 16 + 32, "denoise": 2 + 8, "memory": 4}
    assert clock.read() == {}


def test_a_timed_function_belongs_to_its_part_within_a_step_only(ticking):
    clock = Clock()

    def fail(seconds):
        ticking(seconds)
        raise KeyError("as it is")

    run = time_split.timed(fail, "task", clock)
    with pytest.raises(KeyError, match="as it is"):
        run(3)
    clock.begin("host")
    with pytest.raises(KeyError):
        run(5)
    clock.end()
    assert clock.read() == {"task": 5, "host": 0}


def test_shares_by_hand():
    seconds = dict.fromkeys(time_split.PARTS, 0.0)
    seconds |= {"memory": 1.0, "task": 0.5, "host": 1.5, "denoise": 4.0, "decode": 2.0, "reprojection": 3.0}
    found = time_split.summarise_split(seconds, 100)
    assert found["split_ms_denoise"] == 40.0 and found["split_ms_step"] == 120.0 and found["split_ms_heads"] == 0.0
    assert found["outside_model_share"] == pytest.approx(3 / 12)
    assert found["outside_networks_share"] == pytest.approx(6 / 12)
    assert not undocumented(f"{name}_n4" for name in found)


@pytest.mark.parametrize(("hands", "sampler"), [(False, "blockwise"), (True, "blockwise"), (False, "rolling")])
def test_every_part_of_a_step_takes_time_and_nothing_is_left_behind(hands, sampler):
    """All parts are found: a renamed function of the engine would show here, as an error or as a part of 0 ms. A
    rolling sampler commits nothing apart."""
    if hands:
        import gymnasium as gym

        env = gym.make("WorldScape-Hand-v0", weights="debug", starts="drawn")
    else:
        env = make_env(sampler=sampler)
    env.reset(seed=0)
    core, engine = core_of(env), engine_of(env)
    before = [dict(vars(each)) for each in (engine, engine.codec, core.task, engine.model.heads.events)]
    recall, draw = WorldMemory.recall, choose_draw(env)
    seen = []

    def run(around):
        begin = time.perf_counter()
        time_steps(env, 10, 1, draw=draw, around=around)
        seen.append(time.perf_counter() - begin)

    found = time_split.split_time(core, run, "cpu")
    is_used = {part: found[f"split_ms_{part}"] > 0 for part in time_split.PARTS}
    assert all(used for part, used in is_used.items() if part != "commit" or sampler == "blockwise")
    parts = sum(found[f"split_ms_{part}"] for part in time_split.PARTS)
    assert found["split_ms_step"] == pytest.approx(parts) and found["split_ms_step"] < 1000 * seen[0] / 30
    assert 0 < found["outside_model_share"] < found["outside_networks_share"] < 1
    assert WorldMemory.recall is recall
    after = [vars(each) for each in (engine, engine.codec, core.task, engine.model.heads.events)]
    assert [each.keys() for each in before] == [each.keys() for each in after]


def test_timers_change_no_dream():
    envs, twin = make_vec(2), make_vec(2)
    envs.reset(seed=0)
    twin.reset(seed=0)
    clock = Clock()
    with time_split.clocked(core_of(envs), clock):
        clock.begin("host")
        timed = [envs.step(np.array([1, 5])) for _ in range(3)]
        clock.end()
    assert_same(timed, [twin.step(np.array([1, 5])) for _ in range(3)])
    assert clock.read()["denoise"] > 0


def test_on_cuda_events_in_the_stream_are_the_marks(monkeypatch):
    """Without a device: events that lie half a second behind the host, read after one wait."""
    log, now = [], [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert stream == "stream of cuda:1"
            self.at = now[0] + 0.5

        def elapsed_time(self, end):
            assert log == ["wait for cuda:1"]
            return 1000 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append(f"wait for {device}"))
    clock = Clock("cuda:1")
    clock.begin("host")
    now[0] = 1.0
    clock.begin("denoise")
    now[0] = 3.0
    clock.end()
    clock.end()
    assert log == []
    assert clock.read() == {"host": 1.0, "denoise": 2.0}

"""Time of drawing 3D Gaussians with the plain PyTorch rasteriser, forward and with gradients.

    python benchmarks/rasteriser.py --gaussians 2000 --size 64 --threads 2

Random Gaussians of 3 to 10 cm fill the view between 1 and 5 m. Processor time is given beside the clock's, because it
does not depend on what else the machine does. The last line is one JSON object, its names explained in docs/metrics.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from worldscape.evaluate.report import Report, describe_device, find_commit, print_report
from worldscape.splats.gaussians import Gaussians
from worldscape.splats.render import render

WARM_UP = 3


def make_scene(number: int) -> Gaussians:
    """`number` random Gaussians in front of a camera at the origin, always the same."""
    generator = torch.Generator().manual_seed(0)
    place, scale, logit = (torch.rand(1, number, n, generator=generator) for n in (3, 3, 1))
    return Gaussians(
        means=place * 4.0 + torch.tensor([-2.0, -2.0, 1.0]),
        quaternions=torch.randn(1, number, 4, generator=generator),
        log_scales=(0.03 + 0.07 * scale).log(),
        opacity_logits=4.0 * logit[..., 0] - 1.0,
        harmonics=0.5 * torch.randn(1, number, 4, 3, generator=generator),
    )


def time_calls(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median milliseconds of a call by the clock, and mean milliseconds of processor time."""
    for _ in range(WARM_UP):
        call()
    clock, begin = [], time.process_time()
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        clock.append(time.perf_counter() - start)
    return 1e3 * statistics.median(clock), 1e3 * (time.process_time() - begin) / repeats


def measure(number: int, size: int, repeats: int) -> dict[str, float]:
    """Flat metrics of one setting."""
    scene, pose = make_scene(number), torch.eye(4)[None, None]
    intrinsics = torch.tensor([[[0.6, 0.6, 0.5, 0.5]]])
    parameters = Gaussians(*(part.requires_grad_(True) for part in scene))

    @torch.no_grad()
    def draw() -> None:
        render(scene, pose, intrinsics, size)

    def learn() -> None:
        picture = render(parameters, pose, intrinsics, size)
        (picture.rgb.sum() + picture.depth.sum() + picture.alpha.sum()).backward()

    forward, both = time_calls(draw, repeats), time_calls(learn, repeats)
    found = {"forward_ms": forward[0], "forward_cpu_ms": forward[1]}
    return found | {"backward_ms": both[0] - forward[0], "backward_cpu_ms": both[1] - forward[1]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    begin = time.perf_counter()
    metrics = {"gaussians": args.gaussians, "pixels": args.size**2} | measure(args.gaussians, args.size, args.repeats)
    report = Report(
        name="rasteriser",
        preset="none",
        weights="none",
        device=describe_device("cpu"),
        seconds=time.perf_counter() - begin,
        metrics=metrics,
        commit=find_commit(),
    )
    print_report(report)


if __name__ == "__main__":
    main()

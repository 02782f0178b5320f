"""Training beside a busy neighbour: `python benchmarks/neighbour.py`.

How long OpenMP's threads spin at a barrier decides what a second busy process costs: a thread that
spins keeps the core on which the one it waits for could run. Milliseconds of a training step of
ResNet-50 at 32 x 32, batch 32, and of the small ResNet at 8 x 8, batch 64, in a process of its own
for each setting, alone and beside one process that computes all the time; the best of `--repeats`
medians. `passive` waits without spinning.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STEPS = {"resnet50": 12, "small": 150}
POLICIES = {
    "torch's default": {},
    "spin 100": {"GOMP_SPINCOUNT": "100"},
    "spin 300": {"GOMP_SPINCOUNT": "300"},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "spin 100,000": {"GOMP_SPINCOUNT": "100000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
CHILD = """
import sys, time, statistics, torch, torchvision
sys.path.insert(0, sys.argv[3])
from lightning_modules.models import SmallResNet
name, steps = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
model = torchvision.models.resnet50(num_classes=10) if name == "resnet50" else SmallResNet(10)
x = torch.randn(32, 3, 32, 32) if name == "resnet50" else torch.randn(64, 1, 8, 8)
y = torch.randint(0, 10, (len(x),))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
taken = []
for _ in range(steps):
    begin = time.perf_counter()
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    taken.append(time.perf_counter() - begin)
print(1000 * statistics.mean(taken[len(taken) // 4:]))
"""


def spin() -> None:
    while True:
        sum(range(10_000))


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    busy = [multiprocessing.Process(target=spin, daemon=True) for _ in range(count)]
    for process in busy:
        process.start()
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.join()


def step_ms(model: str, policy: str) -> float:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "GOMP_", "KMP_"))
    }
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    words = [sys.executable, "-c", CHILD, model, str(STEPS[model]), root]
    done = subprocess.run(
        words, env={**inherited, **POLICIES[policy]}, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--repeats", type=int, default=2)
    arguments.add_argument("--models", nargs="+", default=list(STEPS), choices=list(STEPS))
    arguments.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    given = arguments.parse_args()
    for model in given.models:
        print(f"{model}: ms of a step alone | beside one busy process | ratio")
        for policy in given.policies:
            times = []
            for count in (0, 1):
                with neighbours(count):
                    times.append(
                        statistics.median(step_ms(model, policy) for _ in range(given.repeats))
                    )
            print(
                f"  {policy:16} {times[0]:9.1f} {times[1]:9.1f} {times[1] / times[0]:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

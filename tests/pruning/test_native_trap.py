"""Narrow models in a process that checks its heap: weights in foreign strides corrupt it inside
oneDNN.

The fault sits in the AVX2 kernels, so these are asked for. Slicing that keeps channels-last strides
aborts this test at a width of 7 (torch 2.14.1).
"""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models.resnet import Bottleneck, ResNet

from lightning_modules.pruning.discovery import discover

HEAP_CHECKER = "libc_malloc_debug.so.0"
CHAIN = """
import copy
import pickle
import sys
from pathlib import Path

import numpy as np
import torch
from torchvision.models.resnet import Bottleneck, ResNet

from lightning_modules.pruning.removal import remove

torch.manual_seed(0)
torch.set_num_threads(1)
model = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=4)
# The strides that spread: a user's model may come in channels_last.
model = model.to(memory_format=torch.channels_last)
x, y = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
structure = pickle.loads(Path(sys.argv[1]).read_bytes())
dense, keep, rng = structure, structure.full(), np.random.default_rng(0)
for width in (24, 7, 6, 5, 3, 2, 1):
    smaller = keep.copy()
    for group in dense.groups:
        alive = group.start + np.flatnonzero(keep[group.units])
        dropped = rng.permutation(alive)[width:]
        smaller[dropped] = False
    model = remove(model, structure, smaller)
    keep, structure = smaller, dense.restrict(smaller)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(model.train()(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for tensor in model.state_dict().values():
        contiguous = torch.empty(tensor.shape).stride()
        assert tensor.stride() == contiguous, (tensor.shape, tensor.stride())
    copy.deepcopy(model)
    print(width, loss.item())
"""


def _checker() -> str | None:
    try:
        ctypes.CDLL(HEAP_CHECKER)
    except OSError:
        return None
    return HEAP_CHECKER


@pytest.mark.slow
@pytest.mark.family
@pytest.mark.skipif(
    _checker() is None, reason=f"{HEAP_CHECKER} is part of glibc >= 2.34, not of this system"
)
def test_a_chain_down_to_one_channel_keeps_the_heap_whole(tmp_path: Path) -> None:
    structure = discover(
        ResNet(Bottleneck, [1, 1, 1, 1], num_classes=4), (torch.zeros(1, 3, 64, 64),), seconds=300.0
    )
    (tmp_path / "structure").write_bytes(
        pickle.dumps(structure)
    )  # not what is watched, and slow under the checker
    environment = {
        **os.environ,
        "LD_PRELOAD": HEAP_CHECKER,
        "MALLOC_CHECK_": "3",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CHAIN, str(tmp_path / "structure")],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "24",
        "7",
        "6",
        "5",
        "3",
        "2",
        "1",
    ]

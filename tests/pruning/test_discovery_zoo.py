"""Real models: how much is prunable, that nothing is disturbed, and that limits hold."""

from __future__ import annotations

import contextlib
import copy
import random
import threading
import time

import numpy as np
import pytest
import torch
from models import LARGE, MEDIUM, SMALL, build, case
from torch import Tensor, nn

from lightning_modules.errors import DiscoveryError
from lightning_modules.pruning.cost import prunable_macs_fraction
from lightning_modules.pruning.discovery import discover, ops_pointwise, tracer
from lightning_modules.pruning.discovery.limits import limited

ALL = [*SMALL, *MEDIUM, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
GROUPS = {
    "resnet18": 12,
    "small_vgg": 13,
    "resnet50": 37,
    "resnext50": 21,
    "vgg11_bn": 10,
    "mobilenet_short": 11,
    "mobilenet_v2": 25,
    "mobilenet_v3_small": 27,
    "densenet121": 120,
    "efficientnet_b0": 40,
    "convnext_tiny": 22,
    "regnet_y_400mf": 37,
    "googlenet": 61,
    "shufflenet_v2": 19,
    "lraspp": 30,
}


@pytest.mark.parametrize(
    "name", [*MEDIUM, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
)
def test_every_layer_but_the_output_can_be_pruned(name: str) -> None:
    structure = case(name).structure
    assert structure.source == "export"
    assert len(structure.groups) == GROUPS[name]
    assert prunable_macs_fraction(structure) > (0.97 if name == "shufflenet_v2" else 0.999)
    if name != "shufflenet_v2":
        assert all("output" in skipped.reason for skipped in structure.skipped)


@pytest.mark.parametrize("name", ALL)
def test_a_unit_has_the_same_multiplicity_as_its_group_on_every_axis(name: str) -> None:
    structure = case(name).structure
    rows = [
        *structure.table.values(),
        *(f for p in (*structure.macs, *structure.params) for f in p.factors),
    ]
    for row in rows:
        held = np.bincount(row[row >= 0], minlength=structure.n_units)
        for group in structure.groups:
            assert len(set(held[group.units].tolist())) == 1
    for group in structure.groups:
        axes = {axis for axis, row in structure.table.items() if (row == group.start).any()}
        assert axes == {(member.tensor, member.dim) for member in group.members}
        assert any(member.role == "out" for member in group.members)


@pytest.mark.parametrize("name", ["resnet18", "encoder", "branching", "shared"])
def test_the_model_its_flags_and_the_random_state_are_untouched(name: str) -> None:
    model, inputs = build(name)
    model.train()
    next(model.children()).eval()
    next(model.parameters()).requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    attributes = [dict(module.__dict__) for module in model.modules()]
    kept = [x.clone() for x in inputs]
    random.seed(0)
    torch.manual_seed(0)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    fast, grad = torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()
    discover(model, inputs)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    assert (torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()) == (fast, grad)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert [list(module.__dict__) for module in model.modules()] == [list(a) for a in attributes]
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert all(torch.equal(x, y) for x, y in zip(inputs, kept, strict=True))


def test_a_wrong_rule_is_caught_by_trying_and_only_its_group_is_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A concatenation taken for an addition of its first part ties nothing of the second part."""

    def forgetful(trace, node):  # type: ignore[no-untyped-def]
        return ["", trace.labels.new(node.meta["val"].shape[1]), "", ""]

    monkeypatch.setitem(tracer.RULES, "max_pool2d", forgetful)
    model, inputs = build("unet")
    structure = discover(model, inputs)
    why = {s.name: s.reason for s in structure.skipped}
    assert "verification" in why["down1.0"]
    assert "verification" in why["down2.0"]
    assert {"deep.0", "up2", "mix2.0", "up1", "mix1.0"} <= {
        group.name for group in structure.groups
    }
    assert ops_pointwise.RULES["max_pool2d"] is ops_pointwise.pool


class Slow(nn.Module):
    """Holds the processor, or memory, in Python for ten seconds."""

    def __init__(self, megabytes: int = 0) -> None:
        super().__init__()
        self.layer, self.megabytes = nn.Linear(4, 4), megabytes

    def forward(self, x: Tensor) -> Tensor:
        hoard = []
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                hoard.append(bytearray(self.megabytes * 1_000_000))
                sum(range(300_000))  # at work, for about 20 ms
            except Exception:
                pass
        return self.layer(x)


@pytest.mark.parametrize(
    ("megabytes", "limits", "word"),
    [(0, {"seconds": 0.5}, "0.5 s"), (20, {"memory_gb": 0.2}, "0.2 GB")],
)
def test_limits_end_discovery_from_any_thread_and_leave_nothing_behind(
    megabytes: int, limits: dict[str, float], word: str
) -> None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            discover(Slow(megabytes), (torch.randn(1, 4),), **limits)
        except BaseException as error:
            caught.append(error)

    threads, start = threading.active_count(), time.monotonic()
    worker = threading.Thread(target=run)
    worker.start()
    worker.join()
    run()
    assert time.monotonic() - start < 8
    assert [type(error) for error in caught] == [DiscoveryError] * 2
    assert all(word in str(error) for error in caught)
    assert threading.active_count() == threads
    assert sum(range(100_000)) == 4_999_950_000


def _work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_result_that_comes_as_the_limit_strikes_leaves_no_pending_exception() -> None:
    rounds = 0
    for pause in np.linspace(0.04, 0.06, 40):
        with contextlib.suppress(DiscoveryError):
            limited(lambda p=pause: _work(p), seconds=0.05, memory_gb=1.0, period=0.001)
        rounds += sum(1 for _ in range(1000))  # where an exception still pending would strike
    assert rounds == 40 * 1000


def test_waiting_while_others_have_the_processor_is_not_counted() -> None:
    assert limited(lambda: time.sleep(0.6) or 7, seconds=0.2, memory_gb=1.0, period=0.01) == 7


def test_waiting_for_ever_is_ended() -> None:
    with pytest.raises(DiscoveryError, match="must end within"):
        limited(
            lambda: [time.sleep(0.01) for _ in range(1_000)],
            seconds=0.05,
            memory_gb=1.0,
            period=0.01,
        )


def test_an_error_inside_passes_through_the_limits() -> None:
    with pytest.raises(ZeroDivisionError):
        limited(lambda: 1 // 0, seconds=5.0, memory_gb=1.0)

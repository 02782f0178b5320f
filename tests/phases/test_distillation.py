"""Maps inside the dense model as targets for those of a pruned one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.data import digits
from lightning_modules.errors import ConfigError
from lightning_modules.models import SmallResNet
from lightning_modules.phases.distillation import AttentionTransfer, Distillation, distilled
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.thresholds import choose
from lightning_modules.tasks import Classification

DATA = digits()


def small(seed: int = 0) -> SmallResNet:
    torch.manual_seed(seed)
    return SmallResNet(10, width=4)


def transfer(teacher: nn.Module, *modules: str) -> AttentionTransfer:
    return AttentionTransfer(teacher, modules or ("stages.0", "stages.2"))


def batch_of() -> list[Tensor]:
    return next(iter(DATA.train_batches(0)))


def hooks_of(*models: nn.Module) -> int:
    return sum(len(module._forward_hooks) for model in models for module in model.modules())


def test_identical_models_are_not_apart() -> None:
    teacher, student, batch = small().eval(), small().eval(), batch_of()
    features = transfer(teacher)
    with features.watching(student):
        student(batch[0])
        assert float(features(Inputs((batch[0],))).detach()) == 0.0
    assert hooks_of(teacher, student) == 0


def test_maps_apart_in_closed_form() -> None:
    teacher, student, batch = small(0).eval(), small(1).eval(), batch_of()
    features = transfer(teacher, "stages.0")
    with features.watching(student):
        student(batch[0])
        found = features(Inputs((batch[0],)))

    def attention(model: SmallResNet) -> Tensor:
        out = model.stages[0](F.relu(model.bn1(model.conv1(batch[0])))).square().sum(1).flatten(1)
        return out / out.norm(dim=1, keepdim=True)

    torch.testing.assert_close(
        found, 0.5 * (attention(student) - attention(teacher)).square().sum(1).mean()
    )


def test_narrower_students_learn_from_maps() -> None:
    teacher, dense, batch = small(0).eval(), small(1), batch_of()
    structure = discover(dense, (batch[0][:1],))
    kept = structure.sizes // 2
    student = remove(
        dense,
        structure,
        choose(structure, np.arange(structure.n_units, dtype=float), structure.full(), kept),
    )
    features = transfer(teacher)
    optimizer, seen = torch.optim.SGD(student.parameters(), lr=1.0), []
    before = copy.deepcopy(teacher.state_dict())
    with features.watching(student):
        for _ in range(10):
            student(batch[0])
            loss = features(Inputs((batch[0],)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(float(loss.detach()))
    assert seen[-1] < 0.8 * seen[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_a_task_is_trained_with_what_the_maps_are_apart() -> None:
    teacher, student, batch = small(0).eval(), small(1).eval(), batch_of()
    task, features = Classification(student, 10), transfer(teacher)
    plain = task.training_step(batch, 0)
    how = Distillation(
        lambda batch, inputs: inputs.call(teacher), task.divergence, weight=0.0, features=features
    )
    with features.watching(student), distilled(task, how):
        mixed = task.training_step(batch, 0)
        torch.testing.assert_close(mixed, plain + features(Inputs((batch[0],))))


def test_modules_that_a_student_has_lost_are_passed_over() -> None:
    torch.manual_seed(0)
    teacher, batch = SmallResNet(10, width=4, blocks=2).eval(), batch_of()
    student = copy.deepcopy(teacher)
    student.stages[0][1] = nn.Identity()
    found = []
    for modules in (("stages.0", "stages.0.1.conv2"), ("stages.0",)):
        features = transfer(teacher, *modules)
        with features.watching(student):
            student(batch[0])
            found.append(features(Inputs((batch[0],))))
    assert float(found[0].detach()) > 0.0
    torch.testing.assert_close(*found)


class Sequence(nn.Module):
    """Tokens, then a recurrent layer, whose output is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.fc = (
            nn.Linear(8, 6),
            nn.LSTM(6, 5, batch_first=True),
            nn.Linear(5, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(self.embed(x[:, 0]))[0][:, -1])


def test_maps_of_tokens_are_over_the_tokens() -> None:
    teacher, student, batch = Sequence(), Sequence(), batch_of()
    student.embed, student.rnn = nn.Linear(8, 3), nn.LSTM(3, 5, batch_first=True)
    features = transfer(teacher, "embed")
    with features.watching(student):
        student(batch[0])
        assert float(features(Inputs((batch[0],))).detach()) > 0.0


@pytest.mark.parametrize(("module", "found"), [("fc", r"\[64, 10\]"), ("rnn", "tuple")])
def test_what_gives_no_map_is_refused_and_no_hook_is_left(module: str, found: str) -> None:
    teacher, student, batch = Sequence(), Sequence(), batch_of()
    features = transfer(teacher, module)
    with (
        pytest.raises(ConfigError, match=f"needs maps .*; '{module}' gives {found}"),
        features.watching(student),
    ):
        student(batch[0])
    with pytest.raises(ConfigError, match=f"needs maps .*; '{module}' gives {found}"):
        features(Inputs((batch[0],)))
    assert hooks_of(teacher, student) == 0


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"names no modules of the model: \['stages.7'\]; nearest: stages"
    ):
        transfer(small(), "stages.0", "stages.7")

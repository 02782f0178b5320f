"""Activation pruning: which inputs go, what it does to gradients, and what the layers then see."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_modules.errors import PlanError
from lightning_modules.models import SmallResNet
from lightning_modules.pruning.activations import ActivationPruning, activation_densities, attached
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.removal import remove

CPU = torch.device("cpu")
SHAPES = [(3, 8), (2, 4, 5), (2, 3, 4, 4)]


class Net(nn.Module):
    """A convolution, then a linear layer; `seen` are their last inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).flatten(1))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def topk(level: float, *tensors: str) -> ActivationPruning:
    return ActivationPruning("topk", level, tensors)


def threshold(level: float, *tensors: str) -> ActivationPruning:
    return ActivationPruning("threshold", level, tensors)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@given(share=st.floats(0, 1), seed=st.integers(0, 99), values=st.sampled_from([0, 1, 3]))
@settings(max_examples=40)
def test_topk_keeps_the_share_of_each_sample_to_the_element(
    shape: tuple[int, ...], share: float, seed: int, values: int
) -> None:
    torch.manual_seed(seed)
    x = (
        torch.randn(shape) if values == 0 else torch.randint(-values, values, shape) + 0.5
    )  # with ties, without zeros
    found, n = topk(share).pruned(x), x[0].numel()
    for before, after in zip(x, found, strict=True):
        stays = after != 0
        assert int(stays.sum()) == max(1, round(share * n))
        assert torch.equal(after[stays], before[stays])
        assert bool(stays.all()) or before[stays].abs().min() >= before[~stays].abs().max()


def test_topk_leaves_fewer_where_most_are_zero_and_never_invents_any() -> None:
    x = torch.tensor([[0.0, 0.0, 3.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.0] * 8])
    assert torch.equal(topk(0.5).pruned(x), x)
    assert topk(1 / 8).pruned(x).tolist() == [[0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0] * 8]


def test_topk_of_equal_activations_does_not_empty_a_layer() -> None:
    assert (topk(0.25).pruned(torch.ones(2, 8)) != 0).sum(1).tolist() == [2, 2]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_threshold_keeps_from_the_level_on(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    level = float(x.abs().flatten()[0])
    assert torch.equal(threshold(level).pruned(x), torch.where(x.abs() >= level, x, 0.0))
    assert torch.equal(threshold(0.0).pruned(x), x)


@pytest.mark.parametrize("how", [topk(0.3), threshold(0.7)], ids=["topk", "threshold"])
def test_gradients_pass_where_activations_do(how: ActivationPruning) -> None:
    x = torch.randn(3, 4, 5, requires_grad=True)
    found = how.pruned(x)
    found.backward(torch.full_like(x, 2.0))
    torch.testing.assert_close(x.grad, 2.0 * (found != 0))


@pytest.mark.parametrize(
    ("kind", "level"),
    [("topk", 1.1), ("topk", -0.1), ("threshold", -1.0), ("largest", 0.5), ("topk", float("nan"))],
)
def test_nonsense_is_refused(kind: str, level: float) -> None:
    with pytest.raises(PlanError, match="a threshold >= 0 or a topk share in \\[0, 1\\]; got"):
        ActivationPruning(kind, level, ())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "how", [topk(0.3, "fc.weight"), threshold(0.4, "fc.weight")], ids=["topk", "threshold"]
)
def test_a_model_computes_with_pruned_inputs_inside_the_block_only(how: ActivationPruning) -> None:
    model, x = net(), torch.randn(5, 1, 8, 8)
    plain = model(x)
    with attached(model, how):
        inside = model(x)
    torch.testing.assert_close(inside, model.fc(how.pruned(torch.relu(model.conv(x)).flatten(1))))
    assert not torch.allclose(inside, plain)
    assert torch.equal(model(x), plain)
    with attached(model, None):
        assert torch.equal(model(x), plain)


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def test_hooks_are_gone_after_an_exception_too() -> None:
    model = net()
    with attached(model, topk(0.3, "conv.weight", "fc.weight")):
        assert hooks_of(model) == 2
    with pytest.raises(RuntimeError), attached(model, topk(0.3, "conv.weight", "fc.weight")):
        model(torch.randn(5, 1, 3, 3))
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError):
        activation_densities(
            model, ["conv.weight", "fc.weight"], [Inputs((torch.randn(5, 1, 3, 3),))], CPU
        )
    assert hooks_of(model) == 0


def test_tensors_that_no_layer_owns_are_left_alone() -> None:
    model = nn.Sequential(nn.LSTM(8, 4), nn.Embedding(3, 3))
    assert topk(0.5, "0.weight_ih_l0", "1.weight", "gone.weight").attach(model) == []


def test_densities_are_of_what_the_layer_sees() -> None:
    model, names = net(), ["conv.weight", "fc.weight"]
    tensors = [torch.randn(n, 1, 8, 8) for n in (2, 6)]
    tensors[0][0] = 0.0
    batches, inputs = [Inputs((x,)) for x in tensors], torch.cat(tensors)
    fed = torch.relu(model.conv(inputs)).flatten(1)
    found = activation_densities(model.train(), names, batches, CPU)
    assert found == pytest.approx(
        {"conv.weight": 7 / 8, "fc.weight": float((fed != 0).float().mean())}
    )
    assert not model.training
    with attached(model, topk(0.25, "fc.weight")):
        found = activation_densities(model, names, batches, CPU)
    assert found["conv.weight"] == 7 / 8
    assert found["fc.weight"] == pytest.approx(0.25)
    assert activation_densities(model, names, [], CPU) == {}
    assert hooks_of(model) == 0


def test_density_is_over_all_values_and_not_over_batches() -> None:
    model = net()
    batches = [Inputs((torch.ones(1, 1, 8, 8),)), Inputs((torch.zeros(3, 1, 8, 8),))]
    assert activation_densities(model, ["conv.weight"], batches, CPU) == {"conv.weight": 0.25}


class Tied(nn.Module):
    """Two layers with one weight; the second sees ones only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.ones_like(self.first(x)))


def test_a_shared_weight_is_pruned_and_counted_in_both_its_layers() -> None:
    model, batches = Tied(), [Inputs((torch.zeros(4, 8),))]
    assert activation_densities(model, ["first.weight"], batches, CPU) == {"first.weight": 0.5}
    with attached(model, topk(0.25, "first.weight")):
        assert activation_densities(model, ["first.weight"], batches, CPU) == {
            "first.weight": 0.125
        }


def test_inside_an_encoder_layer_its_linear_layers_are_pruned_in_evaluation_too() -> None:
    """torch has a fast path that goes round the modules; what attention projects itself is left
    out.
    """
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    names = [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]
    x = torch.randn(3, 5, 8)
    batches = [Inputs((x,))]
    with torch.no_grad():
        plain = model(x)
        with attached(model, topk(0.5, *names)):
            assert not torch.allclose(model(x), plain)
            found = activation_densities(model, names, batches, CPU)
    assert set(found) == {"linear1.weight", "linear2.weight"}
    assert found["linear1.weight"] == 0.5


def test_a_model_without_its_units_and_blocks_is_pruned_under_the_same_names() -> None:
    torch.manual_seed(0)
    dense = SmallResNet(10, width=4, blocks=2)
    structure = discover(dense, (torch.zeros(1, 1, 8, 8),), depth=True)
    names = [name for name, parameter in dense.named_parameters() if parameter.dim() > 1]
    keep = structure.full()
    for group in structure.groups:
        keep[group.start + 1 : group.start + group.size] = False
    block = next(group for group in structure.groups if group.kind == "block")
    keep[block.start] = False
    model = remove(dense, structure, keep).eval()
    left = {name for name in names if not name.startswith(f"{block.name}.")}
    batches = [Inputs((torch.randn(4, 1, 8, 8),))]
    with attached(model, topk(0.5, *names)):
        found = activation_densities(model, names, batches, CPU)
    assert set(found) == left < set(names)
    assert all(share <= 0.5 for share in found.values())
    assert found["conv1.weight"] == 0.5

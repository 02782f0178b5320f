"""Known scores of the criteria made of gradients, on nets where derivatives can be written down."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError, PlanError
from lightning_modules.pruning.criteria import (
    Ablation,
    Calibration,
    Criterion,
    Fisher,
    Gradient,
    Grasp,
    Movement,
    Snip,
    SynFlow,
    Taylor,
    WeightCriterion,
)
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.thresholds import Scores

Values = npt.NDArray[np.float64]

W = np.array([[1.0, 2.0], [-1.0, 0.5], [3.0, -1.0]])
V = np.array([2.0, -1.0, 0.5])
X = np.array([[1.0, 3.0], [-2.0, 1.0]])
"""Two batches of one sample. The net is v'Wx and the loss its mean, so that g_W = v x' and g_v = W
x.
"""
MEAN_G = np.outer(V, X.mean(0))


def bilinear() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(W))
        model[1].weight.copy_(torch.from_numpy(V[None]))
    return model.eval()


def mean_output(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).mean()


DATA = Calibration([torch.from_numpy(x[None]) for x in X], mean_output)


def units(
    criterion: Criterion, model: nn.Module | None = None, calibration: Calibration = DATA
) -> Scores:
    model = bilinear() if model is None else model
    structure = discover(copy.deepcopy(model).float(), (calibration.batches[0].float(),))
    return criterion(model, structure, calibration)


def weights(criterion: WeightCriterion) -> tuple[Values, Values]:
    found = criterion.weights(bilinear(), ["0.weight", "1.weight"], DATA)
    return found["0.weight"].numpy(), found["1.weight"].numpy()[0]


def test_gradient_is_the_size_of_the_mean_gradient() -> None:
    np.testing.assert_allclose(units(Gradient()), np.abs(MEAN_G).sum(1))
    first, second = weights(Gradient())
    np.testing.assert_allclose(first, np.abs(MEAN_G))
    np.testing.assert_allclose(second, np.abs(W @ X.mean(0)))


def test_taylor_is_the_square_of_the_exact_loss_change_of_a_linear_net() -> None:
    changes = V * (X @ W.T)  # per batch and unit: what the unit adds to the loss
    np.testing.assert_allclose(units(Taylor()), (changes**2).mean(0))
    one = replace(DATA, batches=DATA.batches[:1])
    np.testing.assert_allclose(
        units(Taylor(), calibration=one), units(Ablation(), calibration=one) ** 2, rtol=1e-9
    )


def test_taylor_per_weight_squares_before_the_mean() -> None:
    first, second = weights(Taylor())
    np.testing.assert_allclose(first, np.mean([(np.outer(V, x) * W) ** 2 for x in X], axis=0))
    np.testing.assert_allclose(second, np.mean([(V * (W @ x)) ** 2 for x in X], axis=0))


def test_taylor_takes_weight_with_bias_and_scale_with_shift() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), model[1].running_mean, model[1].running_var]:
            tensor.uniform_(0.5, 1.5, generator=generator)
        norm, out = model[1], model[2].weight[0]
        x = torch.from_numpy(X)
        spread = (norm.running_var + norm.eps).sqrt()
        before = model[0](x)
        scale = out * norm.weight * before / spread
        shift = out * norm(before)
    rows = [(change**2).mean(0).numpy() for change in (scale, shift)]
    np.testing.assert_allclose(units(Taylor(), model), (rows[0] + rows[1]) / 2)


def test_fisher_is_half_the_mean_square_gradient_times_the_square_weight() -> None:
    saliency = np.mean([np.outer(V, x) ** 2 for x in X], axis=0) * W**2 / 2
    np.testing.assert_allclose(units(Fisher()), saliency.sum(1))
    first, second = weights(Fisher())
    np.testing.assert_allclose(first, saliency)
    np.testing.assert_allclose(second, np.mean([(W @ x) ** 2 for x in X], axis=0) * V**2 / 2)


def test_snip_is_a_share_of_all_sensitivity() -> None:
    sizes = np.abs(MEAN_G * W)
    np.testing.assert_allclose(units(Snip()), sizes.sum(1) / sizes.sum())
    first, second = weights(Snip())
    whole = sizes.sum() + np.abs(V * (W @ X.mean(0))).sum()
    np.testing.assert_allclose(first, sizes / whole)
    assert first.sum() + second.sum() == pytest.approx(1.0)


def test_grasp_is_weight_times_hessian_times_gradient() -> None:
    # second derivatives of v'Wx: of W_ij and v_i x_j, all others 0
    x = X.mean(0)
    np.testing.assert_allclose(units(Grasp()), (W @ x) ** 2)
    first, second = weights(Grasp())
    np.testing.assert_allclose(first, W * np.outer(W @ x, x))
    np.testing.assert_allclose(second, V**2 * (x @ x))


def test_grasp_is_the_gradient_flow_that_goes_with_a_weight() -> None:
    model = (
        nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 1, bias=False))
        .double()
        .eval()
    )
    x = torch.from_numpy(X)
    calibration = Calibration([x], lambda model, batch: model(batch).square().mean())

    def flow() -> float:
        loss = calibration.loss(model, x)
        return sum(
            float(g.square().sum()) for g in torch.autograd.grad(loss, list(model.parameters()))
        )

    score = float(Grasp().weights(model, ["0.weight"], calibration)["0.weight"][1, 0])
    whole, share = flow(), 1e-6
    with torch.no_grad():
        model[0].weight[1, 0] *= 1.0 - share
    assert (whole - flow()) / share == pytest.approx(2.0 * score, rel=1e-4)


def test_movement_of_one_step_is_minus_weight_times_gradient() -> None:
    np.testing.assert_allclose(units(Movement(steps=1)), -(MEAN_G * W).sum(1))
    first, second = weights(Movement(steps=1))
    np.testing.assert_allclose(first, -MEAN_G * W)
    np.testing.assert_allclose(second, -V * (W @ X.mean(0)))


def test_movement_of_two_steps_follows_descent() -> None:
    lr, x = 0.1, X.mean(0)
    moved_w, moved_v = W - lr * np.outer(V, x), V - lr * W @ x
    expected = -(W * np.outer(V, x)) - moved_w * np.outer(moved_v, x)
    np.testing.assert_allclose(units(Movement(steps=2, lr=lr)), expected.sum(1))


def test_synaptic_flow_is_the_share_of_paths_through_a_unit() -> None:
    paths = np.abs(V) * np.abs(W).sum(1)
    np.testing.assert_allclose(units(SynFlow()), paths / paths.sum())
    first, second = weights(SynFlow())
    np.testing.assert_allclose(first, np.abs(V)[:, None] * np.abs(W) / paths.sum())
    np.testing.assert_allclose(second, paths / paths.sum())


def test_synaptic_flow_is_conserved() -> None:
    """Tanaka et al. 2020, theorems 1 and 2: what enters a unit leaves it, and every layer carries
    all of it.
    """
    net = nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU6(),
        nn.Conv2d(5, 4, 3, bias=False),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(4 * 4, 3, bias=False),
    )
    with torch.no_grad():
        net[1].running_mean.fill_(-1.0)
        net[1].running_var.copy_(torch.linspace(0.5, 1.5, 5))
        net[1].weight.copy_(torch.linspace(1.5, -0.5, 5))
    calibration = Calibration([torch.zeros(3, 2, 6, 6)], mean_output)
    names = ["0.weight", "1.weight", "3.weight", "6.weight"]
    first, scale, second, last = (
        flow.numpy() for flow in SynFlow().weights(net, names, calibration).values()
    )
    assert [flow.sum() for flow in (first, scale, second, last)] == pytest.approx([1.0] * 4)
    np.testing.assert_allclose(first.sum((1, 2, 3)), second.sum((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(first.sum((1, 2, 3)), scale, rtol=1e-5)
    np.testing.assert_allclose(second.sum((1, 2, 3)), last.reshape(3, 4, 4).sum((0, 2)), rtol=1e-5)


def test_synaptic_flow_ignores_tokens() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embed(tokens).mean(1))

    net = Net()
    flows = [
        SynFlow().weights(
            net, ["embed.weight"], Calibration([torch.full((2, 3), token)], mean_output)
        )["embed.weight"]
        for token in (0, 4)
    ]
    assert torch.equal(*flows)
    assert (flows[0] > 0.0).all()


class Deaf(nn.Module):
    """The first layer's output is cut off from gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x).detach()))))


@pytest.mark.parametrize("criterion", [Gradient(), Taylor(), Fisher(), Snip(), Grasp(), Movement()])
def test_weights_out_of_reach_of_the_loss_are_named(criterion: Criterion) -> None:
    model = Deaf()
    structure = discover(model, (torch.zeros(1, 2),))
    calibration = Calibration([torch.ones(2, 2)], lambda model, batch: model(batch).square().mean())
    with pytest.raises(PlanError, match="group 'first' has none"):
        criterion(model, structure, calibration)
    with pytest.raises(PlanError, match=r"does not reach \['first.weight'\]"):
        criterion.weights(model, ["first.weight", "second.weight"], calibration)  # type: ignore[attr-defined]


def test_a_loss_without_gradient_is_refused() -> None:
    with pytest.raises(PlanError, match="this one has no gradient"):
        units(
            Taylor(),
            calibration=replace(DATA, loss=lambda model, batch: model(batch).mean().detach()),
        )


@pytest.mark.parametrize(
    "criterion", [Gradient(), Taylor(), Fisher(), Snip(), Grasp(), Movement(), SynFlow()]
)
def test_without_batches_there_is_no_score(criterion: WeightCriterion) -> None:
    with pytest.raises(PlanError, match="calibration_batches"):
        criterion.weights(bilinear(), ["0.weight"], replace(DATA, batches=[]))


def test_sensitivity_of_a_net_of_zeros_is_refused() -> None:
    with pytest.raises(PlanError, match="here all are 0"):
        units(Snip(), calibration=replace(DATA, loss=lambda model, batch: 0.0 * model(batch).sum()))


def test_flow_that_stops_is_refused() -> None:
    model = bilinear()
    nn.init.zeros_(model[1].weight)
    with pytest.raises(PlanError, match="here it does not"):
        SynFlow().weights(model, ["0.weight"], DATA)


def test_flow_needs_the_loss_to_call_the_model() -> None:
    with pytest.raises(PlanError, match="never calls model"):
        SynFlow().weights(
            bilinear(), ["0.weight"], replace(DATA, loss=lambda model, batch: batch.sum())
        )


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"lr": 0.0}])
def test_movement_without_steps_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(arguments))} must be"):
        Movement(**arguments)  # type: ignore[arg-type]


def test_descent_that_diverges_says_so() -> None:
    steep = replace(DATA, loss=lambda model, batch: model(batch).pow(4).mean())
    with pytest.raises(PlanError, match=r"lr 100 it diverges in step \d+ of 30; lower it"):
        units(Movement(steps=30, lr=100.0), calibration=steep)

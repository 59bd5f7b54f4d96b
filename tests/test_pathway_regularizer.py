"""PathwayLatentRegularizer on a GSNN: its losses, its captures, and what it refuses."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from gsnn.models.GSNN import GSNN
from gsnn.models.norms import NORMS
from gsnn.models.PathwayLatentRegularizer import PathwayLatentRegularizer
from gsnn.models.pathways import shuffle_nodes
from gsnn.simulate.scenarios import disconnected_pathways

SCENARIO = disconnected_pathways(seed=0)
N, C, L = 12, 4, 3


def make(dtype=torch.float64, **options):
    torch.manual_seed(0)
    graph = SCENARIO.model_graph
    options = {"channels": C, "layers": L, **options}
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, **options).to(dtype)
    torch.manual_seed(1)
    return model, torch.randn(9, 8, dtype=dtype)


def soft_membership():
    """Overlapping pathways with weights, and two nodes in none."""
    table = np.random.default_rng(0).uniform(0.1, 2, (5, N))
    table[np.random.default_rng(1).random((5, N)) < 0.5] = 0
    table[:, [3, 7]] = 0
    return table


def by_definition(activations, table, pairs):
    """Scalar activations (N, B) -> mean correlation of members with scores, mean squared one of pairs."""
    scores = table @ activations / np.abs(table).sum(1, keepdims=True)

    def corr(a, b):
        return 0.0 if a.std() < 1e-12 or b.std() < 1e-12 else np.corrcoef(a, b)[0, 1]

    k, i = np.nonzero(table)
    sim = sum(table[a, b] * corr(activations[b], scores[a]) for a, b in zip(k, i, strict=True))
    return sim / np.abs(table).sum(), np.mean([corr(scores[a], scores[b]) ** 2 for a, b in pairs])


def captured(model):
    """(N, C, B) of each block."""
    return [b._last_activation.detach().numpy().T.reshape(N, C, -1) for b in model.ResBlocks]


class Norm(torch.nn.Module):
    """A custom phi with a parameter of its own."""

    def __init__(self, keepdim=False):
        super().__init__()
        self.keepdim = keepdim
        self.power = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, a):
        return (a.abs() + 0.1).pow(self.power).sum(2, keepdim=self.keepdim)


PAIRS = [(0, 1), (4, 2)]


@pytest.mark.parametrize("share_layers", [True, False])
@pytest.mark.parametrize("phi", ["mean", "learned", "channel", "module"])
def test_losses_follow_the_formulas(phi, share_layers):
    model, x = make(share_layers=share_layers)
    table = soft_membership()
    given = Norm() if phi == "module" else phi
    plain: dict[str, Any] = {"leave_one_out": False, "min_std": 0.0} if phi == "channel" else {}
    regularizer = PathwayLatentRegularizer(
        model, table, PAIRS, lambda_sim=0.3, lambda_dis=0.7, phi=given, eps=1e-12, **plain
    )
    if phi == "learned":
        with torch.no_grad():
            regularizer.readout.copy_(torch.tensor([0.5, -1.0, 2.0, 0.1]))
    model(x)
    sim, dis = regularizer.loss(model)
    parts = []
    for a in captured(model):
        if phi == "channel":
            parts += [by_definition(a[:, c], table, PAIRS) for c in range(C)]
            continue
        readouts = {
            "mean": lambda a: a.mean(1),
            "learned": lambda a: np.einsum("ncb,c->nb", a, [0.5, -1.0, 2.0, 0.1]),
            "module": lambda a: ((np.abs(a) + 0.1) ** 2).sum(1),
        }
        parts.append(by_definition(readouts[phi](a), table, PAIRS))
    expected = np.mean(parts, 0) * [-0.3, 0.7]
    assert [sim.item(), dis.item()] == pytest.approx(expected.tolist(), rel=1e-9)


def test_defaults():
    model, _ = make()
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership)
    assert (regularizer.phi, regularizer.lambda_sim, regularizer.lambda_dis) == ("mean", 0.1, 0.0)
    assert (regularizer.leave_one_out, regularizer.min_std, regularizer.eps) == (False, 0.0, 1e-6)
    channel = PathwayLatentRegularizer(model, SCENARIO.membership, phi="channel")
    assert (channel.leave_one_out, channel.min_std) == (True, 1e-3)


@pytest.mark.parametrize(("phi", "count"), [("mean", 0), ("channel", 0), ("learned", C)])
def test_parameters(phi, count):
    model, x = make()
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership, phi=phi)
    assert sum(p.numel() for p in regularizer.parameters()) == count
    assert not any(isinstance(module, GSNN) for module in regularizer.modules())
    model(x)
    before = regularizer.loss(model)[0].item()
    fresh = PathwayLatentRegularizer(model, SCENARIO.membership, phi=phi)
    fresh.load_state_dict(regularizer.state_dict())
    assert fresh.loss(model)[0].item() == before


def test_channel_leaves_out_what_no_signal_has_reached():
    # In the first block only the first node of each chain has seen the inputs, so no pathway has two.
    model, x = make(layers=1)
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership, phi="channel")
    model(x)
    sim, _ = regularizer.loss(model)
    assert sim.item() == 0
    (sim + 0).backward()


def test_perfect_agreement_is_minus_lambda():
    class Copy(torch.nn.Module):
        def forward(self, a):
            return a[:, :1].mean(2).expand(-1, N)

    model, x = make()
    regularizer = PathwayLatentRegularizer(model, torch.ones(1, N), lambda_sim=0.25, phi=Copy())
    model(x)
    assert regularizer.loss(model)[0].item() == pytest.approx(-0.25)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("phi", ["mean", "channel"])
def test_any_norm_gives_finite_gradients(norm, phi):
    model, x = make(norm=norm, dropout=0.2, node_mlp=norm == "rms")
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership, [(0, 1)], 1.0, 1.0, phi)
    (model(x).square().mean() + sum(regularizer.loss(model))).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(g.isfinite().all()) for g in grads)
    assert any(bool(g.any()) for g in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("phi", ["mean", "learned", "channel"])
def test_dtypes(dtype, phi):
    model, x = make(dtype)
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership, [(0, 1)], 1.0, 1.0, phi)
    (model(x).square().mean() + sum(regularizer.loss(model))).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    reference, x = make(torch.float64)
    exact = PathwayLatentRegularizer(reference, SCENARIO.membership, [(0, 1)], 1.0, 1.0, phi)
    reference(x)
    expected = exact.loss(reference)
    model(x.to(dtype))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype]
    for one, other in zip(regularizer.loss(model), expected, strict=True):
        assert one.item() == pytest.approx(other.item(), abs=tolerance)


@pytest.mark.parametrize("phi", ["learned", "channel"])
def test_autocast_changes_nothing(phi):
    found = []
    for enabled in (False, True):
        model, x = make(torch.float32)
        regularizer = PathwayLatentRegularizer(model, SCENARIO.membership, phi=phi)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model(x)
            found.append(regularizer.loss(model)[0].item())
    assert found[0] == found[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("phi", ["mean", "learned", "channel"])
def test_gpu_agrees_with_cpu_and_repeats_bit_for_bit(phi):
    found = []
    for device in ("cpu", "cuda", "cuda"):
        model, x = make()
        model, x = model.to(device), x.to(device)
        regularizer = PathwayLatentRegularizer(model, soft_membership(), PAIRS, 1.0, 1.0, phi)
        model(x)
        torch.stack(regularizer.loss(model)).sum().backward()
        found.append(model.ResBlocks[0].lin_in.values.grad.cpu())
    assert torch.allclose(found[0], found[1], rtol=1e-9, atol=1e-12)
    assert torch.equal(found[1], found[2])


def containers():
    table = soft_membership()
    coo = torch.tensor(table).to_sparse()
    # A stored zero is no membership, and entries stored twice add up.
    twice = torch.sparse_coo_tensor(
        torch.cat([coo.indices(), coo.indices(), torch.tensor([[0], [3]])], 1),
        torch.cat([coo.values() / 2, coo.values() / 2, torch.zeros(1)]),
        coo.shape,
        check_invariants=True,
    )
    return {
        "list": table.tolist(),
        "tensor": torch.tensor(table),
        "coo": coo,
        "twice": twice,
        "scipy csr": scipy.sparse.csr_array(table),
        "scipy coo": scipy.sparse.coo_matrix(table),
    }


@pytest.mark.parametrize("kind", sorted(containers()))
def test_membership_containers(kind):
    model, x = make()
    losses = []
    for given in (soft_membership(), containers()[kind]):
        regularizer = PathwayLatentRegularizer(model, given, phi="channel")
        model(x)
        losses.append(regularizer.loss(model)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_gradients_agree_with_and_without_checkpointing():
    grads = []
    for checkpoint in (False, True):
        model, x = make(checkpoint=checkpoint)
        regularizer = PathwayLatentRegularizer(model, soft_membership(), phi="channel")
        for _ in range(2):  # the second step follows a backward pass that recomputed the captures
            model.zero_grad()
            (model(x).square().mean() + regularizer.loss(model)[0]).backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in zip(*grads, strict=True))


def test_training_raises_the_correlation_of_members():
    model, x = make(torch.float32)
    y = x @ torch.randn(8, 8)
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership, lambda_sim=1.0, phi="channel")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    history = []
    for _ in range(30):
        optimizer.zero_grad()
        mse = (model(x) - y).square().mean()
        sim, dis = regularizer.loss(model)
        (mse + sim + dis).backward()
        optimizer.step()
        model.get_node_activations(x)  # between steps it switches nothing off
        history.append(sim.item())
    assert history[-1] < history[0] - 0.3
    assert model.training


def test_enable_and_disable():
    model, x = make()
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership)
    assert all(b._store_activations for b in model.ResBlocks)
    regularizer.enable(model)  # again is harmless
    model(x)
    regularizer.disable(model)
    for block in model.ResBlocks:
        assert not block._store_activations
        assert block._last_activation is None and block._last_pre_norm_activation is None
    assert not model._forward_hooks
    model(x)
    assert model.ResBlocks[0]._last_activation is None
    with pytest.raises(RuntimeError, match=r"call enable\(model\) before the forward pass"):
        regularizer.loss(model)
    regularizer.enable(model)
    with pytest.raises(RuntimeError, match=r"a forward pass of the model after enable\(model\), got none"):
        regularizer.loss(model)
    model(x)
    assert regularizer.loss(model)[0].requires_grad


def change_a_parameter(model, x):
    with torch.no_grad():
        next(model.parameters()).add_(1)


def no_grad_pass(model, x):
    with torch.no_grad():
        model(x)


def eval_pass(model, x):
    model.eval()
    model(x)
    model.train()


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (lambda model, x: None, "stale captures"),
        (lambda model, x: model.get_node_activations(x), "stale captures"),
        (no_grad_pass, "a forward pass in training mode and with gradients"),
        (eval_pass, "a forward pass in training mode and with gradients"),
    ],
)
def test_stale_captures(then, message):
    model, x = make()
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership)
    model(x)
    regularizer.loss(model)
    then(model, x)
    with pytest.raises(RuntimeError, match=message):
        regularizer.loss(model)
    model(x)
    regularizer.loss(model)


def test_a_module_may_give_a_trailing_dimension():
    losses = []
    for keepdim in (False, True):
        model, x = make()
        regularizer = PathwayLatentRegularizer(model, SCENARIO.membership, phi=Norm(keepdim))
        model(x)
        losses.append(regularizer.loss(model)[0].item())
    assert losses[0] == losses[1] != 0


def test_captures_from_before_a_step_are_stale():
    model, x = make()
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership)
    model(x)
    change_a_parameter(model, x)
    with pytest.raises(RuntimeError, match="call it before the optimizer's step"):
        regularizer.loss(model)


def test_captures_survive_get_node_activations_between_forward_and_loss():
    model, x = make()
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership)
    model(x)
    model.get_node_activations(x[:2])
    assert regularizer.loss(model)[0].requires_grad


def test_two_regularizers_read_one_pass():
    model, x = make()
    one = PathwayLatentRegularizer(model, SCENARIO.membership, phi="channel")
    other = PathwayLatentRegularizer(model, shuffle_nodes(SCENARIO.membership, 0), phi="channel")
    model(x)
    assert one.loss(model)[0].item() != other.loss(model)[0].item()


def test_copies_of_a_model_have_their_own_captures():
    model, x = make()
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership)
    model(x)
    regularizer.loss(model)
    model.zero_grad()
    regularizer.disable(model)
    regularizer.enable(model)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    model(x)
    expected = regularizer.loss(model)[0].item()
    for twin in twins:
        with pytest.raises(RuntimeError, match="got none"):
            regularizer.loss(twin)
        twin(x)
        assert regularizer.loss(twin)[0].item() == expected


def test_one_sample_is_an_error():
    model, x = make()
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership)
    model(x[:1])
    with pytest.raises(ValueError, match="a batch must have at least 2 samples to correlate over, got 1"):
        regularizer.loss(model)
    model(x[:2])
    assert bool(regularizer.loss(model)[0].isfinite())


def test_another_models_size_is_an_error():
    model, _ = make()
    other, x = make(channels=5)
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership)
    regularizer.enable(other)
    other(x)
    with pytest.raises(ValueError, match="model must have 12 function nodes with 4 channels, got 12 with 5"):
        regularizer.loss(other)


def test_phi_with_a_wrong_output():
    model, x = make()
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership, phi=torch.nn.Identity())
    model(x)
    with pytest.raises(
        ValueError, match=r"phi must map \(B, N, C\) to \(B, N\) = \(9, 12\) or \(B, N, 1\), got \(9, 12, 4\)"
    ):
        regularizer.loss(model)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "model must have ResBlocks"),
        ({"pathway_membership": torch.ones(3, 5)}, ValueError, r"shape \(K, 12\), .* got \(3, 5\)"),
        ({"pathway_membership": np.ones(12)}, ValueError, r"shape \(K, 12\), .* got \(12,\)"),
        ({"pathway_membership": torch.zeros(2, 12)}, ValueError, "must have a member, got only zeros"),
        ({"pathway_membership": np.full((2, 12), np.nan)}, ValueError, "must be finite, got NaN"),
        ({"lambda_sim": -1.0}, ValueError, "lambda_sim must be a non-negative number, got -1.0"),
        ({"lambda_dis": "1"}, ValueError, "lambda_dis must be a non-negative number, got '1'"),
        ({"lambda_dis": 1.0}, ValueError, "dissim_pairs must be given where lambda_dis > 0, got None"),
        ({"eps": 0.0}, ValueError, "eps must be a positive number, got 0.0"),
        ({"min_std": -1.0}, ValueError, "min_std must be a non-negative number, got -1.0"),
        (
            {"phi": "max"},
            ValueError,
            "phi must be one of mean, learned, channel or a torch.nn.Module, got 'max'",
        ),
        ({"dissim_pairs": [(0, 9)]}, ValueError, r"two different pathways from 0 to 3, got \(0, 9\)"),
        ({"dissim_pairs": [(1, 1)]}, ValueError, r"two different pathways from 0 to 3, got \(1, 1\)"),
        ({"dissim_pairs": [(0.5, 1)]}, ValueError, r"dissim_pairs must be pairs \(k, m\) of pathway numbers"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {"model": make()[0], "pathway_membership": SCENARIO.membership, **change}
    with pytest.raises(error, match=message):
        PathwayLatentRegularizer(**arguments)


def test_blocks_that_no_signal_has_reached_are_not_averaged_over():
    """Each membership of each channel by np.corrcoef with the mean of the others, block by block."""
    model, x = make(layers=5)
    table = np.asarray(SCENARIO.membership, dtype=float)
    regularizer = PathwayLatentRegularizer(model, table, lambda_sim=1.0, phi="channel", eps=1e-12)
    model(x)
    sim, _ = regularizer.loss(model)
    blocks = []
    for a in captured(model):  # (N, C, B)
        active = np.sqrt(a.var(2).mean(1)) >= 1e-3
        found = []
        for members in table != 0:
            live = np.flatnonzero(members & active)
            for i in live if len(live) > 1 else ():
                others = a[live[live != i]].mean(0)
                found += [np.corrcoef(a[i, c], others[c])[0, 1] for c in range(C)]
        blocks.append(np.mean(found) if found else np.nan)
    assert np.isnan(blocks[0]) and np.isfinite(blocks[-1])
    assert sim.item() == pytest.approx(-np.nanmean(blocks), rel=1e-6)

"""Baseline edge scores against per-sample computations in numpy."""

import networkx as nx
import numpy as np
import pytest
import torch
from inferer_contract import FUNCTIONS, batches, small_data, small_graph, small_model

from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.optim.edge_scores import NAMES, common_neighbours, degree_product, edge_scores

N, C = len(FUNCTIONS), 3


def captured(model, x, y):
    """z (L, B, N, C), h and g (P, B, N, C) of the sum of samples' losses."""
    was_training = model.training
    model.eval()
    for block in model.ResBlocks:
        block._store_activations = True
    prediction = model(x.clone().requires_grad_())
    z = [block._last_pre_norm_activation for block in model.ResBlocks]
    h = [block._last_activation for block in model.ResBlocks[:-1]]
    error = torch.where(y.isnan(), 0.0, prediction - y.nan_to_num())
    g = torch.autograd.grad(error.square().sum() / y.shape[1], z[1:])
    for block in model.ResBlocks:
        block._store_activations = False
        block._last_pre_norm_activation = block._last_activation = None
    model.train(was_training)
    return [np.stack([t.detach().numpy().reshape(len(x), N, C) for t in part]) for part in (z, h, g)]


def white(values):
    """(B, C) -> (B, rank) centred, orthogonal, of unit variance."""
    u, s, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    return u[:, s > 1e-3 * s.max()] * np.sqrt(len(values)) if s.max() > 1e-8 else u[:, :0]


def oracle(z, h, g, ridge):
    pairs, n = h.shape[:2]
    out = {name: np.zeros((pairs, N, N)) for name in NAMES}
    for p in range(pairs):
        parts = [white(h[p][:, i]) for i in range(N)]
        owner = np.repeat(np.arange(N), [part.shape[1] for part in parts])
        X = np.concatenate(parts, 1)
        centred = g[p] - g[p].mean(0)
        weights = np.linalg.solve(X.T @ X / n + ridge * np.eye(X.shape[1]), X.T @ centred.reshape(n, -1) / n)
        for i in range(N):
            for j in range(N):
                x, y = np.abs(z[p][:, i]).sum(1), np.abs(z[p + 1][:, j]).sum(1)
                if x.std() > 1e-9 and y.std() > 1e-9:
                    out["activation_corr"][p, i, j] = np.corrcoef(x, y)[0, 1]
                magnitudes = np.abs(h[p][:, i]).sum(1) * np.abs(g[p][:, j]).sum(1)
                out["activation_gradient"][p, i, j] = magnitudes.mean()
                out["gradient_sv"][p, i, j] = np.linalg.norm(h[p][:, i].T @ g[p][:, j] / n, 2)
                if parts[i].shape[1]:
                    out["whitened_sv"][p, i, j] = np.linalg.norm(parts[i].T @ centred[:, j] / n, 2)
                    block = weights[owner == i, j * C : (j + 1) * C]
                    out["joint_sv"][p, i, j] = np.linalg.norm(block, 2)
    return {name: values.mean(0) for name, values in out.items()}


@pytest.mark.parametrize("norm", ["layer", "groupbatch", "none"])
@pytest.mark.parametrize("ridge", [0.1, 1.0])
def test_against_numpy(norm, ridge):
    model, (x, y) = small_model(small_graph(), norm=norm, layers=3), small_data()
    y[3:20, 1] = torch.nan
    found = edge_scores(model, small_graph(), batches(x, y, 17), ridge=ridge, verbose=False)
    assert tuple(found) == NAMES
    z, h, g = captured(model, x, y)
    for name, values in oracle(z, h, g, ridge).items():
        assert values.any()
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-9 * np.abs(values).max())


def test_nothing_depends_on_how_the_data_is_cut_or_on_the_kind_of_mean():
    model, (x, y) = small_model(small_graph()), small_data()
    one = edge_scores(model, small_graph(), [(x, y)], verbose=False)
    many = edge_scores(model, small_graph(), batches(x, y, 7), verbose=False)
    mean = edge_scores(
        model, small_graph(), batches(x, y, 7), crit=torch.nn.functional.mse_loss, verbose=False
    )
    for name in NAMES:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-9, atol=1e-12 * one[name].max())
        np.testing.assert_allclose(mean[name], one[name], rtol=1e-9, atol=1e-12 * one[name].max())


def test_samples_without_a_measurement_do_not_count():
    model, (x, y) = small_model(small_graph()), small_data()
    gaps = y.clone()
    gaps[::3] = torch.nan
    keep = ~gaps.isnan().all(1)
    found = edge_scores(model, small_graph(), batches(x, gaps, 10), verbose=False)
    rest = edge_scores(model, small_graph(), [(x[keep], y[keep])], verbose=False)
    for name in NAMES:
        np.testing.assert_allclose(found[name], rest[name], rtol=1e-9, atol=1e-12 * rest[name].max())
    with pytest.raises(ValueError, match="at least one sample with a measured output, got none"):
        edge_scores(model, small_graph(), [(x, torch.full_like(y, torch.nan))], verbose=False)


def test_the_model_is_left_as_it_was():
    model, (x, y) = small_model(small_graph()).train(), small_data()
    model.ResBlocks[0].eval()
    modes = [module.training for module in model.modules()]
    edge_scores(model, small_graph(), batches(x, y), verbose=False)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(block._store_activations for block in model.ResBlocks)
    assert all(block._last_activation is None for block in model.ResBlocks)


def test_mixing_the_channels_changes_the_plain_score_only():
    """Scaling what leaves h and undoing it in `lin_out` is another network of the same function."""
    model, (x, y) = small_model(small_graph(), norm="none", nonlin=torch.nn.Identity), small_data()
    before = edge_scores(model, small_graph(), batches(x, y), verbose=False)
    first = model.ResBlocks[0]
    with torch.no_grad():
        of_node = first.channel_groups[first.lin_in.indices[1]] == 2
        first.lin_in.values[of_node] *= 7.0
        first.lin_in.bias.view(-1)[first.channel_groups == 2] *= 7.0
        first.lin_out.values[first.channel_groups[first.lin_out.indices[0]] == 2] /= 7.0
    after = edge_scores(model, small_graph(), batches(x, y), verbose=False)
    for name in ("whitened_sv", "joint_sv"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-7, atol=1e-10 * before[name].max())
    assert after["gradient_sv"][2].sum() > 1.5 * before["gradient_sv"][2].sum()


def test_graph_scores_against_networkx_and_by_hand():
    graph = small_graph()
    index = graph.edge_index_dict[EDGE_TYPES[0]].T.tolist()
    G = nx.Graph([(i, j) for i, j in index])
    G.add_nodes_from(range(N))
    found = common_neighbours(graph)
    for i in range(N):
        for j in range(N):
            expected = len(list(nx.common_neighbors(G, i, j))) if i != j else G.degree(i)
            assert found[i, j] == expected
    D = nx.DiGraph([(i, j) for i, j in index])
    product = degree_product(graph)
    assert product[8].sum() == 0 and product[:, 8].sum() == 0
    for i in range(8):
        for j in range(8):
            assert product[i, j] == D.out_degree(i) * D.in_degree(j)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan"), float("inf")])
def test_ridge_must_be_positive(ridge):
    with pytest.raises(ValueError, match="ridge must be a positive number, got"):
        edge_scores(small_model(small_graph()), small_graph(), [], ridge=ridge)


def test_bad_input():
    model, graph = small_model(small_graph()), small_graph()
    with pytest.raises(ValueError, match="dataloader must yield at least one sample"):
        edge_scores(model, graph, [], verbose=False)
    with pytest.raises(TypeError, match="model must have ResBlocks"):
        edge_scores(torch.nn.Linear(2, 2), graph, [], verbose=False)
    bare = HeteroGraph(
        {t: i if t != EDGE_TYPES[0] else i[:, :0] for t, i in graph.edge_index_dict.items()},
        graph.node_names_dict,
        warn=False,
    )
    for score in (common_neighbours, degree_product):
        assert not score(bare).any()

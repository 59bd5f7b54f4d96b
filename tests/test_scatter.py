"""The second backend of the sparse products: what it needs, what is kept of the choice, its derivatives."""

import copy
import inspect
import sys
from typing import Any, cast

import pytest
import torch
from dense_oracle import needs_scatter
from test_gsnn import make

from gsnn import io
from gsnn.kernels import scatter
from gsnn.models.GSNN import GSNN
from gsnn.models.SparseLinear import SparseLinear
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer

NEEDED = (
    r"backend='scatter' needs torch-scatter: pip install 'gsnn\[scatter\]' --no-build-isolation \(it is "
    "compiled against the torch that is installed"
)


@pytest.fixture
def absent(monkeypatch):
    """torch-scatter cannot be imported."""
    monkeypatch.setitem(sys.modules, "torch_scatter", None)
    scatter._kernels.cache_clear()
    yield
    scatter._kernels.cache_clear()


def test_without_the_extra_the_error_says_what_to_install(absent):
    with pytest.raises(ImportError, match=NEEDED):
        make(backend="scatter")
    with pytest.raises(ImportError, match=NEEDED):
        SparseLinear(torch.tensor([[0], [0]]), (1, 1), backend="scatter")
    model, x = make()
    assert model(x).isfinite().all()
    with pytest.raises(ValueError, match="backend must be one of bucketed, scatter, got 'csr'"):
        SparseLinear(torch.tensor([[0], [0]]), (1, 1), backend=cast(Any, "csr"))


def test_the_choice_comes_after_all_other_arguments():
    names = list(inspect.signature(GSNN).parameters)
    assert names[-5:] == ["affine", "backend", "edge_signs", "context", "edge_weight_dict"]
    assert list(inspect.signature(SparseLinear).parameters) == ["indices", "size", "bias", "init", "backend"]


@needs_scatter
def test_the_index_tensors_move_with_the_model():
    model, _ = make(backend="scatter")
    moved = copy.deepcopy(model).to("meta")
    assert {tensor.device.type for side in (moved.plan.into, moved.plan.out_of) for tensor in side} == {
        "meta"
    }
    assert {tensor.device.type for side in (model.plan.into, model.plan.out_of) for tensor in side} == {"cpu"}


@needs_scatter
def test_a_saved_model_keeps_its_backend(tmp_path, monkeypatch):
    model, x = make(dtype=torch.float32, backend="scatter", norm="groupbatch")
    model(x)
    io.save(model, tmp_path / "model.safetensors")
    loaded = io.load(tmp_path / "model.safetensors")
    assert loaded.config["backend"] == "scatter"
    assert isinstance(loaded.plan, scatter.ScatterPlan)
    assert torch.equal(loaded(x), model.eval()(x))
    monkeypatch.setitem(sys.modules, "torch_scatter", None)
    scatter._kernels.cache_clear()
    with pytest.raises(ImportError, match=NEEDED):
        io.load(tmp_path / "model.safetensors")
    scatter._kernels.cache_clear()


@needs_scatter
def test_weights_serve_either_backend_and_its_captures_feed_an_inferer():
    bucketed, x = make(n_function=30, dtype=torch.float32)
    scattered = GSNN(
        bucketed.graph.edge_index_dict,
        bucketed.graph.node_names_dict,
        **{**bucketed.config, "backend": "scatter"},
    )
    scattered.load_state_dict(bucketed.state_dict())
    torch.testing.assert_close(scattered(x), bucketed(x))
    y = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    tables = []
    for model in (bucketed, scattered):
        inferer = MagnitudeEdgeInferer(model, model.graph)
        inferer.fit([(x, y)], verbose=False)
        tables.append(inferer.evaluate().set_index(["src_idx", "dst_idx"]).sort_index()["corr"])
    torch.testing.assert_close(
        *(torch.tensor(table.to_numpy()) for table in tables), rtol=1e-3, atol=1e-3, equal_nan=True
    )


@needs_scatter
@pytest.mark.parametrize("function", [scatter.spread, scatter.collect])
def test_derivatives_of_the_sums_to_the_third_order(function):
    """Rows and nodes without a weight, rows and nodes with several, weights in no order."""
    generator = torch.Generator().manual_seed(0)
    rows, nodes = torch.tensor([3, 0, 3, 1, 0]), torch.tensor([2, 2, 0, 2, 0])
    where = scatter.incidence(rows, nodes, 5, 4)
    values = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    z = torch.randn(4, 2, 3, generator=generator, dtype=torch.float64)
    spread = torch.zeros(4, 2, 3, dtype=torch.float64)
    collected = torch.zeros(5, 3, dtype=torch.float64)
    for k, (row, node) in enumerate(zip(rows.tolist(), nodes.tolist(), strict=True)):
        spread[node] += values[k].unsqueeze(1) * x[row]
        collected[row] += values[k] @ z[node]
    given, wanted = (x, spread) if function is scatter.spread else (z, collected)
    torch.testing.assert_close(function(given, values, where), wanted)

    inputs = (given.requires_grad_(), values.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, v: function(a, v, where), inputs)

    def squared_slope(a, v):
        slopes = torch.autograd.grad(function(a, v, where).pow(3).sum(), (a, v), create_graph=True)
        return sum(slope.square().sum() for slope in slopes)

    assert torch.autograd.gradgradcheck(squared_slope, inputs)

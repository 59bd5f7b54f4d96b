"""Models under torch.compile: one graph, and few of them over all sizes of a batch."""

import warnings
from typing import Any

import pytest
import torch
from dense_oracle import needs_scatter
from test_gsnn import make


def compiled(model, graphs):
    """``model`` compiled, an error where its graph breaks; each compilation adds one to ``graphs``."""
    aot_eager = torch._dynamo.lookup_backend("aot_eager")

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    return torch.compile(model, backend=backend, fullgraph=True)


@pytest.fixture(autouse=True)
def _a_fresh_compiler():
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler itself
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("options", [{"norm": "groupbatch", "dropout": 0.1}, {"node_mlp": True}])
def test_no_graph_breaks(options):
    model, x = make(dtype=torch.float32, n_function=60, graph={"density": 0.08}, layers=2, **options)
    output = compiled(model, [])(x)
    output.square().sum().backward()
    if not options.get("dropout"):
        torch.testing.assert_close(output, model(x), rtol=1e-5, atol=1e-5)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("norm", "backend"),
    [
        ("layer", "bucketed"),
        ("groupbatch", "bucketed"),
        pytest.param("layer", "scatter", marks=needs_scatter),
    ],
)
def test_two_recompilations_at_most_over_the_sizes_of_a_batch(norm, backend):
    model, _ = make(dtype=torch.float32, n_function=20, layers=1, norm=norm, backend=backend)
    generator = torch.Generator().manual_seed(0)
    graphs: list[Any] = []
    fast = compiled(model, graphs)
    for training in (True, False):
        model.train(training)
        graphs.clear()
        for samples in (64, 32, 48, 7, 100):
            x = torch.randn(samples, 5, generator=generator, requires_grad=True)
            output, expected = fast(x), model(x)
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
            tensors = [x, *model.parameters()]
            got, wanted = (torch.autograd.grad(y.square().mean(), tensors) for y in (output, expected))
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        old = torch.__version__.startswith("2.4.")  # which compiles a norm over the batch for each size anew
        assert 1 <= len(graphs) <= (5 if old else 3)


def test_few_compilations_with_masks_and_edge_states():
    model, _ = make(dtype=torch.float32, layers=1)
    graphs: list[Any] = []
    fast = compiled(model, graphs)
    for samples in (64, 32, 7):
        x = torch.randn(samples, 5)
        edge_mask = torch.rand(samples, model.edge_index.shape[1])
        node_mask = torch.rand(samples, model.num_nodes)
        arguments = {"edge_mask": edge_mask, "node_mask": node_mask, "ret_edge_out": True}
        torch.testing.assert_close(fast(x, **arguments), model(x, **arguments), rtol=1e-5, atol=1e-5)
    assert 1 <= len(graphs) <= 3

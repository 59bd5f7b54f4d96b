"""scikit-learn's own checks of an estimator, but for those listed, each with its reason.

They bring tables of many widths, so the graph is a function of the names; a graph that is given fixes the
number of columns, and the checks would only find that it does.
"""

import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from gsnn import GSNNRegressor, HeteroGraph


class Dense:
    """A graph for any number of features: every input feeds two function nodes, these feed every output.

    No function, whose address would be in the names of the tests, which workers compare.
    """

    def __repr__(self):
        return "Dense()"

    def __call__(self, inputs, outputs):
        return dense(inputs, outputs)


def dense(inputs, outputs):
    pairs = [[i, j] for i in range(len(inputs)) for j in range(2)]
    out = [[j, o] for j in range(2) for o in range(len(outputs))]
    edges = {
        ("input", "to", "function"): torch.tensor(pairs).T,
        ("function", "to", "function"): torch.tensor([[0], [1]]),
        ("function", "to", "output"): torch.tensor(out).T,
    }
    return HeteroGraph(edges, {"input": inputs, "function": ["f0", "f1"], "output": outputs})


WEIGHTS = (
    "weights scale the errors of samples that are all still there: the scaling counts each once, batches are "
    "cut by number of rows, and float32 does not reach the tolerance; repeats in one batch: test_callbacks.py"
)
REASONS = {
    "check_sample_weight_equivalence_on_dense_data": WEIGHTS,
    "check_sample_weight_equivalence_on_sparse_data": WEIGHTS,
}

QUICK = {"channels": 4, "layers": 2, "epochs": 30, "lr": 0.03, "dropout": 0.0, "norm": "none"}


@parametrize_with_checks([GSNNRegressor(Dense(), **QUICK)], expected_failed_checks=lambda estimator: REASONS)
def test_scikit_learns_checks(estimator, check):
    check(estimator)

"""GSNNRegressor: the network as an estimator that scikit-learn can search, validate and chain."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted

from gsnn._checks import one_of, whole
from gsnn.data.match import aligned, as_pair, as_weights, select_columns
from gsnn.estimator.stopping import choose_epochs
from gsnn.estimator.tables import (
    Samples,
    graph_of,
    numeric_inputs,
    numeric_outputs,
    positions,
    text_columns,
)
from gsnn.graph.container import HeteroGraph
from gsnn.graph.depth import default_layers
from gsnn.models.GSNN import GSNN
from gsnn.models.norms import Norm
from gsnn.train.callbacks import EpochState, checked
from gsnn.train.defaults import default_epochs
from gsnn.train.loop import Schedule, predict
from gsnn.train.side_by_side import fit_side_by_side

if TYPE_CHECKING:
    from gsnn.train.history import History


class GSNNRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """A GSNN, or an ensemble of several, with the interface of a scikit-learn regressor.

    The graph fixes the features: X has one column per input node, Y one per output node. DataFrames are
    matched by name, in any order, and a column that is missing is named; arrays have the columns in the
    graph's order. Where an earlier step of a pipeline chooses the columns, ``graph`` is a function of them.
    Y may hold NaN, "not measured". Everything works in the units of X and Y.

    Args:
        graph: a :class:`gsnn.graph.container.HeteroGraph` (or what has its dictionaries), or a function
            ``graph(input names, output names)`` that returns one, called in each ``fit``. Columns without
            names are called x0, x1, ... and y0, y1, ... there.
        channels: C, hidden values per function node.
        layers: L; by default the longest of the shortest paths from an input to an output, within 4 to 12.
        dropout: share of channel values dropped in training.
        norm: see :class:`gsnn.models.GSNN.GSNN`.
        share_layers: all blocks use the same weights.
        model_options: further arguments of GSNN, a dict, such as ``{"edge_signs": "respect"}``, the signs
            being those of the graph's weights, or ``{"context": [...]}``.
        epochs: by default about 2,000 steps, in 30 to 400 epochs; ``'auto'`` tries several lengths inside the
            training samples, see :func:`gsnn.estimator.stopping.choose_epochs`, at several times the cost.
        batch_size, lr, weight_decay, patience, crit, schedule, standardize, restore_best, device: as
            :func:`gsnn.train.loop.fit` takes them; ``standardize`` is True here.
        validation: None, the share of the samples to put aside (groups stay whole), or ``(X_val, Y_val)``.
            The weights of the epoch with the lowest validation loss are kept, and ``patience`` may stop.
        callbacks: called after each epoch of each member; see :func:`gsnn.train.loop.fit`. After an error in
            one, the estimator predicts with what was learnt until then.
        verbose: show progress; a text labels it.
        checkpoint_path, checkpoint_every: a file from which the same ``fit`` goes on after an interruption;
            needs a ``random_state``.
        n_members: networks, trained side by side on the same samples from other initial weights and with
            other batches (a deep ensemble, Lakshminarayanan et al. 2017, arXiv 1612.01474). Predictions are
            their mean.
        random_state: int, RandomState or None (numpy's global state); decides initial weights, batches,
            dropout and the samples put aside.

    Attributes:
        models_: the trained networks, for ``gsnn.explain``, the edge inferers and ``gsnn.save``.
        histories_: what each training saw, :class:`gsnn.train.history.History`.
        graph_: the graph.
        layers_, epochs_: as they were used.
        epochs_choice_: with ``epochs='auto'`` what was tried and why this was chosen.
        n_features_in_, n_outputs_: columns of X and Y.
        feature_names_in_: names of X's columns, where it had names.
        output_names_: names of Y's columns, the order of predictions.
    """

    models_: list[GSNN]
    histories_: list[History]
    graph_: HeteroGraph

    def __init__(
        self,
        graph: Any,
        channels: int = 8,
        layers: int | None = None,
        *,
        dropout: float = 0.2,
        norm: Norm = "groupbatch",
        share_layers: bool = False,
        model_options: Mapping[str, Any] | None = None,
        epochs: int | str | None = None,
        batch_size: int = 64,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
        validation: float | tuple[Any, Any] | None = None,
        patience: int | None = None,
        crit: Any = None,
        schedule: Schedule = "cosine",
        standardize: Any = True,
        restore_best: bool = True,
        device: Any = None,
        callbacks: Any = (),
        verbose: bool | str = False,
        checkpoint_path: Any = None,
        checkpoint_every: int = 1,
        n_members: int = 1,
        random_state: Any = None,
    ) -> None:
        self.graph = graph
        self.channels = channels
        self.layers = layers
        self.dropout = dropout
        self.norm = norm
        self.share_layers = share_layers
        self.model_options = model_options
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.validation = validation
        self.patience = patience
        self.crit = crit
        self.schedule = schedule
        self.standardize = standardize
        self.restore_best = restore_best
        self.device = device
        self.callbacks = callbacks
        self.verbose = verbose
        self.checkpoint_path = checkpoint_path
        self.checkpoint_every = checkpoint_every
        self.n_members = n_members
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(
        self, X: Any, Y: Any = None, groups: Any = None, sample_weight: Any = None, *, y: Any = None
    ) -> GSNNRegressor:
        """Train the networks.

        Args:
            X: (n, N_in) array, DataFrame or sparse matrix.
            Y: (n, N_out) array or DataFrame, or (n,) for a single output; NaN was not measured. Where X and Y
                both name their samples and do so in another order, rows are matched by name.
            groups: (n,) labels; samples of one group stay on one side where ``validation`` is a share.
            sample_weight: (n,) numbers of at least 0, how much each sample's errors count. Rows of weight 0
                are left out.
            y: Y by the name that scikit-learn has for it.

        Raises:
            ValueError: columns that are missing or unknown, values that cannot be, options out of range.
            TypeError: ``graph`` is none, callbacks are none, ``model_options`` that GSNN does not have.
            FloatingPointError: the loss became NaN or infinite.
        """
        n_members, batch_size = whole("n_members", self.n_members), whole("batch_size", self.batch_size)
        calls = checked(self.callbacks)
        if self.checkpoint_path is not None and self.random_state is None:
            raise ValueError("checkpoint_path needs a random_state, as an unseeded fit cannot be repeated")
        if isinstance(self.epochs, str):
            one_of("epochs", self.epochs, ("auto",))
        rng = check_random_state(self.random_state)
        split_seed, *seeds = rng.randint(np.iinfo(np.int32).max, size=1 + n_members).tolist()

        table_x, table_y, found = self._read(X, self._one_of(Y, y))
        graph = found["graph_"]
        layers = found["layers_"] = default_layers(graph) if self.layers is None else self.layers
        models = [self._network(graph, layers, seed) for seed in seeds]
        xs, ys = as_pair(models[0], table_x, table_y, "X", "Y")
        samples = Samples(
            table_x if issparse(table_x) else xs[:].numpy(),
            ys[:].numpy(),
            None if sample_weight is None else as_weights(sample_weight, X, len(xs)).numpy(),
            None if groups is None else np.asarray(aligned(groups, X, "groups")),
        )
        if samples.groups is not None and samples.groups.shape != (len(xs),):
            shape = samples.groups.shape
            raise ValueError(f"groups must have the shape ({len(xs)},), one label a row, got {shape}")
        if samples.weight is not None:
            samples = samples.take(np.flatnonzero(samples.weight > 0))
        aside = self.validation
        if aside is not None and not isinstance(aside, tuple):
            samples, held = samples.split(aside, split_seed)
            aside = held.x, held.y
        elif isinstance(aside, tuple) and len(aside) == 2:
            aside = self._validation_pair(*aside)
        options = {
            "batch_size": batch_size,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "crit": self.crit,
            "schedule": self.schedule,
            "standardize": self.standardize,
            "device": self.device,
        }
        epochs = self.epochs
        if epochs == "auto":
            choice = choose_epochs(
                lambda seed: self._network(graph, layers, seed),
                samples.x,
                samples.y,
                groups=samples.groups,
                sample_weight=samples.weight,
                seed=split_seed,
                verbose=self.verbose,
                **options,
            )
            epochs, found["epochs_choice_"] = choice.epochs, choice
        found["epochs_"] = default_epochs(len(samples), batch_size) if epochs is None else epochs

        def learnt(state: EpochState) -> None:
            """After the first epoch there is something to predict with, whatever happens later."""
            if vars(self).get("models_") is not models:
                self._keep(found, models)

        histories = fit_side_by_side(
            models,
            [(samples.x, samples.y)] * n_members,
            seeds=seeds,
            sample_weight=None if samples.weight is None else [samples.weight] * n_members,
            validation=[aside] * n_members,
            epochs=found["epochs_"],
            patience=self.patience,
            restore_best=self.restore_best,
            callbacks=[learnt, *calls],
            verbose=self.verbose,
            checkpoint_path=self.checkpoint_path,
            checkpoint_every=self.checkpoint_every,
            **options,
        )
        self._keep(found, models)
        self.histories_ = histories
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predictions (n, N_out) in the order of Y's columns, or (n,) where Y was a vector.

        Args:
            X: (n, N_in); columns of a DataFrame by name, of an array in the order they had in ``fit``.
            return_std: return also the standard deviation over the members (n - 1 in the denominator), which
                says how far they agree, and is no interval of what will be measured.

        Raises:
            NotFittedError: before ``fit``.
            ValueError: columns that are missing or unknown, values that cannot be; ``return_std`` with a
                single member.
        """
        check_is_fitted(self, "models_")
        if return_std and len(self.models_) < 2:
            raise ValueError("return_std needs n_members of at least 2, got 1")
        x = self._inputs(X)
        each = np.stack([predict(model, x)[:, self._output_order] for model in self.models_])
        each = each.astype(np.float64)
        if self._vector:
            each = each[:, :, 0]
        mean = each.mean(0)
        return (mean, each.std(0, ddof=1)) if return_std else mean

    def score(self, X: Any, Y: Any = None, sample_weight: Any = None, *, y: Any = None) -> float:
        """Mean over outputs of R2 on their measured samples; outputs with fewer than two play no part.

        Raises:
            ValueError: what :meth:`predict` raises; Y does not fit X, or has no output with two measured
                samples.
        """
        yhat = self.predict(X)
        table = aligned(self._one_of(Y, y), X, "Y")
        if text_columns(table) is not None:
            table = select_columns(table, self.output_names_, "output", "Y")
        targets, _ = numeric_outputs(table)
        yhat = yhat.reshape(len(yhat), -1)
        check_consistent_length(yhat, targets)
        if targets.shape != yhat.shape:
            raise ValueError(f"Y must have {yhat.shape[1]} outputs, got {targets.shape[1]}")
        weight = None if sample_weight is None else as_weights(sample_weight, X, len(targets)).numpy()
        found = []
        for truth, guess in zip(targets.T, yhat.T, strict=True):
            seen = ~np.isnan(truth)
            if seen.sum() > 1:
                weights = None if weight is None else weight[seen]
                found.append(r2_score(truth[seen], guess[seen], sample_weight=weights))
        if not found:
            raise ValueError("Y must have an output with at least two measured samples, got none")
        return float(np.mean(found))

    def _read(self, X: Any, Y: Any) -> tuple[Any, Any, dict[str, Any]]:
        """X and Y with their columns in the graph's order, and what is kept about them."""
        x_names, y_names = text_columns(X), text_columns(Y)
        vector = False
        if y_names is None:
            Y, vector = numeric_outputs(aligned(Y, X, "Y"))
        if x_names is None:
            X = numeric_inputs(X, self)
        check_consistent_length(X, Y)
        graph = graph_of(self.graph, x_names, X.shape[1], y_names, Y.shape[1])
        inputs, outputs = (list(graph.node_names_dict[kind]) for kind in ("input", "output"))
        if x_names is not None:
            X = select_columns(X, inputs, "input", "X")
        if y_names is not None:
            Y = select_columns(Y, outputs, "output", "Y")
        found = {
            "graph_": graph,
            "n_features_in_": len(inputs),
            "n_outputs_": len(outputs),
            "output_names_": outputs if y_names is None else y_names,
            "_vector": vector,
            "_input_order": positions(inputs if x_names is None else x_names, inputs),
            "_output_order": positions(outputs, outputs if y_names is None else y_names),
        }
        if x_names is not None:
            found["feature_names_in_"] = np.array(x_names, dtype=object)
        return X, Y, found

    def _one_of(self, Y: Any, y: Any) -> Any:
        """The targets by either name."""
        if Y is not None and y is not None:
            raise ValueError("Y must be given once, got y as well")
        if Y is None and y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        return y if Y is None else Y

    def _keep(self, found: Mapping[str, Any], models: list[GSNN]) -> None:
        """Take over what a fit has found, in place of what an earlier one had."""
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(self, name)
        for name, value in {**found, "models_": models}.items():
            setattr(self, name, value)

    def _network(self, graph: HeteroGraph, layers: int, seed: int) -> GSNN:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return GSNN(
                graph.edge_index_dict,
                graph.node_names_dict,
                channels=self.channels,
                layers=layers,
                dropout=self.dropout,
                norm=self.norm,
                share_layers=self.share_layers,
                **{"edge_weight_dict": graph.edge_weight_dict, **(self.model_options or {})},
            )

    def _validation_pair(self, X: Any, Y: Any) -> tuple[Any, Any]:
        """Tables for validation, their columns in the graph's order where they have no names."""
        if text_columns(X) is None:
            X = numeric_inputs(X, self)
        if text_columns(Y) is None:
            Y, _ = numeric_outputs(Y)
        return X, Y

    def _inputs(self, X: Any) -> Any:
        """X for prediction, its columns in the graph's order."""
        names = list(self.graph_.node_names_dict["input"])
        if text_columns(X) is not None:
            return numeric_inputs(select_columns(X, names, "input", "X"), self)
        x = numeric_inputs(X, self)
        if x.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {x.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        if hasattr(self, "feature_names_in_"):
            who = type(self).__name__
            message = f"X does not have valid feature names, but {who} was fitted with feature names"
            warnings.warn(message, UserWarning, stacklevel=3)
        return x[:, self._input_order]

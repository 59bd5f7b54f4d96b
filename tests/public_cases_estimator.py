"""Calls of what the estimator, callbacks and weights of samples make public."""

import numpy as np
import pandas as pd
from public_registry import Case, add, call

from gsnn.train.callbacks import EpochState

FIT = {"channels": 2, "layers": 2, "epochs": 2, "random_state": 1}


def state(w):
    return EpochState(1, 3, 0.5, 0.4, 0.1, 1, w.model)


def fit_and_predict(made, w):
    made.fit(*w.frames, groups=np.arange(24) // 2, sample_weight=np.ones(24))
    return made.predict(w.frames[0]), made.score(*w.frames)


add(
    "gsnn.estimator.regressor",
    GSNNRegressor=Case(lambda w: call(w.graph, **FIT, validation=0.25), use=fit_and_predict),
)
add(
    "gsnn.estimator.stopping",
    EpochChoice=lambda w: call(5, {5: 0.1}, "why"),
    choose_epochs=Case(
        lambda w: call(w.new_model, w.x[:6].numpy(), w.y[:6].numpy(), folds=2, lr=1.0), once=True
    ),
)
add(
    "gsnn.estimator.suggestion",
    Suggestion=Case(lambda w: call({"lr": 0.1}, {}, {"lr": "why"}), use=lambda found, w: str(found)),
    suggest=lambda w: call(w.graph, *w.frames),
)
add(
    "gsnn.estimator.tables",
    Samples=Case(
        lambda w: call(w.x.numpy(), w.y.numpy(), None, np.arange(24) // 2),
        use=lambda samples, w: (len(samples), [vars(part) for part in samples.split(0.25, 3)]),
    ),
    text_columns=lambda w: call(w.frames[0]),
    graph_of=lambda w: call(w.graph, None, 3, None, 2),
    numeric_inputs=lambda w: call(w.x.numpy(), None),
    numeric_outputs=lambda w: call(w.y.numpy()),
    positions=lambda w: call(["a", "b"], ["b", "a"]),
)
add(
    "gsnn.train.callbacks",
    EpochState=Case(lambda w: call(*vars(state(w)).values()), use=lambda s, w: s.metrics()),
    checked=lambda w: call([len]),
    stop_asked=lambda w: call([lambda s: s.epoch == 1], state(w)),
)
add("gsnn.train.defaults", default_epochs=lambda w: call(100, 64))


def track(tracker, w):
    tracker.on_epoch(state(w))
    tracker.close()
    return tracker.folder, any(w.folder.glob("logs/events*"))


add(
    "gsnn.train.trackers",
    TensorBoard=Case(lambda w: call(w.folder / "logs"), use=track, needs="tensorboard"),
    MLflow=Case(lambda w: call("run"), needs="mlflow"),
    WandB=Case(lambda w: call(), needs="wandb"),
)


def ensemble(w):
    """Two networks of two folds, untrained, and the errors of a wrong prediction."""
    fold = np.arange(24) % 2
    return {
        "members": tuple((w.new_model(k), w.new_model(k + 2)) for k in (0, 1)),
        "fold": fold,
        "held_out": np.zeros((24, 2)),
        "residuals": w.y.double().numpy(),
    }


add(
    "gsnn.train.uncertainty",
    Ensemble=Case(lambda w: call(**ensemble(w)), use=lambda found, w: found.predict(w.frames[0])),
    Forecast=lambda w: call(*[w.frames[1]] * 4, 0.9),
    fit_ensemble=Case(
        lambda w: call(w.model, *w.frames, folds=2, n_members=1, epochs=1, verbose=False),
        result=lambda found: (found.held_out, found.residuals),
    ),
)
add(
    "gsnn.data.match",
    aligned=lambda w: call(w.frames[1][::-1], w.frames[0], "Y"),
    as_weights=lambda w: call(pd.Series(1.0, w.frames[0].index), w.frames[0], 24),
    is_pandas=lambda w: call(w.frames[0]),
)

"""``fit`` against a training loop written out here: AdamW from its paper's formulas, batches of unequal size.

Nothing of the package takes part in the oracle but the network's forward pass and the order of the samples,
which is recorded from the targets that the loss is given.
"""

import math

import numpy as np
import pytest
import torch

from gsnn.models.GSNN import GSNN
from gsnn.train import fit

LR, DECAY, EPOCHS, SIZE = 0.03, 0.2, 4, 8  # 21 rows in batches of 7: uneven where rows are left out


def model():
    edges = {
        ("input", "to", "function"): torch.tensor([[0, 1, 2], [0, 1, 2]]),
        ("function", "to", "function"): torch.tensor([[0, 1, 2, 3], [3, 3, 1, 2]]),
        ("function", "to", "output"): torch.tensor([[3, 2], [0, 1]]),
    }
    names = {"input": ["a", "b", "c"], "function": ["f0", "f1", "f2", "f3"], "output": ["y1", "y2"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GSNN(edges, names, channels=3, layers=3, norm="none", dropout=0.0).double()


def data(n, seed):
    rng = np.random.default_rng(seed)
    x = 5 + 3 * rng.normal(size=(n, 3))
    y = 100 + 40 * np.column_stack([x[:, 0] - x[:, 1], x[:, 2] ** 2])
    y[rng.random(y.shape) < 0.2] = np.nan
    y[0] = np.nan  # a row without any target is left out
    y[1:3] = 100 + 40 * rng.normal(size=(2, 2))
    return x, y


def squared(yhat, y):
    """Mean over the measured cells."""
    known = ~np.isnan(y)
    filled = torch.tensor(np.where(known, y, 0.0))
    return (((yhat - filled) ** 2) * torch.tensor(known)).sum() / int(known.sum())


class AdamW:
    """Loshchilov & Hutter 2019, algorithm 2, with the step size of every step given."""

    def __init__(self, params):
        self.params = list(params)
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]
        self.t = 0

    @torch.no_grad()
    def step(self, grads, lr):
        self.t += 1
        for p, g, m, v in zip(self.params, grads, self.m, self.v, strict=True):
            m.copy_(0.9 * m + 0.1 * g)
            v.copy_(0.999 * v + 0.001 * g * g)
            adaptive = (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)
            p.copy_(p - lr * DECAY * p - lr * adaptive)


@pytest.mark.parametrize("restore_best", [True, False])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_unequal_batches_gaps_standardisation_and_validation(schedule, restore_best):
    (x, y), (x_val, y_val) = data(31, 0), data(12, 1)
    y_val = 300 - y_val  # gets worse while the network learns, so that the best epoch is not the last
    trained, twin = model(), model()
    seen = []

    def recording(yhat, target):
        if torch.is_grad_enabled():
            seen.append(target.detach().numpy().copy())
        return torch.nn.functional.mse_loss(yhat, target)

    history = fit(
        trained,
        x,
        y,
        validation=(x_val, y_val),
        restore_best=restore_best,
        epochs=EPOCHS,
        batch_size=SIZE,
        lr=LR,
        weight_decay=DECAY,
        schedule=schedule,
        standardize=True,
        crit=recording,
        seed=11,
        verbose=False,
    )
    x_mean, x_std, y_mean, y_std = x.mean(0), x.std(0), np.nanmean(y, 0), np.nanstd(y, 0)
    z, t = (x - x_mean) / x_std, (y - y_mean) / y_std
    z_val, t_val = (x_val - x_mean) / x_std, (y_val - y_mean) / y_std
    used = np.flatnonzero((~np.isnan(y)).any(1))
    batches = [rows_of(values, t, used) for values in seen]
    assert len(used) == 30 and len(batches) == EPOCHS * 4  # ceil(30 / 8) batches an epoch
    opt, losses, watched, states = AdamW(twin.parameters()), [], [], []
    for epoch in range(EPOCHS):
        own = batches[4 * epoch : 4 * epoch + 4]
        assert sorted(len(rows) for rows in own) == [7, 7, 8, 8]
        assert sorted(np.concatenate(own)) == used.tolist()
        total = 0.0
        for b, rows in enumerate(own):
            step = 4 * epoch + b
            rate = LR * (1 + math.cos(math.pi * step / (4 * EPOCHS))) / 2 if schedule == "cosine" else LR
            loss = squared(twin(torch.tensor(z[rows])), t[rows])
            opt.step(torch.autograd.grad(loss, opt.params), rate)
            total += len(rows) * loss.item()
        losses.append(total / 30)
        with torch.no_grad():
            watched.append(squared(twin(torch.tensor(z_val)), t_val).item())
        states.append([p.detach().clone() for p in twin.parameters()])
    best = int(np.argmin(watched)) if restore_best else EPOCHS - 1
    assert np.argmin(watched) < EPOCHS - 1
    assert history.best_epoch == best + 1 and not history.stopped_early
    np.testing.assert_allclose(history.train_loss, losses, rtol=1e-10)
    np.testing.assert_allclose(history.val_loss, watched, rtol=1e-10)
    for p, expected in zip(trained.parameters(), states[best], strict=True):
        torch.testing.assert_close(p.detach(), expected, rtol=1e-8, atol=1e-11)
    rates = [
        LR * (1 + math.cos(math.pi * e / EPOCHS)) / 2 if schedule == "cosine" else LR for e in range(EPOCHS)
    ]
    np.testing.assert_allclose(history.lr, rates, rtol=1e-14)  # an epoch's first step


def rows_of(values, table, used):
    """The rows, in order, whose measured cells in a row make up the vector ``values``."""
    at = {}
    for row in used:
        at[round(float(table[row][~np.isnan(table[row])][0]), 9)] = row
    rows, place = [], 0
    while place < len(values):
        row = at[round(float(values[place]), 9)]
        rows.append(row)
        place += int((~np.isnan(table[row])).sum())
    return rows

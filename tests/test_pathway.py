"""The correlations of gsnn.models.pathway_loss against np.corrcoef on dense tables."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsnn.models.pathway_loss import Memberships, dissimilarity, similarity

EPS = 1e-6


def members_of(table, channels=1):
    table = torch.as_tensor(table, dtype=torch.float64)
    group, row = table.nonzero().t()
    n_groups, n_rows = table.shape
    return Memberships.of(group, row, table[group, row], n_groups, n_rows, channels)


def mean_correlation(activations, table, leave_one_out=False, min_std=0.0):
    """By the definition, one correlation at a time; activations are (N, C, B)."""
    N, C, _ = activations.shape
    active = activations.std(2).reshape(N, C) ** 2
    active = np.sqrt(active.mean(1)) >= min_std
    found, weights = [], []
    for weight in table:
        inside = [i for i in np.flatnonzero(weight) if active[i]]
        for i in inside:
            others = [j for j in inside if j != i] if leave_one_out else inside
            if not others:
                continue
            for c in range(C):
                score = sum(weight[j] * activations[j, c] for j in others)
                found.append(weight[i] * np.corrcoef(activations[i, c], score)[0, 1])
                weights.append(abs(weight[i]))
    return np.sum(found) / np.sum(weights)


def random_case(seed, N=9, K=4, C=3, B=11, signed=False):
    rng = np.random.default_rng(seed)
    table = (rng.random((K, N)) < 0.5) * rng.uniform(0.2, 2, (K, N))
    table[0, :3] = 1.0
    if signed:
        table *= rng.choice([-1, 1], (K, N))
    scale = rng.uniform(0.1, 3, (N, 1, 1))
    return table, rng.normal(size=(N, C, B)) * scale + rng.normal(size=(N, C, 1))


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_corrcoef(leave_one_out, signed, channels):
    table, activations = random_case(0, C=channels, signed=signed)
    members = members_of(table, channels)
    rows = torch.tensor(activations).flatten(0, 1)
    mean, counts, _ = similarity(rows, members, leave_one_out)
    assert mean.item() == pytest.approx(mean_correlation(activations, table, leave_one_out), rel=1e-10)
    assert counts.item() == 1


def test_inactive_members_are_left_out():
    table, activations = random_case(1)
    activations[[2, 5]] *= 1e-5
    members = members_of(table, 3)
    rows = torch.tensor(activations).flatten(0, 1)
    expected = mean_correlation(activations, table, True, 1e-3)
    mean, _, scores = similarity(rows, members, True, min_std=1e-3)
    assert mean.item() == pytest.approx(expected, rel=1e-9)
    table[:, [2, 5]] = 0
    centred = activations - activations.mean(2, keepdims=True)
    expected = np.einsum("kn,ncb->kcb", table / table.sum(1, keepdims=True), centred)
    assert np.allclose(scores.numpy(), expected.reshape(-1, 11), atol=1e-12)


def test_nothing_that_counts_is_zero_and_says_so():
    members = members_of([[1.0, 0], [0, 1.0]])
    rows = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    mean, counts, _ = similarity(rows, members, True)
    assert (mean.item(), counts.item()) == (0, 0)
    assert torch.equal(torch.autograd.grad(mean, rows)[0], torch.zeros_like(rows))


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_gradients(leave_one_out, signed):
    table, activations = random_case(2, N=5, K=3, C=2, B=5, signed=signed)
    members = members_of(table, 2)
    rows = torch.tensor(activations).flatten(0, 1).requires_grad_()

    def loss(rows):
        mean, _, scores = similarity(rows, members, leave_one_out)
        return mean + dissimilarity(scores, torch.tensor([[0, 1], [2, 0]]), 2, EPS)

    assert torch.autograd.gradcheck(loss, rows)


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_gradients_where_variances_are_at_their_floor(leave_one_out):
    table, activations = random_case(3, N=5, K=3, C=2, B=4)
    members = members_of(table, 2)
    rows = torch.tensor(activations).flatten(0, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: similarity(rows, members, leave_one_out, eps=2.0)[0], rows)


def test_gradient_of_the_scores_alone():
    table, activations = random_case(4, N=5, K=3, C=2, B=4)
    members = members_of(table, 2)
    rows = torch.tensor(activations).flatten(0, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: similarity(rows, members)[2], rows)


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_a_constant_correlates_with_nothing_and_has_a_finite_gradient(leave_one_out):
    members = members_of(np.ones((1, 3)))
    rows = torch.zeros(3, 8, requires_grad=True)
    mean, _, _ = similarity(rows, members, leave_one_out)
    mean.backward()
    assert mean.item() == 0
    assert rows.grad is not None and bool(rows.grad.isfinite().all())


def test_others_that_cancel_leave_no_rounding_noise():
    # Beside one large member the others' mean is the difference of nearly equal numbers.
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 64, generator=generator)
    rows[0] *= 1e5
    members = members_of(np.ones((1, 4)))
    mean, _, _ = similarity(rows, members, True)
    assert -1 <= mean.item() <= 1
    assert abs(mean.item()) < 0.3  # independent rows


def test_dissimilarity_is_the_mean_squared_correlation():
    rng = np.random.default_rng(4)
    scores = rng.normal(size=(4, 3, 12))
    scores -= scores.mean(2, keepdims=True)
    pairs = [(0, 1), (3, 1)]
    expected = np.mean(
        [np.corrcoef(scores[k, c], scores[m, c])[0, 1] ** 2 for k, m in pairs for c in range(3)]
    )
    found = dissimilarity(torch.tensor(scores).flatten(0, 1), torch.tensor(pairs), 3, EPS)
    assert found.item() == pytest.approx(expected, rel=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.floats(0.1, 100), st.floats(-50, 50))
def test_scale_and_shift_of_the_rows_do_not_matter(seed, leave_one_out, factor, shift):
    table, activations = random_case(seed, signed=bool(seed % 2))
    members = members_of(table, 3)
    rows = torch.tensor(activations).flatten(0, 1)
    one, _, _ = similarity(rows, members, leave_one_out)
    two, _, _ = similarity(rows * factor + shift, members, leave_one_out, eps=EPS * factor**2)
    assert -1 - 1e-9 <= one.item() <= 1 + 1e-9
    assert one.item() == pytest.approx(two.item(), abs=1e-6)


def test_two_thousand_pathways_on_ten_thousand_nodes_stay_a_list():
    rng = np.random.default_rng(0)
    K, N, size, C = 2000, 10_000, 20, 2
    group = torch.arange(K).repeat_interleave(size)
    row = torch.tensor(np.concatenate([rng.choice(N, size, replace=False) for _ in range(K)]))
    members = Memberships.of(group, row, torch.ones(K * size), K, N, C)
    stored = sum(t.numel() for t in vars(members).values() if isinstance(t, torch.Tensor))
    assert stored < K * N / 10
    rows = torch.randn(N * C, 4, requires_grad=True)
    mean, _, _ = similarity(rows, members, True)
    mean.backward()
    again, _, _ = similarity(rows, members, True)
    first, rows.grad = rows.grad, None
    again.backward()
    assert first is not None and rows.grad is not None
    assert torch.equal(first, rows.grad)  # bit-identical

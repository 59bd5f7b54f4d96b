"""Captures: every user of them beside every other, in every order, on one model; and the protocol itself."""

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch

from gsnn.captures import MODES, Capture, Captures
from gsnn.kernels import use
from gsnn.models.GSNN import GSNN
from gsnn.models.PathwayLatentRegularizer import PathwayLatentRegularizer
from gsnn.optim.edge_scores import edge_scores
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor
from gsnn.simulate.scenarios import disconnected_pathways

SCENARIO = disconnected_pathways(n_pathways=3, length=2, n_spurious=5, seed=0)
GRAPH = SCENARIO.model_graph
NAMES = ("_last_pre_norm_activation", "_last_activation")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"share_layers": False, "norm": "groupbatch"},
    {"dropout": 0.3, "norm": "none"},
    {"nonlin": torch.nn.Tanh},
    {"checkpoint": True},
]


def make(**options):
    torch.manual_seed(0)
    return GSNN(GRAPH.edge_index_dict, GRAPH.node_names_dict, 3, 3, **options).double()


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(7, 6, dtype=torch.float64, generator=generator) for _ in range(2))


X, Y = batch()


def mse(model):
    torch.manual_seed(5)  # of dropout
    return (model(X) - Y).square().mean()


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)


def captured(model):
    return [getattr(block, name) for block in model.ResBlocks for name in NAMES]


# ---------------------------------------------------------------- every order


class Users:
    """All users of captures on one model; what each finds in one training step."""

    def __init__(self, **options):
        self.model = make(**options)
        self.regressor = MagnitudeEdgeRegressor(self.model, GRAPH)
        self.found = {}

    # Before the forward pass.

    def regularize(self):
        self.regularizer = PathwayLatentRegularizer(self.model, SCENARIO.membership, phi="channel")

    def regress(self):
        self.regressor.pre_forward()

    def switch(self):
        for block in self.model.ResBlocks:
            block._store_activations = True

    # After it; the first three must have happened before the backward pass.

    def regularization(self):
        self.found["loss"] = sum(self.regularizer.loss(self.model))

    def arm(self):
        self.regressor.arm_retained_grads()

    def retain(self):
        self.kept = captured(self.model)
        for tensor in self.kept:
            tensor.retain_grad()

    def infer(self):
        inferer = MagnitudeEdgeInferer(self.model, GRAPH)
        inferer.fit([tuple(batch(2))], verbose=False)
        self.found["inferred"] = torch.tensor(inferer.evaluate()["corr"].to_numpy())

    def look(self):
        activations = self.model.get_node_activations(next(batch(3)), agg="all")
        self.found["activations"] = torch.stack(list(activations.values()))

    def score(self):
        scores = edge_scores(self.model, GRAPH, [tuple(batch(4))], verbose=False)
        self.found["scores"] = torch.tensor(scores["gradient_sv"])

    # After the backward pass.

    def aux(self):
        aux = self.regressor.aux_step()
        self.found["aux"] = torch.tensor(list(aux.values()))

    def read(self):
        self.found["gradients"] = [tensor.grad for tensor in self.kept]

    def step(self, before, between, after):
        for act in before:
            getattr(self, act)()
        loss = mse(self.model)
        for act in between:
            getattr(self, act)()
        (loss + self.found.get("loss", 0.0)).backward()
        for act in after:
            getattr(self, act)()
        self.found["weights"] = [p.grad for p in self.model.parameters()]
        return self.found


BEFORE = ("regularize", "regress", "switch")
BETWEEN = ("regularization", "arm", "retain", "infer", "look", "score")
AFTER = ("aux", "read")


def alone(**options):
    """The same values, each found by one user on a model of its own."""
    found: dict[str, Any] = {}
    for act in ("infer", "look", "score"):
        found |= Users(**options).step((), (act,), ())
    found |= Users(**options).step(("regularize", "regress"), ("regularization", "arm"), ("aux",))
    model = make(**options)
    for capture in Captures(model):
        capture.switch("on")
    torch.manual_seed(5)
    loss = (model(X) - Y).square().mean()
    kept = captured(model)
    regularizer = Users(**options)
    regularizer.regularize()
    own = mse(regularizer.model)
    regularizer.regularization()
    close(own, loss)
    # The regularizer's loss, by its formula on the same captures.
    twin = PathwayLatentRegularizer(model, SCENARIO.membership, phi="channel")
    activations = [h.t().unflatten(0, (-1, 3)) for h in kept[1::2]]
    penalty = sum(twin._losses(activations, None))
    close(penalty, regularizer.found["loss"])
    found["loss"] = penalty
    found["gradients"] = torch.autograd.grad(loss + penalty, kept, allow_unused=True, retain_graph=True)
    found["weights"] = torch.autograd.grad(loss + penalty, list(model.parameters()))
    return found


def check(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            close(found[name], value)
        else:
            for a, b in zip(found[name], value, strict=True):
                close(a, b)


@pytest.fixture(scope="module")
def expected():
    return alone()


@pytest.mark.parametrize("first", BETWEEN)
def test_every_order_after_the_forward_pass(first, expected):
    for rest in itertools.permutations([act for act in BETWEEN if act != first]):
        check(Users().step(BEFORE, (first, *rest), AFTER), expected)


@pytest.mark.parametrize("before", list(itertools.permutations(BEFORE)), ids=" ".join)
def test_every_order_before_the_forward_pass_and_after_the_backward_pass(before, expected):
    for after in itertools.permutations((*AFTER, "infer", "look")):
        check(Users().step(before, ("regularization", "score", "arm", "retain"), after), expected)


@pytest.mark.parametrize("options", [o for o in OPTIONS if "checkpoint" not in o], ids=str)
def test_every_kind_of_model(options):
    wanted = alone(**options)
    for between in (BETWEEN, BETWEEN[::-1]):
        users = Users(**options)
        check(users.step(BEFORE, between, AFTER), wanted)


def test_every_set_of_users_and_a_second_step(expected):
    """Whoever is absent changes nothing for the others, and nobody leaves anything behind."""
    acts = {"regularize": ("regularization",), "regress": ("arm",), "switch": ("retain",)}
    ends = {"regress": ("aux",), "switch": ("read",)}
    for before in itertools.chain.from_iterable(itertools.combinations(BEFORE, k) for k in range(4)):
        users = Users()
        for _ in range(2):
            users.model.zero_grad()
            between = [act for user in before for act in acts[user]]
            after = [act for user in before for act in ends.get(user, ())]
            found = users.step(before, ("infer", *between, "look"), after)
            for name in {"inferred", "activations", "loss"} & found.keys():
                close(found[name], expected[name])
            if "switch" in before:
                assert all(g is not None for g in found["gradients"][:-1])
        for block in users.model.ResBlocks:
            block._store_activations = False
        if "regularize" in before:
            assert {block.capture.mode for block in users.model.ResBlocks} == {"aside"}
            users.regularizer.disable(users.model)
        assert {block.capture.mode for block in users.model.ResBlocks} == {"off"}


# ------------------------------------------------- retain_grad with the regularizer only


@pytest.mark.parametrize("kernel", [None, "torch", "reference"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_retain_grad_works_where_only_a_regularizer_asked(options, kernel):
    options = {k: v for k, v in options.items() if k != "checkpoint"}
    wanted = alone(**options)["gradients"]
    for late in (False, True):
        users = Users(**options)
        with use(kernel):
            users.step(("regularize",), ("retain", "regularization")[:: -1 if late else 1], ("read",))
        for a, b in zip(users.found["gradients"], wanted, strict=True):
            close(a, b)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_penalty_on_captures_of_either_kind(options):
    """Gradients at captures and weights where the loss uses them itself, twice over with retain_graph."""
    found = []
    for mode in ("on", "aside"):
        model = make(**options)
        for capture in Captures(model):
            capture.switch(mode)
        loss = mse(model)
        kept = captured(model)
        for tensor in kept:
            tensor.retain_grad()
        loss = loss + sum((t * t.detach().cos()).sum() for t in kept)
        loss.backward(retain_graph=True)
        once = [t.grad.clone() for t in kept]
        loss.backward()
        for a, b in zip(once, kept, strict=True):
            close(2 * a, b.grad)
        found.append([*once, *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        close(a, b)


def test_recomputation_leaves_no_captures():
    model = make(checkpoint=True)
    for capture in Captures(model):
        capture.switch("on")
    loss = mse(model)
    kept = captured(model)
    for tensor in kept:
        tensor.retain_grad()
    for capture in Captures(model):
        capture.switch("off")  # the recomputation runs in the mode of the pass that it repeats
    loss.backward()
    assert all(a is b for a, b in zip(kept, captured(model), strict=True))
    assert all(t.grad is not None for t in kept)


# --------------------------------------------------------------------- the old names


@pytest.mark.parametrize("name", ["_store_activations", *NAMES])
def test_names_can_be_deleted(name):
    model = make()
    block = model.ResBlocks[1]
    for _ in range(2):
        block._store_activations = True
        model(X)
        delattr(block, name)
        assert not getattr(block, name)
        model.get_node_activations(X)
        assert not getattr(block, name)
    model(X)
    block._store_activations = True
    model(X)
    assert all(getattr(block, each) is not None for each in NAMES)


@pytest.mark.parametrize("mode", MODES)
def test_names_can_be_set(mode):
    model = make()
    block = model.ResBlocks[0]
    block._store_activations = {"off": False, "aside": "aside", "on": True}[mode]
    assert block.capture.mode == mode
    model(X)
    marker = torch.ones(2)
    for name in NAMES:
        setattr(block, name, marker)
        assert getattr(block, name) is marker
        setattr(block, name, None)
        assert getattr(block, name) is None


def test_what_a_pass_with_less_left_is_not_that_of_an_older_one():
    model = make()
    block = model.ResBlocks[0]
    for mode in ("on", "aside"):
        block.capture.switch(mode)
        model(X)
        old = captured(model)[:2]
        model(2 * X)
        assert not any(torch.equal(a, b) for a, b in zip(old, captured(model)[:2], strict=True))


def test_values_after_a_step_are_those_of_the_forward_pass():
    model = make()
    for capture in Captures(model):
        capture.switch("aside")
    loss = mse(model)
    wanted = [h.detach().clone() for h in captured(copy_with(model, "on"))]
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    found = captured(model)
    for z, h, wanted_h in zip(found[::2], found[1::2], wanted[1::2], strict=True):
        assert z is None  # it was not kept, and the weights that it came from are gone
        close(h.detach(), wanted_h)


def copy_with(model, mode):
    """A copy that has run the same batch in another mode."""
    twin = copy.deepcopy(model)
    for capture in Captures(twin):
        capture.switch(mode)
    mse(twin)
    return twin


# --------------------------------------------------------------------- the protocol


def test_the_mode_is_the_most_that_anybody_asks_for():
    capture = Capture()
    assert capture.mode == "off"
    capture.ask("one", "aside")
    capture.ask("two", "on")
    capture.ask("one", "aside")
    assert capture.mode == "on"
    capture.leave(torch.zeros(1), torch.zeros(1))
    capture.withdraw("two")
    assert capture.mode == "aside" and capture.activation is not None
    capture.switch("on")
    capture.withdraw("one")
    capture.withdraw("one")
    assert capture.mode == "on" and capture.activation is not None
    capture.switch("off")
    assert capture.mode == "off" and capture.activation is not None  # by hand: it can still be read
    with pytest.raises(ValueError, match="mode must be one of off, aside, on, got 'half'"):
        capture.switch("half")


def test_disable_is_for_all_regularizers_and_for_nobody_else():
    model = make()
    one, other = (PathwayLatentRegularizer(model, SCENARIO.membership, phi="channel") for _ in range(2))
    mse(model)
    assert one.loss(model)[0] == other.loss(model)[0]
    one.disable(model)
    assert not model._forward_hooks and captured(model) == [None] * 6
    with pytest.raises(RuntimeError, match=r"call enable\(model\) before the forward pass"):
        other.loss(model)
    for block in model.ResBlocks:
        block._store_activations = True
    one.enable(model)
    mse(model)
    one.disable(model)
    assert all(block._store_activations is True for block in model.ResBlocks)
    assert all(tensor.requires_grad for tensor in captured(model))


def test_a_regularizer_that_comes_in_the_middle_of_a_regressors_step_stays():
    users = Users()
    users.step(("regress", "regularize"), ("arm", "regularization"), ("aux",))
    users.model.zero_grad()
    mse(users.model)
    users.regularization()


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_the_modes_and_no_tensors(twin_of):
    model = make()
    regularizer = PathwayLatentRegularizer(model, SCENARIO.membership)
    mse(model)
    twin = twin_of(model)
    assert captured(twin) == [None] * 6
    mse(twin)
    assert regularizer.loss(twin)[0] == regularizer.loss(model)[0]
    regularizer.disable(twin)
    assert twin.ResBlocks[0].capture.mode == "off" and model.ResBlocks[0].capture.mode == "aside"


class OwnBlock(torch.nn.Module):
    """A block as a third party would write it, from the documentation alone."""

    def __init__(self, nodes, channels):
        super().__init__()
        self.channel_groups = torch.arange(nodes).repeat_interleave(channels)
        self.capture = Capture()
        self.lin = torch.nn.Linear(nodes * channels, nodes * channels, dtype=torch.float64)

    def forward(self, state):
        z = self.lin(state)
        h = torch.tanh(z)
        if self.capture.mode != "off":
            self.capture.leave(z, h)
        return state + h


class OwnModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.read = torch.nn.Linear(6, 18, dtype=torch.float64)
        self.ResBlocks = torch.nn.ModuleList([OwnBlock(6, 3) for _ in range(3)])
        self.write = torch.nn.Linear(18, 6, dtype=torch.float64)

    def forward(self, x):
        state = self.read(x)
        for block in self.ResBlocks:
            state = block(state)
        return self.write(state)


class NamedBlock(OwnBlock):
    """One that has the older names as plain attributes."""

    def __init__(self, nodes, channels):
        super().__init__(nodes, channels)
        del self.capture
        self._store_activations = False

    def forward(self, state):
        z = self.lin(state)
        h = torch.tanh(z)
        if self._store_activations:
            self._last_pre_norm_activation, self._last_activation = z, h
        return state + h


def test_a_third_partys_model_serves_all_users(monkeypatch):
    found = []
    for block in (OwnBlock, NamedBlock):
        monkeypatch.setitem(globals(), "OwnBlock", block)
        users = Users()
        users.model = OwnModel()
        users.regressor = MagnitudeEdgeRegressor(users.model, GRAPH)
        before, between = ("regularize", "regress"), ("regularization", "infer", "arm", "score")
        for _ in range(2):
            users.model.zero_grad()
            users.step(before, between, ("aux",))
        users.regularizer.disable(users.model)
        found.append(users.found)
        mode = [getattr(b, "_store_activations", None) or False for b in users.model.ResBlocks]
        assert mode == [False] * 3
    check(*found)
    wanted = [p.grad for p in users.model.parameters()]
    assert all(g is not None and g.norm() > 0 for g in wanted)


@pytest.mark.parametrize("broken", [torch.nn.Linear(2, 2), torch.nn.Sequential()])
def test_a_model_without_captures(broken):
    with pytest.raises(TypeError, match=r"ResBlocks with channel_groups and a capture .* got \w+ without"):
        Captures(broken)


def test_a_pass_that_leaves_nothing_is_noticed():
    model = make()
    captures = Captures(model)
    for capture in captures:
        capture.switch("on")
    mse(model)
    captures.on()
    with pytest.raises(RuntimeError, match="the forward pass left no capture in block 0"):
        captures.pre_norms()
    mse(model)
    assert captures.pre_norms()[0] is model.ResBlocks[0]._last_pre_norm_activation

"""Memory that runs out: an error that says what takes less, and the same process can go on with that."""

import ctypes
import multiprocessing
import os
import sys
import traceback
from functools import partial

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gsnn._memory import memory_advice, releases
from gsnn.app.cli import app
from gsnn.data import tables
from gsnn.graph import HeteroGraph
from gsnn.kernels import compiled
from gsnn.models.GSNN import GSNN
from gsnn.optim._linearised import Linearised
from gsnn.optim.FirstOrderEdgeInferer import FirstOrderEdgeInferer
from gsnn.optim.MagnitudeEdgeInferer import _BLOCK_ELEMENTS, MagnitudeEdgeInferer
from gsnn.optim.MagnitudeEdgeKGE import MagnitudeEdgeKGE
from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor
from gsnn.optim.staging import Samples
from gsnn.train import fit, fit_side_by_side, predict

MIB = 2**20


def chain(n, norm="layer", channels=4):
    steps = torch.arange(n)
    edges = {
        ("input", "to", "function"): torch.tensor([[0], [0]]),
        ("function", "to", "function"): torch.stack([steps[:-1], steps[1:]]),
        ("function", "to", "output"): torch.tensor([[n - 1], [0]]),
    }
    graph = HeteroGraph(edges, {"input": ["x"], "function": [f"f{k}" for k in range(n)], "output": ["y"]})
    torch.manual_seed(0)
    return graph, GSNN(graph.edge_index_dict, graph.node_names_dict, channels, 3, norm=norm)


def loader(n):
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=(n, 1)).astype("f")) for _ in range(2))
    return lambda size: [(x[:size], y[:size])]


def fitting(norm, samples=200_000):
    _, model = chain(40, norm)
    x, y = np.zeros((samples, 1), "f"), np.zeros((samples, 1), "f")
    return lambda size: fit(model, x[: 2 * size], y[: 2 * size], epochs=1, batch_size=size, verbose=False)


def fitting_together(samples=200_000):
    models, x = [chain(40)[1] for _ in range(2)], np.zeros((samples, 1), "f")

    def job(size):
        data = [(x[: 2 * size], x[: 2 * size])] * 2
        fit_side_by_side(models, data, seeds=[0, 1], epochs=1, batch_size=size, verbose=False)

    return job


def predicting(samples=200_000):
    _, model = chain(40)
    x = np.zeros((samples, 1), "f")
    return lambda size: predict(model, x[: 2 * size], batch_size=size)


def inferring(kind, samples=200_000):
    graph, model = chain(40)
    inferer, data = kind(model, graph), loader(samples)
    return lambda size: inferer.fit(data(size), verbose=False)


def star(n):
    """n function nodes beside each other, and an inferer of theirs that has seen 8 samples."""
    each, one = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    edges = {
        ("input", "to", "function"): torch.stack([one, each]),
        ("function", "to", "function"): torch.tensor([[0], [1]]),
        ("function", "to", "output"): torch.stack([each, one]),
    }
    names = {"input": ["x"], "function": [f"f{k}" for k in range(n)], "output": ["y"]}
    graph = HeteroGraph(edges, names)
    model = GSNN(edges, names, 1, 3, norm="none")
    inferer = MagnitudeEdgeInferer(model, graph)
    inferer.fit(loader(8)(8), verbose=False)
    return graph, model, inferer


def evaluating(nodes=2_200):
    _BLOCK_ELEMENTS["corr"] = 2**20  # so that only the table takes much
    inferer = star(nodes)[2]
    return lambda top_k: inferer.evaluate(top_k=top_k)


def regressing(nodes=3_000):
    networks = {n: star(n) for n in (5, nodes)}
    return lambda n: MagnitudeEdgeRegressor(networks[n][1], networks[n][0])


def a_table_of_the_regressor(nodes=1_600):
    regressors = {}
    for n in (5, nodes):
        graph, model, _ = star(n)
        regressor = regressors[n] = MagnitudeEdgeRegressor(model, graph, window=8)
        regressor.pre_forward()
        out = model(torch.randn(8, 1))
        regressor.arm_retained_grads()
        out.square().sum().backward()
        regressor.aux_step()
    return lambda n: regressors[n].evaluate()


def embedding(nodes=1_600):
    models = {
        n: MagnitudeEdgeKGE(star(n)[2], edges="true", mining_strategy="topk_per_target", walks_per_node=1)
        for n in (5, nodes)
    }
    for model in models.values():
        model.fit(1, verbose=False)
    return lambda n: models[n].evaluate()


def linearising(samples=100_000):
    graph, model = chain(8, channels=8)
    names = graph.node_names_dict["function"]
    x = torch.randn(samples, 1)
    return lambda n: Linearised(model, Samples.of(model, x[:n], x[:n]), np.ones(n, bool), names, [4])


def preparing(samples=10_000_000):
    _, model = chain(2)
    x = np.zeros((samples, 1))
    return lambda n: fit(model, x[:n], x[:n], epochs=1, batch_size=1000, verbose=False)


# What is done, a size that is too large for so many MiB and one that is not, and the advice.
CASES = {
    "fit": (partial(fitting, "layer"), 200_000, 2_000, 80, "batch_size below 200000"),
    "fit, without the compiler": (partial(fitting, "batch"), 200_000, 2_000, 80, r"GSNN\(checkpoint=True\)"),
    "side by side": (fitting_together, 200_000, 2_000, 80, "batch_size below 200000"),
    "predict": (predicting, 200_000, 2_000, 50, "batch_size below 200000"),
    "magnitudes": (partial(inferring, MagnitudeEdgeInferer), 200_000, 500, 150, "smaller batches"),
    "first order": (partial(inferring, FirstOrderEdgeInferer), 200_000, 500, 150, "smaller batches"),
    "a table of all pairs": (evaluating, None, 3, 200, r"evaluate\(top_k=\)"),
    "a regressor": (regressing, 3_000, 5, 20, "needs nothing like it"),
    "its table": (a_table_of_the_regressor, 1_600, 5, 100, "needs nothing like it"),
    "an embedding's table": (embedding, 1_600, 5, 100, "all pairs of function nodes"),
    "verify": (linearising, 100_000, 200, 80, "fewer samples"),
    "tables": (preparing, 10_000_000, 1_000, 30, "memory maps"),
}


def taken():
    """Bytes of address space the process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def limit(more):
    """Let this process take so many bytes more than it has."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (taken() + more,) * 2)


def give_back_at_once():
    """What is freed goes back to the system.

    By default glibc keeps some of it, at times so much that nothing of a limit is left for the smaller size.
    """
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    arenas, mapped, trimmed = libc.mallopt(-8, 1), libc.mallopt(-3, 2**16), libc.mallopt(-1, 2**16)
    assert arenas and mapped and trimmed
    libc.malloc_trim(0)


def told(job, pipe):
    """Run the job, then say what went wrong, if anything did."""
    said = ""
    try:
        job()
    except BaseException:
        said = traceback.format_exc()
    pipe.send(said)


def in_clean_process(job):
    """Run ``job()`` in a process that has imported this module and done nothing else, and pass on its errors.

    One forked from the process that runs the tests has holes in its memory, left by other tests, and what is
    to be too large may fit in one of them.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    here, there = processes.Pipe(duplex=False)
    child = processes.Process(target=told, args=(job, there))
    child.start()
    there.close()
    said = here.recv()
    child.join()
    assert not said, said


class Limited:
    """A job that may take so many MiB more than it has when it begins, tried at both sizes."""

    def __init__(self, make, too_large, small, mib, advice):
        self.make, self.too_large, self.small, self.mib, self.advice = make, too_large, small, mib, advice

    def __call__(self):
        give_back_at_once()
        job = self.make()
        job(self.small)  # what PyTorch imports at its first step is not the job's
        before = taken()
        limit(self.mib * MIB)
        with pytest.raises(MemoryError, match=rf"^out of memory; .*{self.advice}") as kept:
            job(self.too_large)
        assert taken() - before < self.mib * MIB / 3  # although a notebook would keep the error, too
        job(self.small)
        assert kept.value.__traceback__ is not None
        if sys.version_info >= (3, 11):
            (where,) = kept.value.__cause__.__notes__  # type: ignore[union-attr]
            assert "gsnn" in where and "line" in where


def two_plans_in_turn():
    give_back_at_once()
    first, second = compiled._Pool(), compiled._Pool()
    like = torch.empty(0)
    first.empty((64, MIB), like)
    limit(16 * MIB)
    with pytest.raises(MemoryError):
        np.empty(64 * MIB, np.uint8)
    second.empty((65, MIB), like)


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of memory to set")
@pytest.mark.parametrize("name", CASES)
def test_the_error_says_what_takes_less_and_that_works(name):
    in_clean_process(Limited(*CASES[name]))


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of memory to set")
def test_recycled_memory_makes_way_for_another_plan():
    in_clean_process(two_plans_in_turn)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8")]
)
def test_a_command_ends_with_one_line(tmp_path, monkeypatch, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(tables, "load_data", fails)
    words = ["run", "--edges", "e.tsv", "--x", "x.tsv", "--y", "y.tsv", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: out of memory; fewer samples, or a smaller graph")
    assert done.stderr.count("\n") == 1


def test_the_innermost_advice_counts_and_other_errors_pass():
    inner = pytest.raises(MemoryError, match=r"^out of memory; inner \(MemoryError\)$")
    with inner as advised, memory_advice("outer"), memory_advice("inner"):
        raise MemoryError
    assert isinstance(advised.value.__cause__, MemoryError)
    for error in (RuntimeError("shapes differ"), ValueError("out of memory")):
        with pytest.raises(type(error), match=str(error)) as caught, memory_advice("none"):
            raise error
        assert caught.value is error


def test_what_is_kept_for_later_is_given_back():
    class Keeper:
        kept = True

        def release(self):
            self.kept = False

    keeper = Keeper()
    releases(keeper)
    with pytest.raises(ValueError, match="shapes"), memory_advice("none"):
        raise ValueError("shapes")
    assert keeper.kept
    with pytest.raises(MemoryError), memory_advice("less"):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8")
    assert not keeper.kept

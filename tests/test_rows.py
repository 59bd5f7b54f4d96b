"""Tables that stay where they are: the same results as from arrays, and only a batch's rows are read."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from gsnn.data import rows as rows_module
from gsnn.data.dataset import RowDataset
from gsnn.data.match import as_rows
from gsnn.data.scaling import ColumnMoments, Scaling, Survey
from gsnn.models.GSNN import GSNN
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.train import fit, predict

INPUTS, OUTPUTS = ["a", "b", "c"], ["y1", "y2"]
B = 41


def small_model(seed=0, dtype=torch.float32, **options):
    edges = {
        ("input", "to", "function"): torch.tensor([[0, 1, 2], [0, 1, 2]]),
        ("function", "to", "function"): torch.tensor([[0, 1, 2, 3], [3, 3, 1, 2]]),
        ("function", "to", "output"): torch.tensor([[3, 2], [0, 1]]),
    }
    names = {"input": INPUTS, "function": ["f0", "f1", "f2", "f3"], "output": OUTPUTS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GSNN(edges, names, **{"channels": 3, "layers": 3, "norm": "none", **options}).to(dtype)


@pytest.fixture
def table():
    """Values with many zeros in x and gaps in y."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, 3)) * (rng.random((B, 3)) < 0.6)
    y = np.column_stack([x[:, 0] - x[:, 1], np.tanh(x[:, 2])]) + 0.1 * rng.normal(size=(B, 2))
    y[rng.random(y.shape) < 0.1] = np.nan
    y[[5, 30]] = np.nan
    return x, y


class OnDisk:
    """Counts the rows it is asked for; cannot be turned into an array, and wants them as HDF5 does."""

    def __init__(self, values):
        self._values = values
        self.shape, self.dtype = values.shape, values.dtype
        self.most = 0
        self.seen = np.zeros(len(values), dtype=int)

    def __len__(self):
        raise AssertionError("not needed")

    def __array__(self, *args, **kwargs):
        raise AssertionError("loaded as a whole")

    def __getitem__(self, rows):
        assert isinstance(rows, slice) or (rows.ndim == 1 and (np.diff(rows) > 0).all())
        values = self._values[rows]
        self.most = max(self.most, len(values))
        self.seen[rows] += 1
        return values.copy()


class Annotated:
    """As much of an AnnData as the package looks at."""

    def __init__(self, x, obs_names, var_names):
        self.X, self.obs_names, self.var_names = x, pd.Index(obs_names), pd.Index(var_names)


def memory_map(values, folder):
    path = folder / f"{abs(hash(values.tobytes()))}.npy"
    np.save(path, values)
    return np.load(path, mmap_mode="r")


def hdf5(values, folder):
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    path = folder / f"{abs(hash(values.tobytes()))}.h5"
    if not path.exists():
        with h5py.File(path, "w") as file:
            file["table"] = values
    return h5py.File(path, "r")["table"]


SOURCES = {
    "memory map": memory_map,
    "big-endian": lambda values, folder: memory_map(values.astype(">f8"), folder),
    "CSR": lambda values, _: sp.csr_array(values),
    "CSC": lambda values, _: sp.csc_matrix(values),
    "COO": lambda values, _: sp.coo_array(values),
    "HDF5": hdf5,
    "on disk": lambda values, _: OnDisk(values),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("validation", [None, 0.25])
def test_fit_and_predict_as_from_arrays(table, tmp_path, kind, validation):
    x, y = table
    a, b = small_model(dropout=0.2), small_model(dropout=0.2)
    options: dict[str, Any] = {"epochs": 3, "batch_size": 8, "seed": 0, "standardize": True, "verbose": False}
    expected = fit(a, x, y, validation=validation, **options)
    got = fit(b, SOURCES[kind](x, tmp_path), SOURCES[kind](y, tmp_path), validation=validation, **options)
    assert repr(got) == repr(expected) and a.scaling == b.scaling
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    np.testing.assert_array_equal(
        predict(b, SOURCES[kind](x, tmp_path), batch_size=7), predict(a, x, batch_size=7)
    )


def test_kinds_can_be_mixed_and_validation_may_be_another(table, tmp_path):
    x, y = table
    a, b = small_model(), small_model()
    options: dict[str, Any] = {"epochs": 2, "batch_size": 8, "seed": 0, "verbose": False}
    fit(a, x[:30], y[:30], validation=(x[30:], y[30:]), **options)
    names = [f"s{i}" for i in range(30)]
    labelled = Annotated(sp.csr_array(x[:30]), names, INPUTS)
    frame = pd.DataFrame(y[:30], names, OUTPUTS).iloc[::-1]
    fit(b, labelled, frame, validation=(memory_map(x[30:], tmp_path), y[30:]), **options)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_only_the_rows_of_a_batch_are_read(table, monkeypatch):
    x, y = OnDisk(table[0]), OnDisk(table[1])
    model = small_model()
    monkeypatch.setattr(rows_module, "_BLOCK_VALUES", 24)
    fit(model, x, y, epochs=2, batch_size=8, standardize=True, validation=0.2, seed=0, verbose=False)
    assert x.most == 8 and y.most == 12  # 12 = 24 / 2 columns in the first pass
    once_and_twice_or_each_epoch = set(x.seen.tolist())
    assert once_and_twice_or_each_epoch <= {1, 3}  # without a target: only in the pass that checks
    x.most = 0
    predict(model, x, batch_size=5)
    assert x.most == 5


@pytest.mark.parametrize("make", [sp.csr_array, sp.csc_array, sp.csr_matrix])
def test_sparse_matrices_are_never_dense_as_a_whole(table, monkeypatch, make):
    x = make(table[0])
    most = 0

    def counted(method):
        def toarray(self, *args, **kwargs):
            nonlocal most
            most = max(most, self.shape[0])
            return method(self, *args, **kwargs)

        return toarray

    for kind in (sp.csr_array, sp.csr_matrix, sp.csc_array):
        monkeypatch.setattr(kind, "toarray", counted(kind.toarray))
        monkeypatch.setattr(kind, "todense", None)
    monkeypatch.setattr(rows_module, "_BLOCK_VALUES", 24)
    model = small_model()
    fit(model, x, table[1], epochs=1, batch_size=8, standardize=True, seed=0, verbose=False)
    predict(model, x, batch_size=8)
    assert most == 8


@pytest.mark.parametrize("block", [1, 7, 30, 10**6])
def test_one_pass_gives_means_and_deviations(block, monkeypatch):
    rng = np.random.default_rng(1)
    y = 1e6 + rng.normal(size=(50, 3)) * [1.0, 0.0, 3.0]
    y[rng.random(y.shape) < 0.3] = np.nan
    y[:, 2][:40] = np.nan
    moments = ColumnMoments.of(torch.as_tensor(y).split(block))
    shift, scale = moments.shift_and_scale()
    np.testing.assert_allclose(shift, np.nanmean(y, 0), rtol=1e-15)
    np.testing.assert_allclose(scale, [float(np.nanstd(y[:, 0])), 1.0, float(np.nanstd(y[:, 2]))], rtol=1e-9)
    assert moments.count is not None and moments.count.tolist() == (~np.isnan(y)).sum(0).tolist()


def test_moments_of_columns_without_a_value():
    blocks = [torch.tensor([[torch.nan, 1.0]]), torch.tensor([[torch.nan, 3.0]])]
    assert ColumnMoments.of(blocks).shift_and_scale() == ((0.0, 2.0), (1.0, 1.0))
    with pytest.raises(ValueError, match="at least one row to standardise by, got none"):
        ColumnMoments().shift_and_scale()


def test_scaling_of_small_blocks(table, monkeypatch):
    x, y = table
    model = small_model()
    monkeypatch.setattr(rows_module, "_BLOCK_VALUES", 10)
    fit(model, OnDisk(x + 1e3), OnDisk(y), standardize=True, epochs=1, seed=0, verbose=False)
    expected = Scaling.of(torch.as_tensor(x + 1e3), torch.as_tensor(y))
    for field in ("x_mean", "x_scale", "y_mean", "y_scale"):
        np.testing.assert_allclose(getattr(model.scaling, field), getattr(expected, field), rtol=1e-12)


def test_checksum_does_not_depend_on_the_place_but_on_every_value(table, tmp_path, monkeypatch):
    x = table[0] + 0.0  # no -0.0, which a sparse matrix leaves out
    model = small_model()

    def checksum(table):
        return Survey.of(as_rows(model, table, "input", "x"), checksum=True).checksum

    whole = checksum(x)
    monkeypatch.setattr(rows_module, "_BLOCK_VALUES", 10)
    assert checksum(memory_map(x, tmp_path)) == checksum(sp.csr_array(x)) == whole
    changed = x.copy()
    changed[-1, -1] = np.nextafter(changed[-1, -1], 9)
    assert checksum(changed) != whole != checksum(x[::-1])


@pytest.mark.parametrize("loader", ["plain", "shuffled", "whole batches"])
def test_a_data_loader_feeds_the_edge_inferer(table, loader):
    x, y = table
    model = small_model()
    fit(model, x, y, epochs=2, standardize=True, seed=0, verbose=False)
    source = OnDisk(x)
    dataset = RowDataset(model, source, sp.csr_array(y))
    assert len(dataset) == B
    batches = {
        "plain": lambda: DataLoader(dataset, batch_size=8),
        "shuffled": lambda: DataLoader(
            dataset, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0)
        ),
        "whole batches": lambda: DataLoader(
            dataset, batch_size=None, sampler=BatchSampler(SequentialSampler(dataset), 8, False)
        ),
    }[loader]()
    got, expected = (MagnitudeEdgeInferer(model, model.graph) for _ in range(2))
    assert got.fit(batches, verbose=False) == (~np.isnan(y)).any(1).sum()
    assert source.most == 8 and (source.seen == 1).all()
    scaled = model.scaling.scale_x(torch.as_tensor(x)), model.scaling.scale_y(torch.as_tensor(y))
    expected.fit([tuple(t.float() for t in scaled)], verbose=False)
    a, b = got.evaluate(), expected.evaluate()
    key = ["src_idx", "dst_idx"]
    np.testing.assert_allclose(
        a.sort_values(key)["corr"].to_numpy(), b.sort_values(key)["corr"].to_numpy(), atol=1e-6
    )


def test_samples_of_a_data_set(table):
    x, y = table
    dataset = RowDataset(small_model(dtype=torch.float64), sp.csr_array(x), y)
    one_x, one_y = dataset[-1]
    np.testing.assert_array_equal(one_x, x[-1])
    np.testing.assert_array_equal(one_y, y[-1])
    rows: Any
    for rows in ([4, 0, 4], torch.tensor([4, 0, 4])):
        many_x, many_y = dataset[rows]
        np.testing.assert_array_equal(many_x, x[[4, 0, 4]])
        np.testing.assert_array_equal(many_y, y[[4, 0, 4]])
    np.testing.assert_array_equal(dataset[3:6][0], x[3:6])
    for rows in (B, [0, B], -B - 1):
        with pytest.raises(IndexError, match="row numbers must be below 41, got"):
            dataset[rows]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int16, np.uint8, bool])
def test_number_types(table, tmp_path, dtype):
    x = (10 * abs(table[0])).astype(dtype)
    model = small_model()
    np.testing.assert_array_equal(predict(model, memory_map(x, tmp_path)), predict(model, x))


def test_files_are_left_alone(table, tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", shape=table[0].shape)
    x[:] = table[0]
    model = small_model()
    fit(model, x, table[1], standardize=True, epochs=1, seed=0, verbose=False)
    predict(model, x)
    np.testing.assert_array_equal(x, table[0])


def test_columns_of_an_annotated_matrix_are_matched_by_name(table):
    x, y = table
    names = [f"s{i}" for i in range(B)]
    a, b = small_model(), small_model()
    fit(a, x, y, epochs=2, batch_size=8, seed=0, verbose=False)
    shuffled = Annotated(sp.csr_array(x[:, [2, 0, 1]]), names, ["c", "a", "b"])
    targets = Annotated(y[::-1, ::-1].copy(), names[::-1], OUTPUTS[::-1])
    fit(b, shuffled, targets, epochs=2, batch_size=8, seed=0, verbose=False)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    got = predict(b, shuffled)
    assert list(got.columns) == OUTPUTS and list(got.index) == names
    np.testing.assert_array_equal(got.to_numpy(), predict(a, x))


def frame(values, names, columns):
    return pd.DataFrame(values, names, columns)


@pytest.mark.parametrize("make", [frame, Annotated], ids=["DataFrame", "AnnData"])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["a", "c"], r"x has no column for 1 input node\(s\): 'b'$"),
        (["a", "B", "c"], r"x has no column for 1 input node\(s\): 'b' \(columns .* no input node: 'B'\)"),
        (["b", "a", "c", "z"], r"x has 1 column\(s\) that are no input node: 'z'"),
        (["a", "b", "c", "a"], "x has columns more than once: 'a'"),
    ],
)
def test_wrong_columns_are_named(make, columns, message):
    x = make(np.ones((4, len(columns))), list("pqrs"), columns)
    with pytest.raises(ValueError, match=message):
        predict(small_model(), x)
    with pytest.raises(ValueError, match=message):
        fit(small_model(), x, np.zeros((4, 2)), verbose=False)


def test_values_that_are_not_finite_are_named_by_their_own_row(table, tmp_path):
    x, y = table
    x, y = x.copy(), np.nan_to_num(y)
    x[17, 1] = np.nan
    y[20, 0] = np.inf
    good = np.zeros_like(x)
    model = small_model()
    options: dict[str, Any] = {"validation": 0.3, "seed": 1, "verbose": False}
    with pytest.raises(ValueError, match="x must be finite, got nan in column 'b', row 17$"):
        fit(model, memory_map(x, tmp_path), np.zeros_like(y), **options)
    with pytest.raises(ValueError, match="y must be finite or NaN, got inf in column 'y1', row 20$"):
        fit(model, good, sp.csr_array(y), **options)
    labelled = Annotated(x, [f"s{i}" for i in range(B)], INPUTS)
    with pytest.raises(ValueError, match="x must be finite, got nan in column 'b', sample 's17'"):
        predict(model, labelled, batch_size=6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: sp.csr_array(x[:, :2]), r"x must have the shape \(samples, 3\), .* got \(41, 2\)"),
        (lambda x: OnDisk(x[:, 0]), r"x must have the shape \(samples, 3\), .* got \(41,\)"),
        (lambda x: OnDisk(x.astype(str)), "x must be numeric, got the dtype <U"),
        (lambda x: x.astype(complex), "x must be numeric, got the dtype complex128"),
        (lambda x: torch.tensor(x + 1j), "x must be numeric, got the dtype torch.complex128"),
        (lambda x: x.astype(object), "x must be numeric, got the dtype object"),
        (lambda x: "abc", "x must be numeric, got the dtype <U3"),
        (lambda x: None, "x must be numeric, got the dtype object"),
        (lambda x: [[1.0, 2.0, 3.0], [1.0]], "x must be a table of numbers: .*inhomogeneous"),
        (lambda x: Annotated(None, [], INPUTS), "x must be an AnnData with X, got one without"),
        (lambda x: sp.csr_array(x[:9]), "same number of rows, got 9 and 41"),
    ],
)
def test_tables_that_do_not_fit(table, make, message):
    x, y = table
    with pytest.raises(ValueError, match=message):
        fit(small_model(), make(x), y, verbose=False)


def test_samples_of_two_labelled_tables_must_be_the_same(table):
    x, y = table
    names = [f"s{i}" for i in range(B)]
    odd = Annotated(x, [*names[1:], "zz"], INPUTS)
    with pytest.raises(ValueError, match="2 are in one only: 's0', 'zz'"):
        fit(small_model(), odd, pd.DataFrame(y, names, OUTPUTS), verbose=False)
    twice = Annotated(x, [*names[1:], "s1"], INPUTS)
    with pytest.raises(ValueError, match="x has the sample 's1' more than once"):
        fit(small_model(), twice, pd.DataFrame(y, names, OUTPUTS), verbose=False)


def in_memory(values, path, anndata, **names):
    return anndata.AnnData(values, **names)


def backed(values, path, anndata, **names):
    # Names are text of pandas' own type since its version 3.
    with anndata.settings.override(allow_write_nullable_strings=True):
        anndata.AnnData(values, **names).write_h5ad(path)
    return anndata.read_h5ad(path, backed="r")


@pytest.mark.parametrize("values", [np.array, sp.csr_matrix, sp.csc_matrix], ids=["dense", "CSR", "CSC"])
@pytest.mark.parametrize("place", [in_memory, backed])
@pytest.mark.parametrize("view", [False, True])
def test_anndata(table, tmp_path, values, place, view):
    anndata = pytest.importorskip("anndata", reason="needs anndata: pip install 'gsnn[anndata]'")
    x, y = table
    names = pd.DataFrame(index=[f"s{i}" for i in range(B)])
    data = place(
        values(x[:, [2, 0, 1]]), tmp_path / "x.h5ad", anndata, obs=names, var=pd.DataFrame(index=list("cab"))
    )
    rows = np.arange(B)
    if view:
        rows = np.array([3, 2, *range(10, 40)])
        data = data[rows, ["b", "c", "a"]]
    a, b = small_model(), small_model()
    options: dict[str, Any] = {"epochs": 2, "batch_size": 8, "seed": 0, "standardize": True, "verbose": False}
    fit(a, x[rows], y[rows], validation=0.2, **options)
    fit(b, data, pd.DataFrame(y[rows], names.index[rows], OUTPUTS), validation=0.2, **options)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    got = predict(b, data)
    assert list(got.index) == list(names.index[rows])
    np.testing.assert_array_equal(got.to_numpy(), predict(a, x[rows]))
    with pytest.raises(ValueError, match=r"x has no column for 1 input node\(s\): 'b'"):
        predict(b, data.to_memory()[:, ["a", "c"]] if view else data[:, ["a", "c"]])


def test_anndata_on_disk_is_read_by_rows(table, tmp_path, monkeypatch):
    anndata = pytest.importorskip("anndata", reason="needs anndata: pip install 'gsnn[anndata]'")
    import h5py

    path = tmp_path / "x.h5ad"
    data = backed(
        table[0],
        path,
        anndata,
        obs=pd.DataFrame(index=[str(i) for i in range(B)]),
        var=pd.DataFrame(index=INPUTS),
    )
    read, most = h5py.Dataset.__getitem__, 0

    def counted(self, rows, *args, **kwargs):
        nonlocal most
        found = read(self, rows, *args, **kwargs)
        if self.name == "/X":
            most = max(most, len(found))
        return found

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    monkeypatch.setattr(rows_module, "_BLOCK_VALUES", 24)
    model = small_model()
    fit(model, data[:30], table[1][:30], epochs=2, batch_size=8, seed=0, verbose=False)
    predict(model, data, batch_size=8)
    assert most == 8


def test_a_view_on_disk_needs_unique_names(table, tmp_path):
    anndata = pytest.importorskip("anndata", reason="needs anndata: pip install 'gsnn[anndata]'")
    with pytest.warns(UserWarning, match="not unique"):
        data = backed(
            table[0],
            tmp_path / "x.h5ad",
            anndata,
            obs=pd.DataFrame(index=["s"] * B),
            var=pd.DataFrame(index=INPUTS),
        )
    with pytest.raises(ValueError, match="view of an AnnData on disk, whose obs_names and var_names"):
        predict(small_model(), data[:4])
    assert len(predict(small_model(), data)) == B

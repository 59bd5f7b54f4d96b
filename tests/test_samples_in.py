"""MIDAS and AnnData to X, Y and groups; inputs that only one sample has."""

import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gsnn.app.settings import Options
from gsnn.app.workflow import run
from gsnn.data.annotated import from_anndata
from gsnn.data.midas import read_midas
from gsnn.data.tables import DataWarning, load_data, match_data
from gsnn.graph import build

MIDAS = """TR:mock:CellLine, TR:EGF, TR:TNFa, TR:Rafi, TR:NOINHIB, DA:Akt, DA:Erk, DV:Akt, DV:Erk
1,1,,0,1,0,0,0,0
1,1,,0,1,10,10,0.9,0.8
1,.5,0,1,,10,10,0.7,NA
1,,1,0,1,10,30,0.1,0.2
1,1,,0,1,10,10,0.8,0.9
1,,,,1,10,10,0,0.1
"""


def write(folder, text):
    path = folder / "MD-x.csv"
    path.write_text(text)
    return path


def test_midas_by_hand(tmp_path):
    with pytest.raises(ValueError, match=r"MD-x\.csv has 2 times besides 0: 10, 30; choose one with time="):
        read_midas(write(tmp_path, MIDAS))
    found = read_midas(write(tmp_path, MIDAS), time=10)
    assert found.x.columns.tolist() == ["EGF", "TNFa", "Rafi"]
    assert found.x.to_numpy().tolist() == [[1, 0, 0], [0.5, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]]
    want = [[0.9, 0.8], [0.7, np.nan], [0.1, np.nan], [0.8, 0.9], [0, 0.1]]
    np.testing.assert_array_equal(found.y, want)
    assert found.x.index.tolist() == ["EGF", "EGF=0.5+Rafi", "TNFa", "EGF.2", "control"]
    assert found.groups.tolist() == ["EGF", "EGF=0.5+Rafi", "TNFa", "EGF", "control"]
    assert found.x.index.equals(found.y.index) and found.x.index.equals(found.groups.index)
    assert found.targets == {"EGF": {"EGF": 1}, "TNFa": {"TNFa": 1}, "Rafi": {"Raf": -1}}
    late = read_midas(write(tmp_path, MIDAS), time=30)
    assert late.x.index.tolist() == ["TNFa"] and late.y.loc["TNFa", "Erk"] == 0.2
    assert np.isnan(late.y["Akt"]["TNFa"])


LINES = """TR:name:CellLine,TR:A:CellLine,TR:B:CellLine,TR:EGF:Stimuli,TR:Raf:Inhibitors,DA:ALL,DV:Erk
p1,1,,1,,0,5
p1,1,,1,,30,6
p2,,1,1,1,30,7
"""


def test_midas_with_lines_and_types(tmp_path):
    found = read_midas(write(tmp_path, LINES))
    assert found.x.columns.tolist() == ["EGF", "Rafi", "A", "B"]
    assert found.x.to_numpy().tolist() == [[1, 0, 1, 0], [1, 1, 0, 1]]
    assert found.y["Erk"].tolist() == [6, 7]
    assert found.targets == {"EGF": {"EGF": 1}, "Rafi": {"Raf": -1}}
    assert read_midas(write(tmp_path, LINES), groups="line").groups.tolist() == ["A", "B"]
    assert read_midas(write(tmp_path, LINES)).groups.tolist() == ["EGF+A", "EGF+Rafi+B"]


SPELLINGS = """TR:A:CellType,TR:B:Cell Type,TR:no-lig,TR:Rafi:Stimuli,TR:i,TR:Mek:Inhibitor,DA:ALL,DA:Akt,DV:Erk,DV:Akt
1,,1,2,,,5,7,0.1,0.2
,1,1,,1,1,7,5,0.3,0.4
,1,1,,1,1,0,0,0.5,0.6
"""  # noqa: E501 - a line of the file


def test_midas_as_others_write_it(tmp_path):
    """Types and names in other spellings, an output with times of its own, the time 0."""
    found = read_midas(write(tmp_path, SPELLINGS), time=5)
    assert found.x.columns.tolist() == ["Rafi", "i", "Meki", "A", "B"]
    assert found.x.to_numpy().tolist() == [[2, 0, 0, 1, 0], [0, 1, 1, 0, 1]]
    assert found.targets == {"Rafi": {"Rafi": 1}, "i": {"i": 1}, "Meki": {"Mek": -1}}
    np.testing.assert_array_equal(found.y, [[0.1, np.nan], [np.nan, 0.4]])
    assert read_midas(write(tmp_path, SPELLINGS), time=0).y.to_numpy().tolist() == [[0.5, 0.6]]
    with pytest.raises(ValueError, match=r"time must be one of .*, 0, 5, 7, got 6"):
        read_midas(write(tmp_path, SPELLINGS), time=6)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n", {}, r"must have columns TR:\.\.\., got 'a', 'b'; is it a MIDAS file"),
        (MIDAS.replace("DV:", "XX:"), {}, r"must have columns DV:"),
        (MIDAS.replace("DA:Erk", "DA:Ark"), {}, r"has no times \(DA:\.\.\.\) for 'Erk'"),
        (MIDAS.replace("DV:Erk", "DV:Akt"), {}, "has columns more than once: 'DV:Akt'"),
        (
            MIDAS.replace("0.9,0.8", "0.9,high"),
            {"time": 10},
            "line 3, column 'DV:Erk': must be a number, got",
        ),
        (MIDAS, {"time": 5}, "time must be one of .*0, 10, 30, got 5"),
        (MIDAS, {"time": 10, "groups": "line"}, "has one cell line only: groups must be 'condition'"),
        (MIDAS, {"groups": "plate"}, "groups must be one of 'condition', 'line', got 'plate'"),
    ],
)
def test_bad_midas(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=message):
        read_midas(write(tmp_path, text), **options)


def test_from_midas_and_sif_to_a_model(tmp_path):
    (tmp_path / "pkn.sif").write_text("EGF 1 Raf\nTNFa 1 Akt\nRaf 1 Erk\nRaf -1 Akt\n")
    found = read_midas(write(tmp_path, MIDAS), time=10)
    graph = build(tmp_path / "pkn.sif", found.targets, found.y.columns)
    with pytest.warns(DataWarning, match="single group: 'TNFa', 'Rafi'"):
        data = match_data(graph, found.x, found.y, found.groups)
    assert graph.node_names_dict["function"] == ["Akt", "EGF", "Erk", "Raf", "TNFa"]
    assert data.groups is not None and data.groups.to_dict() == found.groups.to_dict()
    np.testing.assert_array_equal(data.x.loc[found.x.index], found.x)


@pytest.fixture
def adata():
    anndata = pytest.importorskip("anndata")
    obs = pd.DataFrame(
        {
            "drug": pd.Categorical(["DMSO", "d1", "d2", "d1", "d1+d2", None]),
            "dose": [0, 1, 0.5, 3, "2+0.1", 0],
            "hours": [6, 6, 24, 24, 6, 6],
            "plate": ["p", "p", "q", "q", "q", "p"],
            "line": ["A", "B", "A", "B", "A", "A"],
        },
        index=[f"c{k}" for k in range(6)],
    )
    values = np.arange(18.0).reshape(6, 3)
    return anndata.AnnData(values, obs, pd.DataFrame(index=list("xyz")), layers={"raw": values + 100})


def test_anndata_by_hand(adata):
    found = from_anndata(
        adata, ["drug", "hours"], dose="dose", control="DMSO", separator="+", groups=["line", "plate"]
    )
    assert found.x.columns.tolist() == ["d1", "d2", "hours"]
    want = [[0, 0, 6], [1, 0, 6], [0, 0.5, 24], [3, 0, 24], [2, 0.1, 6], [0, 0, 6]]
    assert found.x.to_numpy().tolist() == want
    assert found.y.columns.tolist() == ["x", "y", "z"] and list(found.y.loc["c2"]) == [6, 7, 8]
    assert found.groups.tolist() == ["A|p", "B|p", "A|q", "B|q", "A|q", "A|p"]
    again = from_anndata(adata, "drug", dose={"drug": "dose"}, control=["DMSO"], separator="+")
    assert again.groups.tolist() == ["control", "d1", "d2=0.5", "d1=3.0", "d1=2.0+d2=0.1", "control"]
    part = from_anndata(adata, "plate", outputs=["z", "x"], layer="raw")
    assert part.x.columns.tolist() == ["p", "q"] and part.x["q"].tolist() == [0, 0, 1, 1, 1, 0]
    assert list(part.y.loc["c1"]) == [105, 103] and part.y.columns.tolist() == ["z", "x"]


def test_anndata_from_a_file_and_sparse(adata, tmp_path):
    import scipy.sparse

    want = from_anndata(adata, "plate")
    adata.obs = adata.obs[["plate"]]
    adata.X = scipy.sparse.csr_matrix(adata.X)
    with pytest.importorskip("anndata").settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(tmp_path / "a.h5ad")
    found = from_anndata(tmp_path / "a.h5ad", "plate")
    alike: dict[str, Any] = {"check_names": False, "check_index_type": False, "check_column_type": False}
    pd.testing.assert_frame_equal(found.x, want.x, **alike)
    pd.testing.assert_frame_equal(found.y, want.y, **alike)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": "drugs"}, "inputs must be columns of obs of adata, got 'drugs'.*did you mean 'drug'"),
        ({"inputs": "drug", "outputs": ["w"]}, "outputs must be var_names of adata, got 'w'"),
        ({"inputs": "drug", "groups": "batch"}, "groups must be columns of obs of adata, got 'batch'"),
        ({"inputs": "line", "groups": "drug"}, "groups must have a label for each sample, got none for 'c5'"),
        ({"inputs": "drug", "layer": "log"}, "layer must be one of 'raw', got 'log'"),
        (
            {"inputs": "drug", "dose": "dose"},
            r"dose must have a number .* got '2\+0\.1' for 'd1\+d2' in .*'c4'",
        ),
        ({"inputs": ["drug", "line"], "dose": "dose"}, "dose must say which column it belongs to"),
        ({"inputs": "drug", "dose": {"line": "dose"}}, "dose must be for columns of names among inputs"),
        ({"inputs": ["line", "line"]}, "inputs must have names that differ, got several of 'A', 'B'"),
        ({"inputs": "line", "control": ["A", "B"]}, "inputs must have a value besides the controls"),
    ],
)
def test_bad_anndata(adata, options, message):
    with pytest.raises(ValueError, match=message):
        from_anndata(adata, **options)


def test_what_is_no_anndata(adata, monkeypatch):
    with pytest.raises(TypeError, match="adata must be an AnnData or the path of an h5ad file, got list"):
        from_anndata([], "drug")
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(ImportError, match=r"pip install 'gsnn\[anndata\]'"):
        from_anndata("a.h5ad", "drug")


@pytest.fixture
def study():
    """A graph of two inputs; d is used in every sample."""
    graph = build(pd.DataFrame({"source": ["a"], "target": ["b"]}), {"d": ["a"], "e": ["b"]}, ["a", "b"])
    rows = pd.Index([f"s{k}" for k in range(6)], name="sample")
    x = pd.DataFrame({"d": [1.0, 2, 3, 4, 5, 6], "e": [0.0, 0, 1, 1, 0, 0]}, rows)
    y = pd.DataFrame(np.random.default_rng(0).normal(size=(6, 2)), rows, ["a", "b"])
    return graph, x, y


def test_an_input_of_one_sample_gets_a_warning(study, tmp_path):
    graph, x, y = study
    assert match_data(graph, x, y).warnings == ()
    x.loc["s3", "e"] = 0
    with pytest.warns(
        DataWarning, match=r"x has 1 of 2 input\(s\) that are 0 but in a single sample: 'e'; when"
    ):
        data = match_data(graph, x, y)
    assert len(data.warnings) == 1
    graph.to_edge_table().to_csv(tmp_path / "edges.tsv", sep="\t", index=False)
    for name, table in (("x", x), ("y", y)):
        table.to_csv(tmp_path / f"{name}.tsv", sep="\t")
    with pytest.warns(DataWarning, match=r"x\.tsv has 1 of 2 input\(s\)"):
        data = load_data(*(tmp_path / f"{name}.tsv" for name in ("edges", "x", "y")))
    assert len(data.warnings) == 1


def test_a_graph_and_files(study, tmp_path):
    graph, x, y = study
    x.to_csv(tmp_path / "x.tsv", sep="\t")
    y.to_csv(tmp_path / "y.tsv", sep="\t")
    data = load_data(graph, tmp_path / "x.tsv", tmp_path / "y.tsv")
    assert data.graph is graph
    pd.testing.assert_frame_equal(data.x, x)
    with pytest.raises(ValueError, match="nodes, source, target and sign are for a table of edges, got a gr"):
        load_data(graph, tmp_path / "x.tsv", tmp_path / "y.tsv", sign="effect")
    with pytest.raises(TypeError, match="data must have edge_index_dict"):
        load_data([], tmp_path / "x.tsv", tmp_path / "y.tsv")


def test_an_input_of_one_group_gets_a_warning(study):
    graph, x, y = study
    groups = pd.Series(["p", "p", "q", "q", "r", "r"], x.index)
    with pytest.warns(DataWarning, match="0 but in a single group: 'e'"):
        match_data(graph, x, y, groups)
    groups["s3"] = "r"
    data = match_data(graph, x, y, groups[::-1])
    assert data.groups is not None
    assert data.groups.to_dict() == groups.to_dict() and data.warnings == ()


def test_tables_in_memory_are_checked_and_run(study, tmp_path):
    graph, x, y = study
    for args, error, message in (
        ((graph, x.to_numpy(), y), TypeError, "x must be a pandas DataFrame, got ndarray"),
        ((graph, x, y, ["p"] * 6), TypeError, "groups must be a pandas Series, got list"),
        ((graph, x.assign(d="high"), y), ValueError, "x must be numeric: .*'high'"),
        ((graph, x.drop(columns="d"), y), ValueError, r"x has no column for 1 input node\(s\): 'd'"),
        ((graph, x, y[:-1]), ValueError, r"x has 1 sample\(s\) that y lacks: 's5'"),
        (
            (graph, x, y, pd.Series(["p"] * 5, x.index[:5])),
            ValueError,
            r"groups lacks 1 sample\(s\) of x: 's5'",
        ),
        ((graph, x, y, pd.Series("", x.index)), ValueError, "groups has samples without a group"),
        ((graph, x, y, pd.Series("p", ["s0"] * 6)), ValueError, "groups names samples twice: 's0'"),
        ((graph, x.set_axis(["s"] * 6), y), ValueError, "x: sample names must be unique"),
    ):
        with pytest.raises(error, match=message):
            match_data(*args)
    options = Options(folds=2, epochs=1, channels=2, layers=2, complete=0)
    run(match_data(graph, x, y), tmp_path / "out", options, verbose=False)
    assert (tmp_path / "out" / "report.html").exists()

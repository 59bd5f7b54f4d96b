"""Tables from files: what is read, and that every misfit is named before any work starts."""

import gzip

import numpy as np
import pandas as pd
import pytest

from gsnn.data.tables import load_data, read_table
from gsnn.graph import GraphWarning

EDGES = [
    ("drug", "a", "input->function"),
    ("dose", "b", "input->function"),
    ("a", "b", "function->function"),
    ("b", "c", "function->function"),
    ("b", "y", "function->output"),
    ("c", "z", "function->output"),
]


@pytest.fixture
def files(tmp_path):
    """Writes the four tables of a small study; keyword arguments replace the text of one."""

    def write(**texts):
        rng = np.random.default_rng(0)
        rows = [f"s{i}" for i in range(6)]
        x = pd.DataFrame(rng.normal(size=(6, 2)).round(3), rows, ["drug", "dose"])
        y = pd.DataFrame(rng.normal(size=(6, 2)).round(3), rows, ["y", "z"])
        y.iloc[2, 1] = np.nan
        tables = {
            "edges": "\n".join("\t".join(row) for row in [("source", "target", "etype"), *EDGES]) + "\n",
            "x": x.to_csv(sep="\t"),
            "y": y.to_csv(sep="\t"),
            "groups": "sample\tline\n" + "".join(f"{s}\t{s in rows[:3]}\n" for s in reversed(rows)),
        }
        paths = {}
        for name, text in {**tables, **texts}.items():
            paths[name] = tmp_path / f"{name}.tsv"
            paths[name].write_text(text(tables[name]) if callable(text) else text, encoding="utf-8")
        return paths

    return write


def load(paths, **options):
    return load_data(paths["edges"], paths["x"], paths["y"], **options)


def test_tables_come_in_the_order_of_the_graph(files):
    paths = files()
    data = load(paths, groups=paths["groups"])
    assert list(data.x.columns) == ["drug", "dose"] and list(data.y.columns) == ["y", "z"]
    assert data.x.index.equals(data.y.index) and data.groups.index.equals(data.x.index)
    assert data.groups.tolist() == ["True"] * 3 + ["False"] * 3
    assert np.isnan(data.y.loc["s2", "z"]) and data.y.isna().to_numpy().sum() == 1


def test_order_of_rows_and_columns_plays_no_part(files):
    first = load(files())

    def shuffled(text):
        header, *rows = [line.split("\t") for line in text.strip("\n").split("\n")]
        turned = [[row[0], *row[:0:-1]] for row in [header, *rows[::-1]]]
        return "\n".join("\t".join(row) for row in turned) + "\n"

    second = load(files(x=shuffled, y=shuffled))
    assert second.order.tolist() == first.order.tolist()[::-1]
    pd.testing.assert_frame_equal(first.x, second.x)
    pd.testing.assert_frame_equal(first.y, second.y)
    assert first.graph == second.graph


def test_tables_tell_inputs_and_outputs_where_edges_have_no_types(files):
    typed = load(files())
    untyped = load(
        files(edges=lambda t: "\n".join("\t".join(r.split("\t")[:2]) for r in t.strip("\n").split("\n")))
    )
    assert set(untyped.graph.node_names_dict["function"]) == {"a", "b", "c"}
    assert untyped.graph.node_names_dict["input"] == ["dose", "drug"]
    pd.testing.assert_frame_equal(untyped.x[typed.x.columns], typed.x)


def test_an_input_that_x_lacks_is_pointed_out_where_edges_have_no_types(files):
    paths = files(
        edges=lambda t: "\n".join("\t".join(r.split("\t")[:2]) for r in t.strip("\n").split("\n")),
        x=lambda t: "\n".join("\t".join(r.split("\t")[:2]) for r in t.strip("\n").split("\n")),
    )
    with pytest.warns(GraphWarning, match=r"1 name\(s\) that no edge points to.*: 'dose'"):
        load(paths)


def test_an_output_that_y_lacks_is_pointed_out_where_edges_have_no_types(files):
    paths = files(
        edges=lambda t: "\n".join("\t".join(r.split("\t")[:2]) for r in t.strip("\n").split("\n")),
        y=lambda t: "\n".join("\t".join(r.split("\t")[:2]) for r in t.strip("\n").split("\n")),
    )
    with pytest.warns(GraphWarning, match=r"1 name\(s\) that point to nothing, and that .* lacks"):
        load(paths)


def replace(old, new):
    return lambda text: text.replace(old, new)


def column(name, value):
    def change(text):
        table = pd.DataFrame([line.split("\t") for line in text.strip("\n").split("\n")])
        table.columns = table.iloc[0]
        table = table.iloc[1:].copy()
        table[name] = value
        return table.to_csv(sep="\t", index=False)

    return change


def drop(name):
    def change(text):
        table = pd.DataFrame([line.split("\t") for line in text.strip("\n").split("\n")])
        table.columns = table.iloc[0]
        return table.iloc[1:].drop(columns=name).to_csv(sep="\t", index=False)

    return change


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"x": drop("dose")}, r"x\.tsv has no column for 1 input node\(s\): 'dose'$"),
        (
            {"x": replace("dose", "Dose")},
            r"1 input node\(s\): 'dose' \(columns that match no input node: 'Dose'",
        ),
        ({"x": column("more", "1")}, r"x\.tsv has 1 column\(s\) that are no input node: 'more'"),
        ({"y": column("w", "1")}, r"y\.tsv has 1 column\(s\) that are no output node: 'w'"),
        ({"y": drop("z")}, r"y\.tsv has no column for 1 output node\(s\): 'z'"),
        ({"x": replace("dose", "drug")}, r"x\.tsv: column names must be unique, got several of 'drug'"),
        ({"x": replace("\tdose", "\t")}, r"x\.tsv: column names must not be empty"),
        ({"x": replace("s1\t", "s0\t")}, r"x\.tsv: sample names must be unique, got several of 's0'"),
        ({"x": replace("s1\t", "\t")}, r"x\.tsv: sample names must not be empty"),
        ({"x": replace("s1\t", "t1\t")}, r"x\.tsv has 1 sample\(s\) that .*y\.tsv lacks: 't1'"),
        ({"y": lambda t: t + "s9\t1\t2\n"}, r"y\.tsv has 1 sample\(s\) that .*x\.tsv lacks: 's9'"),
        ({"x": column("dose", "high")}, r"must be numeric, got 'high' in column 'dose', sample 's0'"),
        ({"x": column("dose", ["1", "2", "x", "4", "5", "6"])}, "got 'x' in column 'dose', sample 's2'"),
        (
            {"x": column("dose", ["1", "2", "", "4", "5", "6"])},
            r"got nan in column 'dose', sample 's2' \(1 such",
        ),
        ({"x": column("dose", ["1", "inf", "3", "4", "5", "6"])}, "got inf in column 'dose', sample 's1'"),
        ({"y": column("z", ["1", "-inf", "3", "4", "5", "6"])}, "got -inf in column 'z', sample 's1'"),
        ({"y": column("z", "")}, r"1 output\(s\) without any measured value: 'z'"),
        ({"y": column("z", "4.5")}, r"1 constant column\(s\).*'z' is 4\.5 in every sample.*output nodes"),
        ({"x": column("dose", "0")}, r"1 constant column\(s\).*'dose' is 0 in every sample.*input nodes"),
        (
            {"x": lambda t: "\n".join(t.split("\n")[:3]), "y": lambda t: "\n".join(t.split("\n")[:3])},
            "at least 4",
        ),
        ({"x": ""}, r"x\.tsv must have a header"),
        ({"x": "sample\tdrug\tdose\n"}, r"x\.tsv must have a header"),
        ({"x": "sample\n1\n"}, r"x\.tsv must have a header"),
        ({"x": lambda t: t + "s7\t1\t2\t3\t4\n"}, r"x\.tsv cannot be read as a table"),
        ({"x": replace("s0\t", "s0\t1\t2\t")}, r"x\.tsv cannot be read as a table"),
        ({"edges": replace("target", "goal")}, "target"),
    ],
)
def test_misfits_are_named(files, texts, message):
    with pytest.raises(ValueError, match=message):
        load(files(**texts))


def test_unknown_columns_are_named_where_edges_have_no_types(files):
    two = lambda t: "\n".join("\t".join(r.split("\t")[:2]) for r in t.strip("\n").split("\n"))  # noqa: E731
    with pytest.warns(GraphWarning), pytest.raises(ValueError, match=r"no input node of .*: 'more'"):
        load(files(edges=two, x=column("more", "1")))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (lambda t: t.replace("s0\t", "t0\t"), {}, r"groups\.tsv lacks 1 sample\(s\) of .*x\.tsv: 's0'"),
        (lambda t: t.replace("s0\tTrue", "s0\t"), {}, "samples without a group: 's0'"),
        (lambda t: t + "s0\tA\n", {}, "names samples twice: 's0'"),
        (lambda t: t, {"group_column": "batch"}, "has no column 'batch'; it has 'line'"),
        (column("batch", "1"), {}, "group_column must say which to take; got 'line', 'batch'"),
    ],
)
def test_bad_groups(files, text, options, message):
    paths = files(groups=text)
    with pytest.raises(ValueError, match=message):
        load(paths, groups=paths["groups"], **options)


def test_one_of_several_group_columns(files):
    paths = files(groups=column("batch", ["1", "1", "2", "2", "3", "3"]))
    data = load(paths, groups=paths["groups"], group_column="batch")
    assert data.groups.to_dict() == {"s5": "1", "s4": "1", "s3": "2", "s2": "2", "s1": "3", "s0": "3"}


def test_missing_file(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*nothing"):
        load({**files(), "y": tmp_path / "nothing.tsv"})


def test_names_stay_text(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("id\t1\t2.0\n007\t1\t2\nNA\t3\tNA\n1e3\t5\t6\n")
    table = read_table(path)
    assert table.index.tolist() == ["007", "NA", "1e3"]
    assert table.columns.tolist() == ["1", "2.0"]
    assert np.isnan(table.loc["NA", "2.0"]) and table.loc["1e3", "1"] == 5


def test_comma_separated_compressed_and_with_a_byte_order_mark(tmp_path):
    plain, packed = tmp_path / "t.csv", tmp_path / "t.csv.gz"
    text = '\ufeffsample,"a, b",c\ns1,1,2\ns2,3,\n'
    plain.write_text(text, encoding="utf-8")
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, packed):
        table = read_table(path)
        assert table.columns.tolist() == ["a, b", "c"] and table.shape == (2, 2)


def test_header_that_r_leaves_one_name_short(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("a\tb\ns1\t1\t2\ns2\t3\t4\n")
    table = read_table(path)
    assert table.columns.tolist() == ["a", "b"] and table.index.tolist() == ["s1", "s2"]


def test_numbers_keep_their_digits(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 3)) * 1e-7
    path = tmp_path / "t.tsv"
    pd.DataFrame(values, list("abcde"), list("xyz")).to_csv(path, sep="\t")
    np.testing.assert_allclose(read_table(path).to_numpy(), values, rtol=1e-15)

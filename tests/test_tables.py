"""Tables from files: what is read, and that every misfit is named before any work starts."""

import bz2
import csv
import gzip
import io
import lzma
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsnn._delimited import read_delimited
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
        ({"x": lambda t: t + "s7\t1\t2\t3\t4\n"}, r"x\.tsv, line 8: 5 cells where the header has 3"),
        ({"x": replace("s0\t", "s0\t1\t2\t")}, r"x\.tsv, line 2: 5 cells where the header has 3"),
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
    assert np.isnan(table["2.0"]["NA"]) and table.loc["1e3", "1"] == 5


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


def zipped(raw, *names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names or ("t.tsv",):
            archive.writestr(name, raw)
    return file.getvalue()


TEXT = "id\ta\tb\ns1\t1\t2\ns2\t3\t\n"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zipped])
@pytest.mark.parametrize("name", ["t.tsv", "t.TSV", "t.tsv.GZ", "t.txt"])
def test_compression_is_told_by_the_content(tmp_path, pack, name):
    (tmp_path / name).write_bytes(pack(TEXT.encode()))
    table = read_table(tmp_path / name)
    assert table.columns.tolist() == ["a", "b"] and list(table.loc["s1"]) == [1, 2]


def test_files_that_are_no_table_say_why(tmp_path, monkeypatch):
    path = tmp_path / "t.tsv"
    for raw, message in (
        (gzip.compress(TEXT.encode())[:-9], r"t\.tsv is compressed but damaged"),
        (zipped(b"x", "a", "b"), r"t\.tsv is an archive of 2 files"),
        (zipped(b"x", "[Content_Types].xml", "xl/workbook.xml"), r"t\.tsv is a spreadsheet"),
        (
            "id\tä\ns\t1\n".encode("latin-1"),
            r"t\.tsv is not UTF-8 text \(byte 0xe4 at 3\); latin-1 or cp1252",
        ),
        (TEXT.encode("utf-16-le"), r"t\.tsv is no text table: it holds NUL"),
        (b"", r"t\.tsv must have a header line, got an empty file"),
    ):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=message):
            read_table(path)
    path.write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ImportError, match=r"t\.tsv is zstd-compressed: pip install 'gsnn\[zstd\]'"):
        read_table(path)


def test_a_zstd_file_is_read(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "t.tsv.zst"
    text = TEXT + "".join(f"r{k}\t{k}\t{k * k % 997}\n" for k in range(3000))
    packed = zstandard.ZstdCompressor().compress(text.encode())
    more = zstandard.ZstdCompressor().compress(b"last\t7\t8\n")
    path.write_bytes(packed + more)
    table = read_table(path)
    assert table.columns.tolist() == ["a", "b"] and list(table.loc["s1"]) == [1, 2]
    assert len(table) == 3003 and list(table.loc["last"]) == [7, 8]
    for damaged in (packed[:-3], packed[: len(packed) // 2], packed[:30] + b"?" * 30 + packed[60:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"t\.tsv\.zst is compressed but damaged"):
            read_table(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_name_themselves(tmp_path, encoding):
    path = tmp_path / "t.tsv"
    path.write_bytes("id\té\ns\t1\n".encode(encoding))
    assert read_table(path).columns.tolist() == ["é"]


@pytest.mark.parametrize("separator", "\t,;")
@pytest.mark.parametrize("name", ["t.tsv", "t.csv", "t"])
def test_the_header_tells_the_separator(tmp_path, separator, name):
    (tmp_path / name).write_text(TEXT.replace("\t", separator))
    assert list(read_table(tmp_path / name).loc["s1"]) == [1, 2]


def test_every_gap_word_is_a_gap_and_nothing_else_is(tmp_path):
    path = tmp_path / "t.tsv"
    words = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "-", "."]
    path.write_text("id\ta\n" + "".join(f"s{k}\t{word}\n" for k, word in enumerate(words)) + "t\t0\n")
    table = read_table(path)
    assert table["a"].isna().tolist() == [True] * len(words) + [False]
    for cell, hint in (
        ("?", ""),
        ("TRUE", "; write 1 for TRUE and 0 for FALSE"),
        ("1,5", "; write the decimal point, 1.5"),
    ):
        path.write_text(f"id\ta\ns\t1\nt\t{cell}\n")
        with pytest.raises(ValueError) as error:
            read_table(path)
        want = f"{path} must be numeric, got {cell!r} in column 'a', sample 't' (line 3){hint}"
        assert str(error.value) == want


def test_a_short_row_is_an_error_and_no_gap(files):
    with pytest.raises(ValueError, match=r"y\.tsv, line 4: 2 cells where the header has 3"):
        load(
            files(
                y=lambda t: "\n".join(
                    r[: r.rindex("\t")] if k == 3 else r for k, r in enumerate(t.split("\n"))
                )
            )
        )


def test_quotes_inside_text_swallow_nothing(tmp_path):
    path = tmp_path / "edges.tsv"
    path.write_text(
        'source\ttarget\tnote\ni\ta\t"Smith et al\na\tb\t5\' end, 3" long\nb\to\tso-called "hub"\n'
    )
    found = read_delimited(path)
    assert [row[:2] for row in found.rows] == [["i", "a"], ["a", "b"], ["b", "o"]]
    assert [row[2] for row in found.rows] == ['"Smith et al', "5' end, 3\" long", 'so-called "hub"']
    path.write_text('id\ta\n"s1\t1\ns2"\t2\n')
    assert read_table(path).index.tolist() == ['"s1', 's2"']


cell = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=8)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(cell, cell), min_size=1, max_size=6), st.sampled_from("\t,"))
def test_what_pandas_writes_is_read_back(tmp_path_factory, rows, separator):
    import unicodedata

    path = tmp_path_factory.mktemp("t") / ("t.csv" if separator == "," else "t.tsv")
    table = pd.DataFrame(rows, columns=["a", "b"])
    table.insert(0, "k", range(len(rows)))
    table.to_csv(path, sep=separator, index=False)
    found = read_delimited(path)
    assert len(found.rows) == len(rows)
    for row, (_, a, b) in zip(found.rows, table.itertuples(index=False), strict=True):
        for got, sent in zip(row[1:], (a, b), strict=True):
            assert (
                got == unicodedata.normalize("NFC", sent.strip()).strip("\ufeff\u200b ")
                or got.strip() == sent.strip()
            )


def test_comment_lines(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("# made by hand\n#\n\nid\ta\n# a remark\ns1\t1\n#2\t5\n")
    table = read_table(path)
    assert table.index.tolist() == ["s1", "#2"] and table["a"].tolist() == [1, 5]
    path.write_text("#id\ta\ns1\t1\n")
    assert read_table(path)["a"].tolist() == [1]


PLAIN = "source\ttarget\ndrug\ta\ndose\tb\na\tb\nb\tc\nb\ty\nc\tz\n"


def test_names_that_look_alike_are_said(files):
    blank = PLAIN.replace("a\tb\n", "a\u00a0\tb\n")
    with pytest.warns(GraphWarning, match=r"names that look alike: 'a\\xa0' taken for 'a'"):
        data = load(files(edges=blank))
    assert (
        data.graph.node_names_dict["function"] == load(files(edges=PLAIN)).graph.node_names_dict["function"]
    )
    with pytest.warns(GraphWarning, match=r"'C' and 'c' differ only by case and are different nodes"):
        load(files(edges=PLAIN + "b\tC\nC\tz\n"))
    accents = PLAIN.replace("\tc\n", "\te\u0301\n").replace("c\tz", "\u00e9\tz")
    with pytest.warns(GraphWarning, match="taken for 'é'"):
        data = load(files(edges=accents))
    assert "é" in data.graph.node_names_dict["function"]


def turned(text):
    rows = [line.split("\t") for line in text.strip("\n").split("\n")]
    return "\n".join("\t".join(row) for row in zip(*rows, strict=True)) + "\n"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"x": replace("dose", " Dose")}, r"did you mean 'Dose' for 'dose'\?"),
        ({"y": replace("s1\t", "S1\t")}, r"x\.tsv has 1 sample.*'s1'; did you mean 'S1' for 's1'\?"),
        ({"x": replace("s1\t", "1\t"), "y": replace("s1\t", "001\t")}, r"did you mean '001' for '1'\?"),
        (
            {"x": turned},
            r"x\.tsv seems to be transposed",
        ),
    ],
)
def test_hints(files, texts, message):
    with pytest.raises(ValueError, match=message):
        load(files(**texts))


@pytest.mark.parametrize(
    "words", [("activation", "inhibition"), ("+", "-"), ("Stimulation", "repression"), ("1", "-1")]
)
def test_signs_in_words(files, words):
    up, down = words
    text = "source\ttarget\tsign\n" + "".join(
        f"{row}\t{down if k % 2 else up}\n" for k, row in enumerate(PLAIN.strip("\n").split("\n")[1:])
    )
    data = load(files(edges=text))
    weights = data.graph.edge_weight_dict
    assert [weights[e].tolist() for e in weights] == [[1.0, -1.0], [1.0, -1.0], [1.0, -1.0]]


def test_omnipath_columns_and_named_columns(files):
    rows = [row.split("\t") for row in PLAIN.strip("\n").split("\n")[1:]]
    omnipath = (
        "source\ttarget\tsource_genesymbol\ttarget_genesymbol\tis_stimulation\tis_inhibition\n"
        + "".join(
            f"P{k}\tQ{k}\t{u}\t{v}\t{'TRUE' if k != 2 else 'FALSE'}\t{int(k in (2, 3))}\n"
            for k, (u, v) in enumerate(rows)
        )
    )
    plain = load(files(edges=PLAIN))
    data = load(files(edges=omnipath))
    assert data.graph.node_names_dict == plain.graph.node_names_dict
    assert data.graph.edge_weight_dict["function", "to", "function"].tolist() == [-1, 0]  # 3 is both
    named = "regulator\tgene\teffect\tsource\n" + "".join(f"{u}\t{v}\t-\tx\n" for u, v in rows)
    data = load(files(edges=named), source="regulator", target="gene", sign="effect")
    assert data.graph.node_names_dict == plain.graph.node_names_dict
    assert data.graph.edge_weight_dict["function", "to", "function"].tolist() == [-1, -1]
    with pytest.raises(ValueError, match=r"edges\.tsv has no column 'tf' for the source, got 'regulator'"):
        load(files(edges=named), source="tf")


def test_signor_columns_and_words(files):
    rows = [row.split("\t") for row in PLAIN.strip("\n").split("\n")[1:]]
    words = ["up-regulates", "down-regulates activity", "up-regulates quantity by expression", "unknown"]
    words += ["down-regulates quantity by destabilization", "form complex"]
    text = "ENTITYA\tENTITYB\tEFFECT\n" + "".join(
        f"{u}\t{v}\t{word}\n" for (u, v), word in zip(rows, words, strict=True)
    )
    weights = load(files(edges=text)).graph.edge_weight_dict
    found = {(u, v): sign for (u, v), sign in zip(rows, (1, -1, 1, 0, -1, 0), strict=True)}
    for etype, kinds in zip(weights, (rows[2:4], rows[:2], rows[4:]), strict=True):
        assert weights[etype].tolist() == [found[u, v] for u, v in kinds]


@pytest.mark.parametrize(("name", "sign"), [("is_stimulation", 1), ("is_inhibition", -1)])
def test_a_sign_column_of_true_and_false(files, name, sign):
    rows = PLAIN.strip("\n").split("\n")[1:]
    text = f"source\ttarget\t{name}\n" + "".join(
        f"{row}\t{'FALSE' if k == 2 else 'TRUE'}\n" for k, row in enumerate(rows)
    )
    weights = load(files(edges=text), sign=name).graph.edge_weight_dict
    assert weights["function", "to", "function"].tolist() == [0, sign]


@pytest.mark.parametrize("typed", [True, False])
def test_a_measured_function_node_becomes_an_output(files, typed):
    edges = (lambda t: t) if typed else PLAIN
    paths = files(edges=edges, y=replace("\tz\n", "\tb\n"))
    if not typed:
        paths["edges"].write_text(PLAIN.replace("c\tz\n", "c\ty\n"))
    else:
        text = paths["edges"].read_text().replace("c\tz", "c\ty")
        paths["edges"].write_text(text)
    with pytest.warns(GraphWarning, match=r"1 column\(s\) of .*y\.tsv name function nodes.*: 'b'"):
        data = load(paths)
    names, index = data.graph.node_names_dict, data.graph.edge_index_dict
    assert set(names["output"]) == {"y", "b"} and set(names["function"]) == {"a", "b", "c"}
    assert list(data.y.columns) == names["output"]
    pairs = {
        (names["function"][u], names["output"][v]) for u, v in index["function", "to", "output"].t().tolist()
    }
    assert pairs == {("b", "y"), ("c", "y"), ("b", "b")}
    assert any("name function nodes" in said for said in data.warnings)


def outputs_fed(graph):
    names = graph.node_names_dict
    ends = graph.edge_index_dict["function", "to", "output"].T.tolist()
    return {(names["function"][u], names["output"][v]) for u, v in ends}


@pytest.mark.parametrize("typed", [True, False])
def test_all_outputs_may_be_function_nodes(files, typed):
    rows = ["drug\ta\t-1", "dose\ty\t1", "a\ty\t1", "y\tz\t-1", "z\ta\t1"]
    types = ["input->function"] * 2 + ["function->function"] * 3
    text = "source\ttarget\tsign" + ("\tetype\n" if typed else "\n")
    text += "".join(
        f"{row}\t{kind}\n" if typed else f"{row}\n" for row, kind in zip(rows, types, strict=True)
    )
    with pytest.warns(GraphWarning, match=r"2 column\(s\) of .*y\.tsv name function nodes.*: 'y', 'z'"):
        data = load(files(edges=text))
    assert outputs_fed(data.graph) == {("y", "y"), ("z", "z")}
    assert set(data.graph.node_names_dict["function"]) == {"a", "y", "z"}
    assert data.graph.edge_weight_dict["function", "to", "output"].tolist() == [1, 1]


def test_what_an_input_feeds_and_y_measures_is_a_function_node_with_an_output(files):
    with pytest.warns(GraphWarning, match=r"1 column\(s\) of .*y\.tsv name function nodes.*: 'y'"):
        data = load(files(edges="source\ttarget\ndrug\ty\ndose\ta\na\tz\n"))
    assert outputs_fed(data.graph) == {("y", "y"), ("a", "z")}


def test_an_edge_that_is_commented_out_is_no_edge(files):
    plain = load(files(edges=PLAIN)).graph
    assert load(files(edges=PLAIN + "#c\ta\n# a\tremark\n")).graph == plain


def test_a_table_turned_without_types_gets_its_hint(files):
    for name in ("x", "y"):
        with pytest.raises(ValueError, match=rf"{name}\.tsv seems to be transposed: its rows"):
            load(files(edges=PLAIN, **{name: turned}))


@pytest.mark.parametrize("word", ["1_0", "0x1", "--", "..", "1 2", "x"])
def test_other_words_are_neither_numbers_nor_gaps(tmp_path, word):
    path = tmp_path / "t.tsv"
    path.write_text(f"id\ta\ns\t1\nt\t{word}\n")
    with pytest.raises(ValueError, match=r"must be numeric, got '.*' in column 'a', sample 't' \(line 3\)"):
        read_table(path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zipped])
def test_what_is_cut_short_is_named(tmp_path, pack):
    path = tmp_path / "t.tsv"
    path.write_bytes(pack(TEXT.encode())[:-5])
    with pytest.raises(ValueError, match=r"t\.tsv is compressed but damaged"):
        read_table(path)
    path.write_bytes(TEXT.encode("utf-16")[:-1])
    with pytest.raises(ValueError, match=r"t\.tsv begins as utf-16 text but is damaged"):
        read_table(path)


def test_utf32_names_itself(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_bytes("id\té\ns\t1\n".encode("utf-32"))
    assert read_table(path).columns.tolist() == ["é"]


def test_only_line_ends_end_lines_and_each_cell_has_its_own_quotes(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text(
        'a\tb\tc\n"x"\t"y, ""z"""\t"not closed\n1\tone\u2028two\x85\x0bthree\t3\n', encoding="utf-8"
    )
    rows = read_delimited(path).rows
    assert rows == [["x", 'y, "z"', '"not closed'], ["1", "one\u2028two\x85\x0bthree", "3"]]


odd = st.text(st.sampled_from(list("ab1\"'\t,;#\n\r é\xa0\\\u2028")), max_size=6)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(odd, odd), min_size=1, max_size=4),
    st.sampled_from("\t,;"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
)
def test_odd_cells_are_read_back_or_refused(tmp_path_factory, rows, separator, quoting):
    path = tmp_path_factory.mktemp("t") / ("t.tsv" if separator == "\t" else "t.csv")
    table = pd.DataFrame([(f"r{k}", *row) for k, row in enumerate(rows)], columns=["k", "a", "b"])
    table.to_csv(path, sep=separator, index=False, quoting=quoting)
    broken = any(end in cell for row in rows for cell in row for end in "\n\r")
    try:
        found = read_delimited(path).rows
    except ValueError as error:
        assert broken and str(path) in str(error)  # a cell ends with its line
        return
    sent = [[cell.strip() for cell in row] for row in table.to_numpy().tolist()]
    # The apostrophe that keeps a spreadsheet from evaluating what begins with a tab, among others.
    sent = [[cell.removeprefix("'") if cell.startswith("'\t") else cell for cell in row] for row in sent]
    assert len(found) >= len(sent) if broken else found == sent


def test_four_samples_are_enough_and_three_are_not(files):
    def first(n):
        return {name: lambda text: "".join(text.splitlines(keepends=True)[: n + 1]) for name in ("x", "y")}

    assert len(load(files(**first(4))).x) == 4
    with pytest.raises(ValueError, match="must have at least 4 samples to train and test on, got 3"):
        load(files(**first(3)))

"""Progress in a log file and on a terminal."""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
import torch
from inferer_contract import batches, small_data, small_graph, small_model

import gsnn
from gsnn._progress import ProgressBar, progress
from gsnn.optim.edge_scores import edge_scores


def lines_of(capsys):
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err and "\x1b" not in err
    return err.splitlines()


@pytest.mark.parametrize(
    ("total", "at"),
    [
        (400, [40, 80, 120, 160, 200, 240, 280, 320, 360, 400]),
        (25, [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]),
        (3, [1, 2, 3]),
        (1, [1]),
        (0, []),
    ],
)
def test_a_log_gets_a_line_for_each_tenth(capsys, total, at):
    assert list(progress(range(total), "work")) == list(range(total))
    assert lines_of(capsys) == [f"work: {k} of {total} ({100 * k // total}%)" for k in at]


@pytest.mark.parametrize("skipped", [0, 17])
def test_numbers_are_shown_and_finished_steps_are_not_shown_again(capsys, skipped):
    bar = ProgressBar(20, "fold 1", done=17 - skipped)
    bar.skip(skipped)
    for k in range(3):
        bar.update(train=0.123456 * (k + 1), pairs=10**6 + k)
    bar.close()
    assert lines_of(capsys) == [
        "fold 1: 18 of 20 (90%), train 0.1235, pairs 1000000",
        "fold 1: 20 of 20 (100%), train 0.3704, pairs 1000002",
    ]


def test_work_of_unknown_length_gets_one_line_and_none_where_there_was_none(capsys):
    assert list(progress(iter("abc"), "work")) == ["a", "b", "c"]
    assert list(progress(iter(()), "work")) == []
    assert lines_of(capsys) == ["work: 3 done"]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(range(4))


def test_a_loader_of_a_stream_has_no_length(capsys):
    loader = torch.utils.data.DataLoader(Stream(), batch_size=2)
    assert len(list(progress(loader, "work"))) == 2
    assert lines_of(capsys) == ["work: 2 done"]


def test_nothing_is_shown_on_request(capsys):
    assert list(progress(range(5), "work", False)) == list(range(5))
    bar = ProgressBar(5, "work", False)
    bar.update(loss=1.0)
    bar.close()
    assert lines_of(capsys) == []


def test_a_terminal_gets_a_bar():
    code = (
        "from gsnn._progress import ProgressBar\n"
        "bar = ProgressBar(4, 'work')\n"
        "for _ in range(4): bar.update(loss=0.5)\n"
        "bar.close()"
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 2**16).decode()
    os.close(ours)
    assert "\r" in shown and "4/4" in shown and "loss=0.5" in shown


def test_every_long_job_writes_lines_to_a_log(capsys):
    graph = small_graph()
    model = small_model(graph)
    x, y = small_data(40)
    loader = batches(x, y, 8)
    gsnn.fit(model, x, y, epochs=20, seed=0, verbose="all samples")
    fit_lines = lines_of(capsys)
    assert len(fit_lines) == 10 and fit_lines[0].startswith("all samples: 2 of 20 (10%), train ")
    gsnn.fit(model, x, y, epochs=1, seed=0, validation=0.5)
    (line,) = lines_of(capsys)
    assert line.startswith("epochs: 1 of 1 (100%), train ") and ", val " in line
    inferer = gsnn.MagnitudeEdgeInferer(model, graph)
    inferer.fit(loader)
    assert lines_of(capsys) == [f"samples: {k} of 5 ({20 * k}%)" for k in range(1, 6)]
    edge_scores(model, graph, loader)
    assert len(lines_of(capsys)) == 5
    kge = gsnn.MagnitudeEdgeKGE(inferer)
    kge.fit(n_epochs=10)
    found = lines_of(capsys)
    assert len(found) == 10 and "loss" in found[0] and "pairs" in found[0]


def test_a_stream_that_is_no_terminal_is_asked_each_time(monkeypatch):
    """Standard error may be redirected after the module was imported."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert np.sum(list(progress(range(3), "work"))) == 3
    assert stream.getvalue().count("\n") == 3 and torch.is_grad_enabled()

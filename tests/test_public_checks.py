"""What holds for everything public: nothing is touched, drawn, printed or warned of but as documented."""

import copy
import inspect
import pickle
import time

import matplotlib
import pytest
import sklearn.linear_model  # noqa: F401  its first import changes the environment and draws a number
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from fingerprints import fingerprint, process_state, random_states
from public_registry import CASES, NO_CALL, exported_names, public_names
from public_world import World

NAMES = sorted(CASES)


def end_process_group():
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # PyTorch 2.4 keeps the interpreter's lock while it waits for its threads, which may yet need it for a
        # moment to let go of a tensor: without the moment both may wait for ever.
        time.sleep(0.01)
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _no_process_group_stays():
    yield
    end_process_group()
    plt.close("all")


def prepared(name, folder):
    """(case, world, function, arguments) of one call."""
    case = CASES[name]
    if not case.usable():
        pytest.skip(f"needs {case.needs}")
    folder.mkdir(exist_ok=True)
    end_process_group()
    world = World(folder)
    args, kwargs = case.arguments(world)
    return case, world, public_names()[name], args, kwargs


def test_nothing_public_is_missing():
    known = set(CASES) | set(NO_CALL)
    assert set(public_names()) - known == set(), "give these a case in tests/public_cases_*.py"
    assert known - set(public_names()) == set(), "these are in the registry, but not public"
    assert set(CASES) & set(NO_CALL) == set()


def test_what_packages_export_is_in_the_registry():
    objects = {id(value) for value in public_names().values()}
    assert [name for name, value in exported_names().items() if id(value) not in objects] == []


def parametrized(names):
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=pytest.mark.slow) if CASES[n].slow else n for n in names]
    )


@parametrized(NAMES)
def test_touches_nothing_and_repeats_itself(name, tmp_path, capfd):
    found = []
    for attempt in ("first", "second")[: 1 if CASES[name].once else 2]:
        case, _, function, args, kwargs = prepared(name, tmp_path / attempt)
        given = {**dict(enumerate(args)), **kwargs}
        before = {key: fingerprint(value) for key, value in given.items()}
        torch.manual_seed(5)
        state = process_state()
        capfd.readouterr()
        result = function(*args, **kwargs)
        after = process_state()
        printed = capfd.readouterr()
        changed = {key for key, value in given.items() if fingerprint(value) != before[key]}
        assert changed <= set(case.changes), "an argument was changed"
        free = random_states() if case.draws else ()
        assert [key for key in state if state[key] != after[key] and key not in free] == []
        assert case.prints or (printed.out, printed.err) == ("", "")
        found.append(shown(case.result(result) if case.result else result, tmp_path / attempt))
    assert found[0] == found[-1], "the same call gave something else"


def shown(value, folder):
    """A fingerprint without the name of the test's folder."""
    return repr(fingerprint(value)).replace(str(folder), "")


@parametrized([name for name in NAMES if CASES[name].use is not None])
def test_use_of_objects_is_quiet_and_repeats_itself(name, tmp_path, capfd):
    found = []
    for attempt in ("first", "second"):
        case, world, function, args, kwargs = prepared(name, tmp_path / attempt)
        torch.manual_seed(5)
        made = function(*args, **kwargs)
        state = process_state()
        capfd.readouterr()
        result = case.use(made, world)
        after = process_state()
        assert capfd.readouterr() == ("", "")
        assert [key for key in state if state[key] != after[key]] == []
        found.append(shown(result, tmp_path / attempt))
    assert found[0] == found[1], "the same use gave something else"


CLASSES = [n for n in NAMES if inspect.isclass(public_names().get(n)) and CASES[n].copies]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_equal_and_independent(name, how, tmp_path):
    case, world, function, args, kwargs = prepared(name, tmp_path / "one")
    torch.manual_seed(5)
    made = function(*args, **kwargs)
    before = fingerprint(made)
    # With the world that it refers to: the copy of an inferer works on the copy of its model.
    copied, its_world = (
        copy.deepcopy((made, world)) if how == "deepcopy" else pickle.loads(pickle.dumps((made, world)))
    )
    assert fingerprint(copied) == before
    if case.use is not None:
        used = fingerprint(case.use(copied, its_world))
        assert fingerprint(made) == before, "using a copy changed the original"
        assert fingerprint(case.use(made, world)) == used, "a copy does something else"

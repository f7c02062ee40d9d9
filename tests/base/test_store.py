"""A folder of finished results: damaged files, other work, and several processes."""

import json
import os
import subprocess
import sys

import pytest

from tf_rigl._base.store import Store, read_description

HOLD = """
import sys
from tf_rigl._base.store import Store
with Store(sys.argv[1]).claim("one") as mine:
    print(mine, flush=True)
    input()
"""


def test_results_are_found_by_name(tmp_path):
    store = Store(tmp_path / "new" / "folder")
    assert store.get("one") is None
    store.add("one", {"a": [1, 2]})
    assert store.get("one") == {"a": [1, 2]}
    assert [path.name for path in store.folder.iterdir()] == ["one.json"]


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    store = Store(tmp_path)
    store.add("one", {"a": 1})
    with pytest.raises(TypeError):
        store.add("one", {"a": 2, "b": object()})
    assert store.get("one") == {"a": 1}
    assert os.listdir(tmp_path) == ["one.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 10_000])
def test_a_damaged_file_is_refused_with_advice(content, tmp_path):
    (tmp_path / "one.json").write_bytes(content)
    message = r"one\.json' cannot be used: .*Delete it to have it done again"
    with pytest.raises(ValueError, match=message):
        Store(tmp_path).get("one")


def test_another_result_than_the_wanted_one_is_refused(tmp_path):
    store = Store(tmp_path, remedy="Delete it, and all others.")
    store.add("one", 1)

    def check(result):
        raise ValueError(f"it is {result}, not 2")

    with pytest.raises(ValueError, match=r"used: it is 1, not 2\. Delete it, and all others\.$"):
        store.get("one", check)


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    (tmp_path / "one.json").mkdir()
    with pytest.raises(OSError, match="one"):
        Store(tmp_path).get("one")


# Claims.


def test_work_has_one_owner_at_a_time(tmp_path):
    one, other = Store(tmp_path), Store(tmp_path)
    with one.claim("a") as mine:
        assert mine
        assert other.is_claimed("a")
        assert not other.is_claimed("b")
        with other.claim("a") as theirs, other.claim("b") as free:
            assert (theirs, free) == (False, True)
    assert not other.is_claimed("a")
    with other.claim("a") as mine:
        assert mine
    assert os.listdir(tmp_path) == []


def test_a_failure_ends_the_claim(tmp_path):
    with pytest.raises(RuntimeError), Store(tmp_path).claim("a"):
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with Store(tmp_path).claim("a") as mine:
        assert mine


def test_finished_work_is_nobodys(tmp_path):
    store = Store(tmp_path)
    store.add("a", 1)
    with store.claim("a") as mine:
        assert not mine


def test_a_claim_ends_with_its_process(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=os.getcwd(), **pipes)
    assert process.stdout.readline() == "True\n"
    store = Store(tmp_path)
    assert store.is_claimed("one")
    with store.claim("one") as mine:
        assert not mine
    process.kill()
    process.communicate()
    assert os.listdir(tmp_path) == ["one.running"]
    assert not store.is_claimed("one")
    with store.claim("one") as mine:
        assert mine
    assert os.listdir(tmp_path) == []


# The description of the work.

WORK = {"epochs": 3, "rates": {"a": 0.1, "b": 0.2}, "weights": "0" * 64, "shape": (1, 2)}


def test_the_same_work_is_recognised(tmp_path):
    path = tmp_path / "about.json"
    assert read_description(path, WORK) == {}
    path.write_text(json.dumps({"settings": WORK, "rows": [1]}))
    assert read_description(path, WORK)["rows"] == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 4}, r"differs in epochs \(3 there, 4 here\)\. Received: folder="),
        ({"epochs": None}, r"differs in epochs \(3 there, None here\)\."),
        ({"rates": {"a": 0.5, "b": 0.3}}, r"in rates\['a'\] \(0.1 there, 0.5 here\)\."),
        ({"rates": {"a": 0.1}}, r"in rates\['b'\] \(0.2 there, None here\)\."),
        ({"weights": "1" * 64}, r"in weights\."),
        ({"epochs": 4, "weights": "1" * 64}, r"in epochs \(3 there, 4 here\), weights\."),
    ],
)
def test_other_work_is_refused_with_the_differences(changes, message, tmp_path):
    path = tmp_path / "about.json"
    path.write_text(json.dumps({"settings": WORK}))
    with pytest.raises(ValueError, match=message):
        read_description(path, WORK | changes)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": 3}'])
def test_a_damaged_description_is_refused(content, tmp_path):
    (tmp_path / "about.json").write_text(content)
    with pytest.raises(ValueError, match=r"about\.json' cannot be used"):
        read_description(tmp_path / "about.json", WORK)

"""Files: their mode, symbolic links, when they are on disk, and which folders are ours."""

import json
import os
import stat

import pytest

from tf_rigl._base import files
from tf_rigl.experiments.settings import COMPARISON
from tf_rigl.experiments.ticket_settings import SEARCHES


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_new_files_have_the_mode_that_the_umask_asks_for(umask, tmp_path):
    files.write_text(tmp_path / "inside" / "a.txt", "text")
    assert mode(tmp_path / "inside" / "a.txt") == 0o666 & ~umask
    assert [path.name for path in (tmp_path / "inside").iterdir()] == ["a.txt"]


def test_a_file_that_is_replaced_keeps_its_mode(umask, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    files.write_text(path, "new")
    assert (path.read_text(), mode(path)) == ("new", 0o640)


def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(os.path.join("there", "target.txt"))
    files.write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    target.unlink()
    files.write_text(link, "newer")  # A link to a file that is not there yet.
    assert (link.is_symlink(), target.read_text()) == (True, "newer")
    assert {path.name for path in tmp_path.rglob("*")} == {"there", "target.txt", "link.txt"}


def test_a_file_is_on_disk_before_it_is_moved_into_place(tmp_path, monkeypatch):
    events, sync, move = [], os.fsync, os.replace

    def synced(handle):
        events.append(("sync", os.fstat(handle).st_ino))
        sync(handle)

    def moved(source, target):
        events.append(("move", os.stat(source).st_ino))
        move(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    files.write_text(tmp_path / "a.txt", "text")
    file, folder = ((tmp_path / name).stat().st_ino for name in ("a.txt", "."))
    assert events == [("sync", file), ("move", file), ("sync", folder)]


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with files.beside(path) as scratch:
            scratch.write_text("half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.txt", "old")]


RESULTS = {
    "train": ({"result.json": {"settings": {}, "accuracy": 0.9}}, files.RUN),
    "compare": ({"comparison.json": {"rows": []}}, COMPARISON),
    "compare, cut off": ({"runs/one.json": {"settings": {}}}, COMPARISON),
    "compare, begun": ({"runs/one.running": None}, COMPARISON),
    "tickets": ({"result.json": {"settings": {}, "rows": []}}, SEARCHES),
}


def fill(folder, content):
    for name, value in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))


@pytest.mark.parametrize("kind", RESULTS)
@pytest.mark.parametrize("asked", RESULTS)
def test_only_folders_of_the_same_kind_are_taken(kind, asked, tmp_path):
    """With another file in it, if that kind of folder can be a current one."""
    content, own = RESULTS[kind]
    fill(tmp_path, content)
    marks = RESULTS[asked][1]
    if marks is own:
        assert files.check_folder(tmp_path, marks) == tmp_path
        return
    with pytest.raises(ValueError, match=r"other than an earlier run.*left alone"):
        files.check_folder(tmp_path, marks)


@pytest.mark.parametrize(
    "content",
    [
        {"runs/mine/result.json": {"settings": {}, "accuracy": 1}},  # The runs of `train`.
        {"runs/notes.txt": "mine"},
        {"runs/data.json": {"mine": 1}},
        {"runs/one.running": None, "thesis.txt": "mine"},
        {"comparison.json": {"mine": 1}},
        {"comparison.json": [1]},
        {"runs": "a file"},
    ],
)
def test_a_comparison_takes_no_folder_of_others(content, tmp_path):
    fill(tmp_path, content)
    with pytest.raises(ValueError, match=r"no comparison\.json or runs of one.*another folder"):
        files.check_folder(tmp_path, COMPARISON)

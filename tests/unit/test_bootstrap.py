"""When the controller's environment counts as up to date, and what is asked of the index."""

from pathlib import Path

import bootstrap
import pytest
import tree


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("pyproject.toml", "uv.lock"):
        (tmp_path / name).write_bytes((tree.ROOT / name).read_bytes())
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    return tmp_path


def test_fits_what_it_was_made_from(project: Path) -> None:
    assert bootstrap.fits(bootstrap.wanted([]), bootstrap.wanted([]))


def test_a_killed_run_left_no_stamp(project: Path) -> None:
    assert not bootstrap.fits(None, bootstrap.wanted([]))


def test_more_groups_than_wanted_do_no_harm(project: Path) -> None:
    assert bootstrap.fits(bootstrap.wanted(["dev"]), bootstrap.wanted([]))
    assert not bootstrap.fits(bootstrap.wanted([]), bootstrap.wanted(["dev"]))


@pytest.mark.parametrize("name", ["pyproject.toml", "uv.lock"])
def test_stale_when_the_lock_changes(project: Path, name: str) -> None:
    before = bootstrap.wanted([])
    with (project / name).open("a") as file:
        file.write("\n")
    assert not bootstrap.fits(before, bootstrap.wanted([]))


def test_stale_when_the_folder_moved(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bootstrap.wanted([])
    monkeypatch.setattr(bootstrap, "VENV", project / "elsewhere" / ".venv")
    assert not bootstrap.fits(before, bootstrap.wanted([]))


def test_a_stamp_that_is_no_json_is_none(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "stamp").write_text("{")
    monkeypatch.setattr(bootstrap, "STAMP", project / "stamp")
    assert bootstrap.present() is None


def test_uv_is_installed_with_the_hashes_of_the_lock(project: Path) -> None:
    requirement, *hashes = bootstrap.locked_uv().split()
    assert requirement.startswith("uv==")
    assert hashes
    assert all(value.startswith("--hash=sha256:") for value in hashes)

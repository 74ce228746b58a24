"""What is built from the project: names in the wheel and sdist, and twistd finding the plugin."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = "twisted/plugins/nodepass_plugin.py"
NEVER = (".venv", ".git", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a wheel and an sdist, built from a copy that twistd had been run in."""
    copy = tmp_path_factory.mktemp("source") / "nodepass"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NEVER))
    (copy / "twisted/plugins/dropin.cache").write_bytes(b"stale")
    out = tmp_path_factory.mktemp("dist")
    for kind in ("sdist", "wheel"):
        build = f"import sys, setuptools.build_meta as m; m.build_{kind}(sys.argv[1])"
        subprocess.run([sys.executable, "-c", build, out], cwd=copy, check=True)
    return out


def wheel_names(built: Path) -> list[str]:
    (wheel,) = built.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_wheel_holds_every_module(built: Path) -> None:
    """The wheel has every module of the package, its type marker and the plugin."""
    names = set(wheel_names(built))
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("nodepass/**/*.py")}
    assert {*modules, PLUGIN, "nodepass/py.typed"} <= names


def test_wheel_holds_nothing_else(built: Path) -> None:
    """No tests, no plugin cache, and nothing that would make Twisted's own packages ours."""
    for name in wheel_names(built):
        top = name.split("/")[0]
        assert top in ("nodepass", "twisted") or top.endswith(".dist-info"), name
        assert top != "twisted" or name == PLUGIN, name


def test_sdist_is_complete(built: Path) -> None:
    """The sdist has what a packager needs: plugin, licence, tests and unit file, but no cache."""
    (sdist,) = built.glob("*.tar.gz")
    names = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    assert {PLUGIN, "LICENSE", "setup.cfg", "packaging/nodepass.service"} <= names
    assert "tests/integration/test_packaging.py" in names
    assert not any(name.endswith((".cache", ".pyc")) for name in names)


def twistd_help(cwd: Path, path: Path) -> str:
    code = (
        "import nodepass, sys; print(nodepass.__file__);"
        "from twisted.scripts.twistd import run; sys.argv[1:] = ['--help']; run()"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_twistd_lists_installed_plugin(built: Path, tmp_path: Path) -> None:
    """With the wheel's files on the path, twistd lists nodepass from any directory, twice."""
    (wheel,) = built.glob("*.whl")
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(installed)
    for _ in range(2):
        output = twistd_help(elsewhere, installed)
        assert output.startswith(str(installed))
        assert "nodepass         A universal TCP and UDP tunnel." in output


def test_twistd_lists_editable_plugin(tmp_path: Path) -> None:
    """The checkout that these tests run from is listed too, from another directory."""
    output = twistd_help(tmp_path, tmp_path)
    assert "nodepass         A universal TCP and UDP tunnel." in output

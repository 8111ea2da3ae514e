"""Which build of PyTorch `make setup` installs, by what the package indexes have."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pip
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "install.py"
INSTALL = (
    f"import runpy, sys; runpy.run_path({str(SCRIPT)!r})['install_torch']('2.13.0', sys.argv[1])"
)


def index(folder: Path, *versions: str) -> str:
    """A package index with these versions of a package called torch, which hold nothing."""
    page = folder / "torch" / "index.html"
    page.parent.mkdir(parents=True)
    for version in versions:
        info = f"torch-{version}.dist-info"
        with zipfile.ZipFile(page.parent / f"torch-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
            )
            wheel.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{info}/RECORD", "")
    names = [path.name for path in page.parent.glob("*.whl")]
    page.write_text("".join(f'<a href="{name.replace("+", "%2B")}">{name}</a>\n' for name in names))
    return folder.as_uri()


def installed(folder: Path, usual: str, own: str) -> str:
    """The version of torch that is in a new environment after the installation."""
    python = folder / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", python.parents[1]], check=True)
    (folder / "lib").mkdir()
    (folder / "lib" / "pip").symlink_to(Path(pip.__file__).parent)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {
        "PYTHONPATH": str(folder / "lib"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": usual,
    }
    subprocess.run([python, "-c", INSTALL, own], check=True, env=env, capture_output=True)
    found = subprocess.run(
        [python, "-c", "import importlib.metadata as m; print(m.version('torch'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    return found.stdout.strip()


@pytest.mark.parametrize(
    ("usual", "own", "expected"),
    [
        (("2.13.0", "2.13.0+cpu"), (), "2.13.0+cpu"),
        (("2.13.0",), ("2.13.0+cpu",), "2.13.0+cpu"),
        (("2.13.0", "2.14.0"), ("2.14.0+cpu",), "2.13.0"),
        (("2.13.0",), None, "2.13.0"),
    ],
    ids=["where pip looks", "on PyTorch's own index", "of this version alone", "none in reach"],
)
def test_the_cpu_build_of_torch_is_taken_where_there_is_one(tmp_path: Path, usual, own, expected):
    usual_index = index(tmp_path / "usual", *usual)
    own_index = "http://127.0.0.1:9/cpu" if own is None else index(tmp_path / "own", *own)
    assert installed(tmp_path, usual_index, own_index) == expected

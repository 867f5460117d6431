"""Build the wheel that the jobs install, named after what is in it.

The version gets the hash of everything that goes into the wheel: the same code is the same file name and
the same bytes, so that a second deployment changes no job; other code is another name, so that no cluster
and no cache keeps the old one. `python -m tools.wheel` builds `dist/churn_lib-VERSION+HASH-...whl` and
removes the other wheels there, because databricks.yml names `dist/*.whl`. With `--check` it builds nothing
and exits with 1 unless that wheel is there, alone.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = ("churn_lib", "pyproject.toml", "README.md", "LICENSE")
EPOCH = "315532800"  # 1980-01-01, the first day a zip file can hold


def sources(root: Path) -> list[Path]:
    """The files that go into the wheel, relative to `root`, in order."""
    found = [path for name in SOURCES for path in (root / name, *(root / name).rglob("*"))]
    kept = (path for path in found if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path.relative_to(root) for path in kept if not path.name.startswith("."))


def content_hash(root: Path) -> str:
    """Twelve hexadecimal digits that change with any byte or name of the sources."""
    digest = hashlib.sha256()
    for path in sources(root):
        content = (root / path).read_bytes()
        digest.update(f"{path.as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def _build(folder: Path, out: Path) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    run = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stdout + run.stderr)


def build(root: Path = ROOT) -> Path:
    """The wheel in `root`/dist, built unless it is there already; other wheels there are removed."""
    dist, tag = root / "dist", content_hash(root)
    dist.mkdir(exist_ok=True)
    built = sorted(dist.glob(f"churn_lib-*+{tag}-*.whl"))
    if not built:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "source"
            for path in sources(root):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / path, folder / path)
                (folder / path).chmod(0o644)  # whatever the umask of this machine
            (folder / "setup.cfg").write_text(f"[egg_info]\ntag_build = +{tag}\n")
            _build(folder, Path(name) / "out")
            (made,) = (Path(name) / "out").glob("*.whl")
            shutil.copyfile(made, dist / f"{made.name}.part")
            built = [(dist / f"{made.name}.part").rename(dist / made.name)]
    for path in dist.glob("*.whl"):
        if path != built[0]:
            path.unlink()
    return built[0]


def built(root: Path = ROOT) -> bool:
    """Whether `root`/dist has the wheel of these sources, and no other."""
    wheels = sorted((root / "dist").glob("*.whl"))
    return len(wheels) == 1 and f"+{content_hash(root)}-" in wheels[0].name


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(not built())
    print(build().relative_to(ROOT))

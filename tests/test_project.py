"""What must stay true of the whole: imports point down, the wheel is clean, importing is cheap, no data is executed."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORLDSCAPE = ROOT / "models" / "worldscape"
SOURCE_ROOTS = (WORLDSCAPE, ROOT / "ws_gym", ROOT / "examples", ROOT / "benchmarks")

# Lowest first. A module of worldscape may import its own layer and those before it.
LAYERS = (
    {"atomic", "eight_bit", "locked", "steady"},
    {"conditioning", "films", "goals", "hand_tasks", "noise", "flow", "policy", "precision", "progress", "window"},
    {"config"},
    {"nn", "fast_linear"},
    {"codec", "transformer", "hand_heads", "memory", "splats"},
    {"heads"},
    {"sight"},
    {"scoring"},
    {"world"},
    {"checkpoint", "fast", "fast_codec"},
    {"rewrites", "average", "pack"},
    {"engine_frames"},
    {"slots", "slot_hands", "checks", "opening", "snapshot"},
    {"handling", "graphs"},
    {"frame_maker"},
    {"engine"},
    {"rolling", "clip_engine"},
    {"engines"},
    {"data"},
    {"train", "evaluate"},
    {"play", "dream"},
    {"orbit"},
    {"cli", "__main__"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def python_files(*roots: Path) -> list[Path]:
    return [path for root in roots for path in sorted(root.rglob("*.py"))]


def imported_modules(path: Path) -> Iterator[str]:
    """Dotted names a file imports, at the top or inside functions; `from a import b` yields both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the full name."
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(path: Path) -> str:
    """First name below worldscape: the subpackage or module a file belongs to."""
    return path.relative_to(WORLDSCAPE).with_suffix("").parts[0]


def test_every_worldscape_module_has_a_layer():
    names = {layer_of(path) for path in python_files(WORLDSCAPE)} - {"__init__"}
    assert names <= RANK.keys(), f"Give {sorted(names - RANK.keys())} a place in LAYERS."


def test_imports_inside_worldscape_point_down():
    upward = []
    for path in python_files(WORLDSCAPE):
        own = RANK.get(layer_of(path), len(LAYERS))
        targets = {name.split(".")[1] for name in imported_modules(path) if name.startswith("worldscape.")}
        upward += [f"{path.relative_to(ROOT)} -> {name}" for name in sorted(targets) if RANK.get(name, -1) > own]
    assert upward == []


@pytest.mark.parametrize(
    ("root", "forbidden"),
    [
        (WORLDSCAPE, {"ws_gym", "examples", "benchmarks", "tests", "models"}),
        (ROOT / "ws_gym", {"examples", "benchmarks", "tests", "models"}),
        (ROOT / "examples", {"examples", "benchmarks", "tests", "models"}),
        (ROOT / "benchmarks", {"examples", "tests", "models"}),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_packages_do_not_import_what_stands_above_them(root: Path, forbidden: set[str]):
    found = [
        f"{path.relative_to(ROOT)} -> {name}"
        for path in python_files(root)
        for name in imported_modules(path)
        if name.split(".")[0] in forbidden
    ]
    assert found == []


def executes_data(node: ast.AST) -> bool:
    """Whether a syntax node imports a pickling module, calls torch.load/save, allows pickles, or calls eval or exec."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in {"eval", "exec"}
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return (node.value.id, node.attr) in {("torch", "load"), ("torch", "save")}
    if isinstance(node, ast.keyword):
        return node.arg == "allow_pickle" and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    return False


def test_no_data_is_executed():
    """Weights, datasets, checkpoints are safetensors, images and JSON: loading a stranger's file must run nothing."""
    pickling = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    found = []
    for path in python_files(*SOURCE_ROOTS):
        found += [(path, name) for name in imported_modules(path) if name.split(".")[0] in pickling]
        found += [(path, ast.unparse(node)) for node in ast.walk(ast.parse(path.read_text())) if executes_data(node)]
    assert found == []


def test_no_file_is_above_16_mib():
    large = [
        str(path.relative_to(ROOT))
        for root in (*SOURCE_ROOTS, ROOT / "tests", ROOT / "docs")
        for path in root.rglob("*")
        if path.is_file() and path.stat().st_size > 16 * 2**20
    ]
    assert large == []


def test_import_is_fast_and_without_torch():
    """Processor time, the best of five: by the clock this failed whenever something else kept the machine busy."""
    code = (
        "import sys, time; start = time.process_time(); import ws_gym; seconds = time.process_time() - start\n"
        "print(seconds, *({'torch', 'cv2', 'imageio', 'miniworld', 'minari'} & sys.modules.keys()))"
    )
    seconds = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=source_env(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        first, *heavy = done.stdout.split()
        assert heavy == []
        seconds.append(float(first))
    assert min(seconds) < 0.5


def source_env() -> dict[str, str]:
    """Environment of a child process that imports the packages from this working tree."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "models"), str(ROOT)])}


def test_wheel_holds_just_the_two_packages(tmp_path: Path):
    """Built from a copy, so that a stale build/ folder cannot add files and none is left behind."""
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("models", "ws_gym", "examples", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*build, "-w", tmp_path, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    dist_info = next(name.split("/")[0] for name in names if name.endswith("/METADATA"))
    assert {name.split("/")[0] for name in names} == {"worldscape", "ws_gym", dist_info}
    assert f"{dist_info}/licenses/LICENSE" in names
    expected = {str(path.relative_to(ROOT / "models")) for path in python_files(WORLDSCAPE)}
    expected |= {str(path.relative_to(ROOT)) for path in python_files(ROOT / "ws_gym")}
    weights = [path for folder in ("weights", "evaluate/judges") for path in (WORLDSCAPE / folder).rglob("*")]
    expected |= {str(path.relative_to(ROOT / "models")) for path in weights if path.is_file() and path.suffix != ".pyc"}
    assert names - {name for name in names if name.startswith(dist_info)} == expected

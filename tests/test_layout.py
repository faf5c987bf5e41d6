"""The shape of the project, where no other tool holds it: lean imports, sizes, names, nothing of any one machine."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted([*ROOT.glob("hwcost/**/*.py"), *ROOT.glob("faqs/**/*.py")])
HEAVY = ("torch", "sklearn", "xgboost", "onnxruntime", "flwr")
LONGEST_MODULE = 500
LONGER = {"hwcost/agent.py": 710}
"""A board gets this one file, so it cannot be divided."""
DRAWERS = {"utils", "util", "common", "helpers", "constants", "misc"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# Folders in which some machine keeps checkouts, homes and packages, and hosts that serve packages.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|home|opt|mnt|Users)\b")
PACKAGE_HOST = re.compile(r"://(?:[\w-]+\.)*(?:pypi|pythonhosted|registry|npmjs|download\.pytorch)\.", re.IGNORECASE)
# Prints the heavy modules that are loaded once every --help of a command line has been shown.
EVERY_HELP = """
import importlib, sys
import click
module = importlib.import_module(sys.argv[1] + ".cli")
groups = [value for value in vars(module).values() if isinstance(value, click.Group)]
assert groups, "a command line is a click group with its commands"
shown = 0
for command in [(), *((name,) for group in groups for name in group.commands)]:
    sys.argv[1:] = [*command, "--help"]
    try:
        module.main()
    except SystemExit as stop:
        assert not stop.code, (command, stop.code)
    shown += 1
print(shown, sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Top-level names of what a file imports at any depth, absolute imports only, with the line."""
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0], node.lineno


@cache
def tracked_texts() -> dict[str, str]:
    """Path and text of every file under version control that is UTF-8 text."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout: no list of the project's own files")
    texts: dict[str, str] = {}
    for name in listing.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file():
            try:
                texts[name] = path.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                continue
    return texts


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_importing_the_packages_loads_nothing_heavy() -> None:
    done = run_python("import sys, hwcost, faqs; print(*{name.partition('.')[0] for name in sys.modules})")
    assert done.returncode == 0, done.stderr
    assert not set(HEAVY) & set(done.stdout.split())


@pytest.mark.parametrize("package", ["hwcost", "faqs"])
def test_no_help_text_loads_anything_heavy(package: str) -> None:
    done = run_python(EVERY_HELP, package)
    assert done.returncode == 0, done.stderr
    loaded = done.stderr.splitlines()[-1]
    assert int(loaded.split()[0]) > 1, "a command line has commands"
    assert not [name for name in HEAVY if repr(name) in loaded]


def test_every_module_is_short() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {name: length for name, length in lengths.items() if length > LONGER.get(name, LONGEST_MODULE)}


def test_every_module_is_named_for_what_it_does() -> None:
    assert not [relative(path) for path in MODULES if path.stem in DRAWERS]


def pickling(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return (node.value.id, node.attr) in {("torch", "load"), ("torch", "save"), ("pd", "read_pickle")}
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
        return not (isinstance(node.value, ast.Constant) and node.value.value is False)
    return False


def test_nothing_is_pickled() -> None:
    found = [f"{relative(path)}:{line}: {name}" for path in MODULES for name, line in imports(path) if name in PICKLES]
    found += [
        f"{relative(path)}:{getattr(node, 'lineno', 0)}"
        for path in MODULES
        for node in ast.walk(syntax(path))
        if pickling(node)
    ]
    assert not found


def test_every_except_names_a_type() -> None:
    assert not [
        f"{relative(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]


def test_no_file_names_a_place_on_some_machine() -> None:
    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in tracked_texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATH.search(line) or PACKAGE_HOST.search(line)
    ]
    assert not found


def declared_dependencies() -> dict[str, str]:
    """Distribution name to the comment behind it, for the dependencies that every user installs."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = [re.split(r"[\[<>=!~; ]", item)[0] for item in tomllib.loads(text)["project"]["dependencies"]]
    comments = dict(re.findall(r'^    "([\w-]+)[^"]*",\s*# (.+)$', text, flags=re.MULTILINE))
    return {name: comments.get(name, "") for name in declared}


def import_names(distribution: str) -> set[str]:
    wanted = distribution.lower().replace("_", "-")
    return {
        module
        for module, distributions in packages_distributions().items()
        if wanted in {name.lower().replace("_", "-") for name in distributions}
    }


DEPENDENCIES = declared_dependencies()


@pytest.mark.parametrize(("distribution", "comment"), DEPENDENCIES.items(), ids=DEPENDENCIES)
def test_a_dependency_names_the_files_that_import_it(distribution: str, comment: str) -> None:
    # "FILE, through OTHER": the library is loaded by another one on that file's behalf.
    files, _, through = comment.partition(", through ")
    wanted = import_names(through or distribution)
    assert wanted, f"{distribution} is not installed"
    named = re.findall(r"\b(?:hwcost|faqs)/[\w/]+\.py\b", files)
    assert named, f"the comment behind {distribution} in pyproject.toml names no file"
    missing = [name for name in named if not (ROOT / name).is_file()]
    assert not missing, f"{distribution}: no such file"
    idle = [name for name in named if not wanted & {module for module, _ in imports(ROOT / name)}]
    assert not idle, f"{distribution}: not imported there"


def test_every_library_that_is_imported_is_declared() -> None:
    known = {"hwcost", "faqs"} | set(sys.stdlib_module_names)
    known |= {module for distribution in DEPENDENCIES for module in import_names(distribution)}
    found = {(relative(path), name) for path in MODULES for name, _ in imports(path) if name not in known}
    # The contract tests that ship for plugins are of use to those who have pytest.
    assert not found - {("hwcost/testing.py", "pytest")}

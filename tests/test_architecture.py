"""What import-linter and ruff do not see: sizes, what `import culux` loads, docstrings of public names."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "culux"
REPORT = PACKAGE / "__main__.py"  # looks at everything
MAX_FILE, MAX_FUNCTION, MAX_TAPE = 400, 50, 300
HEAVY = {"cupy", "jax", "matplotlib", "safetensors", "scipy", "sklearn", "torch", "tqdm"}
OPTIONAL = {"cupy", "torch"}  # what a module of culux may need that is not installed everywhere


@functools.cache
def sources() -> dict[Path, str]:
    """Every source file of the package."""
    found = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    assert PACKAGE / "__init__.py" in found
    assert PACKAGE / "autodiff" / "tape.py" in found
    return found


def functions(text: str) -> dict[str, int]:
    """Name -> lines of every function and method, nested ones too."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return {
        f"{node.name}:{node.lineno}": node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, kinds)
    }


def test_files_are_short():
    folders = ("culux", "tests", "bench", "examples", "tools")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in paths}
    assert len(lengths) > len(sources())
    assert {path: lines for path, lines in lengths.items() if lines >= MAX_FILE} == {}


def test_functions_are_short():
    lengths = {f"{path.name} {name}": n for path, text in sources().items() for name, n in functions(text).items()}
    assert len(lengths) > len(sources())
    assert {name: lines for name, lines in lengths.items() if lines >= MAX_FUNCTION} == {}


def test_functions_are_measured():
    body = "    pass\n" * 60
    assert functions(f"def long():\n{body}class C:\n    def short(self): pass\n") == {"long:1": 61, "short:63": 1}


def test_the_tape_is_short():
    assert sources()[PACKAGE / "autodiff" / "tape.py"].count("\n") < MAX_TAPE


def test_no_module_imports_the_whole_package():
    """`import culux` inside culux goes up past the layers, where import-linter does not look."""
    imports = {str(path.relative_to(ROOT)): from_root(text) for path, text in sources().items() if path != REPORT}
    assert {path: names for path, names in imports.items() if names} == {}


def test_an_import_of_the_whole_package_is_seen():
    text = "import culux\nfrom culux import Dense, errors\nimport culux.errors\nfrom culux.tree import Tree\n"
    assert from_root(text) == ["culux", "culux.Dense"]


def from_root(text: str) -> list[str]:
    """What a file imports from the package's own `__init__`, which imports everything."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name == "culux"]
        elif isinstance(node, ast.ImportFrom) and node.module == "culux":
            found += [f"culux.{name.name}" for name in node.names if not submodule(name.name)]
    return found


def submodule(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def heavy_modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stdout.split())


def test_import_culux_loads_nothing_heavy():
    assert heavy_modules_after("import culux; culux.__version__") == set()


def test_a_heavy_import_is_seen():
    assert heavy_modules_after("import culux, scipy, safetensors") == {"scipy", "safetensors"}


def test_public_names_are_documented():
    names = [(owner, name) for owner in public_modules() for name in public_names(owner)]
    assert len(names) > 100
    assert [f"{owner}.{name}" for owner, name in names if not is_documented(owner, name)] == []


def public_modules() -> list[str]:
    """Every module of culux that can be imported here."""
    found = []
    for path in sources():
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
        else:
            found.append(name)
    return found


def public_names(owner: str) -> list[str]:
    """The names in `__all__`, else those re-exported in the form `from a import b as b`."""
    module = sys.modules[owner]
    if hasattr(module, "__all__"):
        return list(module.__all__)
    imports = [node for node in tree_of(module).body if isinstance(node, ast.ImportFrom)]
    return [name.name for node in imports for name in node.names if name.asname == name.name]


def tree_of(module) -> ast.Module:
    return ast.parse(Path(module.__file__).read_text())


def is_documented(owner: str, name: str) -> bool:
    """Whether what a module calls `name` has a docstring of its own, not its class's, base's or dataclass's."""
    value = getattr(sys.modules[owner], name)
    doc = vars(value).get("__doc__") if isinstance(value, type) else getattr(value, "__doc__", None)
    if inspect.ismodule(value) or inspect.isroutine(value):
        return bool(doc)
    if isinstance(value, type):
        own = bool(doc) and not doc.startswith(f"{value.__name__}(")
        return own or has_attribute_docstring(owner, name)
    return (bool(doc) and doc != type(value).__doc__) or has_attribute_docstring(owner, name)


def has_attribute_docstring(owner: str, name: str) -> bool:
    """Whether the assignment of a name, here or where it is imported from, is followed by a docstring."""
    body = tree_of(sys.modules[owner]).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ImportFrom) and any(name in (a.asname, a.name) for a in node.names):
            original = next(a.name for a in node.names if name in (a.asname, a.name))
            return has_attribute_docstring(node.module, original)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    return False


MODULE = '''
from dataclasses import dataclass
__all__ = ["Bare", "Described", "bare", "constant", "described", "described_constant"]
class Described:
    """It is."""
@dataclass
class Bare(Described):
    x: int = 0
def described():
    """It is."""
def bare(): pass
constant = Described()
described_constant = Described()
"""It is."""
'''


def test_missing_docstrings_are_seen(tmp_path, monkeypatch):
    (tmp_path / "culux_probe.py").write_text(MODULE)
    (tmp_path / "culux_probe_package.py").write_text("from culux_probe import bare as bare\nfrom os import sep\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("culux_probe_package")
    names = public_names("culux_probe")
    assert [name for name in names if not is_documented("culux_probe", name)] == ["Bare", "bare", "constant"]
    assert public_names("culux_probe_package") == ["bare"]
    for probe in ("culux_probe", "culux_probe_package"):
        monkeypatch.delitem(sys.modules, probe)


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()

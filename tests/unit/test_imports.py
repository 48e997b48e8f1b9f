"""Modules import only what is below them, and only the edge touches the outside world."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "proxy"

# From the bottom up; what stands on one line may know each other.
LAYERS = (
    ("errors", "toml_table", "secret_file", "version"),
    ("config",),
    (
        "_seg",
        "_seg_py",
        "_seg_py_codec",
        "_seg_py_device",
        "_seg_py_offload",
        "_seg_py_predict",
        "seg",
        "wire",
    ),
    ("cc", "convert"),
    ("tcp",),
    ("sched", "pm", "mptcp"),
    ("engine",),
    ("relay",),
    ("tun", "net"),
    ("control",),
    ("web",),
    (
        "engine.runtime",
        "engine.runtime_channel",
        "engine.runtime_daemon",
        "engine.runtime_follow",
        "engine.runtime_reload",
        "engine.runtime_role",
        "engine.runtime_poll",
        "engine.runtime_socket",
        "engine.runtime_supervisor",
        "engine.runtime_worker",
    ),
    ("diagnose", "sockets"),
    ("cli", "__main__"),
)
# Policies see connections through what they are handed: at run time they import their base alone.
POLICIES = ("pm", "sched", "cc")
OUTSIDE = {
    "asyncio",
    "uvloop",
    "time",
    "socket",
    "random",
    "os",
    "select",
    "threading",
    "selectors",
}
EDGE = (
    "engine.runtime",
    "tun",
    "net",
    "control",
    "diagnose",
    "sockets",
    "web",
    "cli",
    "__main__",
    "config",
    "secret_file",
)
# os.environ says which form of the fast path to load; the twin of the device's batches is called
# by the edge alone, with its descriptor.
EXCEPTIONS = {("seg", "os"), ("_seg_py_device", "os")}


def modules() -> list[str]:
    """All modules of the package, without its name."""
    return sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in ROOT.rglob("*.py")
        if path != ROOT / "__init__.py"
    )


def imports(module: str, with_types: bool) -> Iterator[str]:
    """Full names of what ``module`` imports; without those for type checking only, on request."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    pending: list[ast.AST] = [ast.parse(file.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                inside = full.removeprefix("proxy.")
                yield full if node.module == "proxy" or is_module(inside) else node.module
        elif isinstance(node, ast.If) and is_type_checking(node.test) and not with_types:
            pending.extend(node.orelse)
        else:
            pending.extend(ast.iter_child_nodes(node))


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def layer(module: str) -> int:
    """The layer of ``module``: the entry with the longest matching name counts."""
    best = max(
        (
            (len(name), number)
            for number, names in enumerate(LAYERS)
            for name in names
            if module == name or module.startswith(f"{name}.")
        ),
        default=None,
    )
    assert best is not None, f"proxy.{module} has no place in LAYERS"
    return best[1]


@pytest.mark.parametrize("module", modules())
def test_imports_point_downwards(module: str) -> None:
    for name in imports(module, with_types=False):
        if name.startswith("proxy."):
            imported = name.removeprefix("proxy.")
            assert layer(imported) <= layer(module), f"proxy.{module} imports {name}"


@pytest.mark.parametrize("module", modules())
def test_only_the_edge_touches_the_outside(module: str) -> None:
    if any(module == name or module.startswith((f"{name}.", f"{name}_")) for name in EDGE):
        return
    for name in imports(module, with_types=True):
        top = name.split(".")[0]
        assert top not in OUTSIDE or (module, top) in EXCEPTIONS, f"proxy.{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in modules() if m.split(".")[0] in POLICIES])
def test_policies_import_their_own_base_alone(module: str) -> None:
    package = module.split(".")[0]
    for name in imports(module, with_types=False):
        if name.startswith("proxy."):
            imported = name.removeprefix("proxy.")
            own = imported.split(".")[0] == package
            assert own or layer(imported) <= layer("wire"), f"proxy.{module} imports {name}"

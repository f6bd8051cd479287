"""Who imports whom: docs/architecture.md, read off the source."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
RANKS = {
    "errors": 0, "config": 0, "files": 0, "resources": 0, "progress": 0, "contact_sheet": 0, "extras": 0,
    "distributed": 0, "bucket": 0, "hub": 0, "logs": 0, "tensorboard": 0,
    "concepts": 1, "runs": 1, "store": 1, "workspace": 1, "images": 1, "prompts": 1, "results": 1,
    "scores": 2, "planning": 2, "keeping": 2,
    "judgments": 2, "judgment_tables": 2, "judgment_folder": 2, "aggregate": 2, "strengths": 2, "diffusion": 2, "embed": 2, "reward": 2,
    "invert": 3, "erase": 3, "guide": 3, "metrics": 3, "simulate": 3,
    "attack": 4, "evaluate": 4, "systems": 4, "measure": 4, "report": 4, "report_reward": 4, "plots": 4, "export": 4, "consensus": 4,
    "dashboard": 4, "jobs": 4, "measured": 4,
    "demo": 5, "comparison": 5, "bench": 5, "cli": 5, "__main__": 5,
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(module: str) -> str:
    """hfi.store.queries -> store"""
    return module.split(".")[1] if module.startswith("hfi.") else ""


def sources() -> list[tuple[str, Path]]:
    files = [(p.relative_to(ROOT / "hfi").parts[0].removesuffix(".py"), p) for p in (ROOT / "hfi").rglob("*.py")]
    return [(name, p) for name, p in files if name not in ("__init__", "_data", "_migrations")]


def test_modules_import_from_lower_rows_only() -> None:
    files = sources()
    assert len(files) > 25
    for name, path in files:
        if name == "portraits":
            continue  # a world of its own; who may know it is tested below
        assert name in RANKS, f"{path}: give {name} a row here and in docs/architecture.md"
        for other in {part(m) for m in imports(path)} - {"", name, "__version__", "portraits"}:
            assert RANKS[other] <= RANKS[name], f"{path} imports {other}"
            if RANKS[other] == RANKS[name] == 3:
                raise AssertionError(f"{path}: {name} and {other} are neighbours, they meet through files")


def test_store_and_diffusion_never_meet_and_only_the_store_knows_sqlalchemy() -> None:
    for name, path in sources():
        found = imports(path)
        if name == "store":
            assert not any(m.startswith(("torch", "diffusers", "hfi.diffusion")) for m in found), path
        if name in ("diffusion", "embed", "reward", "invert", "erase", "guide", "metrics"):
            assert not any(m.startswith(("sqlalchemy", "hfi.store")) for m in found), path
        if name not in ("store", "workspace"):
            assert not any(m.startswith("sqlalchemy") for m in found if "Engine" not in m and m != "sqlalchemy"), path


def test_the_page_needs_no_torch_and_nothing_imports_the_page() -> None:
    pages = list((ROOT / "ui").rglob("*.py"))
    assert pages
    for path in pages:
        assert not any(m.split(".")[0] in ("torch", "diffusers", "transformers") for m in imports(path)), path
    for _, path in sources():
        if path.name not in (
            "ui.py",
            "bench.py",
            "user.py",
        ):  # the latter two for a load benchmark and for the program's consent text
            assert not any(m == "ui" or m.startswith("ui.") for m in imports(path)), path


def test_only_the_demo_the_detectors_and_the_command_know_portraits() -> None:
    allowed = {"hfi/demo.py", "hfi/metrics/detectors.py", "hfi/cli/portraits.py"}
    for name, path in sources():
        if name != "portraits" and path.relative_to(ROOT).as_posix() not in allowed:
            assert not any(m.startswith("hfi.portraits") for m in imports(path)), path


def test_migrations_import_nothing_of_today() -> None:
    versions = list((ROOT / "migrations" / "versions").glob("*.py"))
    assert versions
    for path in versions:
        assert not any(m.startswith("hfi") for m in imports(path)), path

"""Who may import whom (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

import harness

PACKAGE = Path(harness.__file__).parent
FORBIDDEN = {
    "diffusion": {"ray", "harness.store", "harness.engine"},
    "noise": {"ray", "harness.store", "harness.engine"},
    "guidance": {"ray", "harness.store", "harness.engine"},
    "metrics": {"ray", "harness.store", "harness.engine"},
    "analysis": {"torch", "ray", "harness.store", "harness.engine"},
    "benchmark.py": {"torch", "ray"},
    "registry.py": {"torch", "ray"},
    "files.py": {"torch", "ray"},
    "json_text.py": {"torch", "ray"},
    "plan.py": {"torch", "ray"},
    "orbit_pictures.py": {"torch", "ray"},
    "prompts.py": {"torch", "ray"},
    "prompt_files.py": {"torch", "ray"},
    "prompt_sources.py": {"torch", "ray"},
    "prompt_differences.py": {"torch", "ray"},
    "hub_prompts.py": {"torch", "ray"},
    "prompt_formats.py": {"torch", "ray"},
    "manifest.py": {"torch", "ray"},
    "identity.py": {"torch", "ray", "harness.store"},
    "frechet.py": {"torch", "ray", "pandas"},
    "kid.py": {"torch", "ray", "pandas"},
    "prdc.py": {"torch", "ray", "pandas"},
    "inception_score.py": {"torch", "ray", "pandas"},
    "store.py": {"torch", "ray"},
    "worker.py": {"ray"},
}
RAY_MAY_BE_IMPORTED_BY = {"engine.py"}


def imports(path: Path) -> set[str]:
    """Everything a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def breaks(path: Path, forbidden: set[str]) -> set[str]:
    return {name for name in imports(path) for bad in forbidden if name == bad or name.startswith(bad + ".")}


@pytest.mark.parametrize("part", sorted(FORBIDDEN))
def test_no_part_imports_what_it_must_not(part: str) -> None:
    files = [PACKAGE / part] if part.endswith(".py") else sorted((PACKAGE / part).rglob("*.py"))
    assert files
    for path in files:
        assert not breaks(path, FORBIDDEN[part]), path


def test_only_the_engine_imports_ray() -> None:
    users = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if breaks(path, {"ray"})}
    assert users == RAY_MAY_BE_IMPORTED_BY


def test_the_check_sees_an_import_inside_a_function(tmp_path: Path) -> None:
    sly = tmp_path / "sly.py"
    sly.write_text("def f():\n    from ray import init\n    return init\n")
    assert breaks(sly, {"ray"}) == {"ray", "ray.init"}

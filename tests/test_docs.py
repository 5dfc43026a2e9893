"""What the documentation tells its readers to do, done."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from harness import benchmark, check, manifest, registry, run
from harness.diffusion.base import Step
from harness.display import Display
from harness.guidance.base import COND, UNCOND

DOCS = Path(__file__).parent.parent / "docs"
LONG_COUNTED = {  # seconds each
    "noise-optimisation-figure8", "noise-optimisation-figure8-shapes",
    # by tests/test_interval_benchmarks.py, without reading their 150,000 prompts
    "guidance-interval-table1", "guidance-interval-steps", "edm2-presets", "autoguidance-presets",
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Path]:
    """A folder in which a reader of docs/add-a-method.md has made its files."""
    page = DOCS / "add-a-method.md"
    names = []
    for code in blocks(page, "python"):
        names.append(code.split()[1].rstrip(","))  # "# rescaled.py, beside mine.yaml"
        (tmp_path / names[-1]).write_text(code)
    (tmp_path / "mine.yaml").write_text(blocks(page, "yaml")[0])
    before = list(sys.path)
    sys.path.insert(0, str(tmp_path))
    yield tmp_path
    sys.path[:] = before
    for name in names:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_methods_of_the_page_run_in_the_table(reader: Path) -> None:
    text = (reader / "mine.yaml").read_text().replace("steps: 20", "steps: 2").replace("batch: 24", "batch: 2")
    (reader / "mine.yaml").write_text(text)
    assert len(benchmark.load(reader / "mine.yaml").methods) == 3
    outcome = run.run(str(reader / "mine.yaml"), results=reader / "results", display=Display(), limit=2, workers=0)
    assert outcome.failures == []
    costs = {record["method"]: record["nfe"] for record in outcome.records}
    assert costs == {"cfg-5": 4, "rescaled-5": 4, "calm": 12}


def test_the_guidance_of_the_page_is_the_paper_s(reader: Path) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
    from rescaled import Rescaled  # type: ignore[import-not-found]

    generator = torch.Generator().manual_seed(0)
    c, u = torch.randn((2, 3, 4, 8, 8), generator=generator)
    found = Rescaled(5, 0.7).combine({COND: c, UNCOND: u}, c, Step(0, 1, 1.0, 999)).prediction
    torch.testing.assert_close(found, rescale_noise_cfg(u + 5 * (c - u), c, 0.7))


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name)
def test_every_link_and_picture_is_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    paths = [unquote(link.partition("#")[0]) for link in found if not re.match(r"[a-z]+:", link)]
    assert not [path for path in paths if path and not (page.parent / path).exists()]
    assert found or page.name != "README.md"


def test_every_metric_and_method_has_its_row() -> None:
    for page, kinds in (("metrics.md", ["metric"]), ("methods.md", ["noise", "guidance"])):
        text = (DOCS / page).read_text()
        for kind in kinds:
            missing = [name for name in registry.BUILTIN[kind] if f"`{name}`" not in text]
            assert not missing, page


def test_the_page_of_prompt_sets_has_a_row_for_each() -> None:
    rows = [line.split("|") for line in (DOCS / "prompt-sets.md").read_text("utf-8").splitlines()]
    table = {cells[1].strip().strip("`"): cells[2].strip() for cells in rows if len(cells) > 6}
    for name in manifest.known():
        count = manifest.load(name).rows
        assert table[name] == ("not known" if count is None else f"{count:,}"), name


def test_the_benchmarks_cost_what_the_page_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARNESS_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HARNESS_PROMPTS", str(tmp_path))
    lines = [text.split("|") for text in (DOCS / "benchmarks.md").read_text().splitlines() if text.startswith("| `")]
    rows = {cells[1].strip(" `"): [cell.strip() for cell in cells] for cells in lines}
    shipped = {path.stem for path in benchmark.resources("benchmarks").glob("*.yaml")}
    assert rows.keys() == shipped - {"shapes", "shapes-noise", "shapes-edm2"}
    for name in rows.keys() - LONG_COUNTED:
        cost = check.check(name)["cost"]
        place = rows[name].index(f"{cost['samples']:,}")
        evaluations, hours, disk = rows[name][place + 1 : place + 4]
        assert evaluations == f"{cost['nfe']:,}", name
        if cost["gpu_hours"] is not None:  # the twins have none
            assert float(hours) == pytest.approx(cost["gpu_hours"], abs=0.051), name
            gigabytes = cost["images_gb"] + cost["features_gb"]
            assert float(disk.removesuffix(" GB")) == pytest.approx(gigabytes, rel=0.02, abs=0.05), name

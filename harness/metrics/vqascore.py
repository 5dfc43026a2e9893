"""VQAScore: how probable "Yes" is when CLIP-FlanT5 is asked whether an image shows the prompt (Lin et al., arXiv
2404.01291)."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

from harness import artifacts
from harness.errors import HarnessError
from harness.metrics import clip, clip_pixels
from harness.metrics.joint_scorer import JointScorer

SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
          "detailed, and polite answers to the user's questions.")
TOKENS = 2048  # of a question, the image counting as one
IGNORED = -100
LAYER = -2  # of the vision tower's hidden states
SHARED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "embed_tokens.weight")  # as shared.weight
TOWER, PROJECTOR = "vision_tower.vision_tower.vision_model.", "mm_projector."


@dataclass(frozen=True)
class VQAScore(JointScorer["ClipFlanT5"]):
    """The geometric mean of the probabilities of the answer's tokens ("Yes" and the end), 0 to 1, higher is better.

    As CLIP-FlanT5 of github.com/linzhiqiu/t2v_metrics up to version 3.0 (commit 335e4c2). Later versions ask other
    networks; their numbers cannot be compared. `{}` in `question` and `answer` stands for the prompt.

    Preprocessing: padded to a square with the processor's mean colour, then resized by Pillow's bicubic.

    `weights` is the folder of the model (zhiqiulin/clip-flant5-*), `vision` that of its CLIP: configuration,
    preprocessing, and the tower's weights where the model's own files lack them; `tokenizer` that of Flan-T5.
    `dtype` bfloat16 is the published way: weights in bfloat16, computed under autocast.
    """

    name: ClassVar[str] = "vqascore-clip-flant5-xxl"
    chunk: ClassVar[int] = 16

    weights: str = "clip-flant5-xxl"
    tokenizer: str = "flan-t5-xxl-tokenizer"
    vision: str = "clip-vit-large-patch14-336"
    question: str = 'Does this figure show "{}"? Please answer yes or no.'
    answer: str = "Yes"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        for name, template in (("question", self.question), ("answer", self.answer)):
            try:
                template.format("")
            except (IndexError, KeyError, ValueError) as error:
                raise ValueError(f"{name} {template!r} is no template: `{{}}` alone stands for the prompt") from error
        if self.question.format("a") == self.question.format("b"):
            raise ValueError(f"question {self.question!r} lacks `{{}}`, the place of the prompt")

    def artifacts(self) -> dict[str, str]:
        """The model, its tokenizer and its CLIP."""
        return {"weights": self.weights, "tokenizer": self.tokenizer, "vision": self.vision}

    def load(self, device: str) -> ClipFlanT5:
        """The network, shared by all questions."""
        places = self.artifacts().values()
        contents = tuple(artifacts.content(name) for name in places)
        return _opened(*(artifacts.find(name) for name in places), self.dtype, device, contents)

    def rate(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """The probabilities."""
        questions, answers = ([template.format(text) for text in texts] for template in (self.question, self.answer))
        return self.model.probabilities(pixels, questions, answers)


@dataclass(frozen=True)
class VQAScoreXL(VQAScore):
    """VQAScore by the smaller CLIP-FlanT5-XL."""

    name: ClassVar[str] = "vqascore-clip-flant5-xl"

    weights: str = "clip-flant5-xl"
    tokenizer: str = "flan-t5-xl-tokenizer"


class Network(nn.Module):
    """A CLIP's vision tower whose patches, projected, stand among the input embeddings of a T5."""

    def __init__(self, vision: CLIPVisionConfig, t5: T5Config) -> None:
        super().__init__()
        self.vision = CLIPVisionModel(vision)
        width = t5.d_model
        self.projector = nn.Sequential(nn.Linear(vision.hidden_size, width), nn.GELU(), nn.Linear(width, width))
        self.t5 = T5ForConditionalGeneration(t5)
        self.t5.set_input_embeddings(self.t5.shared)

    def forward(self, pixels: Tensor, questions: list[tuple[Tensor, Tensor]], labels: Tensor) -> Tensor:
        """Logits of the answers, `[B, L, V]`.

        `pixels` is `[B, 3, h, w]`, a question the ids before and after its image, `labels` `[B, L]` holds the
        answers' ids, `IGNORED` behind them.
        """
        hidden = self.vision(pixels.to(self.vision.dtype), output_hidden_states=True).hidden_states[LAYER]
        seen = self.projector(hidden[:, 1:].to(pixels.dtype))
        embed = self.t5.shared
        rows = [torch.cat([embed(before), image, embed(after)])
                for image, (before, after) in zip(seen, questions, strict=True)]
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long, device=row.device) for row in rows], True)
        logits: Tensor = self.t5(inputs_embeds=pad_sequence(rows, True), attention_mask=mask, labels=labels).logits
        return logits


class ClipFlanT5:
    """The checkpoint on one device, in evaluation mode."""

    def __init__(self, folder: Path, tokenizer: Path, vision: Path, dtype: str, device: str) -> None:
        self.device = torch.device(device)
        self.half = dtype == "bfloat16"
        self.network = _filled(folder, vision).requires_grad_(False).eval().to(self.device, getattr(torch, dtype))
        self.size = self.network.vision.config.image_size
        shown = clip.preprocessing(vision)
        self.mean, self.std = (tuple(shown.get(key, default)) for key, default in
                               (("image_mean", clip_pixels.MEAN), ("image_std", clip_pixels.STD)))
        # Read as it is: T5Tokenizer of transformers 5 drops what it does not expect of the file's normalizer.
        try:
            self.tokenizer = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        except Exception as error:  # the library raises nothing more special
            raise HarnessError(f"{tokenizer} holds no tokenizer.json that can be opened: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokens, known = self.tokenizer.get_vocab_size(), self.network.t5.config.vocab_size
        if self.tokens > known:
            raise HarnessError(f"{tokenizer} has {self.tokens} tokens, the checkpoint in {folder} {known}; "
                               f"expected the tokenizer of its Flan-T5")

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 `[N, H, W, 3]` as the network's input `[N, 3, h, w]`."""
        square = squared(torch.from_numpy(images), self._background).numpy()
        return clip_pixels.normalised(clip_pixels.fitted(square, self.size, "floor"), self.mean, self.std)

    def differentiable_pixels(self, images: Tensor) -> Tensor:
        """Float `[N, H, W, 3]` in [0, 1] as the network's input: the same steps, without 8 bits."""
        square = squared(images.to(self.device, torch.float32), self._background / 255)
        return clip_pixels.normalised(clip_pixels.fitted_tensor(square, self.size, "floor"), self.mean, self.std)

    @property
    def _background(self) -> Tensor:
        return torch.tensor([int(mean * 255) for mean in self.mean], dtype=torch.uint8)

    def probabilities(self, pixels: Tensor, questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """exp of the answers' mean log-probability a token, float32 `[N]`."""
        asked = [self.asked(question) for question in questions]
        labels = pad_sequence([self.ids(answer)[:TOKENS] for answer in answers], True, IGNORED)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits = self.network(pixels, asked, labels)
        # The official code cuts embeddings and head to the tokenizer's size: T5 has rows that no token uses.
        logits = logits.float()[..., : self.tokens]
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return (-losses.sum(1) / (labels != IGNORED).sum(1)).exp()

    def asked(self, question: str) -> tuple[Tensor, Tensor]:
        """The ids before and after the image. Each part is tokenized alone, so each has its own end token."""
        before, after = self.ids(f"{SYSTEM} USER: "), self.ids(f"\n{question} ASSISTANT: ")
        return before, after[: TOKENS - 1 - len(before)]

    def ids(self, text: str) -> Tensor:
        """A text's ids, the end token behind them."""
        return torch.tensor(self.tokenizer.encode(text).ids, dtype=torch.long, device=self.device)


@lru_cache(maxsize=1)
def _opened(
    folder: Path, tokenizer: Path, vision: Path, dtype: str, device: str, contents: tuple[str, ...]
) -> ClipFlanT5:
    return ClipFlanT5(folder, tokenizer, vision, dtype, device)


def squared(images: Tensor, background: Tensor) -> Tensor:
    """`[N, H, W, 3]` in the middle of `[N, S, S, 3]`, S the longer side, a colour `[3]` around it."""
    n, height, width, _ = images.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = background.to(images).expand(n, side, side, 3).clone()
    square[:, top : top + height, left : left + width] = images
    return square


def configured(folder: Path, vision: Path) -> tuple[CLIPVisionConfig, T5Config]:
    """The configurations of a model and its CLIP. Raises HarnessError where they are not of a CLIP-FlanT5."""
    try:
        found = json.loads((folder / "config.json").read_text())
        tower = json.loads((vision / "config.json").read_text())
        expected = {
            "tie_word_embeddings": False, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": LAYER,
            "mm_vision_select_feature": "patch",
        }
        for key, value in expected.items():
            if found.get(key, value if key == "mm_vision_select_feature" else None) != value:
                raise HarnessError(f"{folder / 'config.json'}: {key} of CLIP-FlanT5 is {value!r}, not "
                                   f"{found.get(key)!r}")
        known = {key: value for key, value in found.items() if not key.startswith("mm_") and key != "model_type"}
        return CLIPVisionConfig(**tower.get("vision_config", tower)), T5Config(**known)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise HarnessError(f"{folder} and {vision}: no config.json of a CLIP-FlanT5 and its CLIP: {error}") from error


def _filled(folder: Path, vision: Path) -> Network:
    """The network with the checkpoint's tensors as they are, nothing drawn at random on the way."""
    configs = configured(folder, vision)
    state = read(folder)
    if not any(key.startswith(TOWER) for key in state):  # then the tower is CLIP's own
        own = {key: tensor for key, tensor in read(vision).items() if key.startswith("vision_model.")}
        state |= {TOWER + key.removeprefix("vision_model."): tensor for key, tensor in own.items()}
    state.pop(f"{TOWER}embeddings.position_ids", None)
    if "shared.weight" in state:
        for key in SHARED:
            if key in state and not torch.equal(state.pop(key), state["shared.weight"]):
                raise HarnessError(f"{folder}: {key} is not shared.weight; in a T5 they are one")
        state |= {key: state["shared.weight"] for key in SHARED[:2]}
    try:
        with torch.device("meta"):
            network = Network(*configs)
        # Assigned, not copied: T5 here comes with its output head tied to its input table, and Flan-T5's is not.
        fit = network.load_state_dict({_renamed(key): state[key] for key in state}, strict=False, assign=True)
    except (ValueError, TypeError, RuntimeError) as error:
        raise HarnessError(f"{folder}: configuration and tensors are not of one CLIP-FlanT5: {error}") from error
    clip.must_fit(folder, fit.missing_keys, fit.unexpected_keys)
    t5, embeddings = network.t5, network.vision.embeddings
    if torch.equal(t5.lm_head.weight, t5.shared.weight):
        raise HarnessError(f"{folder}: lm_head.weight equals shared.weight; Flan-T5's output head is one of its own")
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]  # not in checkpoints
    return network


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model in the layout of transformers: safetensors or `.bin`, in one file or several."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{whole}.index.json"
        try:
            if index.is_file():
                names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            elif (folder / whole).is_file():
                names = [whole]
            else:
                continue
            state: dict[str, Tensor] = {}
            for path in (folder / name for name in names):
                if path.suffix == ".safetensors":
                    state |= load_file(path)
                else:
                    state |= torch.load(path, weights_only=True, map_location="cpu", mmap=True)
            return state
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, EOFError,
                pickle.UnpicklingError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise HarnessError(f"{folder}: the weights in {whole} or its parts cannot be opened: {reason}") from error
    raise HarnessError(f"{folder} holds neither model.safetensors nor pytorch_model.bin, whole or in parts")


def _renamed(key: str) -> str:
    """An official name in the network's own."""
    for old, new in ((TOWER, "vision."), (PROJECTOR, "projector.")):
        if key.startswith(old):
            return new + key.removeprefix(old)
    return "t5." + key

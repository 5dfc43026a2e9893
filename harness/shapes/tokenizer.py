"""A CLIP tokenizer of the shapes world: CLIP's own byte-pair scheme with merges that make each world word one token.

Any other text still tokenizes, by letters. Deterministic: the same words give the same files.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from harness.shapes.grammar import NUMBERS, SIZES
from harness.shapes.scene import BACKGROUNDS, COLOURS, PLURALS, RELATIONS, SHAPES

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

LENGTH = 24
WORDS = (
    *("a", "an", "and", "of", "on", "the", "photo", "picture", "image", "background", "with", "in", "to", "is"),
    *SHAPES,
    *PLURALS.values(),
    *COLOURS,
    *BACKGROUNDS,
    *SIZES,
    *NUMBERS.values(),
    *dict.fromkeys(w for r in RELATIONS for w in r.split()),
)


def _letters() -> list[str]:
    """The printable stand-ins of the 256 bytes, in GPT-2's and CLIP's order."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in kept]
    return [chr(b) for b in kept] + [chr(256 + i) for i in range(len(rest))]


def merges() -> list[tuple[str, str]]:
    """Byte-pair merges, learned on the words alone, each as frequent as the next, until all are single tokens."""
    words = [[*w[:-1], w[-1] + "</w>"] for w in dict.fromkeys(WORDS)]
    learned: list[tuple[str, str]] = []
    while any(len(w) > 1 for w in words):
        pairs: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = max(pairs, key=lambda p: (pairs[p], p))
        learned.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return learned


@cache
def make_tokenizer() -> CLIPTokenizer:
    """The tokenizer: 256 letters, 256 letters that end a word, the merges, start and end."""
    from transformers import CLIPTokenizer

    letters = _letters()
    learned = merges()
    tokens = letters + [c + "</w>" for c in letters] + ["".join(m) for m in learned]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=learned, model_max_length=LENGTH)


def tokenize(texts: list[str]) -> list[list[int]]:
    """Token ids [n, 24], padded with the end token and cut."""
    batch = make_tokenizer()(texts, padding="max_length", max_length=LENGTH, truncation=True)
    return list(batch["input_ids"])


def save_tokenizer(folder: Path) -> None:
    """Save the tokenizer, with CLIP's classic two files beside for older readers."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.json").write_text(json.dumps(dict(vocab), ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(m) for m in merges())]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

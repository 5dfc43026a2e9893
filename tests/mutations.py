"""Does the suite notice a wrong formula? Each deliberate mistake below must make its test fail.

uv run python tests/mutations.py            # all; takes minutes
uv run python tests/mutations.py nlg stats  # those whose file name holds one of the words

Prints a line a mutation, `caught` or `SURVIVED`; exit code 1 if any survives, or if a test fails without one.
`tests/test_mutations.py` keeps the list in step with the code.
"""

import importlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
COPIED = ("harness", "tests", "datasets", "benchmarks", "pyproject.toml")


class Mutation(NamedTuple):
    """`old` stands exactly once in `file` (below harness/); `test` is what must fail once it reads `new`."""

    file: str
    old: str
    new: str
    test: str


# (file below harness/, the test that must fail): pairs of the text that stands there once and what it becomes.
_PAIRS: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("noise/nlg.py", "tests/noise/test_nlg.py"): [
        ("n = n - self.step_size * direction", "n = n + self.step_size * direction"),
        ("return strong - weak", "return weak - strong"),
        ("(1 - self.gamma) * weak", "self.gamma * weak"),
        (".clamp(max=1)", ".clamp(max=100)"),
        ("math.sqrt(self.noise_variance) * fresh", "self.noise_variance * fresh"),
        ("(math.sqrt(n[0].numel()) / length)", "(n[0].numel() / length)"),
        ("n.clamp(-BOUND, BOUND)", "n.clamp(-BOUND, 2 * BOUND)"),
        ('if self.variant == "described" or', 'if self.variant == "published" or'),
        ("given[request], x, 0.0)", "given[request], x, first.timestep)"),
        ("randn(key.place + 1, *shape)", "randn(1, *shape)"),
        ("schedule.evaluations[0]", "schedule.evaluations[-1]"),
    ],
    ("noise/cosine.py", "tests/noise/test_selection.py"): [
        ("a.norm(dim=1) * b.norm(dim=1)", "a.norm(dim=1) ** 2"),
        ("a, b = a.flatten(1).double(), b.flatten(1).double()", "a, b = a.flatten(1), b.flatten(1)"),
    ],
    ("noise/inversion_stability.py", "tests/noise/test_selection.py"): [
        ('self.pick == "most"', 'self.pick == "least"'),
        ("ctx.invert(latents, self.inversion_scale)", "ctx.invert(latents)"),
    ],
    ("noise/choice.py", "tests/noise/test_selection.py"): [
        ("better = value > self.best", "better = value >= self.best"),
        ("self.sign * scores)", "scores)"),
        ("np.where(np.isnan(scores), -np.inf,", "np.where(np.isnan(scores), np.inf,"),
        ("best.offer(noise[part], latents[part], scores[part])",
         "best.offer(noise[part], latents[:rows], scores[part])"),
    ],
    ("noise/base.py", "tests/noise/test_selection.py"): [
        ("self.noise if k == 0 else", "self.noise if k < 0 else"),
    ],
    ("noise/best_of_n.py", "tests/noise/test_selection.py"): [
        ("highest=ctx.required_judge.higher_is_better", "highest=True"),
    ],
    ("noise/noise_optimisation.py", "tests/noise/test_noise_optimisation.py"): [
        ("-across / length", "across / length"),
        ("-across / length", "-across"),
        ("v - (n * v).sum(dim=1, keepdim=True) * n", "v - n"),
        ("self.momentum * m + gradient", "m + gradient"),
        ("range(1, self.steps + 1)", "range(self.steps)"),
        ("whole / 2 * (1 + math.cos", "whole * (1 + math.cos"),
        ("size / self.learning_rate_size", "self.learning_rate_size / size"),
    ],
    ("noise/noise_diffusion.py", "tests/noise/test_noise_diffusion.py"): [
        ("1 - np.sqrt(s if", "1 - (s if"),
        ("(values - self.low) / (self.high - self.low)", "values - self.low"),
        ("v = ((1 - share).sqrt() - 1) * z", "v = (1 - share).sqrt() * z"),
        ("moved.flatten(2).square().sum(2)", "moved.flatten(2).square().sum(2).sqrt()"),
        ("((1 - share).sqrt() * z + share.sqrt() * draw", "((1 - share) * z + share * draw"),
        ("uphill if judge.higher_is_better else -uphill", "uphill"),
        ("torch.where(better, first + place, taken)", "torch.where(better, place, taken)"),
        ("self.gamma(scores, judge", "self.gamma(best.best, judge"),
        ("images * 2 - 1", "images * 2"),
        ("kept = len(noise), ~(gamma > 0)", "kept = len(noise), gamma != gamma"),
        ("add_gradient(ctx.conditioning.rows)", 'add_gradient(ctx.conditioning.rows, "main")'),
    ],
    ("noise/zero_order_search.py", "tests/noise/test_zero_order_search.py"): [
        ("1 - radius**2 / 2", "1 - radius / 2"),
        ("(w * unit).sum(1, keepdim=True) * unit", "0 * unit"),
        ("math.sqrt(1 - cosine**2)", "math.sqrt(1 - cosine)"),
        ("self._neighbours(ctx, best.noise, index)", "self._neighbours(ctx, ctx.noise, index)"),
        ("index * self.neighbours + k", "k"),
    ],
    ("noise/noise_refine.py", "tests/noise/test_noise_refine.py"): [
        ("Refined(ctx.noise + shift", "Refined(ctx.noise - shift"),
        ("timestep=TIMESTEP)", "timestep=0)"),
        ("shift.flatten(1).norm(dim=1) / ctx", "shift.flatten(1).norm(dim=1) * ctx"),
    ],
    ("noise_refine/train.py", "tests/test_noise_refine_training.py"): [
        ("(latents - slope * noise).detach() + slope * noise", "latents.detach() + noise"),
        ("- target).square()", "+ target).square()"),
    ],
    ("guidance/cfg.py", "tests/guidance/test_cfg.py"): [
        ("unconditional + self.scale * (conditional - unconditional)",
         "conditional + self.scale * (conditional - unconditional)"),
        ("or self.scale == 1:", "or self.scale == 2:"),
        ("(UNCOND,) if self.scale == 0 else", "(UNCOND,) if self.scale < 0 else"),
    ],
    ("guidance/interval.py", "tests/guidance/test_cfg.py"): [
        ("low < step.sigma and", "low <= step.sigma and"),
        ("step.sigma <= high", "step.sigma < high"),
        ("<= step.index <= self.steps[1]", "<= step.index < self.steps[1]"),
        ("<= place < self.fraction[1]", "<= place < self.fraction[1] + 2 * ROUNDING"),
        ("step.index / step.total + ROUNDING", "step.index / step.total"),
    ],
    ("guidance/pag.py", "tests/guidance/test_pag.py"): [
        ("guided + self.scale * (conditional - predictions[self._perturbed])",
         "guided - self.scale * (conditional - predictions[self._perturbed])"),
        ("predictions[UNCOND] + self.cfg_scale * (conditional - predictions[UNCOND])",
         "conditional + self.cfg_scale * (conditional - predictions[UNCOND])"),
        ("() if self.cfg_scale == 1 else", "() if self.cfg_scale == 0 else"),
    ],
    ("guidance/autoguidance.py", "tests/guidance/test_autoguidance.py"): [
        ("weak + self.scale * (conditional - weak)", "conditional + self.scale * (conditional - weak)"),
        ("(self._weak,) if self.scale == 0 else", "(self._weak,) if self.scale < 0 else"),
    ],
    ("guidance/none.py", "tests/diffusion/test_inversion.py"): [
        ("Guided(predictions[COND])", "Guided(-predictions[COND])"),
    ],
    ("diffusion/inversion.py", "tests/diffusion/test_inversion.py"): [
        ("(end[1] - scale * start[1]) * epsilon", "(end[1] - start[1]) * epsilon"),
        ("scale = end[0] / start[0]", "scale = start[0] / end[0]"),
        ("from_ratio(schedule.arrivals[index])", "from_ratio(0.0)"),
        ("in reversed(range(len(schedule.arrivals)))", "in range(len(schedule.arrivals))"),
        ("return x / scale", "return x"),
        ("for step in reversed(schedule.evaluations)", "for step in schedule.evaluations"),
    ],
    ("frechet.py", "tests/test_frechet.py"): [
        ("(self.count - 1)\n        return (cov", "self.count\n        return (cov"),
        ("(self.outer - self.count * np.outer", "(self.outer - np.outer"),
        ("return float(((mean - mean2) ** 2).sum() + np.trace(cov) + (root2**2).sum() - 2.0 * trace)",
         "return float(((mean - mean2) ** 2).sum() + np.trace(cov) + (root2**2).sum() - trace)"),
        ("(root2**2).sum() - 2.0 * trace)\n\n\ndef frechet_distance_of",
         "root2.sum() - 2.0 * trace)\n\n\ndef frechet_distance_of"),
        ("np.sqrt(len(x) - 1)", "np.sqrt(len(x))"),
        ("inside - 2.0 * kernel_sums(a, b, sigma)", "inside - kernel_sums(a, b, sigma)"),
        ("1.0 / (2.0 * sigma**2)", "1.0 / sigma**2"),
        ("xx = inside.sum() - 2 * inside.sum(axis=0) + np.diag(inside)", "xx = inside.sum() - 2 * inside.sum(axis=0)"),
        ("pseudo = share * point - (share - 1) * values", "pseudo = share * point - share * values"),
        ("/ (share - 1)).sum() / g)", ").sum() / g)"),
        ("stdtrit(g - 1, 0.5 + confidence / 2)", "stdtrit(g - 1, confidence)"),
        ("jackknife_interval(point1 - point2, without1 - without2,", "jackknife_interval(point1 - point2, without1,"),
    ],
    ("analysis/stats.py", "tests/analysis/test_stats.py"): [
        ("np.sqrt(c / (c - 1)))\n", "np.sqrt(c))\n"),
        ("(stratum.residuals**2).sum() * c / (c - 1)", "(stratum.residuals**2).sum()"),
        ("rng.beta(0.5, c + 0.5, draws)", "rng.beta(0.5, 2 * c, draws)"),
        ("float(np.mean([s.mean for s in strata]))", "float(sum(s.sums.sum() for s in strata) / n)"),
        ("stdtrit(clusters - len(strata), tail) / ndtri(tail)", "1.0"),
        ("abs(w.sum()) * (1 - 1e-12)", "abs(w.sum()) * (1 + 1e-12)"),
        ("return (hits + 1) / (flips + 1)", "return 2 * (hits + 1) / (flips + 1)"),
        ("w.sum() - 2 * (minus @ w)", "w.sum() - (minus @ w)"),
        ("np.arange(len(order), 0, -1)", "len(order)"),
        ("np.maximum.accumulate(", "np.asarray("),
        ("(successes + z2 / 2) / (n + z2)", "(successes + z2) / (n + z2)"),
        ("np.sqrt(z2 * (successes * (n - successes) / n + z2 / 4))",
         "np.sqrt(z2 * (successes * (n - successes) / n + z2 / 2))"),
    ],
    ("metrics/imagereward.py", "tests/metrics/test_imagereward.py"): [
        ("0.16717362830052426", "0.17"),
        ("(raw - MEAN) / STD", "raw - MEAN"),
        ("TOKENS = 35 ", "TOKENS = 36 "),
        ("HEAD_WIDTH = 64 ", "HEAD_WIDTH = 32 "),
        ("is_decoder=False,", "is_decoder=True,"),
        ("attention_mask=mask,", ""),
        ("read.last_hidden_state[:, 0]", "read.last_hidden_state[:, 1]"),
        ("            x = layer(x)", "            x = layer(x).relu()"),
        ('"layer_norm_eps": 1e-6', '"layer_norm_eps": 1e-3'),
        ('".norm1.": ".layer_norm1."', '".norm1.": ".layer_norm2."'),
        ('fitted(images, self.size, "even")', 'fitted(images, self.size, "floor")'),
        ('["[DEC]", "[ENC]"]', '["[ENC]", "[DEC]"]'),
        ("must_fit(path, fit.missing_keys,", "must_fit(path, [],"),
        ("[key for key in fit.unexpected_keys if key != positions]", "[]"),
    ],
    ("metrics/joint_scorer.py", "tests/metrics/test_imagereward.py"): [
        ("texts[i : i + self.chunk]", "texts[: self.chunk]"),
        ("shown[i : i + self.chunk]", "shown[: self.chunk]"),
    ],
    ("metrics/vqascore.py", "tests/metrics/test_vqascore.py"): [
        ("LAYER = -2 ", "LAYER = -1 "),
        ("hidden[:, 1:]", "hidden[:, :-1]"),
        ("detailed, and polite", "detailed and polite"),
        ('(f"{SYSTEM} USER: ")', '(f"{SYSTEM} USER:")[:-1]'),
        (" ASSISTANT: ", " "),
        ("torch.cat([embed(before), image, embed(after)])", "torch.cat([embed(before), embed(after), image])"),
        ("int(mean * 255)", "round(mean * 255)"),
        ("(side - height) // 2, (side - width) // 2", "side - height, side - width"),
        ("self._background / 255", "self._background"),
        ("labels = pad_sequence([self.ids(answer)[:TOKENS]", "labels = pad_sequence([self.ids(answer)[:1]"),
        ("losses.sum(1) / (labels != IGNORED).sum(1)", "losses.sum(1)"),
        ("losses.sum(1) / (labels != IGNORED).sum(1)", "losses.mean(1)"),
        ("[..., : self.tokens]", ""),
        ("TOKENS - 1 - len(before)", "TOKENS - len(before)"),
        ("attention_mask=mask,", ""),
        ("strict=False, assign=True)", "strict=False)"),
        ("clip.must_fit(folder, fit.missing_keys, fit.unexpected_keys)", "pass"),
        ("if torch.equal(t5.lm_head.weight, t5.shared.weight):", "if False:"),
        ("torch.arange(embeddings.num_positions)", "torch.zeros(embeddings.num_positions, dtype=torch.long)"),
        ('self.half = dtype == "bfloat16"', "self.half = True"),
    ],
    ("metrics/clip.py", "tests/metrics/test_clip_scorers.py"): [
        ("must_fit(folder, found[\"missing_keys\"]", "must_fit(folder, []"),
        ("del self.texts[next(iter(self.texts))]", "self.texts.clear()"),
    ],
    ("metrics/clip_pixels.py", "tests/metrics/test_clip_scorers.py"): [
        ("round(margin / 2) if odd", "margin // 2 if odd"),
        ("int(edge * max(height, width)", "round(edge * max(height, width)"),
        ("Resampling.BICUBIC", "Resampling.BILINEAR"),
        ('antialias=mode != "nearest"', "antialias=False"),
        (".clamp(0, 1)", ""),
        ("((x.shape[-2], target[1]), target)", "(target,)"),
        (" / x.new_tensor(std)", " * x.new_tensor(std)"),
    ],
    ("metrics/openclip.py", "tests/metrics/test_clip_scorers.py"): [
        ('fitted(images, self.size, "even")', 'fitted(images, self.size, "floor")'),
        ('fitted_tensor(images, self.size, "even")', 'fitted_tensor(images, self.size, "floor")'),
        ('"head_width": head_width', '"head_width": 2 * head_width'),
        ("text_width // TEXT_HEAD_WIDTH", "2"),
        (".triu_(1)", ".triu_(2)"),
        ("fit.missing_keys, fit.unexpected_keys", "fit.missing_keys, []"),
    ],
    ("metrics/embedding_scorer.py", "tests/metrics/test_clip_scorers.py"): [
        ("[prefix + prompt.text for", "[prompt.text for"),
        ("stills(images, self.name), self.pixels)", "stills(images, self.name))"),
    ],
    ("metrics/hpsv2.py", "tests/metrics/test_clip_scorers.py"): [
        ("return 100 * cosine", "return cosine"),
        ("size / max(height, width)", "size / min(height, width)"),
        ("round(height * scale), round(width * scale)", "int(height * scale), int(width * scale)"),
        ("antialias=antialias", "antialias=True"),
        ("right // 2, right - right // 2", "right - right // 2, right // 2"),
        ("below // 2, below - below // 2", "below - below // 2, below // 2"),
    ],
    ("metrics/pickscore.py", "tests/metrics/test_clip_scorers.py"): [
        (".exp() * cosine", " * cosine"),
        ('"floor"', '"even"'),
    ],
    ("metrics/clipscore.py", "tests/metrics/test_clip_scorers.py"): [
        ("2.5 * cosine.clamp_min(0)", "2.5 * cosine"),
        ("2.5 * cosine.clamp_min(0)", "cosine.clamp_min(0)"),
        ("return 100 * cosine", "return cosine"),
        ('= "A photo depicts "', '= "A photo depicts"'),
        ('prefix: ClassVar[str] = ""', 'prefix: ClassVar[str] = "A photo depicts "'),
    ],
    ("metrics/aesthetic.py", "tests/metrics/test_clip_scorers.py"): [
        ("embedded / torch.where(length == 0, 1, length)", "embedded"),
        ("places == RELU and", "places == LINEAR and"),
        ("place != RELU[-1]", "place != RELU[-2]"),
    ],
}
MUTATIONS = [Mutation(file, old, new, test) for (file, test), pairs in _PAIRS.items() for old, new in pairs]


def passes(folder: Path, tests: list[str]) -> bool:
    """Whether the tests pass in the copy, run in a child process that inherits the imported libraries."""
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        sys.dont_write_bytecode = True  # bytecode is known by time and size, which a mutation may share with the next
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        os._exit(int(pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", *tests])))
    return os.waitpid(child, 0)[1] == 0


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(word in Path(m.file).name for word in words)]
    for library in ("torch", "diffusers", "transformers", "pandas", "scipy.stats", "hypothesis", "torch_fidelity"):
        importlib.import_module(library)  # once: they take longer than the tests
    survivors = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
            else:
                shutil.copy(source, folder / name)
        if not passes(folder, sorted({m.test for m in chosen})):
            print("these tests fail without a mutation:", *sorted({m.test for m in chosen}))
            return 1
        for m in chosen:
            path, started = folder / "harness" / m.file, time.monotonic()
            right = path.read_text()
            path.write_text(right.replace(m.old, m.new))
            try:
                caught = not passes(folder, [m.test])
            finally:
                path.write_text(right)
            verdict, seconds = "caught  " if caught else "SURVIVED", time.monotonic() - started
            print(f"{verdict} {m.file}: {m.old!r} -> {m.new!r} ({seconds:.0f} s)", flush=True)
            survivors += [] if caught else [m]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

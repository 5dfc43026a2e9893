"""Random generators of a sample: one for every purpose, none of them global."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.errors import HarnessError
from harness.identity import seed64


@dataclass(frozen=True)
class RowKey:
    """What the randomness of a row depends on, and all it depends on.

    `literal` is the number that seeds the initial noise when the benchmark asks for `seeding: literal` or for
    a column of the prompt set; None means that the identity of the row decides. `place` is the row's place in
    its micro-batch under `seeding: published`, where a published script's randomness belongs to places, and
    `first` then says that the micro-batch is the first that its seed has (a seed stands for a run of the script).
    """

    prompt_set: str
    prompt_id: str
    seed: int
    literal: int | None = None
    place: int | None = None
    first: bool = False

    def generator(self, purpose: str, k: int | None = None) -> torch.Generator:
        """A fresh CPU generator for `purpose`, numbered by `k` where a purpose is drawn more than once."""
        if self.literal is not None and purpose in ("noise", "candidate"):
            # Papers call "seed 0 ... 99" what torch.manual_seed gets; candidate k is the k-th seed after ours.
            seed = self.literal + (k or 0)
        else:
            tail = "" if k is None else f"/{k}"
            seed = seed64(f"{purpose}/{self.prompt_set}/{self.prompt_id}/{self.seed}{tail}")
        return torch.Generator("cpu").manual_seed(seed)


def normals(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal rows, float32 on the CPU, `[len(generators), *shape]`, each from its own generator."""
    return torch.cat([torch.randn((1, *shape), generator=g, dtype=torch.float32) for g in generators])


def row_key(
    seeding: str, prompt_set: str, prompt_id: str, seed: int, columns: dict[str, object], *,
    place: int = 0, batch: int = 1,
) -> RowKey:
    """The key of a row under a benchmark's `seeding` (`identity`, `literal`, `published` or `column:NAME`).

    `place` counts the prompts of the set from 0 and `batch` is the size of the micro-batches that they are cut
    into, whatever is made together in the end; only `published` looks at them.

    Raises:
        HarnessError: the prompt has no such column, or its value is no whole number.
    """
    if seeding == "identity":
        return RowKey(prompt_set, prompt_id, seed)
    if seeding == "literal":
        return RowKey(prompt_set, prompt_id, seed, literal=seed)
    if seeding == "published":
        return RowKey(prompt_set, prompt_id, seed, place=place % batch, first=place < batch)
    return RowKey(prompt_set, prompt_id, seed, literal=column_number(seeding, prompt_set, prompt_id, columns) + seed)


def column_number(seeding: str, prompt_set: str, prompt_id: str, columns: dict[str, object]) -> int:
    """What a prompt's row has in the column of `column:NAME`; with the seed added it seeds the noise.

    Raises:
        HarnessError: the prompt has no such column, or its value is no whole number.
    """
    column = seeding.removeprefix("column:")
    value = columns.get(column)
    try:
        return int(str(value))
    except ValueError:
        known = ", ".join(sorted(columns)) or "none"
        raise HarnessError(
            f"seeding: column {column!r} of prompt {prompt_id!r} in {prompt_set!r} holds {value!r}, "
            f"expected a whole number (extra columns of this set: {known})"
        ) from None

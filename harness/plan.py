"""A benchmark as cells, and cells as shards: which samples there are, and which are still to be made.

Pure: no torch, no ray, no files. A million samples are planned in seconds (`benchmarks/speed/planning.py`).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.identity import sample_id
from harness.prompts import PromptSet
from harness.units import GenerateUnit, Part, Row


@dataclass(frozen=True)
class Cell:
    """One (model, method, prompt set) of a benchmark, by label, with all that decides its samples' ids."""

    model: str
    method: str
    prompts: str
    model_digest: str
    method_digest: str
    prompt_set: PromptSet
    seeds: tuple[int, ...]
    seeding: str
    batch: int

    @property
    def shard_size(self) -> int:
        """Rows of a shard."""
        return shard_size(self.batch)

    def sample_id(self, prompt_id: str, seed: int) -> str:
        """The id of one of the cell's samples; `prompt_id` is one of its set's."""
        at = self._places[prompt_id]
        seeding = self.seeding
        if seeding == "published":  # the place in the micro-batch decides the image: harness.seeding.RowKey
            batch, place = divmod(at, self.batch)
            seeding = f"published/{place}" + ("" if batch else "/first")
        prompt = self.prompt_set.prompts[at]
        if seeding.startswith("column:"):  # the row's number there decides the noise
            seeding += f"/{prompt.columns.get(seeding.removeprefix('column:'))}"
        return sample_id(
            self.model_digest, self.method_digest, self.prompt_set.id, prompt_id, seed, seeding, prompt.class_label
        )

    @cached_property
    def _places(self) -> dict[str, int]:
        return {prompt.id: place for place, prompt in enumerate(self.prompt_set.prompts)}

    def sample_ids(self) -> Iterator[str]:
        """Every sample of the cell, in order of seeds, then prompts."""
        for seed in self.seeds:
            for prompt in self.prompt_set.prompts:
                yield self.sample_id(prompt.id, seed)

    def __len__(self) -> int:
        return len(self.seeds) * len(self.prompt_set.prompts)


def shard_size(batch: int) -> int:
    """Rows of a shard: whole micro-batches, and enough of them that files do not become dust."""
    return batch * max(1, -(-16 // batch))


def shards(cell: Cell, done: Collection[str] = (), taken: Collection[str] = ()) -> Iterator[GenerateUnit]:
    """What is left of a cell, cut by a fixed grid over (seed, prompts in order).

    The grid does not depend on what is `done` (ids of finished samples), so growth never re-cuts: a grid
    place of which some samples exist gives a unit of the others. `taken` are the names of part files that the
    cell already has; a unit never gets one of these names, so that no finished part is ever written over.
    """
    prompts = cell.prompt_set.prompts
    for seed in cell.seeds:
        for first in range(0, len(prompts), cell.shard_size):
            places = range(first, min(first + cell.shard_size, len(prompts)))
            rows = [(place, Row(cell.sample_id(prompts[place].id, seed), prompts[place], place)) for place in places]
            todo = [(place, row) for place, row in rows if row.sample_id not in done]
            if todo:
                name = _free_name(f"{seed}-{todo[0][0]}-{todo[-1][0]}", taken)
                yield GenerateUnit(
                    part=Part(cell.model, cell.method, cell.prompts, name),
                    prompt_set=cell.prompt_set.id,
                    seed=seed,
                    seeding=cell.seeding,
                    batch=cell.batch,
                    rows=tuple(row for _, row in todo),
                )


def _free_name(name: str, taken: Collection[str]) -> str:
    """`name`, or where another selection of prompts has used it the first free `name+1`, `name+2`, ..."""
    candidate, k = name, 0
    while candidate in taken:
        k += 1
        candidate = f"{name}+{k}"
    return candidate


def total(cells: Sequence[Cell]) -> int:
    """Samples of all cells together."""
    return sum(len(cell) for cell in cells)

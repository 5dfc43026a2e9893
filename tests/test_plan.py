"""The plan: every sample once, the grid fixed, growth without re-cutting."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.plan import Cell, shards, total
from harness.prompts import Prompt, PromptSet


def cell(prompts: int, seeds: int = 1, batch: int = 8, seeding: str = "identity") -> Cell:
    made = PromptSet("set", tuple(Prompt(str(i), f"prompt {i}") for i in range(prompts)))
    return Cell("model", "method", "label", "m" * 64, "n" * 64, made, tuple(range(seeds)), seeding, batch)


def ids(units: list) -> list[str]:
    return [row.sample_id for unit in units for row in unit.rows]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 100), st.integers(1, 3), st.integers(1, 40))
def test_every_sample_is_planned_once(prompts: int, seeds: int, batch: int) -> None:
    whole = cell(prompts, seeds, batch)
    units = list(shards(whole))
    assert ids(units) == list(whole.sample_ids())
    assert len(set(ids(units))) == total([whole]) == prompts * seeds
    assert len({unit.part.name for unit in units}) == len(units)
    assert all(len(unit.rows) <= whole.shard_size for unit in units)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.data())
def test_what_is_done_is_left_out_and_the_grid_stays(prompts: int, data: st.DataObject) -> None:
    whole = cell(prompts)
    everything = list(whole.sample_ids())
    done = set(data.draw(st.lists(st.sampled_from(everything), unique=True)))
    left = list(shards(whole, done))
    assert set(ids(left)) == set(everything) - done
    place = {sample: i // whole.shard_size for i, sample in enumerate(everything)}
    assert all(len({place[row.sample_id] for row in unit.rows}) == 1 for unit in left)


def test_a_grown_set_adds_only_the_new_prompts() -> None:
    before, after = cell(20), cell(30)
    units = list(shards(after, done=set(before.sample_ids()), taken={unit.part.name for unit in shards(before)}))
    assert ids(units) == [after.sample_id(str(i), 0) for i in range(20, 30)]
    assert [unit.part.name for unit in units] == ["0-20-29"]


def test_a_name_in_use_is_not_written_over() -> None:
    assert next(shards(cell(4), taken={"0-0-3", "0-0-3+1"})).part.name == "0-0-3+2"


def test_ids_do_not_depend_on_batch() -> None:
    assert list(cell(10, batch=1).sample_ids()) == list(cell(10, batch=7).sample_ids())


def test_the_class_that_a_prompt_gives_is_a_part_of_its_ids() -> None:
    def ids_of(*labels: int | None) -> list[str]:
        made = tuple(Prompt(str(i), "thing", class_label=label) for i, label in enumerate(labels))
        return list(replace(cell(1), prompt_set=PromptSet("set", made)).sample_ids())

    assert ids_of(None, None) == list(cell(2).sample_ids())
    none, zero, one = ids_of(None, 1), ids_of(0, 1), ids_of(1, 1)
    assert len({none[0], zero[0], one[0]}) == 3
    assert none[1] == zero[1] == one[1]


def test_the_number_that_seeds_a_row_is_a_part_of_its_id() -> None:
    def ids_of(*numbers: int) -> list[str]:
        made = tuple(Prompt(str(i), "thing", columns={"n": number}) for i, number in enumerate(numbers))
        return list(replace(cell(1, seeding="column:n"), prompt_set=PromptSet("set", made)).sample_ids())

    assert ids_of(5, 6)[0] == ids_of(5, 7)[0]
    assert ids_of(5, 6)[1] != ids_of(5, 7)[1]


def test_under_published_seeding_an_id_holds_the_place_that_decides_the_image() -> None:
    whole = cell(40, seeding="published")
    units = list(shards(whole))
    assert ids(units) == list(whole.sample_ids())
    assert len(set(ids(units))) == 40
    assert [row.place for unit in units for row in unit.rows] == list(range(40))
    other = list(cell(40, batch=5, seeding="published").sample_ids())
    same = [i for i, (a, b) in enumerate(zip(whole.sample_ids(), other, strict=True)) if a == b]
    # the same places of the first micro-batch; elsewhere the places differ
    assert same == [0, 1, 2, 3, 4]
    assert ids(list(shards(cell(48, seeding="published"))))[:40] == ids(units)  # growth changes nothing

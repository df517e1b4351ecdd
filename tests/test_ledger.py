"""The write protocol: torn ledgers, swaps cut off, and what is refused. Stores here are folders of small files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aefcli import ledger
from aefcli.errors import AefError, BadInput, Damaged, Locked, NoResources

UNITS = ("a", "b/c", "d")
OLD, NEW = {"what": "old"}, {"what": "new", "sources": ["x"]}


class Stop(BaseException):
    """A process that ends here and now."""


def template(path: Path, what: str = "") -> None:
    path.mkdir()
    attributes = {ledger.FORMAT_KEY: "toy/1", "state": "building", "what": what}
    (path / "zarr.json").write_text(json.dumps({"attributes": attributes}))


def close(path: Path) -> None:
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["state"] = "complete"
    (path / "zarr.json").write_text(json.dumps(document))


def make(
    store: Path, request: dict[str, Any], *, overwrite: bool = False, units: int = 3, finish: bool = True
) -> list[str]:
    """Build a store of one file per unit, whose content is the request's; returns the units written."""
    with ledger.build(store, request, lambda: {"frozen": request["what"]}, overwrite=overwrite) as build:
        assert build.plan == {"frozen": request["what"]}
        if build.complete:
            return []
        build.template(partial(template, what=request["what"]))
        todo = build.remaining(UNITS)[:units]
        for unit in todo:
            path = build.store / unit
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{unit} of {request['what']}")
            build.record(unit, [path])
        if finish and not build.remaining(UNITS):
            build.finish(close)
        return todo


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def never() -> Any:
    raise AssertionError("the plan was frozen, and is not asked for again")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "x.zarr"


def test_build_resume_complete(store: Path) -> None:
    assert make(store, OLD, units=1) == ["a"]
    with ledger.build(store, OLD, never) as build:
        assert not build.complete
        assert build.remaining(UNITS) == ["b/c", "d"]
    assert make(store, OLD) == ["b/c", "d"]
    with ledger.build(store, OLD, never) as build:
        assert build.complete
        assert build.remaining(UNITS) == []
    lines = [json.loads(line) for line in (ledger.records_of(store) / "ledger.jsonl").read_text().splitlines()]
    assert [line.get("unit") for line in lines] == [*UNITS, None]
    assert lines[1]["files"].keys() == {"b/c"}
    assert set(lines[-1]) == {"finished", "files"}
    assert lines[-1]["finished"] == ledger.digest(OLD)
    assert lines[-1]["files"].keys() == contents(store).keys() - set(UNITS), "metadata and coordinates"


def test_what_zarr_was_writing_when_it_was_killed_is_swept_away(store: Path) -> None:
    make(store, OLD, units=1)
    cut_off, strange = store / f"b/c.{'0f' * 16}.partial", store / "mine.partial"
    cut_off.parent.mkdir(exist_ok=True)
    for file in (cut_off, strange):
        file.write_bytes(b"x")
    make(store, OLD)
    assert not cut_off.exists()
    assert strange.exists()
    cut_off.write_bytes(b"x")
    with ledger.reopen(store):
        assert not cut_off.exists()


def test_torn_at_every_byte_of_the_last_two_lines(store: Path, tmp_path: Path) -> None:
    make(store, OLD)
    whole, records = contents(store), ledger.records_of(store) / "ledger.jsonl"
    intact = records.read_bytes()
    lines = intact.splitlines(keepends=True)
    first = len(intact) - len(lines[-1]) - len(lines[-2])
    for cut in range(first, len(intact) + 1):
        records.write_bytes(intact[:cut])
        (store / "d").write_text("half")  # what the torn line stood for may be torn as well
        expected = ["d"] if cut < first + len(lines[-2]) else []
        if not expected:
            (store / "d").write_bytes(whole["d"])
        assert make(store, OLD) == expected, cut
        assert contents(store) == whole, cut
        assert records.read_bytes() == intact, cut


def test_torn_line_of_zeros_is_dropped(store: Path) -> None:
    """What some file systems leave of a line that was not flushed."""
    make(store, OLD, units=2)
    with (ledger.records_of(store) / "ledger.jsonl").open("ab") as out:
        out.write(b"\0" * 100)
    assert make(store, OLD) == ["d"]


def test_damage_in_the_middle_is_said(store: Path) -> None:
    make(store, OLD)
    records = ledger.records_of(store) / "ledger.jsonl"
    raw = bytearray(records.read_bytes())
    raw[3:6] = b"\0\0\0"
    records.write_bytes(raw)
    before = contents(store.parent)
    with pytest.raises(Damaged, match="line 1"):
        make(store, OLD)
    assert contents(store.parent) == before
    (ledger.records_of(store) / "plan.json").write_text("{")
    with pytest.raises(Damaged, match=r"plan\.json"):
        make(store, OLD)


@pytest.mark.parametrize("finished", [True, False])
def test_another_request_is_refused_with_the_difference(store: Path, finished: bool) -> None:
    make(store, OLD, units=3 if finished else 1)
    before = contents(store.parent)
    difference = r"another request: sources: null -> \[\"x\"\]; what: old -> new"
    with pytest.raises(BadInput, match=difference) as caught, ledger.build(store, NEW, never):
        pass
    assert "--overwrite" in caught.value.hint
    assert contents(store.parent) == before


def test_a_plan_that_fails_makes_nothing(tmp_path: Path) -> None:
    def fail() -> Any:
        raise BadInput("no items")

    for overwrite in (False, True):
        with (
            pytest.raises(BadInput, match="no items"),
            ledger.build(tmp_path / "x.zarr", OLD, fail, overwrite=overwrite),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_is_left_alone(store: Path) -> None:
    store.mkdir()
    (store / "zarr.json").write_text('{"attributes": {}}')
    for overwrite in (False, True):
        with pytest.raises(BadInput, match="not written by aef"), ledger.build(store, OLD, never, overwrite=overwrite):
            pass
    assert [path.name for path in store.parent.iterdir()] == ["x.zarr"]


def test_ours_without_records_is_replaced_only_if_asked(store: Path) -> None:
    make(store, OLD)
    shutil.rmtree(ledger.records_of(store))
    before = contents(store)
    with pytest.raises(BadInput, match="records"), ledger.build(store, OLD, never):
        pass
    assert contents(store) == before
    assert make(store, NEW, overwrite=True) == list(UNITS)
    assert (store / "a").read_text() == "a of new"


@pytest.mark.parametrize("left", [None, "{", "[]", "{}"])
def test_a_finished_store_without_its_root_is_said(store: Path, left: str | None) -> None:
    make(store, OLD)
    whole = (store / "zarr.json").read_bytes()
    (store / "zarr.json").unlink()
    if left is not None:
        (store / "zarr.json").write_text(left)
    before = contents(store.parent)
    with pytest.raises(Damaged, match=r"its zarr\.json is gone or damaged") as caught:
        make(store, OLD)
    assert caught.value.hint == f"aef repair {store} mends it"
    assert contents(store.parent) == before
    (store / "zarr.json").write_bytes(whole)
    assert make(store, OLD) == []
    (store / "zarr.json").unlink()
    assert make(store, NEW, overwrite=True) == list(UNITS)


def test_store_removed_by_hand_is_built_from_the_start(store: Path) -> None:
    """The lines of the one that is gone do not pass for those of the next, not even after a stop."""
    make(store, OLD)
    whole = contents(store)
    shutil.rmtree(store)
    assert make(store, OLD, units=1) == ["a"]
    assert make(store, OLD) == ["b/c", "d"]
    assert contents(store) == whole


def test_second_writer_is_refused(store: Path) -> None:
    with ledger.build(store, OLD, lambda: {"frozen": "old"}) as build:
        build.template(template)
        before = contents(store.parent)
        for request, overwrite in ((OLD, False), (OLD, True), (NEW, True)):
            with pytest.raises(Locked), ledger.build(store, request, never, overwrite=overwrite):
                pass
        assert contents(store.parent) == before
    assert make(store, OLD) == list(UNITS)  # let go


def test_store_that_another_built_while_this_one_planned(store: Path) -> None:
    """The choice was made without the lock: it is made again with it."""

    def slow() -> Any:
        make(store, OLD)
        return {"frozen": "new"}

    for overwrite in (False, True):
        shutil.rmtree(store, ignore_errors=True)
        shutil.rmtree(ledger.records_of(store), ignore_errors=True)
        with pytest.raises((BadInput, Locked)), ledger.build(store, NEW, slow, overwrite=overwrite):
            pass
        assert (store / "a").read_text() == "a of old"
        assert make(store, OLD) == []


def test_plan_is_frozen_as_json(store: Path) -> None:
    with ledger.build(store, {"what": "é", "n": (1, 2)}, lambda: {"n": [1.5, None]}) as build:
        build.template(template)
    with ledger.build(store, {"n": [1, 2], "what": "é"}, never) as build:
        assert build.plan == {"n": [1.5, None]}


def test_canonical_does_not_depend_on_order() -> None:
    assert ledger.digest({"a": 1, "b": [1, {"c": 2, "d": 3}]}) == ledger.digest({"b": [1, {"d": 3, "c": 2}], "a": 1})
    assert ledger.digest({"a": 1}) != ledger.digest({"a": "1"})


# ---------------------------------------------------------------- overwrite, cut off at each step


def test_overwrite_leaves_the_old_one_until_the_end(store: Path) -> None:
    make(store, OLD)
    old = contents(store)
    assert make(store, NEW, overwrite=True, units=2) == ["a", "b/c"]
    assert contents(store) == old
    assert make(store, OLD) == []
    assert make(store, NEW, overwrite=True) == ["d"]
    assert (store / "a").read_text() == "a of new"
    assert sorted(path.name for path in ledger.records_of(store).iterdir()) == ["ledger.jsonl", "lock", "plan.json"]
    assert make(store, NEW) == []


def test_overwrite_with_a_third_request_starts_anew(store: Path) -> None:
    make(store, OLD)
    make(store, NEW, overwrite=True, units=2)
    assert make(store, {"what": "third"}, overwrite=True) == list(UNITS)
    assert (store / "a").read_text() == "a of third"


def cut_calls(monkeypatch: pytest.MonkeyPatch, after: int) -> Callable[[], int]:
    """Stop at the call number `after` of what changes the disk in a swap, before it acts. Returns how many came."""
    calls = 0

    def stopping(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            if calls == after:
                raise Stop
            calls += 1
            return original(*args, **kwargs)

        return call

    swap = ledger._swap

    def cut(*args: Any) -> None:
        with monkeypatch.context() as patch:
            for owner, name in ((Path, "rename"), (Path, "replace"), (Path, "mkdir"), (shutil, "rmtree")):
                patch.setattr(owner, name, stopping(getattr(owner, name)))
            swap(*args)

    monkeypatch.setattr(ledger, "_swap", cut)
    return lambda: calls


@pytest.mark.parametrize("there", ["finished", "begun", "planned"])
def test_swap_cut_off_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    make(tmp_path / "new.zarr", NEW)
    make(tmp_path / "old.zarr", OLD)
    new, old = contents(tmp_path / "new.zarr"), contents(tmp_path / "old.zarr")
    for step in range(20):
        for first, then in ((OLD, old), (NEW, new)):
            store = tmp_path / f"{step}-{first['what']}.zarr"
            if there == "planned":
                with ledger.build(store, OLD, lambda: {"frozen": "old"}):
                    pass
            else:
                make(store, OLD, units=3 if there == "finished" else 1)
            with monkeypatch.context() as patch:
                count = cut_calls(patch, step)
                try:
                    make(store, NEW, overwrite=True)
                except Stop:
                    stopped = True
                else:
                    stopped = False
            # Whatever comes next, the store is the old one or the new one, and its records are its own.
            try:
                make(store, first)
            except BadInput:
                then = new if first is OLD else old
                make(store, NEW if first is OLD else OLD)
            assert contents(store) == then, (step, first)
            assert not (ledger.records_of(store) / "old").exists()
        if not stopped:
            assert count() == step >= 5
            return
    raise AssertionError("the swap takes more steps than were cut")


# ---------------------------------------------------------------- the disk


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NoResources), ledger.build(tmp_path / "file/x.zarr", OLD, dict):
        pass


def test_full_disk_when_the_plan_is_written(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(AefError, match="No space left") as caught:
            make(store, OLD)
    assert caught.value.code == 6
    assert make(store, OLD) == list(UNITS)


def test_write_atomically_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    ledger.write_atomically(path, b"old")

    def stop(*_: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(Stop):
            ledger.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    ledger.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]

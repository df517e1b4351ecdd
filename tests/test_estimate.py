"""A dry run foretells what a fetch reads and writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from archives import Toy, to_server, toy_request
from servers import Files, file_server

from aefcli.cube import Request, Work, estimate, fetch
from aefcli.errors import BadInput, RemoteFailed
from aefcli.extent import BBox, Period


def stored(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("box", [BBox(15.00, 45.95, 15.40, 46.15), BBox(14.5, 45.6, 15.7, 46.5)])
def test_bytes_of_a_real_archive_within_a_quarter(real: Path, tmp_path: Path, box: BBox) -> None:
    """Ten items with cloud, wedges without data and edges: over the middle, and beyond them all."""
    archive = tmp_path / "archive"
    shutil.copytree(real / "earth-search-33T", archive)
    items: list[dict[str, Any]] = []
    for path in sorted(archive.rglob("*.json")):
        document = json.loads(path.read_text())
        if document["type"] == "Feature":
            for asset in document["assets"].values():
                asset["href"] = str((path.parent / asset["href"]).resolve())
            items.append({**document, "links": []})
    with file_server(archive) as web:
        request = Request(served(archive, items, web), box, Period.parse("2023-08"), ("sentinel-2",), 60)
        told = estimate(request, tmp_path / "c.zarr", Work(2))
        assert not (tmp_path / "c.zarr").exists()
        assert not (tmp_path / "c.zarr.build").exists()
        before = web.sent
        done = fetch(request, tmp_path / "c.zarr", work=Work(2))
        read = web.sent - before
    assert (told.items, told.frames) == (done.items, done.frames)
    assert told.bytes_read == pytest.approx(read, rel=0.25)
    assert told.bytes_written == pytest.approx(stored(tmp_path / "c.zarr"), rel=0.25)
    assert told.seconds > 0
    assert told.bytes_free > 0


def served(folder: Path, items: list[dict[str, Any]], web: Files) -> str:
    """The items of a folder as a catalog on the server of that folder."""
    moved = to_server(items, folder, web.url)
    (folder / "served.json").write_text(json.dumps({"type": "FeatureCollection", "features": moved}))
    return f"{web.url}/served.json"


def test_a_dry_run_refuses_what_a_fetch_would(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nothing to fetch"):
        estimate(toy_request(toy, period=Period.parse("2022")), tmp_path / "c.zarr", Work(1))
    with file_server(toy.folder) as web:
        catalog = served(toy.folder, toy.items, web)
        web.gone |= {f"{item['id']}/B04.tif" for item in toy.items}
        with pytest.raises(RemoteFailed, match="B04"):
            estimate(toy_request(catalog), tmp_path / "c.zarr", Work(1))

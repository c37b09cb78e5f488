"""Stacks that grow while the daemon runs: on the real process."""

import json

import mrcfile
import pytest
from fault_steps import grow, jobs, poisson, stopped
from site_of_daemon import Site, until


def test_only_new_sections_of_a_growing_tilt_series_are_denoised_also_after_a_kill(site: Site) -> None:
    sections = [poisson(60 + number) for number in range(6)]
    process = site.launch("run", staged="quick")
    site.ready(process)
    grow(site, "tilt.st", sections[:1])
    until(lambda: site.images() == {"tilt.s0001.st"})
    grow(site, "tilt.st", sections[:3])
    until(lambda: site.images() == {f"tilt.s{number:04d}.st" for number in (1, 2, 3)})
    process.kill()
    process.wait()
    written = {path.name: path.stat().st_mtime_ns for path in site.output.glob("[!.]*")}
    grow(site, "tilt.st", sections[:5])
    process = site.launch("run", staged="quick")
    until(lambda: len(site.images()) == 5)
    (site.drop / "tilt.st").touch()
    grow(site, "other.st", sections[3:5])
    until(lambda: len(site.images()) == 7)
    until(lambda: {job.state for job in jobs(site)} == {"done"})
    for name, when in written.items():
        assert (site.output / name).stat().st_mtime_ns == when, f"{name} was made twice"
    grow(site, "../scratch.st", sections[::-1])  # another stack takes the name
    (site.root / "scratch.st").replace(site.drop / "tilt.st")
    until(lambda: "tilt.s0006.r2.st" in site.images())
    stopped(process)
    assert {(job.path, job.revision, job.sections) for job in jobs(site)} == {("tilt.st", 2, 6), ("other.st", 1, 2)}
    assert not list(site.output.glob(".emdenoised*"))
    for number, section in enumerate(sections[:5], 1):
        record = json.loads((site.output / f"tilt.s{number:04d}.st.json").read_text())
        assert record["raw"]["section"] == number and record["raw"]["metadata"]["frames"] == 1
        for again, raw in (("", section), (".r2", sections[-number])):
            with mrcfile.open(site.output / f"tilt.s{number:04d}{again}.st") as mrc:
                assert float(mrc.data.mean()) == pytest.approx(raw.mean(), rel=1e-3)


def test_a_movie_that_grows_with_pauses_ends_as_the_sum_of_all_frames(site: Site) -> None:
    """A frame is added, then the header counts it: each pause shows a whole file. That it is a movie, its name says."""
    sections = [poisson(20 + number) for number in range(3)]
    process = site.launch("run", staged="quick")
    site.ready(process)
    results = []
    for number in range(1, 4):
        grow(site, "map_movie.mrc", sections[:number])
        results.append("map_movie.mrc" if number == 1 else f"map_movie.r{number}.mrc")
        until(lambda: site.images() == set(results))
    stopped(process)
    for number, name in enumerate(results, 1):
        record = json.loads((site.output / f"{name}.json").read_text())
        assert record["raw"]["metadata"]["frames"] == number
        with mrcfile.open(site.output / name) as mrc:
            assert float(mrc.data.mean()) == pytest.approx(sum(one.mean() for one in sections[:number]), rel=1e-3)


def test_a_growing_stack_without_evidence_of_frames_is_never_summed(site: Site) -> None:
    """SerialEM adds pieces of a map to a file that says nothing of what they are."""
    sections = [poisson(20 + number) for number in range(3)]
    process = site.launch("run", staged="quick")
    site.ready(process)
    grow(site, "map.mrc", sections[:2])
    expected = {"map.s0001.mrc", "map.s0002.mrc"}
    until(lambda: site.images() == expected)
    grow(site, "map.mrc", sections)
    until(lambda: site.images() == {*expected, "map.s0003.mrc"})
    stopped(process)
    for number, raw in enumerate(sections, 1):
        record = json.loads((site.output / f"map.s{number:04d}.mrc.json").read_text())
        assert record["raw"]["metadata"]["stack"]["are"] == "unknown"
        with mrcfile.open(site.output / f"map.s{number:04d}.mrc") as mrc:
            assert float(mrc.data.mean()) == pytest.approx(raw.mean(), rel=1e-3)


def test_the_profile_decides_whether_a_stack_is_summed(site: Site) -> None:
    auto = {"gain": "auto"}
    tilts = {**auto, "frames": "each", "match": {"folder": "tilts"}}
    site.configure(profiles={"tilts": tilts, "auto": auto}, default_profile="auto")
    frames = [poisson(70 + number) for number in range(3)]
    for folder in ("tilts", "movies"):
        (site.drop / folder).mkdir()
        grow(site, f"{folder}/a.mrc", frames)
    status, said = site.finish("once", staged="quick")
    assert status == 0, said
    assert site.images() == {"movies/a.mrc", *(f"tilts/a.s{number:04d}.mrc" for number in (1, 2, 3))}
    assert json.loads((site.output / "movies/a.mrc.json").read_text())["raw"]["metadata"]["frames"] == 3
    for number in (1, 2, 3):
        record = json.loads((site.output / f"tilts/a.s{number:04d}.mrc.json").read_text())
        assert record["raw"]["section"] == number and record["profile"]["name"] == "tilts"

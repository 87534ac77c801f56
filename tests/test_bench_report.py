from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dcgan_fast import _C, UserError, cli
from dcgan_fast.bench import FMA, Row, Run, load_run, report_markdown, tables, write_report

CEILINGS = {FMA: 400.0, "brgemm float32": 350.0, "brgemm bfloat16": 3000.0, "copy": 25.0}
CONDITIONS = {
    "threads": 2,
    "allocator": "glibc, default",
    "torch": "2.13",
    "dcgan_fast": "0.1.0",
    "capability": "AVX512",
}
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)


def row(**changes: Any) -> Row:
    """8 GFLOP in 10 ms, where PyTorch needs 25 and 20."""
    given = Row(
        table="ops",
        case={"layer": "512x4x4 -> 256x8x8", "dtype": "float32"},
        dtype="float32",
        seconds={"ours": 0.010, "eager": 0.025, "channels_last": 0.020},
        gflop=8.0,
        gigabytes=0.1,
        conditions=CONDITIONS,
        ceilings=CEILINGS,
        fma_beside=390.0,
        rounds=9,
    )
    return dataclasses.replace(given, **changes)


def run_of(*rows: Row) -> Run:
    return Run(list(rows), cpu="A processor", date="2030-01-02", commit="0123456789")


def figures(*rows: Row) -> dict[str, Any]:
    """pytest-benchmark's JSON, as far as it is read."""
    return {
        "machine_info": {"machine": "x86_64", "cpu": {"brand_raw": "A processor"}},
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2030-01-02T03:04:05+00:00",
        "benchmarks": [{"name": "of others", "extra_info": {}}]
        + [{"name": "ours", "extra_info": row.to_extra_info()} for row in rows],
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(figures(row(), row(table="train", images=128))))
    return path


# ------------------------------------------------------------------------------------------ rows


def test_what_follows_from_a_row() -> None:
    one = row()
    assert one.best_other == "channels_last"
    assert one.speedup == pytest.approx(2.0)
    assert one.gflops == pytest.approx(800.0)
    assert one.peak == 400.0
    assert one.floor == pytest.approx(0.020)  # 8 GFLOP at 400 GFLOP/s: longer than 0.1 GB at 25
    assert one.attained == pytest.approx(2.0)


def test_the_floor_is_the_memory_where_that_takes_longer() -> None:
    assert row(gigabytes=1.0).floor == pytest.approx(0.040)
    assert row(gflop=0.0).floor == pytest.approx(0.004)


def test_the_peak_is_the_fastest_arithmetic_of_the_dtype() -> None:
    assert row(dtype="bfloat16").peak == 3000.0
    assert row(dtype="bfloat16", ceilings={**CEILINGS, "AMX bfloat16": 7000.0}).peak == 7000.0
    assert row(dtype="bfloat16", ceilings={FMA: 400.0, "copy": 25.0}).peak == 400.0


def test_a_row_alone_has_nothing_to_be_compared_with() -> None:
    alone = row(seconds={"ours": 0.01})
    assert alone.best_other is None and alone.speedup is None
    assert "–" in tables([alone])[0].cells[0]


def test_rows_survive_json(file: Path) -> None:
    run = load_run(file)
    assert run.rows == [row(), row(table="train", images=128)]
    assert (run.cpu, run.date, run.commit) == ("A processor", "2030-01-02", "0123456789+")


def test_extra_info_holds_what_others_may_want_to_read() -> None:
    derived = row(images=128).to_extra_info()["derived"]
    assert derived["speedup"] == pytest.approx(2.0)
    assert derived["images_per_second"]["ours"] == pytest.approx(12800)
    assert derived["gflops"]["eager"] == pytest.approx(320)
    assert "images_per_second" not in row().to_extra_info()["derived"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is not JSON"),
        ("[]", "is not pytest-benchmark's JSON of benchmarks/"),
        ('{"benchmarks": []}', "is not pytest-benchmark's JSON of benchmarks/: KeyError('machine_info')"),
        (json.dumps(figures()), "holds no benchmark of dcgan_fast"),
        (json.dumps(figures(row(seconds={"eager": 1.0, "ours": 1.0}))).replace("ours", "mine"), "'ours'"),
        (json.dumps(figures(row())).replace('"copy"', '"paste"'), "KeyError('copy')"),
        (json.dumps(figures(row())).replace('"gflop"', '"flop"'), "KeyError('gflop')"),
    ],
)  # fmt: skip
def test_errors_name_the_file_and_the_fault(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "figures.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        load_run(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_a_missing_file_is_an_error_that_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*none.json: No such file.*make bench"):
        load_run(tmp_path / "none.json")


# ---------------------------------------------------------------------------------------- tables


def test_a_table_for_each_kind_and_allocator() -> None:
    kept = row(conditions={**CONDITIONS, "allocator": "glibc, pages kept"})
    made = tables([row(), kept, row(table="train", images=128), row()])
    assert [table.title for table in made] == [
        "Training steps, images/s (glibc, default)",
        "Layers as one op, ms (glibc, default)",
        "Layers as one op, ms (glibc, pages kept)",
    ]
    assert [len(table.cells) for table in made] == [1, 2, 1]


def cell(table: Any, column: str, line: int = 0) -> str:
    return table.cells[line][table.columns.index(column)]


def test_cells() -> None:
    (table,) = tables([row()])
    found = {name: cell(table, name) for name in table.columns}
    assert found == {
        "layer": "512x4x4 -> 256x8x8", "dtype": "float32", "ours": "10", "eager": "25",
        "channels_last": "20", "vs best": "2.00", "GFLOP": "8", "GFLOP/s": "800", "of FMA": "2.00",
        "peak": "400", "GB": "0.1", "GB/s": "10.0", "copy": "25.0", "floor ms": "20",
        "of floor": "2.00", "FMA now": "390",
    }  # fmt: skip


def test_rates_of_images() -> None:
    (table,) = tables([row(table="train", images=128)])
    assert (cell(table, "ours"), cell(table, "eager")) == ("12,800", "5,120")


def test_where_ours_is_slower_the_table_says_so() -> None:
    slower = row(seconds={"ours": 0.010, "eager": 0.009})
    (table,) = tables([slower, row()])
    assert (cell(table, "vs best", 0), cell(table, "vs best", 1)) == ("0.90 ▼", "2.00")
    (digest,) = table.notes
    assert digest == (
        "float32: against the best of the others 1.45 in the median, 0.90 to 2.00; "
        "below 0.95 (▼) in 1 of 2."
    )


def test_who_did_not_run_has_a_column_and_a_reason() -> None:
    (table,) = tables([row(), row(skipped={"zentorch": "zentorch is not installed"})])
    assert [cell(table, "zentorch", line) for line in (0, 1)] == ["–", "–"]
    assert "– zentorch: zentorch is not installed." in table.notes


def test_tables_of_bytes_alone_leave_the_flops_out() -> None:
    (table,) = tables([row(table="bn_act", gflop=0.0)])
    assert not {"GFLOP", "GFLOP/s", "of FMA", "peak"} & set(table.columns)
    assert cell(table, "GB/s") == "10.0"


def test_text_is_aligned() -> None:
    lines = tables([row(), row(case={"layer": "x", "dtype": "float32"})])[0].text()[1:]
    assert len({line.index("float32") for line in lines[1:]}) == 1


# ---------------------------------------------------------------------------------------- report


def test_markdown() -> None:
    text = report_markdown(
        [run_of(row()), run_of(row(table="infer", images=1))], ["a.png", "b.png"]
    )
    assert text.count("commit 0123456789, A processor, 2 threads, torch 2.13") == 2
    assert "FMA float32 400 GFLOP/s, brgemm float32 350 GFLOP/s" in text and "copy 25 GB/s" in text
    assert text.index("(a.png)") < text.index("Layers as one op") < text.index("(b.png)")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert (
        len({line.count("|") for line in lines[:3]}) == 1
    )  # head, rule and row have as many cells
    assert lines[2].startswith("| 512x4x4 -> 256x8x8 | float32 | 10 | 25 | 20 | 2.00 |")


@needs_matplotlib
def test_report(tmp_path: Path) -> None:
    without_convolution = row(table="bn_act", gflop=0.0, dtype="bfloat16")
    runs = [run_of(row(), row(dtype="bfloat16")), run_of(without_convolution)]
    paths = write_report(runs, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.md", "roofline.png", "roofline-2.png"]
    sizes = [Image.open(io.BytesIO(path.read_bytes())).size for path in paths[1:]]
    assert sizes[0][0] == 2 * sizes[1][0]  # a panel a dtype; the second run has no points to show
    assert "![roofline](roofline-2.png)" in paths[0].read_text()


@needs_matplotlib
def test_the_roofline_shows_the_figures() -> None:
    from matplotlib.figure import Figure

    from dcgan_fast.bench.roofline import draw_panel

    axes = Figure().subplots()
    draw_panel(axes, "float32", [row(), row(table="train", gigabytes=0.4, seconds={"ours": 0.02})])
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["ours: layers as one op"].get_xydata().tolist() == [[80.0, pytest.approx(800.0)]]
    assert lines["ours: training steps"].get_xydata().tolist() == [[20.0, pytest.approx(400.0)]]
    roof = lines["FMA float32 400 GFLOP/s"].get_xydata()
    assert roof[1].tolist() == [16.0, 400.0] and roof[-1][1] == 400.0  # the corner: 400 / 25
    assert roof[0][1] == pytest.approx(25.0 * roof[0][0])
    assert "brgemm bfloat16 3,000 GFLOP/s" not in lines


def test_without_matplotlib_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs matplotlib: pip install"):
        write_report([run_of(row())], tmp_path / "report")
    assert not (tmp_path / "report").exists()


# ---------------------------------------------------------------------------------- command line


def test_bench_prints_tables(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(file)]) == 0
    assert capsys.readouterr().out == report_markdown([load_run(file)])


@needs_matplotlib
def test_bench_writes_a_report(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", str(file), "--report", str(tmp_path / "out")]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in written] == ["report.md", "roofline.png"]
    assert all(path.exists() for path in written)


def test_bench_reads_what_make_bench_writes(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    assert cli.main(["bench"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("dcgan-fast: error: no figures in benchmarks/results/ (`make bench` ")
    Path("benchmarks/results").mkdir(parents=True)
    for name in ("train.json", "layers.json"):
        Path("benchmarks/results", name).write_text(file.read_text())
    capsys.readouterr()
    assert cli.main(["bench"]) == 0
    assert capsys.readouterr().out == report_markdown([load_run(file)] * 2)


# -------------------------------------------------------------------------------------- ceilings


def test_ceilings_of_this_machine() -> None:
    assert 0.1 < _C.measure_fma(0.01) < 1e5  # GFLOP/s; no machine that runs this is outside
    for measure in (
        _C.measure_brgemm_float32,
        _C.measure_brgemm_bfloat16,
        _C.measure_tiles_bfloat16,
    ):
        rate = measure(0.05)
        assert rate is None or 0.1 < rate < 1e6

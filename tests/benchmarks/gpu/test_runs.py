"""A run of rows: it goes on where it stopped, and says why a row has no result."""

import json
import time

import pytest
import torch

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.clock import BrokenDeviceError, Clock, reason
from benchmarks.gpu.kit import Kit, Missing, fill
from benchmarks.gpu.machine import describe, in_words
from benchmarks.gpu.results import Results, read_results
from benchmarks.gpu.rows import Row, Section, run_sections
from benchmarks.gpu.sizes import TOY
from diffusers_flux_ext.methods.catalog import on_meta


CPU = torch.device("cpu")
MACHINE = describe(CPU)


def section(**measures):
    rows = [Row(name, {"pixels": 64}, measure) for name, measure in measures.items()]
    return Section("z", "some", "Some", "About.", 1, {"ms": "ms"}, lambda size: rows)


def run(tmp_path, minutes=1.0, retry=False, machine=MACHINE, **measures):
    path = tmp_path / "results.json"
    finished = run_sections([section(**measures)], Kit(CPU, TOY), Results(path, machine, "toy"), minutes, retry)
    return finished, {row["name"]: row for row in read_results(path)["rows"]}


def never(kit):
    raise AssertionError("this row has its result")


def refuse(error):
    def measure(*given):
        raise error

    return measure


def test_rows_that_are_done_or_failed_are_not_measured_again(tmp_path):
    finished, rows = run(
        tmp_path, one=lambda kit: {"ms": 1.0, "notes": ["warm"]}, two=refuse(ValueError("too  large"))
    )
    assert finished
    assert (rows["one"]["status"], rows["one"]["values"], rows["one"]["notes"]) == ("done", {"ms": 1.0}, ["warm"])
    assert (rows["two"]["status"], rows["two"]["why"]) == ("failed", "ValueError: too large")
    finished, again = run(tmp_path, one=never, two=never, three=lambda kit: {"ms": 3.0})
    assert finished
    assert [again["one"], again["two"]] == [rows["one"], rows["two"]]
    assert again["three"]["values"] == {"ms": 3.0}
    _, retried = run(tmp_path, retry=True, one=never, two=lambda kit: {"ms": 2.0})
    assert retried["two"]["status"] == "done"


def test_what_is_missing_is_tried_again(tmp_path):
    _, rows = run(tmp_path, one=refuse(Missing("torchao cannot be had.")))
    assert (rows["one"]["status"], rows["one"]["why"]) == ("missing", "torchao cannot be had.")
    assert run(tmp_path, one=lambda kit: {"ms": 1.0})[1]["one"]["status"] == "done"


def test_a_row_that_ended_the_process_is_passed_over(tmp_path):
    Results(tmp_path / "results.json", MACHINE, "toy").put("z", "one", {"pixels": 64}, "begun")
    finished, rows = run(tmp_path, one=never, two=lambda kit: {"ms": 2.0})
    assert finished
    assert (rows["one"]["status"], rows["two"]["status"]) == ("begun", "done")


def test_an_interrupted_row_is_measured_by_the_next_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, one=refuse(KeyboardInterrupt()))
    assert run(tmp_path, one=lambda kit: {"ms": 1.0})[1]["one"]["status"] == "done"


def test_the_time_stops_a_row_and_the_next_run_repeats_it(tmp_path):
    begin = time.monotonic()
    finished, rows = run(tmp_path, 0.02, quick=lambda kit: time.sleep(0.4) or {}, slow=lambda kit: time.sleep(60))
    assert not finished
    assert time.monotonic() - begin < 30
    assert rows["slow"]["status"] == "stopped"
    assert "the time was over" in rows["slow"]["why"]
    finished, rows = run(tmp_path, quick=never, slow=lambda kit: {"ms": 1.0})
    assert finished
    assert rows["slow"]["status"] == "done"


def test_a_row_that_takes_all_the_time_has_failed(tmp_path):
    finished, rows = run(tmp_path, 0.005, slow=lambda kit: time.sleep(60))
    assert not finished
    assert rows["slow"]["status"] == "failed"


def test_a_broken_device_ends_the_run_and_the_next_one_goes_on(tmp_path, monkeypatch):
    broken = refuse(BrokenDeviceError("Run the command again"))
    monkeypatch.setattr(Clock, "check", broken)
    with pytest.raises(BrokenDeviceError):
        run(tmp_path, one=refuse(RuntimeError("an illegal memory access")), two=never)
    monkeypatch.undo()
    finished, rows = run(tmp_path, one=never, two=lambda kit: {"ms": 1.0})
    assert finished
    assert (rows["one"]["status"], rows["two"]["status"]) == ("failed", "done")


@pytest.mark.parametrize(
    "change", [{"device": "another card"}, {"versions": {**MACHINE["versions"], "torch": "2.11.0"}}]
)
def test_figures_of_two_machines_do_not_mix(tmp_path, change):
    run(tmp_path, one=lambda kit: {"ms": 1.0})
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(ValueError, match="Figures of both do not belong into one file: give another `--out`"):
        run(tmp_path, machine={**MACHINE, **change}, one=never)
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_file_of_something_else_is_refused(tmp_path, capsys):
    path = tmp_path / "results.json"
    for content, message in (("[]", "is not a file of results"), ('{"version": 2, "rows": []}', "version 2")):
        path.write_text(content)
        assert main(["--size", "toy", "--device", "cpu", "--out", str(path)]) == 2
        assert message in capsys.readouterr().err
        assert path.read_text() == content
    Results(tmp_path / "other.json", MACHINE, "toy").put("z", "one", {}, "done", values={})
    assert main(["--device", "cpu", "--out", str(tmp_path / "other.json")]) == 2
    assert "holds results of size 'toy', got 'released'" in capsys.readouterr().err


def test_wrong_sections_and_devices_are_named(tmp_path, capsys):
    given = ["--size", "toy", "--out", str(tmp_path / "results.json")]
    assert main(["--device", "cpu", "--section", "speed", *given]) == 2
    assert "There is no section 'speed'" in capsys.readouterr().err
    assert main(["--device", "toaster", *given]) == 2
    assert "toaster" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_that_the_device_is_broken(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.gpu.__main__.run_sections", refuse(BrokenDeviceError("Run the command again")))
    given = ["--size", "toy", "--device", "cpu", "--out", str(tmp_path / "results.json")]
    assert main(given) == 3
    assert "Run the command again" in capsys.readouterr().err


def test_sides_take_turns_and_one_may_fail():
    order = []

    def side(name):
        def call():
            order.append(name)
            return name

        return call

    found, failed = Clock(CPU).sides({"a": side("a"), "b": side("b"), "c": refuse(ValueError("no kernel"))}, 2)
    assert order == ["a", "b", "b", "a", "a", "b"] or order == ["b", "a", "a", "b", "b", "a"]
    assert failed == {"c": "ValueError: no kernel"}
    assert {name: len(each.seconds) for name, each in found.items()} == {"a": 2, "b": 2}
    assert found["a"].result == "a"
    assert found["a"].peak_gib is None


def test_weights_are_filled_by_their_kinds():
    model = fill(on_meta(lambda: torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64))), CPU)
    assert model[0].weight.dtype == torch.bfloat16
    assert model[0].weight.float().std().item() == pytest.approx(0.02, rel=0.1)
    assert (model[0].bias.eq(0).all(), model[1].weight.eq(1).all(), model[1].bias.eq(0).all()) == (True, True, True)
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_buffer_of_unknown_values_is_refused():
    with pytest.raises(ValueError, match="The buffer `running_mean` of BatchNorm1d has no known values"):
        fill(on_meta(lambda: torch.nn.BatchNorm1d(4)), CPU)


def test_the_machine_in_words_names_device_and_versions():
    card = {"device": "H200", "memory_gib": 139.8, "cuda": "13.0", "python": "3.12.3", "versions": {"torch": "2.11.0"}}
    assert in_words(card) == "H200, 139.8 GiB, CUDA 13.0, Python 3.12.3, torch 2.11.0"
    assert {"torch", "diffusers", "transformers"} <= set(MACHINE["versions"])
    json.dumps(MACHINE)


def test_a_reason_is_one_line():
    assert reason(ValueError("a\n  b")) == "ValueError: a b"
    assert reason(MemoryError()) == "MemoryError"

"""Differential LoRAs and sliders from a configuration: what is learnt, the mean of pairs, going on, and errors."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from diffusers_flux_ext.cli.main import main
from diffusers_flux_ext.lora.reading.read import read
from diffusers_flux_ext.training.config import read_config
from diffusers_flux_ext.training.config.reading import ConfigurationError, print_config
from diffusers_flux_ext.training.data import write_example_data
from diffusers_flux_ext.training.run.build import build_run
from diffusers_flux_ext.training.run.differential import run_differential, stages
from diffusers_flux_ext.training.run.report import dry_run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Bright and dark images of the same scenes, and a table of both with strengths."""
    folder = tmp_path_factory.mktemp("data")
    bright = write_example_data(folder / "bright", 6)
    dark = write_example_data(folder / "dark", 6, brightness=(0.3, 0.3))
    rows = [
        {"image": f"{name}/{row['image']}", "prompt": row["prompt"], "strength": strength}
        for name, path, strength in (("bright", bright, 1), ("dark", dark, -1))
        for row in json.loads(path.read_text())
    ]
    (folder / "slider.json").write_text(json.dumps(rows))
    return folder


def content(data, folder, /, **changes):
    made = {
        "output": str(folder / "run"),
        "model": {"path": "tiny"},
        "data": {"sizes": {"listed": {"listed": [[64, 64]]}}, "text_length": 16},
        "differential": {
            "pairs": [
                {"first": {"path": str(data / "bright/metadata.json")}, "second": {"path": str(data / name)}}
                for name in ("dark/metadata.json", "slider.json")
            ]
        },
        "train": {"lora": {"rank": 2, "targets": "attention", "blocks": ["transformer_blocks.0"]}},
        "optimizer": {"lr": 0.01},
        "run": {"updates": 2, "save_every": 2, "log_every": 1, "logs": ["jsonl"]},
    }
    for name, value in changes.items():
        made[name] = {**made.get(name, {}), **value} if isinstance(value, dict) else value
    return made


def deltas(path):
    return {
        name: (pair.scale * pair.parts["up"].float() @ pair.parts["down"].float())
        for name, update in read(path).updates()
        for pair in [update.to_lora()]
    }


def differential(*args, **changes):
    said = []
    written = run_differential(read_config(content(*args, **changes)), say=said.append)
    return written, said


def test_the_result_is_the_mean_of_what_second_loras_add(data, tmp_path):
    written, said = differential(data, tmp_path, export={"formats": ["diffusers", "kohya"]})
    folder = tmp_path / "run"
    assert [path.name for path in written] == ["pytorch_lora_weights.safetensors", "lora_kohya.safetensors"]
    seconds = [deltas(folder / f"pair-{number}/second/result" / written[0].name) for number in (1, 2)]
    mean = deltas(written[0])
    assert mean.keys() == seconds[0].keys()
    for name, delta in mean.items():
        torch.testing.assert_close(delta, (seconds[0][name] + seconds[1][name]) / 2, rtol=1e-4, atol=1e-6)
    assert [text.split("\n")[0] for text in said[:2]] == [
        "Pair 1 of 2: the first LoRA", "Pair 1 of 2: the second LoRA",
    ]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("step-*/*")}
    again, said = differential(data, tmp_path, differential={"rank": 1})
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("step-*/*")}
    cut = deltas(again[0])
    lost = sum(float((cut[name] - mean[name]).pow(2).sum()) for name in mean)
    expected = (lost / sum(float(each.pow(2).sum()) for each in mean.values())) ** 0.5
    error = float(re.search(r"at rank 1: relative error (\S+)", said[-1]).group(1))
    assert error == pytest.approx(expected, rel=0.02)
    assert 0.01 < error < 1
    assert all(torch.linalg.matrix_rank(each) <= 1 for each in cut.values())


@pytest.mark.parametrize("fused", [False, True])
def test_the_second_lora_begins_where_the_first_one_ended(data, tmp_path, fused):
    config = read_config(content(data, tmp_path, differential={"fused": fused, "first_updates": 3}))
    first, second, *_ = stages(config)
    assert first.config.run.updates == 3
    first_run, batch = build_run(first.config), []
    first_run.trainer.make_batch, make = (
        lambda *given: batch.append(make(*given)) or batch[-1],
        (first_run.trainer.make_batch),
    )
    first_run()
    with torch.no_grad():
        ended = first_run.training(batch[0])
        began = build_run(second.config).training(batch[0])
    torch.testing.assert_close(began, ended, rtol=1e-3 if fused else 1e-6, atol=1e-6)


def test_a_lora_that_is_there_is_taken_as_the_first_one(data, tmp_path):
    config = read_config(content(data, tmp_path))
    first, *_ = stages(config)
    build_run(first.config)()
    pairs = [{"lora": str(first.file), "second": {"path": str(data / "dark/metadata.json")}}]
    (file,), said = differential(data, tmp_path / "given", differential={"pairs": pairs})
    assert len(said) == 2
    with pytest.raises(FileNotFoundError, match="There is no `none.*`differential.pairs`"):
        differential(data, tmp_path / "none", differential={"pairs": [{**pairs[0], "lora": "none.safetensors"}]})
    assert load_file(file)


def test_a_slider_goes_both_ways(data, tmp_path):
    made = content(
        data, tmp_path, train={"slider": {}, "lora": {"rank": 4}},
        run={"updates": 10, "batch_size": 6, "save_every": 10},
    )  # fmt: skip
    del made["differential"]
    made["data"] |= {"sources": [{"path": str(data / "slider.json")}], "cache": str(tmp_path / "cache")}
    run = build_run(read_config(made))
    batches, make = [], run.trainer.make_batch
    run.trainer.make_batch = lambda *given: batches.append(make(*given)) or batches[-1]
    run()
    strengths = torch.cat([each.strength for each in batches])
    assert set(strengths.tolist()) == {1.0, -1.0}
    batch = batches[-1]
    with torch.no_grad():
        right = run.training(batch).mean()
        batch.strength.neg_()
        wrong = run.training(batch).mean()
        batch.strength.zero_()
        none = run.training(batch).mean()
    assert right < none < wrong


def test_the_command_and_its_report(data, tmp_path, capsys):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content(data, tmp_path)))
    assert main(["train", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("LoRA: ") >= 4
    assert "pair 2 of 2: the second LoRA" in said
    assert not (tmp_path / "run").exists()
    assert main(["train", str(path), "--stage", "cache"]) != 0
    assert "`differential` has several" in capsys.readouterr().err
    config = read_config(path)
    path.write_text(print_config(config))
    assert print_config(read_config(path)) == print_config(config)
    assert dry_run(config) == said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"sources": [{"path": "a"}]}}, "its pairs have sources of their own"),
        ({"train": {"lora": {"kind": "dora"}}}, "give `train.lora` of the kind 'lora'"),
        ({"train": {"slider": {}}}, "got `differential` with `distill` or `train.slider`"),
        ({"differential": None}, "`data.sources` is empty"),
        ({"differential": {"pairs": []}}, "differential.pairs"),
        ({"differential": {"pairs": [{"second": {"path": "a"}}]}}, "neither of `first` and `lora`"),
        ({"train": {"lora": {"kind": "lokr"}, "slider": {}}}, "got `slider`, which needs `lora` of the kind 'lora'"),
        ({"train": {"lora": None, "base_loras": [{"path": "a"}]}}, "got `base_loras` without `lora`"),
    ],
)
def test_what_does_not_fit_is_named(data, tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        read_config(content(data, tmp_path, **changes))


@pytest.mark.parametrize("value", [2, "strong", None, True])
def test_a_row_without_a_strength_is_named(data, tmp_path, value):
    rows = json.loads((data / "slider.json").read_text())
    rows[3]["strength"] = value
    path = data / "wrong.json"
    path.write_text(json.dumps(rows))
    made = content(data, tmp_path, train={"slider": {}}, data={"sources": [{"path": str(path)}]})
    del made["differential"]
    with pytest.raises(ValueError, match=r"the strength `strength` must be a number from -1 to 1, got"):
        build_run(read_config(made))
    with pytest.raises(ValueError, match="No row has the column 'force'"):
        build_run(read_config({**made, "train": {**made["train"], "slider": {"column": "force"}}}))

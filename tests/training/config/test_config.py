"""Configurations: what is refused, and how; changes; equality after printing; arguments of the reference's script."""

import argparse
import dataclasses
import inspect
import json

import pytest
import yaml

from benchmarks.support.reference.boot import import_reference
from benchmarks.tables.training_config import PAGES
from diffusers_flux_ext.training.config import ConfigurationError, TrainingConfig, read_config
from diffusers_flux_ext.training.config.reading import print_config
from diffusers_flux_ext.training.config.reference import ARGUMENTS, from_reference_args, table
from diffusers_flux_ext.training.config.reference_conditions import CONDITIONS, REFUSED, TRAINABLE, WITH
from diffusers_flux_ext.training.run.templates import condition_class


CONTENT = {
    "output": "out",
    "model": {"path": "tiny"},
    "data": {"sources": [{"path": "metadata.json"}]},
    "train": {"lora": {"rank": 4}},
    "run": {"updates": 10},
}


def changed(**entries):
    return {**CONTENT, **entries}


def test_a_printed_configuration_is_read_back(tmp_path):
    config = read_config(changed(conditions=[{"type": "EntityRegions", "inputs": {"prompts": "a", "masks": "b"}}]))
    (tmp_path / "config.yaml").write_text(print_config(config))
    assert print_config(read_config(tmp_path / "config.yaml")) == print_config(config)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert print_config(read_config(tmp_path / "config.json")) == print_config(config)
    assert json.loads(json.dumps(config.identity())) == config.identity()


def test_what_only_checks_does_not_end_a_run():
    given = read_config(changed(data={**CONTENT["data"], "decode": True})).identity()
    assert given == read_config(CONTENT).identity()


def test_changes_win_over_the_file():
    changes = [
        "optimizer.lr=2e-4",
        "run.updates=7",
        "data.sources.0.repeats=3",
        "train.lora.blocks=[transformer_blocks.0]",
    ]
    config = read_config(CONTENT, changes)
    assert config.optimizer.lr == 2e-4
    assert config.run.updates == 7
    assert config.data.sources[0].repeats == 3
    assert config.train.lora.blocks == ["transformer_blocks.0"]
    with pytest.raises(ConfigurationError, match="expected an entry and a value"):
        read_config(CONTENT, ["updates"])
    with pytest.raises(ConfigurationError, match="expected its number, from 0"):
        read_config(CONTENT, ["data.sources.4.repeats=3"])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"optimiser": {}}, "`optimiser` is not known; did you mean `optimizer`?"),
        ({"train": {"lora": {"rnk": 4}}}, "`train.lora.rnk` is not known; did you mean `train.lora.rank`?"),
        ({"run": {"updates": 5, "batchsize": 2}}, "`run.batchsize` is not known; did you mean `run.batch_size`?"),
        ({"data": {"sources": [{"path": "a", "repeat": 2}]}}, "did you mean `data.sources.0.repeats`?"),
        ({"model": {}}, "`model.path` is missing"),
        ({"run": {"updates": "many"}}, r"`run.updates`: input should be a valid integer.*got 'many'"),
        ({"run": {"updates": 0}}, "`run.updates`: input should be greater than or equal to 1, got 0"),
        ({"run": {"updates": 5, "fused_backward": True}}, "set `clip: null` and `accumulation: 1`"),
        ({"run": {}}, "`run`: got both or neither of `updates` and `epochs`"),
        ({"train": {}}, "nothing is trained; give `train.lora`"),
        ({"train": {"lora": {"rank": 4}, "weights": ["*"]}}, "got `lora` and `weights`"),
        ({"train": {"lora": {"rank": 0}}}, "`rank` has"),
        ({"loss": {"levels": {"name": "logitnormal"}}}, "did you mean 'logit_normal'"),
        ({"loss": {"levels": {"name": "beta", "gamma": 1}}}, "`gamma` is not an option of the levels 'beta'"),
        ({"loss": {"weighting": {"name": "snr"}}}, "'snr' is not a known weighting"),
        ({"optimizer": {"name": "adam"}}, "did you mean 'adamw'"),
        ({"schedule": {"name": "cosin"}}, "did you mean 'cosine'"),
        ({"model": {"path": "tiny", "dtype": "bfloat16"}, "train": {"weights": ["*"]}}, "set `optimizer.rounding`"),
        ({"model": {"path": "tiny", "storage": "fp8"}, "train": {"weights": ["*"]}}, "too coarse to be trained"),
        ({"validation": {"every": 5}}, "validation needs `data.held_out` samples"),
        ({"conditions": [{"type": "ControlNetImage", "modules": {"controlnet": {"kind": "contolnet", "path": "x"}}}]},
         "expected one of .*'controlnet'"),
        ({"conditions": [{"type": "ControlNetImage", "modules": {"controlnet": {"kind": "controlnet"}}}]},
         "an untrained module that is not trained"),
        ({"data": {"sources": [{"path": "a"}], "sizes": {}}}, "expected one of `buckets`, `listed` and `reference`"),
        ({"model": {"path": "tiny", "widen": "fil"}}, "expected one of .*'fill'"),
        ({"data": {"sources": [{"path": "a"}], "cache": "c"}, "train": {"text_encoder_lora": {"rank": 2}}},
         "text encoders cannot be trained on cached captions"),
    ],
)  # fmt: skip
def test_wrong_entries_are_named(entries, message):
    with pytest.raises(ConfigurationError, match=message):
        read_config(changed(**entries))


def test_all_wrong_entries_are_named_at_once(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        read_config(changed(model={}, seed=-1, optimiser=1))
    assert str(caught.value).count("\n- ") == 3
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(ConfigurationError, match=r"a.yaml` is not YAML or JSON"):
        read_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("- a")
    with pytest.raises(ConfigurationError, match="holds list"):
        read_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigurationError, match="is not YAML or JSON"):
        read_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_pages_of_entries_and_arguments_are_current(page):
    make, markers = PAGES[page]
    assert "".join([markers[0], make(), markers[1]]) in page.read_text(), "run benchmarks.tables.training_config"


def test_what_does_not_change_the_result_is_not_in_the_identity():
    config = read_config(CONTENT)
    others = ["output=elsewhere", "run.save_every=3", "data.workers=2", "run.logs=[csv]", "export.formats=[kohya]"]
    others.append("model.gradient_checkpointing=2")
    assert read_config(CONTENT, others).identity() == config.identity()
    for change in (
        "seed=1",
        "optimizer.lr=1e-3",
        "train.lora.rank=8",
        "run.batch_size=2",
        "data.captions.dropout=0.1",
    ):
        assert read_config(CONTENT, [change]).identity() != config.identity()


RECIPE = """
accelerate launch examples/flux/model_training/train.py \\
  --dataset_base_path data/example_image_dataset \\
  --dataset_metadata_path data/example_image_dataset/metadata_eligen.json \\
  --data_file_keys image,eligen_entity_masks \\
  --max_pixels 1048576 \\
  --dataset_repeat 50 \\
  --model_id_with_origin_paths "black-forest-labs/FLUX.1-dev:flux1-dev.safetensors,\
black-forest-labs/FLUX.1-dev:text_encoder/model.safetensors,black-forest-labs/FLUX.1-dev:text_encoder_2/,\
black-forest-labs/FLUX.1-dev:ae.safetensors" \\
  --learning_rate 1e-4 \\
  --num_epochs 5 \\
  --remove_prefix_in_ckpt "pipe.dit." \\
  --output_path "./models/train/FLUX.1-dev-EliGen_lora" \\
  --lora_base_model "dit" \\
  --lora_target_modules "a_to_qkv,b_to_qkv,ff_a.0,ff_a.2,ff_b.0,ff_b.2,a_to_out,b_to_out,proj_out,norm.linear,\
norm1_a.linear,norm1_b.linear,to_qkv_mlp" \\
  --lora_rank 32 \\
  --align_to_opensource_format \\
  --extra_inputs "eligen_entity_masks,eligen_entity_prompts" \\
  --use_gradient_checkpointing
"""


def test_a_recipe_of_the_reference_is_translated():
    config = read_config(yaml.safe_load(from_reference_args(RECIPE)))
    assert isinstance(config, TrainingConfig)
    assert config.model.path == "black-forest-labs/FLUX.1-dev"
    assert config.model.gradient_checkpointing
    assert config.run.epochs == 5
    assert config.data.sources[0].repeats == 50
    assert config.data.sizes.reference.max_pixels == 1048576
    assert (config.train.lora.targets, config.train.lora.rank, config.train.lora.tied) == ("reference", 32, True)
    assert (config.loss.levels.name, config.loss.weighting.name, config.loss.stratified) == (
        "reference",
        "bell",
        False,
    )
    assert config.conditions[0].inputs == {"prompts": "eligen_entity_prompts", "masks": "eligen_entity_masks"}
    assert config.export.formats == ["kohya"]
    assert config.run.clip is None


def conditions_of_line(columns, *more):
    trained = "--lora_base_model dit --lora_target_modules ''"
    content = from_reference_args(f"--dataset_metadata_path a {trained} --extra_inputs {columns} {' '.join(more)}")
    return read_config(yaml.safe_load(content))


@pytest.mark.parametrize("column", CONDITIONS)
def test_columns_of_the_reference_become_conditions(column):
    condition = conditions_of_line(column).conditions[0]
    assert column in condition.inputs.values()
    known = {each.name for each in dataclasses.fields(condition_class(condition.type))}
    assert {name.partition(".")[0] for name in condition.inputs} | set(condition.modules) <= known


def test_columns_that_belong_together_become_one_condition():
    config = conditions_of_line("controlnet_image,controlnet_inpaint_mask")
    assert config.conditions[0].inputs["inpaint_mask"] == "controlnet_inpaint_mask"
    trained = "--trainable_models controlnet,image_proj_model"
    config = conditions_of_line("controlnet_image,infinityou_id_image,infinityou_guidance", trained)
    (condition,) = config.conditions
    assert condition.inputs == {
        "id_image": "infinityou_id_image", "control_image": "controlnet_image", "guidance_scale": "infinityou_guidance"
    }  # fmt: skip
    assert {name: each.train for name, each in condition.modules.items()} == {
        "controlnet": True, "image_projector": True, "face_encoder": False
    }  # fmt: skip
    assert config.optimizer.rounding == "stochastic"
    (flex,) = conditions_of_line("flex_control_image,flex_inpaint_image,flex_inpaint_mask").conditions
    assert len(flex.inputs) == 3


def test_the_reference_knows_the_columns_and_the_models():
    call = import_reference("diffsynth.pipelines.flux_image").FluxImagePipeline
    columns = set(inspect.signature(call.__call__).parameters)
    named = {*CONDITIONS, *WITH, *REFUSED}
    assert {each for each in named if not each.startswith("controlnet_")} <= columns
    source = inspect.getsource(call.__init__)
    assert all(f"self.{name}" in source for name in TRAINABLE.values())


def test_models_in_fp8_are_stored_so_where_the_transformer_is_among_them():
    dev = "black-forest-labs/FLUX.1-dev"
    line = (
        f"--dataset_metadata_path a --lora_base_model dit --lora_rank 8 --model_id_with_origin_paths {dev}:flux1.sft"
    )
    for given, storage in ((f"{dev}:flux1.sft", "fp8"), (f"{dev}:text_encoder_2/", None)):
        config = read_config(yaml.safe_load(from_reference_args(f"{line} --fp8_models {given}")))
        assert config.model.storage == storage


def test_what_waits_in_host_memory_does_so_here():
    line = "--dataset_metadata_path a --lora_base_model dit"
    for given, expected in (
        ("--use_gradient_checkpointing_offload", (True, True, None)),
        ("--enable_model_cpu_offload --cpu_offload_split_threshold 50", (True, False, "0GB")),
    ):
        model = read_config(yaml.safe_load(from_reference_args(f"{line} {given}"))).model
        assert (model.gradient_checkpointing, model.offload_activations, model.resident) == expected
    with pytest.raises(ConfigurationError, match="blocks that are streamed must be frozen"):
        from_reference_args("--dataset_metadata_path a --trainable_models dit --enable_model_cpu_offload")


def test_a_preset_lora_lies_under_the_trained_one():
    line = "--dataset_metadata_path a --lora_base_model dit --preset_lora_path first.safetensors"
    (under,) = read_config(yaml.safe_load(from_reference_args(f"{line} --preset_lora_model dit"))).train.base_loras
    assert (under.path, under.weight, under.fused) == ("first.safetensors", 1.0, True)
    with pytest.raises(ConfigurationError, match="--preset_lora_model is 'text_encoder'; expected 'dit'"):
        from_reference_args(f"{line} --preset_lora_model text_encoder")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--dataset_metadata_path a --extra_inputs insert_anything_ref_image", "make the diptychs beforehand"),
        ("--dataset_metadata_path a --extra_inputs controlnet_processor_id", "give it in `options` .* as `mode`"),
        ("--dataset_metadata_path a --learning_rat 1", "did you mean --learning_rate"),
        ("--dataset_metadata_path a --offload_models x", "- --offload_models: with `data.cache`"),
        ("--dataset_metadata_path a --enable_optimizer_cpu_offload", "moments stay on the device"),
        ("--dataset_metadata_path a --lora_rank", "--lora_rank has no value"),
        ("--dataset_metadata_path a --height 512", "belong together"),
        ("--dataset_metadata_path a --trainable_models vae", "'vae', which is not trained here"),
        ("--dataset_metadata_path a --task direct_distill", "expected 'sft'"),
        ("--dataset_metadata_path a --extra_inputs nothing", "is given by hand under `conditions`"),
        ("--lora_rank 2", "--dataset_metadata_path is missing"),
    ],
)
def test_arguments_without_a_counterpart_are_refused(line, message):
    with pytest.raises(ConfigurationError, match=message):
        from_reference_args(line)


def test_the_table_has_every_argument_of_the_reference():
    parsers = import_reference("diffsynth.diffusion.parsers")
    parser = parsers.add_general_config(argparse.ArgumentParser())
    known = {action.dest for action in parser._actions} - {"help"}
    assert len(known) > 30
    flags = {action.dest for action in parser._actions if action.nargs == 0} - {"help"}
    assert flags == {name for name in known & set(ARGUMENTS) if ARGUMENTS[name].flag}
    # Those of videos, and of other models.
    assert known - set(ARGUMENTS) <= {"num_frames", "offload_models"}
    assert all(f"`--{name}`" in table() for name in ARGUMENTS)

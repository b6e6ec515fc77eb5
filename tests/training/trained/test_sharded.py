"""What is trained is gathered whole from shards, and put back into them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers import FluxTransformer2DModel

from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training.trained import ExportInfo, LoRAOptions, TrainedWeights, add_lora
from tests.fixtures.trained import shake, velocity


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("kind", ["tied", "full"])
def test_sharded_parameters_are_saved_whole_and_loaded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    transformer = tiny_transformer()
    if kind == "full":
        trained = TrainedWeights(transformer, ["transformer_blocks.0"])
    else:
        trained = add_lora(transformer, LoRAOptions("reference", rank=2, tied=True))
    shake(trained)
    state, expected = trained.state(), velocity(transformer)
    mesh = init_device_mesh("cpu", (1,))
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        fully_shard(block, mesh=mesh)
    parameters = trained.named_parameters()
    assert parameters.keys() == state.keys()
    assert any(isinstance(parameter, DTensor) for parameter in parameters.values())
    velocity(transformer).pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in trained.named_parameters().values())
    found = trained.state()
    assert all(type(value) is torch.Tensor and torch.equal(value, state[name]) for name, value in found.items())

    trained.load({name: torch.zeros_like(value) for name, value in state.items()})
    assert not any(bool(value.any()) for value in trained.state().values())
    trained.load(state)
    # A process that writes nothing keeps no values of what is shared out.
    with monkeypatch.context() as patch:
        patch.setattr(dist, "get_rank", lambda: 1)
        shared = [name for name, parameter in parameters.items() if isinstance(parameter, DTensor)]
        assert {trained.state()[name].device.type for name in shared} == {"meta"}
    torch.testing.assert_close(velocity(transformer), expected)

    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    paths = trained.export(tmp_path / "out", ExportInfo("base"))
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert trained.export(tmp_path / "out", ExportInfo("base")) == paths
    second = tiny_transformer()
    if kind == "full":
        second = FluxTransformer2DModel.from_pretrained(paths[0])
    else:
        add_lora(second, LoRAOptions("reference", rank=2, tied=True), init_from=paths[0])
    torch.testing.assert_close(velocity(second), expected)

"""Text that conditions append to the prompt is seen by what sees the whole prompt, in every order of conditions."""

from dataclasses import dataclass, replace
from itertools import permutations

import pytest
import torch

from benchmarks.support.tiny.attribute_values import tiny_value_encoder
from benchmarks.support.tiny.controlnet import PICTURE, tiny_controlnet
from benchmarks.support.tiny.infinite_you import face, tiny_identity_modules
from benchmarks.support.tiny.lora_encoder import tiny_lora, tiny_lora_encoder
from benchmarks.support.tiny.redux import patch_embeds, tiny_redux_embedder
from benchmarks.support.tiny.synthetic import AddedText, ReplacedPrompt, never
from diffusers_flux_ext import (
    AttributeValues,
    Contribution,
    ControlNetImage,
    DenoisingStep,
    EncodedConditions,
    EntityRegions,
    FluxCondition,
    FluxConditionedPipeline,
    InfiniteYouIdentity,
    LoRAEmbedding,
    PromptEmbeds,
    ReduxImages,
    TokenGroup,
    extend_prompt,
)
from diffusers_flux_ext.testing import call_kwargs, seeded, tiny_pipeline


LEFT, LENGTH, STEPS = (0.0, 0.0, 0.5, 1.0), 16, 3
GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
CLOSE = {"atol": 1e-5, "rtol": 0}


def redux(**arguments):
    return ReduxImages(image_embeds=patch_embeds(), image_embedder=tiny_redux_embedder(), **arguments)


# Each with the tokens that it appends to the prompt of the two branches.
APPENDING = {
    "values": (lambda: AttributeValues(tiny_value_encoder(), {"brightness": 0.7, "detail": 0.2}), 6, 6),
    "values, cond": (lambda: AttributeValues(tiny_value_encoder(), {"detail": 0.2}, negative=None), 3, 0),
    "lora": (lambda: LoRAEmbedding(tiny_lora_encoder(), tiny_lora()), 2, 0),
    "redux": (redux, 9, 0),
    "redux, both": (lambda: redux(negative="same", prompt_scale=0.5), 9, 9),
    "own": (lambda: AddedText(4, in_prompt=True), 4, 4),
    "some tokens": (lambda: AddedText(4, in_prompt=torch.tensor([[True, False, True, True]])), 3, 3),
}
# Others that add or change text, which is no part of the prompt.
APART = {
    "entities": lambda: EntityRegions(["a red dog"], [LEFT], negative="own"),
    "masked redux": lambda: redux(region=LEFT, negative="same"),
    "own": lambda: AddedText(4),
}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


@pytest.fixture
def net():
    return tiny_controlnet(5)


def control(net, **arguments):
    return ControlNetImage(net, PICTURE, 0.7, **{"negative": "own", **arguments})


def seen_by(net, pipe, conditions, **arguments):
    """What the ControlNet was called with."""
    calls = []
    handle = net.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    try:
        pipe(**call_kwargs(conditions=conditions, num_inference_steps=STEPS, **arguments))
    finally:
        handle.remove()
    return calls


def lengths(calls):
    return [call["encoder_hidden_states"].shape[1] for call in calls]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", APPENDING)
def test_a_controlnet_sees_what_is_appended(pipe, net, name, first):
    make, cond, uncond = APPENDING[name]
    conditions = [make(), control(net)][:: 1 if first else -1]
    calls = seen_by(net, pipe, conditions, **GUIDED)
    assert lengths(calls) == [LENGTH + cond, LENGTH + uncond] * STEPS
    assert all(call["txt_ids"].shape == (call["encoder_hidden_states"].shape[1], 3) for call in calls)


@pytest.mark.parametrize("name", APART)
def test_other_text_stays_apart(pipe, net, name):
    assert lengths(seen_by(net, pipe, [APART[name](), control(net)], **GUIDED)) == [LENGTH] * 2 * STEPS


def test_an_identity_sees_its_own_tokens(pipe):
    modules = tiny_identity_modules()
    identity = InfiniteYouIdentity(**modules, id_embeds=face(), negative="own")
    calls = seen_by(modules["controlnet"], pipe, [APPENDING["values"][0](), identity])
    assert lengths(calls) == [4] * STEPS


def test_residuals_that_are_shared_come_from_the_whole_prompt(pipe, net):
    calls = seen_by(net, pipe, [control(net, negative="same"), APPENDING["lora"][0]()], **GUIDED)
    assert lengths(calls) == [LENGTH + 2] * STEPS


def test_the_order_of_conditions_changes_nothing(pipe, net):
    conditions = [AddedText(4, "one", 1, True), AddedText(3, "other", 2, True), control(net)]
    drawn = [pipe(**call_kwargs(conditions=list(order), **GUIDED)).images for order in permutations(conditions)]
    for images in drawn[1:]:
        torch.testing.assert_close(images, drawn[0], **CLOSE)
    hidden = [replace(each, in_prompt=False) for each in conditions[:2]]
    assert (pipe(**call_kwargs(conditions=[*hidden, conditions[2]], **GUIDED)).images - drawn[0]).abs().max() > 1e-4


def test_it_is_joined_once_and_again_where_it_changes(pipe, net):
    class Growing(AddedText):
        reuse = never

        def contribute(self, encoded, step):
            return AddedText(1 + step.index, in_prompt=True).contribute(encoded, step)

    fixed = seen_by(net, pipe, [AddedText(4, in_prompt=True), control(net)])
    assert all(call["encoder_hidden_states"] is fixed[0]["encoder_hidden_states"] for call in fixed)
    assert lengths(seen_by(net, pipe, [Growing(0), control(net)])) == [LENGTH + 1, LENGTH + 2, LENGTH + 3]


def test_padding_that_the_call_hides_stays_hidden(pipe, net):
    plain = lengths(seen_by(net, pipe, [control(net)], mask_padding=True))
    assert plain[0] < LENGTH
    calls = seen_by(net, pipe, [control(net), AddedText(4, in_prompt=True)], mask_padding=True)
    assert lengths(calls) == [length + 4 for length in plain]


def test_a_prompt_that_is_replaced_is_the_one_that_grows(pipe, net):
    calls = seen_by(net, pipe, [control(net), AddedText(4, in_prompt=True), ReplacedPrompt()])
    assert lengths(calls) == [9] * STEPS
    assert torch.equal(calls[0]["encoder_hidden_states"][0, 4:, 39], torch.ones(5))


def test_a_region_for_some_prompts_only(pipe, net):
    """Where a sample's image has a region, its text does not see it, and neither does the ControlNet."""
    prompts = ["a cat", "a tree"]
    latents = torch.randn(2, 6, 64, generator=seeded(5))
    both = [control(net), redux(region=[[LEFT], [None]])]
    together = seen_by(net, pipe, both, prompt=prompts, latents=latents)
    assert lengths(together) == [LENGTH, LENGTH + 9] * STEPS
    images = pipe(**call_kwargs(prompt=prompts, latents=latents, conditions=both)).images
    for index, mask in enumerate((LEFT, None)):
        inputs = {"prompt": prompts[index], "latents": latents[index : index + 1]}
        alone = pipe(**call_kwargs(**inputs, conditions=[control(net), redux(region=mask)])).images
        torch.testing.assert_close(images[index : index + 1], alone, atol=1e-4, rtol=0)


@dataclass(frozen=True, eq=False)
class Reader(FluxCondition):
    """Adds the sum of the whole prompt as a residual; not anew at each step."""

    sees_whole_prompt = True
    calls: list
    text: tuple = ()

    def contribute(self, encoded, step):
        self.calls.append(step.prompt.hidden_states.shape[1])
        total = step.prompt.hidden_states.sum() * torch.ones_like(step.latents[..., :32])
        return Contribution(text=self.text, block_residuals=[total])


def some_step(index=0, **prompt):
    embeds = PromptEmbeds(torch.ones(2, 5, 40), torch.zeros(2, 24), torch.zeros(5, 3), **prompt)
    return DenoisingStep(index, 2, "cond", torch.full((2,), 0.5), torch.zeros(2, 6, 64), torch.zeros(6, 3), embeds)


def test_a_key_that_equals_the_steps_index_is_not_taken_for_it():
    class Late(AddedText):
        def reuse(self, step):
            return step.branch, step.index

    class Reads(Reader):
        def reuse(self, step):
            return True

    reader = Reads([])
    changing = EncodedConditions.from_tensors([reader, Late(2, in_prompt=True)], [{}, {}])
    for index in (0, 1):
        changing.contributions(some_step(index))
    assert len(reader.calls) == 2


def test_a_condition_that_reads_is_asked_again_when_the_prompt_grows():
    class Late(AddedText):
        def reuse(self, step):
            return step.branch, step.index

    reader, step = Reader([]), some_step()
    same = EncodedConditions.from_tensors([reader, AddedText(2, in_prompt=True)], [{}, {}])
    for _ in range(2):
        same.contributions(step)
    assert reader.calls == [7]
    changing = EncodedConditions.from_tensors([reader, Late(2, in_prompt=True)], [{}, {}])
    for index in (0, 1, 1):
        changing.contributions(replace(step, index=index))
    assert reader.calls == [7, 7, 7]


def test_training_gets_the_same_and_its_gradients(pipe, net):
    encoder, step = tiny_value_encoder(), some_step()
    encoder.requires_grad_(True)
    conditions = [control(net), AttributeValues(encoder, {"brightness": 0.7})]
    encoded = [
        {"control": torch.ones(1, 6, 64), "guidance": torch.ones(1)},
        {"cond.brightness": torch.tensor([0.7])},
    ]
    parts = EncodedConditions.from_tensors(conditions, encoded).contributions(step)
    assert [len(part.text) for part in parts] == [0, 1]
    parts[0].block_residuals[0].square().sum().backward()
    assert all(weight.grad.abs().max() > 0 for weight in encoder.encoders[0].parameters() if weight.grad is not None)
    whole = extend_prompt(step.prompt, parts)
    alone = conditions[0].contribute(encoded[0], replace(step, prompt=whole))
    assert torch.equal(alone.block_residuals[0], parts[0].block_residuals[0])


class TestExtendPrompt:
    def group(self, in_prompt, length=3, width=40):
        return Contribution(
            text=[TokenGroup("note", torch.zeros(1, length, width), torch.zeros(length, 3), in_prompt)]
        )

    def test_nothing_appended_is_the_same_prompt(self):
        prompt = some_step().prompt
        assert extend_prompt(prompt, [self.group(False), self.group(torch.zeros(2, 1, dtype=torch.bool))]) is prompt

    def test_masks_are_joined(self):
        own = torch.tensor([[True] * 4 + [False], [True] * 5])
        whole = extend_prompt(some_step(mask=own).prompt, [self.group(torch.tensor([[True], [False]]))])
        assert whole.mask.tolist() == [[True] * 7 + [False], [False] * 3 + [True] * 5]
        assert extend_prompt(some_step().prompt, [self.group(True)]).mask is None

    @pytest.mark.parametrize(
        "in_prompt", [torch.ones(3, 1, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 3), 1.0]
    )
    def test_another_shape_or_type(self, in_prompt):
        with pytest.raises(ValueError, match="`in_prompt` of the group 'note' is torch.*expected a boolean"):
            extend_prompt(some_step().prompt, [self.group(in_prompt)])

    def test_another_width(self):
        with pytest.raises(ValueError, match="'note' have the shape"):
            extend_prompt(some_step().prompt, [self.group(True, width=8)])

    def test_a_reader_cannot_append(self):
        reader = Reader([], self.group(True).text)
        with pytest.raises(ValueError, match="Reader sees the whole prompt, so it cannot append 'note'"):
            EncodedConditions.from_tensors([reader], [{}]).contributions(some_step())

    def test_one_entry_for_each_condition(self):
        with pytest.raises(ValueError, match="2 entries for 1 conditions"):
            EncodedConditions.from_tensors([Reader([])], [{}, {}])

"""Random combinations of methods, run by the reference and by this package with the same weights and inputs.

Every method that the reference runs beside others has a function here, which draws its inputs for both sides. What the
reference cannot run together, or computes otherwise by a defect of its own, stands in `EXCLUDED` with the reason.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image, ImageDraw

from benchmarks.support.parity.sides import BASES, NETS, Sides, sides
from benchmarks.support.reference import controlnet_input
from benchmarks.support.tiny.infinite_you import POINTS, face
from benchmarks.support.tiny.ip_adapter import picture
from benchmarks.support.tiny.nexus_gen import image_embeds
from benchmarks.support.tiny.step1x import instruction_embeds
from diffusers_flux_ext import (
    AttributeValues,
    ControlNetImage,
    EntityRegions,
    FillMask,
    FlexControl,
    FluxCondition,
    InfiniteYouIdentity,
    IPAdapterImages,
    LoRAEmbedding,
    NexusGenEmbedding,
    ReduxImages,
    ReferenceImages,
    Step1XInstruction,
    TeaCacheConfig,
    apply_tea_cache,
    draw_face_keypoints,
    remove_tea_cache,
)
from diffusers_flux_ext.canvas import encode_image, pack_latents
from diffusers_flux_ext.testing import seeded


TOLERANCE = 1e-3
"""The largest difference of the last latents; they are of the order of 1 to 10."""

EXCLUDED: dict[frozenset[str], str] = {
    frozenset({"entities", "references"}): "raises there",
    frozenset({"entities", "attributes"}): "raises there: the prompt must be as long as an entity's",
    frozenset({"entities", "lora embedding"}): "raises there: the prompt must be as long as an entity's",
    frozenset({"entities", "redux"}): "raises there: the prompt must be as long as an entity's",
    frozenset({"identity", "controlnets"}): "there every ControlNet beside an identity sees it in place of the prompt",
    frozenset({"fill", "controlnets"}): "raises there: the ControlNet is given Fill's channels",
    frozenset({"fill", "identity"}): "raises there: InfuseNet is given Fill's channels",
    frozenset({"fill", "references"}): "raises there: references are not widened by Fill's channels",
    frozenset({"flex", "references"}): "raises there: references are not widened by Flex' channels",
    **{
        frozenset({"step1x", name}): "there the connector's tokens overwrite the prompt and what is appended to it"
        for name in ("attributes", "lora embedding", "redux", "nexus-gen")
    },
    **{
        frozenset({"step1x", name}): "raises there"
        for name in ("entities", "controlnets", "identity", "references", "fill", "flex")
    },
    frozenset({"nexus-gen", "entities"}): "raises there: the prompt must be as long as an entity's",
    frozenset({"nexus-gen", "redux"}): "there Redux overwrites the prompt; here the second one is refused",
    frozenset({"guidance", "cache"}): "there both branches share one state of the cache, so steps count twice",
}
"""Names of methods, bases and options that are not drawn together, and why: what the reference does there."""

MODES = ("canny", "tile", "depth", "blur", "pose", "gray", "lq")
PROMPTS = ("a cat on the table", "a red dog", "a blue bird in the sky", "a green tree", "ugly blurry")
SIZES = ((64, 48), (48, 64), (80, 32), (48, 48))


@dataclass
class Combination:
    """What is run: names of the base, the methods and the options, and the arguments of both sides.

    `stubs` are attributes of the reference for the time of the call: language models that give known embeddings.
    """

    seed: int
    base: str
    size: tuple[int, int]
    steps: int
    names: list[str] = field(default_factory=list)
    conditions: list[FluxCondition] = field(default_factory=list)
    theirs: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)
    cache: float | None = None
    stubs: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """For reports."""
        return f"seed {self.seed}: {' + '.join([self.base, *self.names])}"

    def allows(self, name: str) -> bool:
        """Whether nothing that is drawn excludes it."""
        return not any(frozenset({name, other}) in EXCLUDED for other in (self.base, *self.names))


def _picture(draw: random.Random, size: tuple[int, int]) -> Image.Image:
    return picture(draw.randrange(10**6), (40, 30)).resize(size)


def _mask(draw: random.Random, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """A white box; now and then an empty or a full one."""
    mask = Image.new(mode, size)
    left, right = sorted(draw.choices(range(size[0] + 1), k=2))
    top, bottom = sorted(draw.choices(range(size[1] + 1), k=2))
    if draw.random() < 0.1:
        left, top, right, bottom = 0, 0, *size
    if right > left and bottom > top:
        ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill="white")
    return mask


def _window(draw: random.Random, call: Combination) -> tuple[dict[str, float], dict[str, float]]:
    """A run of steps, for the reference, whose progress falls from 1 to 0, and for us."""
    first, last = sorted(draw.choices(range(call.steps), k=2))
    if call.cache is not None or draw.random() < 0.5:
        # The reference's cache does not notice that residuals come or go: see docs/caches.md.
        first, last = 0, call.steps - 1
    progress = [(call.steps - 1 - index) / max(call.steps - 1, 1) for index in range(call.steps)]
    theirs = {"start": progress[first] + 0.01, "end": progress[last] - 0.01}
    return theirs, {"start": first / call.steps, "end": (last + 1) / call.steps}


def _entities(draw: random.Random, both: Sides, call: Combination) -> None:
    count = draw.randint(1, 3)
    prompts = draw.choices(PROMPTS, k=count)
    masks = [_mask(draw, draw.choice([call.size, (33, 70)])) for _ in range(count)]
    on_negative = draw.random() < 0.5
    names = ("eligen_entity_prompts", "eligen_entity_masks", "eligen_enable_on_negative")
    call.theirs |= dict(zip(names, (prompts, masks, on_negative)))
    call.conditions.append(EntityRegions(prompts, masks, "own" if on_negative else None))


def _controlnets(draw: random.Random, both: Sides, call: Combination) -> None:
    chosen, inputs = draw.sample(range(len(NETS)), draw.randint(1, 3)), []
    for index in chosen:
        image, scale = _picture(draw, call.size), draw.uniform(0.1, 0.7)
        theirs, ours = _window(draw, call)
        extra: dict[str, Any] = {}
        if NETS[index][0] == "union":
            extra["mode"] = theirs["processor_id"] = draw.choice(MODES)
        if NETS[index][0] == "inpaint":
            extra["inpaint_mask"] = theirs["inpaint_mask"] = _mask(draw, call.size)
        inputs.append(controlnet_input(controlnet_id=index, image=image, scale=scale, **theirs))
        call.conditions.append(ControlNetImage(both.nets[index], image, scale=scale, negative="own", **ours, **extra))
    call.theirs["controlnet_inputs"] = inputs


def _identity(draw: random.Random, both: Sides, call: Combination) -> None:
    identity, guidance, inputs = face(draw.randrange(100)), draw.choice([1.0, 4.0]), []
    for index in draw.sample(range(len(both.infuse_nets)), draw.randint(1, 2)):
        theirs, ours = _window(draw, call)
        points, scale = (POINTS + draw.randint(0, 4) if draw.random() < 0.5 else None), draw.uniform(0.1, 0.7)
        image = Image.new("RGB", call.size) if points is None else draw_face_keypoints(points, *call.size)
        net = len(NETS) + index
        inputs.append(controlnet_input(controlnet_id=net, image=image, scale=scale, **theirs))
        call.conditions.append(
            InfiniteYouIdentity(
                both.infuse_nets[index], both.modules["projector"], id_embeds=identity, keypoints=points, scale=scale,
                guidance_scale=guidance, negative="own", **ours,
            )
        )  # fmt: skip
    call.theirs |= {"controlnet_inputs": inputs, "infinityou_id_image": identity, "infinityou_guidance": guidance}


def _ip_adapter(draw: random.Random, both: Sides, call: Combination) -> None:
    images, scale = [_picture(draw, (40, 30)) for _ in range(draw.randint(1, 2))], draw.uniform(0.3, 1.2)
    call.theirs |= {"ipadapter_images": images, "ipadapter_scale": scale}
    call.conditions.append(
        IPAdapterImages(both.modules["adapter"], images, scale, image_encoder=both.modules["siglip"])
    )


def _references(draw: random.Random, both: Sides, call: Combination) -> None:
    sizes = draw.choices([(16, 80), (48, 32), (32, 32), call.size], k=draw.randint(1, 3))
    images = [_picture(draw, size) for size in sizes]
    call.theirs["kontext_images"] = images
    # Two references at the same places: quirk 18 of the reference, which `layout="same"` has on purpose.
    call.conditions.append(ReferenceImages(images, layout="same", preferred_size=False))


def _redux(draw: random.Random, both: Sides, call: Combination) -> None:
    image = _picture(draw, (40, 30))
    call.theirs["flux_redux_image"] = image
    modules = {"image_embedder": both.modules["redux embedder"], "image_encoder": both.modules["redux vision"]}
    # The reference throws the prompt away on both branches.
    call.conditions.append(ReduxImages(image, prompt_scale=0.0, pooled_scale=0.0, negative="same", **modules))


def _attributes(draw: random.Random, both: Sides, call: Combination) -> None:
    values = [draw.random() for _ in range(draw.randint(1, 2))]
    call.theirs["value_controller_inputs"] = values
    call.conditions.append(AttributeValues(both.modules["values"], dict(zip(("brightness", "detail"), values))))


def _lora_embedding(draw: random.Random, both: Sides, call: Combination) -> None:
    chosen, scale = draw.sample(range(len(both.loras)), draw.randint(1, 2)), draw.uniform(0.3, 1.5)
    call.theirs |= {"lora_encoder_inputs": [both.files[index] for index in chosen], "lora_encoder_scale": scale}
    call.conditions.append(LoRAEmbedding(both.modules["lora encoder"], [both.loras[index] for index in chosen], scale))


def _nexus_gen(draw: random.Random, both: Sides, call: Combination) -> None:
    seed, edits = draw.randrange(100), draw.random() < 0.5
    embeds = image_embeds(seed)
    target, given = torch.tensor([[1, 6, 6]]), torch.tensor([[1, *embeds["reference_grid"].tolist()]])
    if edits:
        call.theirs["nexus_gen_reference_image"] = "a stub knows its embeddings"
        answer = (embeds["image_embeds"][0], embeds["reference_embeds"][0], torch.cat([given, target]))
    else:
        embeds = {"image_embeds": embeds["image_embeds"]}
        answer = (embeds["image_embeds"][0], None, None)
    call.stubs["nexus_gen"] = lambda prompt, image=None: answer
    adapter = both.modules["nexus merger" if edits else "nexus adapter"]
    call.conditions.append(NexusGenEmbedding(adapter, image_embeds=embeds))


def _step1x(draw: random.Random, both: Sides, call: Combination) -> None:
    image, states = _picture(draw, call.size), instruction_embeds(draw.randrange(100), 2, 9)
    mask = torch.arange(9)[None] < torch.tensor([[draw.randint(3, 9)], [draw.randint(3, 9)]])
    call.theirs.setdefault("negative_prompt", "")
    call.theirs["step1x_reference_image"] = image
    call.stubs["qwenvl"] = lambda texts, images: (states, mask.long())
    call.conditions.append(
        Step1XInstruction(
            both.modules["connector"], image, instruction_embeds=states[:1], instruction_mask=mask[:1],
            negative_instruction_embeds=states[1:], negative_instruction_mask=mask[1:],
        )
    )  # fmt: skip


def _fill(draw: random.Random, call: Combination) -> None:
    image, mask = _picture(draw, draw.choice([call.size, (60, 40)])), _mask(draw, call.size)
    call.theirs |= {"flux_fill_image": image, "flux_fill_mask": mask}
    call.conditions.append(FillMask(image, mask, paste_back=False))


def _flex(draw: random.Random, call: Combination) -> None:
    given: dict[str, Any] = {}
    if draw.random() < 0.7:
        given |= {"inpaint_image": _picture(draw, call.size), "inpaint_mask": _mask(draw, call.size)}
    if draw.random() < 0.7:
        given |= {"control_image": _picture(draw, call.size), "control_strength": draw.random()}
        given["control_stop"] = draw.random()
    call.theirs |= {f"flex_{name}": value for name, value in given.items()}
    call.conditions.append(FlexControl(**given))


METHODS: Mapping[str, Callable[[random.Random, Sides, Combination], None]] = {
    "entities": _entities,
    "controlnets": _controlnets,
    "identity": _identity,
    "ip-adapter": _ip_adapter,
    "references": _references,
    "redux": _redux,
    "attributes": _attributes,
    "lora embedding": _lora_embedding,
    "nexus-gen": _nexus_gen,
    "step1x": _step1x,
}
RARE = {"nexus-gen": 0.2, "step1x": 0.2}
"""How often methods are drawn that leave little room for others."""
OPTIONS = ("guidance", "image-to-image", "cache")


def combination(seed: int) -> Combination:
    """The combination of a seed, with all inputs; every method is in somewhat less than every second one."""
    draw = random.Random(seed)
    base = draw.choices(list(BASES), weights=[4, 1, 1, 1])[0]
    call = Combination(seed, base, draw.choice(SIZES), draw.randint(2, 4))
    length, embedded = draw.randint(8, 24), draw.uniform(1, 5)
    call.theirs |= {"t5_sequence_length": length, "embedded_guidance": embedded}
    call.ours |= {"max_sequence_length": length, "guidance_scale": embedded}
    for option, share in zip(OPTIONS, (0.5, 0.3, 0.2)):
        if draw.random() < share and call.allows(option):
            call.names.append(option)
    both = sides(base)
    if "guidance" in call.names:
        prompt, scale = draw.choice(PROMPTS), draw.uniform(1.2, 2.5)
        call.theirs |= {"negative_prompt": prompt, "cfg_scale": scale}
        call.ours |= {"negative_prompt": prompt, "true_cfg_scale": scale}
    if "image-to-image" in call.names:
        image, strength = _picture(draw, call.size), draw.uniform(0.3, 1)
        latents = encode_image(both.ours.vae, both.ours.image_processor.preprocess(image))
        call.theirs |= {"input_image": image, "denoising_strength": strength}
        call.ours |= {"image": latents, "strength": strength}
    if "cache" in call.names:
        call.steps, call.cache = 6, draw.choice([0.5, 2.0, 1e9])
        call.theirs["tea_cache_l1_thresh"] = call.cache
    for method in draw.sample(list(METHODS), len(METHODS)):
        if draw.random() < RARE.get(method, 0.6) and call.allows(method):
            call.names.append(method)
            METHODS[method](draw, both, call)
    if base in ("fill", "flex"):
        {"fill": _fill, "flex": _flex}[base](draw, call)
    # The order of conditions must not matter.
    draw.shuffle(call.conditions)
    return call


def reference_latents(call: Combination) -> torch.Tensor:
    """The reference's last latents, packed; its pipeline decodes and truncates them."""
    reference, kept = sides(call.base).reference, []
    decode = reference.vae_decoder.forward

    def keep(latents: torch.Tensor, **arguments: Any) -> torch.Tensor:
        kept.append(latents)
        return torch.zeros(1, 3, 8, 8)

    reference.vae_decoder.forward = keep
    replaced = {name: getattr(reference, name) for name in call.stubs}
    try:
        for name, stub in call.stubs.items():
            setattr(reference, name, stub)
        reference(
            PROMPTS[0], width=call.size[0], height=call.size[1], seed=0, num_inference_steps=call.steps,
            progress_bar_cmd=list, **call.theirs,
        )  # fmt: skip
    finally:
        reference.vae_decoder.forward = decode
        for name, former in replaced.items():
            setattr(reference, name, former)
    return pack_latents(kept[-1])


def our_latents(call: Combination) -> torch.Tensor:
    """Our last latents, packed."""
    pipe, (width, height) = sides(call.base).ours, call.size
    if "image" in call.ours:
        start: dict[str, Any] = {"generator": seeded(0)}
    else:
        start = {"latents": pack_latents(torch.randn(1, 16, height // 8, width // 8, generator=seeded(0)))}
    if call.cache is not None:
        apply_tea_cache(pipe.transformer, TeaCacheConfig(call.cache))
    try:
        return pipe(
            PROMPTS[0], width=width, height=height, num_inference_steps=call.steps, output_type="latent",
            conditions=call.conditions, **start, **call.ours,
        ).images  # fmt: skip
    finally:
        if call.cache is not None:
            remove_tea_cache(pipe.transformer)


def difference(call: Combination) -> float:
    """The largest difference between both sides' last latents."""
    return float((our_latents(call) - reference_latents(call)).abs().max())

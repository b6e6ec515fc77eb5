"""Redux: what its tokens cost in a step beside the reference, and how its effect depends on the strength.

Run from the repository's root with the reference package installed (see the README's second command):

    python -m benchmarks.redux --part step
    python -m benchmarks.redux --part strength
"""

import argparse
import sys
from typing import Any

import torch
from diffusers import ReduxImageEncoder

from benchmarks.eligen import CONTEXT, POOLED, tiny_transformer
from benchmarks.ip_adapter import Sides, image_ids, measure
from benchmarks.support.reference.dit import reference_dit
from benchmarks.support.reference.pipeline import flux_image
from diffusers_flux_ext import DenoisingStep, PlanCache, PromptEmbeds, ReduxImages, predict_velocity
from diffusers_flux_ext.attention.processor import regional_attention


WIDTH, PATCHES = 64, 27


def smooth_patches(images: int) -> torch.Tensor:
    """Return embeddings of patches that change slowly over the image, with some noise, `(images, 729, 64)`."""
    coarse = torch.randn(images, WIDTH, 6, 6)
    smooth = torch.nn.functional.interpolate(coarse, size=PATCHES, mode="bicubic").flatten(2).mT
    return smooth + 0.3 * torch.randn_like(smooth)


class Step:
    """One step of a transformer, on the reference's side and on ours."""

    def __init__(self, args: argparse.Namespace) -> None:
        side = round(args.image_tokens**0.5)
        self.transformer = tiny_transformer(args.width, args.double, args.single)
        self.embedder = ReduxImageEncoder(redux_dim=WIDTH, txt_in_features=CONTEXT).eval()
        self.latents = torch.randn(1, 16, 2 * side, 2 * side)
        packed = self.latents.view(1, 16, side, 2, side, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, side * side, 64)
        prompt = PromptEmbeds(
            torch.randn(1, args.text_tokens, CONTEXT), torch.randn(1, POOLED), torch.zeros(args.text_tokens, 3)
        )
        self.step = DenoisingStep(
            0, 1, "cond", torch.tensor([0.5]), packed, image_ids(args.image_tokens), prompt, torch.tensor([3.5])
        )
        self.left = (torch.arange(side) < side // 2).repeat(side)[None]

    def ours(self, embeds: torch.Tensor, masked: bool = False, **arguments: Any) -> Any:
        """Return our step as a function, with the condition's contribution made beforehand."""
        condition = ReduxImages(image_embeds=embeds, image_embedder=self.embedder, **arguments)
        encoded = {"image_embeds": embeds[None]}
        if masked:
            encoded |= {"mask_0": self.left, "unmasked_0": torch.tensor([False])}
        parts, cache = [condition.contribute(encoded, self.step)], PlanCache()

        def run() -> torch.Tensor:
            with regional_attention(self.transformer):
                return predict_velocity(self.transformer, self.step, parts, cache)

        return run

    def reference(self, embeds: torch.Tensor) -> Any:
        """Return the reference's step with the same tokens, all of them, after the prompt."""
        dit, prompt = reference_dit(self.transformer), self.step.prompt
        tokens = self.embedder(embeds).image_embeds.flatten(0, 1)[None]
        text = torch.cat([prompt.hidden_states, tokens], dim=1)
        return lambda: flux_image.model_fn_flux_image(
            dit=dit,
            latents=self.latents,
            timestep=torch.tensor([500.0]),
            prompt_emb=text,
            pooled_prompt_emb=prompt.pooled,
            guidance=torch.tensor([3.5]),
            text_ids=torch.zeros(1, text.shape[1], 3),
        )


def print_costs(args: argparse.Namespace) -> None:
    """Median processor seconds of a step, and their ratio to a step without an image."""
    step, one = Step(args), smooth_patches(1)
    sides: Sides = {
        "no image": step.ours(one, scale=0.0),
        "strength 0.25": step.ours(one, scale=0.25),
        "strength 0.5": step.ours(one, scale=0.5),
        "strength 1": step.ours(one),
        "strength 1, masked to the left half": step.ours(one, masked=True),
        "strength 1, the reference": step.reference(one),
        "two images": step.ours(smooth_patches(2)),
    }
    tokens = {"no image": 0, "strength 0.25": 182, "strength 0.5": 364, "two images": 1458}
    times = measure(sides, args.repeats)
    sys.stdout.write("| image | additional text tokens | step, s | relative to no image |\n|" + "---|" * 4 + "\n")
    for name, seconds in times.items():
        ratio = seconds / times["no image"]
        sys.stdout.write(f"| {name} | {tokens.get(name, 729)} | {seconds:.3f} | {ratio:.2f} |\n")


def print_effects(args: argparse.Namespace) -> None:
    """How far a velocity is from that without an image, in units of the whole image's effect."""
    shares = [index / args.strengths for index in range(args.strengths + 1)]
    shown = [round(share * args.strengths) for share in (0.02, 0.1, 0.25, 0.5, 0.75)]
    columns = [f"{index / args.strengths:g}" for index in shown]
    head = ["tokens", *columns, "largest step", "largest decrease"]
    sys.stdout.write("| " + " | ".join(head) + " |\n|" + "---|" * len(head) + "\n")
    step = Step(args)
    embeds = smooth_patches(1)
    for name, combine in {"merged": "groups", "scaled": "sum"}.items():
        velocities = torch.stack([step.ours(embeds, scale=share, combine=combine)() for share in shares])
        whole = (velocities[-1] - velocities[0]).norm()
        effects = (velocities - velocities[0]).flatten(1).norm(dim=1) / whole
        steps = velocities.diff(dim=0).flatten(1).norm(dim=1) / whole
        cells = [*(effects[index] for index in shown), steps.max(), (-effects.diff()).max().clamp(min=0)]
        sys.stdout.write(f"| {name} | " + " | ".join(f"{float(cell):.3f}" for cell in cells) + " |\n")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["step", "strength"], required=True)
    parser.add_argument("--image-tokens", type=int, default=4096)
    parser.add_argument("--text-tokens", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--double", type=int, default=1)
    parser.add_argument("--single", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--strengths", type=int, default=100, help="strengths between 0 and 1")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        {"step": print_costs, "strength": print_effects}[args.part](args)


if __name__ == "__main__":
    main()

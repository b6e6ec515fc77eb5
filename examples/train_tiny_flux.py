"""Make the embedded tiny FLUX.1 ("shapes") and its EliGen LoRA from nothing, on a CPU or a GPU.

```bash
python examples/train_tiny_flux.py --out runs/tiny            # everything; hours on two CPU cores
python examples/train_tiny_flux.py --out runs/try --quick     # every stage for a few steps
```

Every stage is skipped when its result exists, and the long ones resume from their last checkpoint, so that a stopped
run is resumed by the same command. A seed fixes everything that is drawn.
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_flux.build_tokenizers import build_tokenizers
from tiny_flux.eligen import train_eligen
from tiny_flux.evaluate import score_run, table
from tiny_flux.flow import train_flow
from tiny_flux.latents import KINDS, encode_latents
from tiny_flux.settings import QUICK, Amounts, Settings
from tiny_flux.text_pretraining import pretrain_text
from tiny_flux.vae import train_vae
from tqdm import tqdm


logger = logging.getLogger("train_tiny_flux")

STAGES: dict[str, tuple[Callable[[Settings], object], Callable[[Settings], list[Path]]]] = {
    "tokenizers": (build_tokenizers, lambda settings: [settings.tokenizers]),
    "vae": (train_vae, lambda settings: [settings.vae]),
    "text": (pretrain_text, lambda settings: [settings.text_encoders]),
    "latents": (encode_latents, lambda settings: [settings.latents(kind) for kind in KINDS]),
    "flow": (train_flow, lambda settings: [settings.pipeline]),
    "eligen": (train_eligen, lambda settings: [settings.lora]),
}
"""Stages in order: what runs, and what is there afterwards."""


def main(arguments: list[str] | None = None) -> None:
    """Run the stages.

    Args:
        arguments (`list[str]`, *optional*): Command line; the process's own by default.
    """
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = Settings(
        out=options.out,
        seed=options.seed,
        device=options.device,
        compile=options.compile,
        checkpoint_every=options.checkpoint_every,
        amounts=QUICK if options.quick else Amounts(),
    )
    for stage in options.stages:
        run_stage(stage, settings)


def run_stage(stage: str, settings: Settings) -> None:
    """Run one stage unless its results exist.

    Args:
        stage (`str`): A name from `STAGES`, or `"scores"`.
        settings (`Settings`): The run.
    """
    if stage == "scores":
        tqdm.write(table(score_run(settings)))
        return
    run, results = STAGES[stage]
    if all(path.exists() for path in results(settings)):
        logger.info("%s: done before, skipped", stage)
        return
    run(settings)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line.

    Args:
        arguments (`list[str]`, *optional*): Command line; the process's own by default.

    Returns:
        `argparse.Namespace`
    """
    stages = [*STAGES, "scores"]
    parser = argparse.ArgumentParser(description="Make the tiny FLUX.1 and its EliGen LoRA from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--stages", nargs="+", choices=stages, default=stages, help="which stages to run, in order")
    parser.add_argument("--seed", type=int, default=0, help="fixes every draw (default: 0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to train")
    parser.add_argument("--compile", action="store_true", help="compile the transformer: faster after some minutes")
    parser.add_argument("--checkpoint-every", type=int, default=200, help="steps between checkpoints (default: 200)")
    parser.add_argument("--quick", action="store_true", help="a few steps of every stage, to see that they run")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

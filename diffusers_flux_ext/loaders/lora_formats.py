"""How LoRA files spell the Linear layers of FLUX.1."""

from .checkpoint_formats import DOUBLE_BLOCKS, DOUBLE_LINEARS, GLOBAL_LINEARS, SINGLE_BLOCKS, SINGLE_LINEARS


_GROUPS = ((("", "", ""), GLOBAL_LINEARS), (DOUBLE_BLOCKS, DOUBLE_LINEARS), (SINGLE_BLOCKS, SINGLE_LINEARS))

# DiffSynth's Linears, with the diffusers Linears whose rows they stack, in order. `{}` is the block's index.
DIFFSYNTH_LINEARS: dict[str, tuple[str, ...]] = {
    blocks[2] + diffsynth: tuple(blocks[0] + part for part in parts)
    for blocks, rows in _GROUPS
    for parts, _, diffsynth in rows
}

# Names that only DiffSynth uses; the others are shared with diffusers.
DIFFSYNTH_MARKS = (".a_to_", ".b_to_", ".ff_a.", ".ff_b.", ".norm1_a.", ".norm1_b.", ".to_qkv_mlp", "final_norm_out")

"""How LoRA files spell the Linear layers of FLUX.1: tables only."""

# DiffSynth's fused Linears, with the diffusers Linears whose rows they stack, in order. `{}` is the block's index.
DIFFSYNTH_LINEARS: dict[str, tuple[str, ...]] = {
    "blocks.{}.attn.a_to_qkv": (
        "transformer_blocks.{}.attn.to_q",
        "transformer_blocks.{}.attn.to_k",
        "transformer_blocks.{}.attn.to_v",
    ),
    "blocks.{}.attn.b_to_qkv": (
        "transformer_blocks.{}.attn.add_q_proj",
        "transformer_blocks.{}.attn.add_k_proj",
        "transformer_blocks.{}.attn.add_v_proj",
    ),
    "blocks.{}.attn.a_to_out": ("transformer_blocks.{}.attn.to_out.0",),
    "blocks.{}.attn.b_to_out": ("transformer_blocks.{}.attn.to_add_out",),
    "blocks.{}.ff_a.0": ("transformer_blocks.{}.ff.net.0.proj",),
    "blocks.{}.ff_a.2": ("transformer_blocks.{}.ff.net.2",),
    "blocks.{}.ff_b.0": ("transformer_blocks.{}.ff_context.net.0.proj",),
    "blocks.{}.ff_b.2": ("transformer_blocks.{}.ff_context.net.2",),
    "blocks.{}.norm1_a.linear": ("transformer_blocks.{}.norm1.linear",),
    "blocks.{}.norm1_b.linear": ("transformer_blocks.{}.norm1_context.linear",),
    "single_blocks.{}.to_qkv_mlp": (
        "single_transformer_blocks.{}.attn.to_q",
        "single_transformer_blocks.{}.attn.to_k",
        "single_transformer_blocks.{}.attn.to_v",
        "single_transformer_blocks.{}.proj_mlp",
    ),
    "single_blocks.{}.proj_out": ("single_transformer_blocks.{}.proj_out",),
    "single_blocks.{}.norm.linear": ("single_transformer_blocks.{}.norm.linear",),
    "x_embedder": ("x_embedder",),
    "context_embedder": ("context_embedder",),
    "time_embedder.timestep_embedder.0": ("time_text_embed.timestep_embedder.linear_1",),
    "time_embedder.timestep_embedder.2": ("time_text_embed.timestep_embedder.linear_2",),
    "guidance_embedder.timestep_embedder.0": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_embedder.timestep_embedder.2": ("time_text_embed.guidance_embedder.linear_2",),
    "pooled_text_embedder.0": ("time_text_embed.text_embedder.linear_1",),
    "pooled_text_embedder.2": ("time_text_embed.text_embedder.linear_2",),
    "final_norm_out.linear": ("norm_out.linear",),
    "final_proj_out": ("proj_out",),
}

# Names that only DiffSynth uses; the others are shared with diffusers.
DIFFSYNTH_MARKS = (".a_to_", ".b_to_", ".ff_a.", ".ff_b.", ".norm1_a.", ".norm1_b.", ".to_qkv_mlp", "final_norm_out")

# The shift and scale halves of this layer are swapped between the two.
SWAPPED_HALVES = frozenset({"final_norm_out.linear"})

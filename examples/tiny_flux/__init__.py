"""The stages that make the embedded tiny FLUX.1 ("shapes") and its EliGen LoRA from nothing."""

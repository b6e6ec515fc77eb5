"""EliGen: prompts for regions."""

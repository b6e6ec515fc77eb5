"""The composable pipeline."""

"""From what users give to tensors; knows no method."""

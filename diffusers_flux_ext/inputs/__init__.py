"""Turns user inputs into tensors, independently of any method."""

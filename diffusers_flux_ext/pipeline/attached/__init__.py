"""Conditions attached to pipelines of diffusers, whose own loops then run them."""

"""Loading and converting weights."""
